"""A late fusion weighs its members on validation, and reads nothing of the test before."""

import json

import numpy as np
import pytest
import torch
from synthetic import make_collection

import training
from fma import DataError, run_command
from learning.runs import commit, load_probabilities
from study import classifiers, ensembles, tables
from study.ensembles import fit_weights, join_runs
from study.statistics import Statistics

pytestmark = pytest.mark.usefixtures("one_thread")


def answers(share, clips=400, seed=0):
    """Log probabilities that lean to the right one of three genres, by a share; and the labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % 3
    return np.log((1 - share) * rng.dirichlet([2] * 3, clips) + share * np.eye(3)[labels]), labels


def cross_entropy(log_scores, labels):
    return -torch.from_numpy(log_scores).log_softmax(1)[np.arange(len(labels)), labels].mean().item()


def test_weights_are_the_best_there_are():
    (good, labels), (weak, _) = answers(0.3), answers(0.1, seed=1)
    scores = np.stack([good, weak])
    best = fit_weights(scores, labels)
    least = cross_entropy(np.tensordot(best, scores, 1), labels)
    assert best[0] > best[1] > 0 and least < cross_entropy(good, labels)
    for step in ([0.05, 0], [-0.05, 0], [0, 0.05], [0, -0.05]):
        assert cross_entropy(np.tensordot(best + step, scores, 1), labels) > least


def test_a_model_that_is_wrong_gets_no_weight_and_a_copy_shares_it():
    (good, labels), (other, _) = answers(0.3), answers(0.3, seed=2)
    wrong = other[:, [1, 2, 0]]                             # leans to the next genre
    assert fit_weights(np.stack([good, wrong]), labels)[1] == pytest.approx(0, abs=1e-6)
    alone, twice = fit_weights(good[None], labels), fit_weights(np.stack([good, good]), labels)
    assert twice.sum() == pytest.approx(alone[0], rel=1e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A collection and the runs of two networks, two seeds each, and of one classifier."""
    folder = tmp_path_factory.mktemp("ensembles")
    data = make_collection(folder / "tiny", features=(("cqt", 84), ("chroma_cqt", 12)))
    for name, feature in (("a", "cqt"), ("b", "chroma_cqt")):
        for seed in (0, 1):
            training.run(name, {"feature": feature, "model": "SquareCNN"}, data,
                         {"epochs": 2, "lr": 3e-3, "precision": "float32", "seed": seed}, folder / "runs", device="cpu",
                         progress=False)
    classifiers.fit_baselines(Statistics(data, features=["cqt"]), ["SVC"], results_dir=folder / "results",
                            runs_dir=folder / "runs", progress=False)
    return data, folder


@pytest.fixture
def three(monkeypatch):
    monkeypatch.setitem(ensembles.ENSEMBLES, "three", ("a", "b", "baseline_SVC_cqt"))


def test_an_ensemble_is_a_result_like_others(trained, three):
    data, folder = trained
    result = ensembles.run_ensemble("three", data, 2, runs_dir=folder / "runs", results_dir=folder / "results")
    stored = json.loads((folder / "results" / "tiny" / "three.json").read_text())
    assert stored == json.loads(json.dumps(result)) and stored["config"]["feature"] == "chroma_cqt+cqt"
    assert [seed["seed"] for seed in stored["seeds"]] == [0, 1] and stored["test"]["clips"] == 12
    assert all(set(w) == {"a", "b", "baseline_SVC_cqt"} and min(w.values()) >= 0
               for w in stored["config"]["model"]["args"]["weights"])
    assert stored["commit"] == commit() and len({str(data) for data in stored["data"].values()}) == 3
    lines = (folder / "results" / "tiny" / "three.csv").read_text().splitlines()
    assert len(lines) == 1 + 12


def test_folds_are_weighted_each_on_its_own_validation(tmp_path, monkeypatch, capsys):
    data = make_collection(tmp_path / "tiny", features=(("cqt", 12), ("chroma_cqt", 12)))
    where = {"results_dir": tmp_path / "results", "runs_dir": tmp_path / "runs"}
    for feature in ("cqt", "chroma_cqt"):
        classifiers.fit_baselines(Statistics(data, features=[feature]), ["SVC"], progress=False, folds=True, **where)
    members = ("baseline_SVC_cqt", "baseline_SVC_chroma_cqt")
    monkeypatch.setitem(ensembles.ENSEMBLES, "two", members)
    result = ensembles.run_ensemble("two", data, folds=True, **where)
    runs = [tmp_path / "runs" / "tiny" / member / "seed0_folds" for member in members]
    count, [seed] = result["folds"]["count"], result["seeds"]
    assert count == len(result["config"]["model"]["args"]["weights"]) == len(seed["folds"]) == 5
    assert result["test"]["clips"] == len(load_probabilities(runs[0])["labels"])         # each clip is tested once
    for k, fold in enumerate(seed["folds"]):
        weights, said = join_runs([run / f"fold{k}" for run in runs])
        assert [*result["config"]["model"]["args"]["weights"][k].values()] == pytest.approx(weights, abs=5e-4)
        assert fold["test"] == pytest.approx((said["test"]["probabilities"].argmax(1) == said["test"]["labels"]).mean(),
                                             abs=1e-6)
    (runs[0] / "fold2" / "probabilities.npz").unlink()
    argv = ["two", "--folds", "--data-dir", str(data), "--runs-dir", str(where["runs_dir"]), "--results-dir",
            str(where["results_dir"])]
    assert run_command(lambda: ensembles.main(argv)) == 2
    assert "baselines.py --features and --folds" in capsys.readouterr().err


def test_a_table_of_fma_shows_it_beside_others(trained, three):
    data, folder = trained
    result = ensembles.run_ensemble("three", data, 2, runs_dir=folder / "runs", results_dir=folder / "results")
    table = tables.results_table([result | {"dataset": "fma_small", "experiment": "ensemble_three"}])
    timed = tables.results_table([result], seconds=True).splitlines()[2].split("|")
    assert timed[-2].strip() == "–"                         # nothing was trained: no time is made up
    assert "| ensemble_three |" in table and "weights of ensembles fitted on validation" in table


def test_fewer_seeds_do_not_replace_more(trained, three):
    data, folder = trained
    where = {"runs_dir": folder / "runs", "results_dir": folder / "more"}
    ensembles.run_ensemble("three", data, 2, **where)
    with pytest.raises(DataError, match="three.json has 2 seeds: pass --repeats 2"):
        ensembles.run_ensemble("three", data, 1, **where)
    assert len(ensembles.run_ensemble("three", data, **where)["seeds"]) == 2


def test_the_test_split_does_not_choose_the_weights(trained):
    _, folder = trained
    runs = [folder / "runs" / "tiny" / name / "seed0" for name in ("a", "b", "baseline_SVC_cqt")]
    weights, said = join_runs(runs)
    read, load = [], ensembles.load_probabilities

    def poisoned(run, split):
        read.append(split)
        found = load(run, split)
        if split == "test":
            found["labels"] = (found["labels"] + 1) % 4
        return found

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ensembles, "load_probabilities", poisoned)
        again, others = join_runs(runs)
    assert np.array_equal(again, weights) and read == ["validation"] * 3 + ["test"] * 3
    assert np.array_equal(others["test"]["probabilities"], said["test"]["probabilities"])
    np.testing.assert_allclose(said["test"]["probabilities"].sum(1), 1, atol=1e-9)


def test_one_member_alone_keeps_its_answers(trained):
    """Unless its weight is zero, because it is worse on validation than knowing nothing; not all are."""
    _, folder, kept = *trained, []
    for name in ("a", "b", "baseline_SVC_cqt"):
        run = folder / "runs" / "tiny" / name / "seed0"
        [weight], said = join_runs([run])
        if weight > 0:
            kept.append(name)
            own = load_probabilities(run, "test")["probabilities"]
            assert np.array_equal(said["test"]["probabilities"].argmax(1), own.argmax(1))
    assert kept


def test_a_member_that_is_not_trained_is_one_line(trained, three, capsys):
    data, folder = trained
    argv = ["three", "--data-dir", str(data), "--repeats", "3", "--runs-dir", str(folder / "runs"), "--results-dir",
            str(folder / "results")]
    assert run_command(lambda: ensembles.main(argv)) == 2
    said = capsys.readouterr().err.strip()
    assert "a/seed2 does not exist or is not finished: train it first with python experiments.py run" in said
    assert "\n" not in said


def test_repeats_below_one(trained, three, capsys):
    data, folder = trained
    assert run_command(lambda: ensembles.main(["three", "--data-dir", str(data), "--repeats", "0"])) == 2
    assert "--repeats must be at least 1" in capsys.readouterr().err


def test_members_on_other_clips_are_refused(trained, tmp_path):
    _, folder = trained
    data = make_collection(tmp_path / "tiny", features=(("cqt", 84),))
    index = (data / "features" / "index.csv").read_text().replace("64,ok", "64,short")
    (data / "features" / "index.csv").write_text(index)
    other, _ = training.run("a", {"feature": "cqt", "model": "SquareCNN"}, data,
                            {"epochs": 1, "precision": "float32"}, tmp_path / "runs", device="cpu", progress=False)
    with pytest.raises(DataError, match="have different .* clips: run both on one cache"):
        join_runs([folder / "runs" / "tiny" / "a" / "seed0", other])
