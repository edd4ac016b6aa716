"""A cross-validated result is one figure over all clips, and every table, test and notebook can read it."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from synthetic import make_collection

import baselines
import experiments
import training
from fma import DataError, run_command
from learning import runs
from plots.page import save_figures
from plots.results import plot_forest
from study.comparisons import compare_runs, shuffled_accuracy
from study.predictions import compare_predictions, load_predictions
from study.result_files import load_results, read_result
from study.runner import run_experiment, run_experiments
from study.tables import results_table

FAST = {"epochs": 2, "batch_size": 16, "lr": 3e-3, "precision": "float32"}
NAME = "chroma_cqt_square"

pytestmark = pytest.mark.usefixtures("one_thread")


def cross_validate(data, folder, repeats=1, name=NAME, **settings):
    return run_experiment(name, data, repeats, FAST | settings, folder / "results", progress=False, folds=True,
                          runs_dir=folder / "runs", device="cpu")


@pytest.fixture(scope="module")
def two_seeds(tiny, tmp_path_factory):
    """Five folds with two seeds: folder and result."""
    folder = tmp_path_factory.mktemp("two")
    return folder, cross_validate(tiny, folder, 2, watch_test=1)


def test_one_figure_over_all_clips_and_a_line_for_each_fold(two_seeds):
    folder, result = two_seeds
    path = folder / "results" / "tiny" / f"{NAME}.json"
    assert read_result(path) == json.loads(json.dumps(result))
    assert (result["test"]["clips"], result["test"]["artists"], result["test"]["seeds"]) == (64, 32, 2)
    said = load_predictions(path.with_suffix(".csv"))
    assert sorted(said.index) == list(range(2, 66))
    for seed in result["seeds"]:
        assert (said[f"seed{seed['seed']}"] == said["genre"]).mean() == pytest.approx(seed["test"], abs=1e-6)
        right = 0
        for fold in seed["folds"]:
            run = folder / "runs" / "tiny" / NAME / f"seed{seed['seed']}_folds" / f"fold{fold['fold']}"
            test, best = runs.load_probabilities(run), runs.selected(runs.load_history(run))
            assert fold["epoch"] == best["epoch"]
            assert fold["validation"] == pytest.approx(best["validation_accuracy"], abs=1e-6)
            right += (test["probabilities"].argmax(1) == test["labels"]).sum()
            assert fold["test"] == pytest.approx((test["probabilities"].argmax(1) == test["labels"]).mean(), abs=1e-6)
        assert seed["test"] == pytest.approx(right / 64, abs=1e-6) and len(seed["folds"]) == 5
        assert seed["test_max"] >= seed["test"] - 1e-6
    each = np.mean([[fold["test"] for fold in seed["folds"]] for seed in result["seeds"]], axis=0)
    assert result["folds"]["count"] == 5 and result["folds"]["test"] == pytest.approx(each, abs=1e-6)
    assert result["folds"]["test_sd"] == pytest.approx(np.std(each, ddof=1), abs=1e-5)
    assert result["test"]["accuracy"] == pytest.approx(np.mean([seed["test"] for seed in result["seeds"]]), abs=1e-6)


def test_cut_off_in_a_fold_it_goes_on_there(tiny, tmp_path, two_seeds, monkeypatch):
    fit, trained = training.fit, []

    def cut(model, dataset, settings, run_dir, progress):
        if run_dir.name == "fold2" and not cut.done:
            cut.done = True
            raise KeyboardInterrupt
        trained.append((run_dir.parent.name, run_dir.name, runs.is_finished(run_dir)))
        return fit(model, dataset, settings, run_dir, progress)

    cut.done = False
    monkeypatch.setattr(training, "fit", cut)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(tiny, tmp_path, 2, watch_test=1)
    assert not (tmp_path / "results").exists()
    with pytest.raises(DataError, match="fold2.probabilities.npz not found: the run is not finished"):
        runs.load_probabilities(tmp_path / "runs" / "tiny" / NAME / "seed0_folds")
    del trained[:]
    result = cross_validate(tiny, tmp_path, 2, watch_test=1)
    assert trained == [(f"seed{s}_folds", f"fold{k}", s == 0 and k < 2) for s in (0, 1) for k in range(5)]
    whole = two_seeds[1]
    assert result["test"] == whole["test"] and result["folds"] == whole["folds"]


def test_the_command_of_one_fold_is_a_run_of_the_whole(tiny, tmp_path, two_seeds, capsys):
    settings = [word for key, value in FAST.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    assert run_command(lambda: training.main(
        [NAME, "--data-dir", str(tiny), "--runs-dir", str(tmp_path), "--device", "cpu", "--fold", "3",
         "--watch-test", "1", *settings])) == 0
    run, whole = (folder / "tiny" / NAME / "seed0_folds" / "fold3" for folder in (tmp_path, two_seeds[0] / "runs"))
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert str(run) in capsys.readouterr().out


def test_the_table_names_the_protocol(two_seeds):
    table = results_table([two_seeds[1]])
    assert ("Measured on tiny; 5 folds by artist; 64 test clips of 32 artists, each tested once, 2 seeds, "
            "epoch chosen on validation, interval over artists.") in table
    assert "protocol" not in table and "balanced" not in table          # 16 clips of each genre
    beside = results_table([two_seeds[1] | {"dataset": "fma_small"}])
    assert "Measured on FMA-small; 5 folds" in beside                   # which is not the official split


def test_a_table_of_both_protocols_says_which_is_which(tiny, tmp_path, two_seeds):
    split = run_experiment("chroma_cqt_temporal", tiny, 1, FAST, tmp_path, progress=False, runs_dir=tmp_path / "runs",
                           device="cpu")
    lines = results_table([two_seeds[1], split]).splitlines()
    assert lines[0].endswith("protocol  |") and lines[2].endswith("5 folds   |") and lines[3].endswith("one split |")
    assert "12 to 64 test clips" in lines[-1] and "each tested once" not in lines[-1]


@pytest.mark.parametrize("folds", [True, False])
def test_a_result_of_another_protocol_is_not_replaced(tiny, tmp_path, two_seeds, folds):
    where = {"results_dir": tmp_path / "results", "progress": False, "runs_dir": tmp_path / "runs", "device": "cpu"}
    path = tmp_path / "results" / "tiny" / f"{NAME}.json"
    if folds:
        run_experiment(NAME, tiny, 1, FAST, **where)
    else:
        shutil.copytree(two_seeds[0] / "results", tmp_path / "results")
    before = path.read_bytes()
    words = "a result on the split of tracks.csv" if folds else "a cross-validated result"
    with pytest.raises(DataError, match=f"{NAME}.json holds {words}: pass another --results-dir"):
        run_experiment(NAME, tiny, 1, FAST, folds=folds, **where)
    assert path.read_bytes() == before


def test_notebooks_take_a_cross_validated_seed_for_a_run(tiny, tmp_path, capsys):
    names = [NAME, "chroma_cqt_temporal"]
    where = {"runs_dir": tmp_path / "runs", "results_dir": tmp_path / "results", "progress": False, "device": "cpu"}
    results, found = run_experiments(names, tiny, 1, folds=True, **where)
    assert results.keys() == found.keys() == set(names)
    [run] = found[NAME]
    assert {len(runs.load_probabilities(run, split)["labels"]) for split in ("validation", "test")} == {64}
    history, parts = runs.load_history(run), [runs.load_history(part) for part in runs.fold_runs(run)]
    assert [epoch["epoch"] for epoch in history] == [1] and type(history[0]["epoch"]) is int
    assert history[0]["train_loss"] == pytest.approx(np.mean([part[0]["train_loss"] for part in parts]))
    assert len(compare_runs(found)) == 1
    dataset = training.open_row({"feature": "chroma_cqt"}, tiny, device="cpu")
    in_order, _ = shuffled_accuracy(run, dataset)
    assert in_order == pytest.approx(results[NAME]["test"]["accuracy"], abs=1e-6)
    tables = {name: load_predictions(tmp_path / "results" / "tiny" / f"{name}.csv") for name in names}
    assert len(compare_predictions(tables)) == 1
    save_figures(results[NAME], tmp_path / "runs", tmp_path / "figures")
    assert len(list((tmp_path / "figures").iterdir())) == 3
    assert len(plot_forest(load_results(tmp_path / "results" / "tiny")).axes) == 1
    again, _ = run_experiments([NAME], tiny, 1, folds=None, **where)            # as the result there is
    assert again[NAME] == results[NAME] and not capsys.readouterr().out


def test_the_command_cross_validates(tiny, tmp_path, capsys):
    assert run_command(lambda: experiments.main(
        ["run", NAME, "--folds", "--epochs", "1", "--data-dir", str(tiny), "--runs-dir", str(tmp_path / "runs"),
         "--results-dir", str(tmp_path / "results"), "--device", "cpu"])) == 0
    assert "5 folds by artist; 64 test clips" in capsys.readouterr().out
    assert experiments.main(["table", "--data-dir", str(tiny), "--results-dir", str(tmp_path / "results")]) is None
    assert "5 folds by artist; 64 test clips" in capsys.readouterr().out


# ---- genres of different size, artists on both sides or unknown --------------------------------------------------


def rewritten(tiny, folder, change):
    """A copy of the collection with its table of tracks changed."""
    data = shutil.copytree(tiny, folder / "tiny", ignore=shutil.ignore_patterns("folds.csv"))
    path = data / "fma_metadata" / "tracks.csv"
    change(pd.read_csv(path, index_col=0, header=[0, 1])).to_csv(path)
    return data


def test_genres_that_differ_in_size_have_balanced_figures_and_the_largest_ones_chance(tiny, tmp_path):
    data = rewritten(tiny, tmp_path, lambda tracks: tracks.replace({"Folk": "Rock", "Metal": "Rock"}))
    result = cross_validate(data, tmp_path)
    assert [genre["clips"] for genre in result["test"]["genres"].values()] == [16, 48]
    recall = [genre["accuracy"] for genre in result["test"]["genres"].values()]
    assert result["test"]["balanced_accuracy"] == pytest.approx(np.mean(recall), abs=1e-5)
    table = results_table([result])
    assert "| balanced % | macro F1 % |" in table.splitlines()[0]
    assert f"{100 * np.mean(recall):.1f}" in table.splitlines()[2]
    assert "chance is 75.0 %, the largest one's share of the clips, and 50.0 % of balanced accuracy" in table
    old = result | {"test": {k: v for k, v in result["test"].items() if not k.startswith(("balanced", "macro_f1"))}}
    row = [cell.strip() for cell in results_table([old]).splitlines()[2].strip("|").split("|")]
    assert row[-2:] == ["–", "–"]                                       # a result from before they were noted


def test_artists_on_both_sides_are_called_out_in_the_table(tiny, tmp_path):
    def leak(tracks):
        tracks.loc[65, ("artist", "id")] = tracks.loc[2, ("artist", "id")]      # a test clip by a training artist
        tracks.loc[64, ("artist", "id")] = tracks.loc[12, ("artist", "id")]
        return tracks
    data = rewritten(tiny, tmp_path, leak)
    result = run_experiment(NAME, data, 1, FAST, tmp_path / "results", progress=False, runs_dir=tmp_path / "runs",
                            device="cpu")
    assert result["leaks"] == 2
    assert results_table([result]).endswith("\n\nwarning: 2 artists are in training and in test")
    assert "leaks" not in cross_validate(data, tmp_path / "folds")              # where artists stay together
    folds = data / "fma_metadata" / "folds.csv"
    folds.write_text("track_id,fold\n" + "".join(f"{track},{(track + 1) // 4 % 5}\n" for track in range(2, 66)))
    assert cross_validate(data, tmp_path / "own")["leaks"] == 17                # every other pair, and one of those


def nobody(tracks):
    tracks["artist", "id"] = None
    return tracks


@pytest.mark.parametrize("change", [lambda tracks: tracks.drop(columns=("artist", "id")), nobody])
def test_without_artists_intervals_are_over_clips_and_the_table_says_so(tiny, tmp_path, change):
    data = rewritten(tiny, tmp_path, change)
    result = run_experiment(NAME, data, 1, FAST, tmp_path / "results", progress=False, runs_dir=tmp_path / "runs",
                            device="cpu")
    assert result["test"]["artists"] is None and None not in result["test"]["interval"]
    table = results_table([result])
    assert "12 test clips, 1 seed, epoch chosen on validation, interval over clips, artists unknown." in table
    assert read_result(tmp_path / "results" / "tiny" / f"{NAME}.json")["test"]["artists"] is None


# ---- classifiers -------------------------------------------------------------------------------------------------


def test_classifiers_are_cross_validated_on_the_same_folds(tmp_path, capsys):
    data = make_collection(tmp_path / "tiny", features=(("chroma_cqt", 12),))
    where = ["--data-dir", str(data), "--runs-dir", str(tmp_path / "runs"), "--results-dir", str(tmp_path / "results")]
    command = ["LDA", "RandomForest", "--features", "chroma_cqt", "--folds", "--repeats", "2", *where]
    baselines.main(command)
    assert "5 folds by artist; 64 test clips of 32 artists, each tested once, 1 to 2 seeds" in capsys.readouterr().out
    name = "baseline_RandomForest_chroma_cqt"
    result = read_result(tmp_path / "results" / "tiny" / f"{name}.json")
    assert [len(seed["folds"]) for seed in result["seeds"]] == [5, 5] and result["folds"]["count"] == 5
    network = cross_validate(data, tmp_path)
    tables = {n: load_predictions(tmp_path / "results" / "tiny" / f"{n}.csv") for n in (name, NAME)}
    assert tables[name].index.equals(tables[NAME].index)                        # the same clips in the same folds
    assert len(compare_predictions(tables)) == 1 and network["test"]["clips"] == result["test"]["clips"]
    before = (tmp_path / "results" / "tiny" / f"{name}.json").read_bytes()
    baselines.main(command)                                                     # all is there
    assert (tmp_path / "results" / "tiny" / f"{name}.json").read_bytes() == before
    found, _ = baselines.fit_baselines(baselines.Statistics(data, features=["chroma_cqt"]), ["LDA"], folds=None,
                                       results_dir=tmp_path / "results", runs_dir=tmp_path / "runs", progress=False)
    assert found["LDA"]["folds"]["count"] == 5                                  # as the existing result is
    with pytest.raises(DataError, match="holds a cross-validated result"):
        baselines.main([word for word in command if word != "--folds"])
