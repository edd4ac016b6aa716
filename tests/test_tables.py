"""The tables in the README are the ones that the results give."""

import json
import re

import pytest
from conftest import ROOT

import experiments
import tables
from fma import DataError, run_command

MARKED = ["README.md", "benchmarks/README.md", "notebooks/README.md"]


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
    assert tables.marked_tables(text, ROOT / "results") == text, \
        f"run: python experiments.py table --readme {name}"


def test_readme_holds_tables_of_both_data_sets():
    found = re.findall(r"<!-- table (\S+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"fma_small", "emotify"} <= set(found)


def test_a_marked_table_is_written_and_nothing_else(results, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- table emotify cqt_s* -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    experiments.main(["table", "--readme", str(path), "--results-dir", str(results)])
    once = path.read_text(encoding="utf-8")
    assert once.startswith("before\n<!-- table emotify cqt_s* -->\n") and once.endswith("<!-- end -->\nafter\n")
    assert "old" not in once and "cqt_square" in once and "cqt_temporal" not in once
    result = json.loads((results / "emotify" / "cqt_square.json").read_text(encoding="utf-8"))
    assert tables.results_table([result]) in once
    experiments.main(["table", "--readme", str(path), "--results-dir", str(results)])
    assert path.read_text(encoding="utf-8") == once


@pytest.mark.parametrize(("text", "message"), [
    ("<!-- table emotify mel_* -->\n<!-- end -->", "has no result that is named mel_"),
    ("<!-- table emotiv cqt_* -->\n<!-- end -->", "no results in .*emotiv"),
])
def test_a_mark_without_results_is_one_line(results, text, message):
    with pytest.raises(DataError, match=message) as error:
        tables.marked_tables(text, results)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path, capsys):
    assert run_command(lambda: experiments.main(["table", "--readme", str(tmp_path / "none.md")])) == 2
    assert "none.md not found" in capsys.readouterr().err
