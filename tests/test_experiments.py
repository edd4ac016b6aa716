"""The experiments are the original study's; a result says what was measured, and test chooses nothing."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from synthetic import made_up

import experiments
import training
from audio.transforms import VARIANTS
from experiments import load_results, results_table
from fma import DataError, run_command
from learning import runs
from study import result_files, rows, runner
from study.predictions import correctness, load_answers, load_predictions
from study.rows import EXPERIMENTS
from study.runner import run_experiment

# Best test accuracy over saved epochs, in per cent, from the tables of the original study.
CNNS = {                # frequency, temporal, square
    "chroma_cqt": (36.0, 32.8, 33.5), "chroma_cens": (31.6, 28.4, 29.9), "chroma_stft": (37.6, 35.1, 35.5),
    "mel_stft": (40.9, 36.8, 38.6), "cqt": (45.5, 39.3, 43.1),
}
BLOCKS = {"resnet_second": 42.8, "densenet_second": 45.8, "resnet_all": 44.8, "densenet_all": 46.7}
CRNNS = {               # LSTM, bidirectional LSTM, GRU, bidirectional GRU
    "sequential": (41.5, 40.1, 44.9, 43.4), "parallel": (42.0, 44.9, 43.1, 41.6),
}
BINS = {"cqt": 84, "mel_stft": 128, "mel128": 128, "chroma_cqt": 12, "chroma_cens": 12, "chroma_stft": 12}
BINS |= {name: given["bins"] for name, given in VARIANTS.items()}
FAST = {"epochs": 2, "batch_size": 16, "lr": 3e-3, "precision": "float32"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def three_seeds(tiny, tmp_path_factory):
    """An experiment run with three seeds: folder and result."""
    folder = tmp_path_factory.mktemp("three")
    result = run_experiment("chroma_cqt_square", tiny, 3, FAST | {"epochs": 4, "watch_test": 2}, folder / "results",
                            progress=False, runs_dir=folder / "runs", device="cpu")
    return folder, result


def command(capsys, *argv):
    """Exit status of `python experiments.py`, run here, and what it prints on stdout and stderr."""
    capsys.readouterr()
    status = run_command(lambda: experiments.main([str(arg) for arg in argv]))
    said = capsys.readouterr()
    return status, said.out, said.err


# ---- the rows of the study ---------------------------------------------------------------------------------


def reported():
    rows = {f"{feature}_{network}": figure for feature, figures in CNNS.items()
            for network, figure in zip(("frequency", "temporal", "square"), figures, strict=True)}
    rows |= {f"cqt_frequency_{blocks}": figure for blocks, figure in BLOCKS.items()}
    rows |= {f"cqt_{order}_{rnn}": figure for order, figures in CRNNS.items()
             for rnn, figure in zip(("lstm", "lstm_bi", "gru", "gru_bi"), figures, strict=True)}
    return rows | {"cqt_bbnn": 51.1}


def test_reported_figures_are_those_of_the_original_tables():
    assert {name: row["reported"] for name, row in EXPERIMENTS.items() if row.get("reported")} == reported()


def test_what_the_original_did_not_report_is_not_made_up():
    others = {name for name in EXPERIMENTS if name not in reported()}
    assert others >= {"mel128_frequency", "mel128_temporal", "mel128_square", "mel_stft_bbnn_paper"}
    assert not any(EXPERIMENTS[name].get("reported") for name in others)


@pytest.mark.parametrize("name", [name for name, row in EXPERIMENTS.items() if row["feature"] in BINS])
def test_every_network_of_the_study_can_be_built(name):
    row = EXPERIMENTS[name]
    bins, frames = BINS[row["feature"]], 128 if row["feature"] == "mel128" else 640
    args = {"n_bins": bins, "n_frames": frames, "n_classes": 8, **row.get("args", {})}
    model = training.build({"model": {"class": row["model"], "args": args}}).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, bins, frames)).shape == (1, 8)
    training.Training(**row.get("training", {}))            # its settings exist


@pytest.mark.parametrize("name, model, args", [
    ("mel_stft_temporal", "TemporalCNN", {}),
    ("cqt_frequency_resnet_second", "FrequencyCNN", {"blocks": ("basic", "resnet", "basic", "basic")}),
    ("cqt_frequency_densenet_all", "FrequencyCNN", {"blocks": ("densenet",) * 4}),
    ("cqt_sequential_gru", "SequentialCRNN", {"rnn": "gru", "bidirectional": False}),
    ("cqt_parallel_lstm_bi", "ParallelCRNN", {"rnn": "lstm", "bidirectional": True}),
    ("cqt_bbnn", "BBNN", {}), ("mel_stft_bbnn_paper", "BBNN", {"variant": "paper"}),
])
def test_a_name_says_what_is_trained(name, model, args):
    row = EXPERIMENTS[name]
    assert name.startswith(row["feature"]) and (row["model"], row.get("args", {})) == (model, args)


def test_every_variant_of_a_feature_has_its_rows_outside_the_study():
    assert set(rows.PUZZLE) == {f"{name}_{short}" for name in VARIANTS for short in ("frequency", "square")}
    assert not set(rows.PUZZLE) & set(rows.STUDY) and set(rows.PUZZLE) <= set(EXPERIMENTS)


def test_the_demo_has_one_of_each_family():
    assert {EXPERIMENTS[name]["model"] for name in rows.DEMO} >= {
        "FrequencyCNN", "TemporalCNN", "SquareCNN", "SequentialCRNN", "BBNN"}
    for name, settings in rows.DEMO.items():
        training.Training(**rows.QUICK | settings)
        assert isinstance(EXPERIMENTS[name]["feature"], str)        # chunks are for one feature alone


# ---- a result ----------------------------------------------------------------------------------------------


def test_a_result_holds_all_that_a_table_needs(tiny, three_seeds):
    folder, result = three_seeds
    assert json.loads((folder / "results" / "tiny" / "chroma_cqt_square.json").read_text()) == json.loads(
        json.dumps(result))
    assert set(result) == {"experiment", "dataset", "seeds", "test", "parameters", "config", "device", "versions",
                           "data", "commit"}
    assert result["dataset"] == "tiny" and result["parameters"] == 241_084      # 241,216 less 4 of 8 genres
    assert [seed["seed"] for seed in result["seeds"]] == [0, 1, 2]
    for seed in result["seeds"]:
        assert set(seed) == {"seed", "epoch", "epochs", "validation", "test", "test_max", "seconds"}
    assert set(result["config"]) == {"model", "feature", "feature_parameters", "scale", "training"}
    assert result["config"]["training"] | FAST | {"epochs": 4} == result["config"]["training"]
    assert result["test"]["clips"] == 12 and result["test"]["artists"] == 6 and result["test"]["seeds"] == 3
    assert np.sum(result["test"]["confusion"]) == 3 * 12 and set(result["versions"]) >= {"python", "torch", "numpy"}
    assert len(result["test"]["macro_auc_per_seed"]) == 3


def test_what_each_seed_said_stands_beside_the_result(three_seeds):
    folder, result = three_seeds
    said = load_predictions(folder / "results" / "tiny" / "chroma_cqt_square.csv")
    assert list(said.columns) == ["artist", "genre", "seed0", "seed1", "seed2"] and len(said) == 12
    for seed in result["seeds"]:
        assert (said[f"seed{seed['seed']}"] == said["genre"]).mean() == pytest.approx(seed["test"], abs=1e-6)
    assert said["artist"].nunique() == result["test"]["artists"]


def test_accuracies_are_those_of_the_saved_probabilities(three_seeds):
    folder, result = three_seeds
    for seed in result["seeds"]:
        run_dir = folder / "runs" / "tiny" / "chroma_cqt_square" / f"seed{seed['seed']}"
        for split, figure in (("test", seed["test"]), ("validation", seed["validation"])):
            said = runs.load_probabilities(run_dir, split)
            assert figure == pytest.approx((said["probabilities"].argmax(1) == said["labels"]).mean(), abs=1e-6)
        assert seed["epoch"] == runs.selected(runs.load_history(run_dir))["epoch"]
    tests = [seed["test"] for seed in result["seeds"]]
    assert result["test"]["accuracy"] == pytest.approx(np.mean(tests), abs=1e-6)
    assert result["test"]["accuracy_sd"] == pytest.approx(np.std(tests, ddof=1), abs=1e-6)


def test_running_again_trains_nothing_and_gives_the_same_result(tiny, three_seeds, monkeypatch):
    folder, result = three_seeds
    path = folder / "results" / "tiny" / "chroma_cqt_square.json"
    before = path.read_bytes()
    monkeypatch.setattr(training, "train_epoch", lambda *args: pytest.fail("trained again"))
    again = run_experiment("chroma_cqt_square", tiny, 3, FAST | {"epochs": 4, "watch_test": 2}, folder / "results",
                           progress=False, runs_dir=folder / "runs", device="cpu")
    assert again == result and path.read_bytes() == before


def test_test_max_is_the_best_watched_epoch_and_chooses_nothing(tiny, tmp_path, monkeypatch):
    script = {"validation": iter([(1.0, 0.5), (0.9, 0.7), (0.8, 0.6), (0.7, 0.6)]),
              "test": iter([(1.0, 0.95), (1.0, 0.1)])}       # watched after epochs 2 and 4
    monkeypatch.setattr(training, "score", lambda model, dataset, split, *_: next(script[split]))
    result = run_experiment("chroma_cqt_square", tiny, 1, FAST | {"epochs": 4, "watch_test": 2}, tmp_path,
                            progress=False, runs_dir=tmp_path / "runs", device="cpu")
    seed = result["seeds"][0]
    assert (seed["epoch"], seed["validation"], seed["test_max"]) == (2, 0.7, 0.95) and seed["test"] != 0.95


def test_without_watching_there_is_no_test_max(tiny, tmp_path):
    result = run_experiment("chroma_cqt_square", tiny, 1, FAST, tmp_path, progress=False, runs_dir=tmp_path / "runs",
                            device="cpu")
    assert result["seeds"][0]["test_max"] is None and result["test"]["accuracy_sd"] is None


def test_seeds_tested_on_different_clips_are_not_averaged(three_seeds, tmp_path):
    folder, _ = three_seeds
    seeds = [folder / "runs" / "tiny" / "chroma_cqt_square" / f"seed{k}" for k in (0, 1)]
    for seed in seeds:
        (tmp_path / seed.name).mkdir()
        for path in seed.iterdir():
            (tmp_path / seed.name / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "seed1" / "probabilities.npz"
    with np.load(path) as saved:
        np.savez(path, **{key: value[1:] if key.startswith("test") else value for key, value in saved.items()})
    with pytest.raises(DataError, match=f"^{tmp_path}: its runs were tested on different clips"):
        result_files.summarise_runs("chroma_cqt_square", [tmp_path / "seed0", tmp_path / "seed1"])


# ---- the table ---------------------------------------------------------------------------------------------


def cells(table):
    """Rows of a Markdown table as dicts."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_table_says_what_was_measured_on_what(three_seeds):
    _, result = three_seeds
    spread = zip(result["seeds"], (0.5, 0.6, 0.9), strict=True)
    result = result | {"seeds": [seed | {"validation": accuracy} for seed, accuracy in spread]}
    table = results_table([result])
    [row] = cells(table)
    percent = [100 * seed["test"] for seed in result["seeds"]]
    assert row["test %"] == f"{np.mean(percent):.1f} ± {np.std(percent, ddof=1):.1f}"
    assert row["validation %"] == "66.7 ± 20.8"
    assert (row["experiment"], row["network"], row["parameters"]) == ("chroma_cqt_square", "SquareCNN", "241,084")
    assert re.search(r"Measured on tiny; 12 test clips of 6 artists, 3 seeds, epoch chosen on validation", table)
    assert "reported %" not in row                          # the original's figures are FMA's: not beside other data


def test_beside_fma_stands_what_the_original_reported(three_seeds):
    ours = three_seeds[1] | {"dataset": "fma_small"}
    unreported = ours | {"experiment": "mel128_square", "seeds": [s | {"test_max": None} for s in ours["seeds"]]}
    table = results_table([ours, unreported])
    first, second = cells(table)
    best = [100 * seed["test_max"] for seed in ours["seeds"]]
    assert first["test_max %"] == f"{np.mean(best):.1f} ± {np.std(best, ddof=1):.1f}"
    assert first["reported %"] == "33.5" and second["reported %"] == second["test_max %"] == "–"
    assert "best test accuracy over saved epochs, not comparable" in table


def test_a_table_of_different_clips_names_both_numbers(three_seeds):
    _, result = three_seeds
    fewer = result | {"experiment": "cqt_square", "test": result["test"] | {"clips": 11, "seeds": 1}}
    assert "11 to 12 test clips of 6 artists, 1 to 3 seeds" in results_table([result, fewer])


def test_the_synthetic_corpus_is_never_taken_for_music(three_seeds):
    assert "SYNTHETIC" in results_table([three_seeds[1] | {"dataset": "demo"}])


# ---- the command -------------------------------------------------------------------------------------------


def test_list_names_every_experiment(capsys):
    status, said, _ = command(capsys, "list")
    rows = {row["experiment"]: row for row in cells(said)}
    assert status == 0 and list(rows) == list(EXPERIMENTS)
    assert rows["cqt_bbnn"]["reported by the original %"] == "51.1"
    assert rows["mel128_square"]["reported by the original %"] == "–"


def test_run_then_table(tiny, tmp_path, capsys):
    where = ("--data-dir", tiny, "--runs-dir", tmp_path / "runs", "--results-dir", tmp_path / "results")
    names = ("chroma_cqt_temporal", "chroma_cqt_square")
    status, ran, _ = command(capsys, "run", *names, "--quick", "--epochs", 1, "--page", *where)
    assert status == 0 and [row["experiment"] for row in cells(ran)] == list(names)
    assert sorted(path.name for path in (tmp_path / "results" / "tiny").glob("*.json")) == [
        "chroma_cqt_square.json", "chroma_cqt_temporal.json"]
    config = runs.load_config(tmp_path / "runs" / "tiny" / "chroma_cqt_square" / "seed0")["training"]
    assert (config["epochs"], config["batch_size"], config["one_cycle"]) == (1, 16, True)
    status, table, _ = command(capsys, "table", "--data-dir", tiny, "--results-dir", tmp_path / "results")
    assert status == 0 and "Measured on tiny; 12 test clips" in table
    *_, advice, last = ran.splitlines()
    assert "predict.py song.mp3" in advice and last == str(tmp_path / "runs" / "tiny" / "index.html")
    assert (tmp_path / "runs" / "tiny" / "index.html").is_file()
    assert cells(table) == [{k: v for k, v in row.items() if k != "seconds"} for row in cells(ran)]


def test_finished_trainings_are_rows_of_the_table_and_of_the_notebooks(tiny, tmp_path, capsys, monkeypatch):
    data = shutil.copytree(tiny, tmp_path / "tiny")
    name, where = "own_square", ["--data-dir", str(data), "--runs-dir", str(tmp_path / "runs")]
    for ending in ("npy", "json"):
        shutil.copy(data / "features" / f"chroma_cqt.{ending}", data / "features" / f"own.{ending}")
    for more in ([], ["--seed", "1"], ["--fold", "2"], ["--seed", "2", "--lr", "0.01"]):
        training.main([name, *where, "--epochs", "1", "--one-cycle", *more])
    status, table, _ = command(capsys, "table", *where, "--results-dir", tmp_path / "results")
    names = [f"{name}, lr 0.001", f"{name}, lr 0.01", f"{name}, fold 2"]
    assert status == 0 and [row["experiment"] for row in cells(table)] == names
    assert "1 to 2 seeds" in table and f"Read from finished runs: {'; '.join(names)}." in table
    found = load_results(tmp_path / "results" / "tiny", tmp_path / "runs" / "tiny")
    answers = load_answers(found, tmp_path / "results")
    assert [len(answers[name].columns) for name in names] == [4, 3, 3]         # artist, genre and the seeds
    assert [r["test"]["accuracy"] for r in found] == pytest.approx([correctness(answers[n]).mean() for n in names])
    monkeypatch.setattr(training, "train_epoch", lambda *_: pytest.fail("trained again"))
    for repeats, also in ((2, []), (1, [f"{name}, seed1"])):
        results = tmp_path / str(repeats) / "tiny"
        status, ran, _ = command(capsys, "run", name, *where, "--results-dir", results.parent, "--epochs", 1,
                                 "--one-cycle", "--repeats", repeats)
        assert status == 0 and len(cells(ran)) == 1
        assert [r["experiment"] for r in load_results(results)] == [name]
        both = load_results(results, tmp_path / "runs" / "tiny")
        assert {r["experiment"] for r in both} == {name, *also, *names[1:]} and len(both) == 3 + len(also)


@pytest.mark.parametrize("argv, words", [
    (("run", "cqt_sqaure"), "no experiment is named cqt_sqaure: see python experiments.py list"),
    (("run", "chroma_cqt_square", "--repeats", 0), "--repeats must be at least 1"),
    (("run", "chroma_cqt_square", "--epochs", 0), "epochs must be above 0"),
    (("run", "mfcc_square"), "mfcc.npy not found: run features.py --features mfcc"),
    (("table",), "python experiments.py run"),
])
def test_what_is_wrong_is_one_line_and_status_2(tiny, tmp_path, capsys, argv, words):
    where = ["--data-dir", tiny, "--results-dir", tmp_path / "results"]
    if argv[0] == "run":
        where += ["--runs-dir", tmp_path / "runs"]
    status, _, said = command(capsys, *argv, *where)
    assert status == 2 and words in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_damaged_or_foreign_result_is_named(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(DataError, match=f"^no results in {tmp_path}: python experiments.py run"):
        load_results(tmp_path)
    (tmp_path / "cqt_bbnn.json").write_text('{"experiment"')
    with pytest.raises(DataError, match=f"^{tmp_path}/cqt_bbnn.json is damaged: delete it"):
        load_results(tmp_path)


def test_each_result_is_read_once_networks_between_classifiers_and_ensembles(tmp_path):
    names = ["baseline_SVC", "cqt_temporal", "cqt_square", "flux_square", "ensemble_bbnn", "ensemble_scratch"]
    for name in reversed(names):            # ensemble_bbnn is no BBNN on a feature "ensemble"
        made_up(name, 0, 0.5, tmp_path)
    assert [r["experiment"] for r in load_results(tmp_path)] == names


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["table", "--help"]])
def test_help(capsys, argv):
    with pytest.raises(SystemExit) as end:
        experiments.main(argv)
    assert end.value.code == 0 and "usage:" in capsys.readouterr().out


def test_a_result_is_not_replaced_by_one_that_lacks_its_seeds_or_schedule(tiny, tmp_path, three_seeds, capsys):
    folder, result = three_seeds
    where = {"results_dir": folder / "results", "runs_dir": tmp_path / "runs", "progress": False, "device": "cpu"}
    path, same = folder / "results" / "tiny" / "chroma_cqt_square.json", FAST | {"epochs": 4, "watch_test": 2}
    before = path.read_bytes()
    for repeats, seed, settings, words in (
            (1, 0, same, "has 3 seeds: pass --repeats 3, or another"),
            (3, 1, same, "holds more seeds .0.: pass another"),
            (3, 0, same | {"epochs": 1}, "holds runs with epochs 4: pass another"),
            (3, 0, same | {"lr": 1e-5}, "holds runs with lr 0.003: pass another")):
        with pytest.raises(DataError, match=f"chroma_cqt_square.json {words} --results-dir"):
            run_experiment("chroma_cqt_square", tiny, repeats, settings, seed=seed, **where)
    assert path.read_bytes() == before and not (tmp_path / "runs").exists()         # and nothing was trained for it
    unwatched = json.loads(before)
    unwatched["config"]["training"]["watch_test"] = 0                               # what lacks test_max loses nothing
    (tmp_path / "unwatched.json").write_text(json.dumps(unwatched))
    row = runner.find_row("chroma_cqt_square")
    assert runner.would_be_lost(tmp_path / "unwatched.json", row, same, range(3)) == ""
    capsys.readouterr()
    quick, _ = runner.run_experiments(["chroma_cqt_square"], tiny, 1, **where)     # a notebook's quick look
    assert "and is kept" in capsys.readouterr().out and path.read_bytes() == before
    kept = json.loads((tmp_path / "runs" / "results" / "tiny" / "chroma_cqt_square.json").read_text())
    assert kept == json.loads(json.dumps(quick["chroma_cqt_square"])) != result


@pytest.mark.parametrize("content", ["", "half", "[]", "{}"])
def test_a_damaged_result_is_one_line(tiny, tmp_path, content):
    path = tmp_path / "results" / "tiny" / "chroma_cqt_square.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    for read in (lambda: load_results(path.parent),
                 lambda: run_experiment("chroma_cqt_square", tiny, results_dir=tmp_path / "results")):
        with pytest.raises(DataError, match="chroma_cqt_square.json is damaged: delete it") as error:
            read()
        assert "\n" not in str(error.value)
