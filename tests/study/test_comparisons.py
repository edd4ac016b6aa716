"""What the notebooks say of several experiments is what their runs say."""

import numpy as np
import pandas as pd
import pytest
import torch

import evaluation
from cnn_models import SquareCNN
from dataset import FeatureDataset
from fma import DataError
from learning.runs import load_history, load_probabilities
from study import comparisons, runner

NAMES = ["chroma_cqt_square", "chroma_cqt_temporal", "chroma_cqt_frequency"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Three experiments with two seeds."""
    folder = tmp_path_factory.mktemp("trained")
    found = runner.run_experiments(NAMES, tiny, 5, 2, runs_dir=folder / "runs", progress=False,
                                   results_dir=folder / "results", device="cpu")
    return folder, *found


def test_notebooks_train_on_one_schedule_and_read_finished_runs(trained, tiny, monkeypatch):
    folder, results, runs = trained
    assert list(results) == NAMES and [s["seed"] for s in results[NAMES[0]]["seeds"]] == [0, 1]
    for name in NAMES:
        settings = results[name]["config"]["training"]
        assert settings["one_cycle"] and settings["epochs"] == 5 and settings["watch_test"] == 5
        assert [run.name for run in runs[name]] == ["seed0", "seed1"] and all(load_history(run) for run in runs[name])
    monkeypatch.setattr("training.train_epoch", lambda *_: pytest.fail("trained again"))
    again, _ = runner.run_experiments(NAMES[:1], tiny, 5, None, runs_dir=folder / "runs", progress=False,
                                      results_dir=folder / "results", device="cpu")       # as many seeds as before
    assert again[NAMES[0]] == results[NAMES[0]]


def test_the_usual_schedule_is_shorter_for_more_clips_and_for_the_demo(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "run_experiment", lambda *args, **where: asked.append((args[3], where["runs_dir"])))
    monkeypatch.setattr(runner, "seed_folders", lambda *_: [])
    runner.run_experiments(NAMES[:1], tiny, runs_dir="drive/{epochs}_epochs")
    for name, clips in (("mine", 1999), ("mine", 2000), ("demo", 192)):
        monkeypatch.setattr(runner, "load_tracks", lambda *_, clips=clips: range(clips))
        runner.run_experiments(NAMES[:1], tiny.parent / name)
    assert [(settings["epochs"], str(folder)) for settings, folder in asked] == [
        (60, "drive/60_epochs"), (60, "runs/60_epochs"), (20, "runs/20_epochs"), (20, "runs/20_epochs")]


def test_layers_add_up_to_all_parameters(tiny):
    dataset = FeatureDataset(tiny, "chroma_cqt")
    table = comparisons.layers("chroma_cqt_square", dataset)
    network = SquareCNN(*dataset.shape, len(dataset.genres))
    assert table.loc["all", "parameters"] == sum(p.numel() for p in network.parameters())
    assert table.loc["convolve.0.0", "kernel"] == "3 × 3" and table.loc["convolve.0.0", "layer"] == "Conv2d"
    assert table["output"].iloc[-2] == str(len(dataset.genres)) and "ReLU" not in set(table["layer"])


def test_pairs_are_compared_on_the_same_clips_and_corrected_for_their_number(trained):
    _, results, runs = trained
    table = comparisons.compare_runs(runs)
    assert list(table.index) == [f"{NAMES[0]} − {NAMES[1]}", f"{NAMES[0]} − {NAMES[2]}", f"{NAMES[1]} − {NAMES[2]}"]
    tests = [[load_probabilities(run) for run in runs[name]] for name in NAMES[:2]]
    one = tests[0][0]
    right = [np.mean([t["probabilities"].argmax(1) == one["labels"] for t in seeds], axis=0) for seeds in tests]
    by_hand = evaluation.compare(*right, one["artists"])
    assert table["difference"].iloc[0] == round(100 * by_hand["difference"], 1)
    assert table["p"].iloc[0] == round(by_hand["p_value"], 4)
    np.testing.assert_allclose(table["p (Holm)"], evaluation.holm(table["p"]), atol=3e-4)
    accuracy = [results[name]["test"]["accuracy"] for name in NAMES]
    assert table["difference"].iloc[2] == pytest.approx(100 * (accuracy[1] - accuracy[2]), abs=0.051)
    one_pair = comparisons.compare_runs(runs, [tuple(NAMES[:2])])
    assert one_pair["p (Holm)"].iloc[0] == one_pair["p"].iloc[0] == table["p"].iloc[0]


def test_runs_on_other_clips_are_not_compared(trained, tmp_path):
    _, _, runs = trained
    other = tmp_path / "seed0"
    other.mkdir()
    with np.load(runs[NAMES[1]][0] / "probabilities.npz") as saved:
        np.savez(other / "probabilities.npz", **{**saved, "test_tracks": saved["test_tracks"] + 1})
    with pytest.raises(DataError, match=f"{NAMES[1]} was tested on other clips than {NAMES[0]}"):
        comparisons.compare_runs({NAMES[0]: runs[NAMES[0]], NAMES[1]: [other]})


def test_verdicts_name_the_pairs_that_differ_and_count_the_rest():
    table = pd.DataFrame({"difference": [7.1, -4.5, 0.3], "p (Holm)": [0.0001, 0.025, 0.9]},
                         ["a − b", "b − c", "a − c"])
    assert comparisons.verdicts(table).splitlines() == [
        "a − b: +7.1 points (corrected p: < 0.001)", "b − c: -4.5 points (corrected p: 0.025)",
        "no significant difference in 1 of 3 pairs"]
    assert comparisons.verdicts(table.iloc[:1]) == "a − b: +7.1 points (corrected p: < 0.001)"


def test_optimism_sets_the_two_protocols_side_by_side(trained):
    _, results, runs = trained
    table = comparisons.optimism(results)
    assert len(table) == 6 and list(table["seed"]) == [0, 1] * 3
    watched = [e["test_accuracy"] for e in load_history(runs[NAMES[0]][0]) if "test_accuracy" in e]
    assert table["best of the saved epochs"].iloc[0] == round(100 * max(watched), 1)
    unwatched = {"x": {"seeds": [{"seed": 0, "test": 0.5, "test_max": None}]}}
    assert comparisons.optimism(unwatched).empty


def test_validation_chooses_the_network_that_is_shown():
    results = {name: {"seeds": [{"validation": v, "test": t}]} for name, v, t in (("a", 0.6, 0.9), ("b", 0.7, 0.1))}
    assert comparisons.best_on_validation(results) == "b"


def test_surest_mistakes_are_wrong_and_of_different_artists(trained, tiny):
    _, _, runs = trained
    run, dataset = runs[NAMES[0]][0], FeatureDataset(tiny, "chroma_cqt")
    wrong = comparisons.surest_mistakes(run, dataset.tracks, most=4)
    assert 0 < len(wrong) <= 4 and (wrong["true"] != wrong["predicted"]).all()
    assert wrong["probability %"].is_monotonic_decreasing
    artists = pd.Series(dataset.artists, dataset.tracks.index)
    assert artists[wrong.index].is_unique
    assert (dataset.tracks["genre"][wrong.index] == wrong["true"]).all()
    test = load_probabilities(run)
    surest = max(test["probabilities"].max(1)[test["probabilities"].argmax(1) != test["labels"]])
    assert wrong["probability %"].iloc[0] == round(100 * float(surest))


def test_shuffling_pieces_leaves_a_network_that_counts_alone(trained, tiny, monkeypatch):
    _, results, runs = trained
    dataset = FeatureDataset(tiny, "chroma_cqt")
    run = runs[NAMES[0]][0]
    in_order, shuffled = comparisons.shuffled_accuracy(run, dataset, piece=16)
    assert in_order == pytest.approx(results[NAMES[0]]["seeds"][0]["test"], abs=1e-6)
    whole = comparisons.shuffled_accuracy(run, dataset, piece=64)                       # one piece: nothing to shuffle
    assert whole == (in_order, in_order)
    assert comparisons.shuffled_accuracy(run, dataset, piece=16) == (in_order, shuffled)

    class Counting(torch.nn.Module):                # the mean over a clip does not hear the order
        def forward(self, x):
            return x.mean(2)[:, :4]

    monkeypatch.setattr(comparisons, "build", lambda config: Counting())
    monkeypatch.setattr(comparisons, "load_weights", lambda run, network: network)
    same = comparisons.shuffled_accuracy(run, dataset, piece=1)
    assert same[0] == same[1]


def test_a_step_of_a_larger_network_takes_longer(tiny):
    dataset = FeatureDataset(tiny, "chroma_cqt")
    assert 0 < comparisons.step_seconds("chroma_cqt_square", dataset, batch_size=2)
    assert (comparisons.step_seconds("cqt_bbnn", dataset, batch_size=32)
            > comparisons.step_seconds("chroma_cqt_temporal", dataset, batch_size=4))
