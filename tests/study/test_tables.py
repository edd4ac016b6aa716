"""The tables in the README are the ones that the results give."""

import json
import re

import pytest
from conftest import ROOT
from synthetic import made_up

import experiments
from evaluation import format_accuracy
from fma import DataError, run_command
from study import marked_tables, result_files, tables

MARKED = ["README.md", "docs/results.md"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The committed results of Emotify-400, copied to a folder of their own."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "emotify").mkdir()
    for name in ("cqt_square", "cqt_temporal"):
        text = (ROOT / "results" / "emotify" / f"{name}.json").read_text(encoding="utf-8")
        (folder / "emotify" / f"{name}.json").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", MARKED)
def test_committed_tables_are_up_to_date(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert marked_tables.marked_tables(text, ROOT / "results") == text, \
        f"run: python experiments.py table --readme {name}"


def test_the_tables_of_both_data_sets_are_shown():
    found = re.findall(r"<!-- table (\S+)", (ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert {"fma_small", "emotify"} <= set(found)
    assert "<!-- study " in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_study_s_table_has_its_figures_beside_ours(results):
    text = marked_tables.marked_tables("<!-- study emotify -->\n<!-- end -->", results)
    rows = {row[0]: row[1:] for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()
                                        if line.startswith("|"))}
    square = json.loads((results / "emotify" / "cqt_square.json").read_text(encoding="utf-8"))["test"]
    assert rows["CQT"][1::2] == ["45.5", "39.3", "43.1"]
    assert rows["Chroma CENS"] == ["–", "31.6", "–", "28.4", "–", "29.9"]
    assert rows["CQT"][0] == "–" and rows["CQT"][4] == format_accuracy(square)
    assert f"{square['clips']} test clips of {square['artists']} artists" in text and "Chance is 25.0 %" in text


def test_a_marked_table_is_written_and_nothing_else(results, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- table emotify cqt_s* -->\nstale\n<!-- end -->\nafter\n", encoding="utf-8")
    experiments.main(["table", "--readme", str(path), "--results-dir", str(results)])
    once = path.read_text(encoding="utf-8")
    assert once.startswith("before\n<!-- table emotify cqt_s* -->\n") and once.endswith("<!-- end -->\nafter\n")
    assert "stale" not in once and "cqt_square" in once and "cqt_temporal" not in once
    result = json.loads((results / "emotify" / "cqt_square.json").read_text(encoding="utf-8"))
    assert tables.results_table([result]) in once
    experiments.main(["table", "--readme", str(path), "--results-dir", str(results)])
    assert path.read_text(encoding="utf-8") == once


@pytest.mark.parametrize(("text", "message"), [
    ("<!-- table emotify mel_* -->\n<!-- end -->", "has no result named mel_"),
    ("<!-- table emotiv cqt_* -->\n<!-- end -->", "no results in .*emotiv"),
    ("<!-- table emotify -->\n<!-- end -->", "names no experiment"),
])
def test_a_mark_without_results_is_one_line(results, text, message):
    with pytest.raises(DataError, match=message) as error:
        marked_tables.marked_tables(text, results)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path, capsys):
    assert run_command(lambda: experiments.main(["table", "--readme", str(tmp_path / "none.md")])) == 2
    assert "none.md not found" in capsys.readouterr().err


READ = """experiment dataset parameters config config.model config.model.class config.model.args config.feature
config.feature_parameters config.training seeds seeds.0 seeds.0.seed seeds.0.epoch seeds.0.validation seeds.0.test
seeds.0.test_max seeds.0.seconds test test.clips test.artists test.seeds test.accuracy test.accuracy_sd test.interval
test.interval.0 test.macro_auc test.genres test.confusion""".split()        # what tables and notebooks read of a result


@pytest.mark.parametrize("place", READ)
@pytest.mark.parametrize("gone", [True, False])
def test_a_result_without_what_is_read_of_it_is_named(tmp_path, place, gone):
    made_up("cqt_square", 0, 0.5, tmp_path)
    path = tmp_path / "cqt_square.json"
    assert result_files.read_result(path) == (result := json.loads(path.read_text(encoding="utf-8")))
    *above, last = (int(key) if key.isdigit() else key for key in place.split("."))
    node = result
    for key in above:
        node = node[key]
    if gone:
        del node[last]
    else:
        node[last] = 7 if isinstance(node[last], dict) else {}
    path.write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(DataError, match=f"^{path} is damaged: delete it"):
        result_files.read_result(path)


def test_shares_are_of_one_and_whole_numbers_are_numbers(tmp_path):
    made_up("cqt_square", 0, 0.5, tmp_path)
    path = tmp_path / "cqt_square.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"validation": 0.5', '"validation": 1'), encoding="utf-8")
    assert "100.0" in tables.results_table([result_files.read_result(path)])
    for value in ("1.1", "-0.1", "NaN", "Infinity", "1" + "0" * 400, "[" * 99_999 + "]" * 99_999):
        path.write_text(text.replace('"validation": 0.5', f'"validation": {value}'), encoding="utf-8")
        with pytest.raises(DataError, match="is damaged"):
            result_files.read_result(path)
    result = json.loads(text)
    result["test"]["genres"] = {}
    path.write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(DataError, match="is damaged"):
        result_files.read_result(path)


def test_a_test_set_of_one_genre_has_no_area_and_seeds_may_lack_their_seconds(tmp_path):
    made_up("cqt_square", 0, 0.5, tmp_path)
    result = result_files.read_result(tmp_path / "cqt_square.json")
    result["test"]["macro_auc"], result["experiment"] = None, "mine"
    result["seeds"].append(result["seeds"][0] | {"seed": 1, "seconds": None})
    text = tables.results_table([result | {"dataset": "fma_small"}], seconds=True)
    assert [cell.strip() for cell in text.splitlines()[2].split("|")[-3:-1]] == ["–"] * 2


def test_a_file_that_is_not_utf_8_is_one_line_and_stays(results, tmp_path):
    (tmp_path / "README.md").write_bytes(before := "Müller <!-- table emotify * -->\n<!-- end -->".encode("latin-1"))
    with pytest.raises(DataError, match="README.md, or a result in it, is not UTF-8"):
        marked_tables.write_marked_tables(tmp_path / "README.md", results)
    assert (tmp_path / "README.md").read_bytes() == before


@pytest.fixture
def ablated(tmp_path):
    for name, accuracy in (("cqt_square", 0.9), ("cqt_square_linear", 0.4), ("cqt_square_one_dropout", 0.9),
                           ("cqt_frequency_one_dropout", 0.5)):
        made_up(name, 0, accuracy, tmp_path / "some")
    return tmp_path


def test_an_ablation_is_compared_with_the_row_that_it_changes(ablated):
    text = marked_tables.marked_tables("<!-- ablations some cqt_* -->\n<!-- end -->", ablated)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| cqt")]
    assert [row[:2] for row in rows] == [["cqt_square", "linear"], ["cqt_square", "one_dropout"]]
    linear, other = rows
    assert linear[4:7] == ["90.0", "40.0", "-50.0"] and linear[8] == "< 0.001"
    assert other[4:7] == ["90.0", "90.0", "+0.0"] and other[8] == "1.000"
    low, high = (float(end) for end in linear[7].split(" to "))
    assert low < -50 < high < 0 and "40 test clips of 20 artists, 1 seed" in text


def test_rows_with_one_thing_changed_are_not_rows_of_the_study(ablated):
    text = marked_tables.marked_tables("<!-- table some cqt_* -->\n<!-- end -->", ablated)
    assert "| cqt_square " in text and "cqt_square_linear" not in text


def test_what_cannot_be_compared_is_one_line(ablated):
    for names, message in (("cqt_frequency*", "no ablation among the results"), ("cqt_square*", "cqt_square.csv not")):
        (ablated / "some" / "cqt_square.csv").unlink(missing_ok=True)
        with pytest.raises(DataError, match=message) as error:
            marked_tables.marked_tables(f"<!-- ablations some {names} -->\n<!-- end -->", ablated)
        assert "\n" not in str(error.value)


def test_a_table_ends_where_its_own_mark_is():
    """A study's table before another one must not take what lies between for its names."""
    text = ("<!-- study allmusic -->\nstale\n<!-- end -->\n\nprose\n\n<!-- table allmusic cqt_square -->\nstale\n"
            "<!-- end -->\n")
    written = marked_tables.marked_tables(text, ROOT / "results")
    assert written.count("<!-- end -->") == 2 and "prose" in written and "stale" not in written
    assert written.index("Mel STFT") < written.index("prose") < written.index("| cqt_square")
