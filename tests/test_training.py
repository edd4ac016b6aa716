"""Runs repeat and resume to the bit, choose on validation alone, and say in a line what is wrong."""

import itertools
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from synthetic import GENRES, ROOT, quiet_environment
from tqdm.auto import tqdm

import training
from fma import run_command
from learning import inference, runs
from learning.steps import learning_rate
from study.rows import EXPERIMENTS
from training import Training

CPU = torch.device("cpu")
SHORT = {"epochs": 4, "batch_size": 16, "lr": 3e-3, "precision": "float32"}

pytestmark = pytest.mark.usefixtures("one_thread")


def train(data, runs_dir, model="SquareCNN", feature="chroma_cqt", **settings):
    """A short run; its folder and history."""
    return training.run("short", {"feature": feature, "model": model}, data, SHORT | settings, runs_dir,
                        device="cpu", progress=False)


def outcome(run_dir):
    """All that a run comes to: weights as bytes, history but for the seconds, probabilities."""
    history = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in runs.load_history(run_dir)]
    said = {split: {k: v.tolist() for k, v in runs.load_probabilities(run_dir, split).items()}
            for split in ("validation", "test")}
    return (run_dir / "model.safetensors").read_bytes(), history, said


def command(capsys, *argv):
    """Exit status of `python training.py`, run here, and the lines it says on stderr."""
    capsys.readouterr()
    status = run_command(lambda: training.main([str(arg) for arg in argv]))
    return status, capsys.readouterr().err.splitlines()


# ---- a run that was cut off goes on as if nothing had happened ---------------------------------------------


class Cut(Exception):
    """Power cut."""


def cut(monkeypatch, owner, name, call):
    """Let a function fail, once, at its call-th call."""
    function, calls = getattr(owner, name), itertools.count(1)

    def failing(*args, **kwargs):
        if next(calls) == call:
            raise Cut
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


RECIPES = {
    "constant": {},
    "one cycle": {"one_cycle": True, "clip_norm": 1.0, "optimizer": "adamw", "weight_decay": 0.01},
    "bfloat16": {"one_cycle": True, "precision": "bfloat16"},
    "augmented": {"roll": True, "chunk": 64, "shift_bins": 1, "equaliser_db": 3.0, "mask_bins": 2,
                  "mask_frames": 9, "mixup": 0.3, "label_smoothing": 0.1, "average": 0.9},
}


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    return {recipe: outcome(train(tiny, tmp_path_factory.mktemp("whole"), **settings)[0])
            for recipe, settings in RECIPES.items()}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("owner, name, call", [
    (tqdm, "update", 2),               # in the first epoch
    (tqdm, "update", 8),               # in the third
    (inference, "predict", 3),                  # while it validates
    (runs, "save_weights", 2),
    (runs, "save_state", 2),                    # the weights are an epoch ahead of the state
    (os, "replace", 6),                         # the history is
    (runs, "load_weights", 1),                  # after the last epoch
    (runs, "save_probabilities", 1),
], ids=lambda value: getattr(value, "__name__", value))
def test_a_run_cut_off_anywhere_ends_in_the_same_bytes(tiny, tmp_path, uninterrupted, recipe, owner, name, call):
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Cut):
        cut(monkeypatch, owner, name, call)
        train(tiny, tmp_path, **RECIPES[recipe])
    run_dir, _ = train(tiny, tmp_path, **RECIPES[recipe])
    assert outcome(run_dir) == uninterrupted[recipe]
    assert not (run_dir / "state.pt").exists()


def test_going_on_repeats_no_finished_epoch(tiny, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as once, pytest.raises(Cut):
        cut(once, tqdm, "update", 8)               # three steps to an epoch: in the third
        train(tiny, tmp_path)
    seen = []
    epoch = training.train_epoch
    monkeypatch.setattr(training, "train_epoch", lambda *args: seen.append(args[4]) or epoch(*args))
    train(tiny, tmp_path)
    assert seen == [2, 3]


@pytest.fixture(scope="module")
def killed(tiny, tmp_path_factory):
    """`python training.py`, killed twice at random moments and then left to finish: its folder, what it printed."""
    folder = tmp_path_factory.mktemp("killed")
    environment, run_dir = quiet_environment(folder / "site"), folder / "runs" / "tiny" / "chroma_cqt_square" / "seed0"
    line = [sys.executable, "tests/every_epoch.py", "chroma_cqt_square", "--data-dir", tiny, "--runs-dir",
            folder / "runs", "--epochs", "30", "--batch-size", "16", "--one-cycle", "true", "--precision", "float32"]
    endings = []
    for epochs in (2, 9):
        process = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        history, end = run_dir / "history.jsonl", time.time() + 60
        while process.poll() is None and time.time() < end:
            if history.is_file() and len(history.read_text().splitlines()) >= epochs:
                time.sleep(random.uniform(0, 0.1))
                break
            time.sleep(0.005)
        process.kill()
        endings.append(process.wait())
    environment = {k: v for k, v in environment.items() if k != "OMP_WAIT_POLICY"} | {"OMP_DISPLAY_ENV": "verbose"}
    last = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    return run_dir, endings, last


def test_kill_9_twice_changes_not_a_bit(tiny, tmp_path, killed):
    run_dir, endings, last = killed
    assert endings == [-9, -9]                              # else it was over before, and this says nothing
    assert last.returncode == 0, last.stderr
    settings = {"epochs": 30, "batch_size": 16, "one_cycle": True, "precision": "float32"}
    whole, _ = training.run("chroma_cqt_square", EXPERIMENTS["chroma_cqt_square"], tiny, settings, tmp_path,
                            device="cpu", progress=False)
    assert outcome(run_dir) == outcome(whole)
    assert sorted(path.name for path in run_dir.iterdir() if not path.name.startswith(".")) == [
        "config.json", "history.jsonl", "model.safetensors", "probabilities.npz"]


def test_the_command_trains_without_any_audio_or_plotting_library(killed):
    run_dir, _, last = killed               # in it, librosa, scipy, scikit-learn, matplotlib, … cannot be imported
    assert last.returncode == 0, last.stderr
    best = runs.selected(runs.load_history(run_dir))
    assert f"epoch {best['epoch']} of 30 has the best validation accuracy" in last.stdout
    assert best["validation_accuracy"] >= 0.75              # and it learned


def test_threads_that_wait_do_not_spin(killed):
    shown = killed[2].stderr                # what OpenMP prints when it is loaded
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("this torch comes with another OpenMP than GCC's")
    assert "GOMP_SPINCOUNT = '0'" in shown


def test_a_finished_run_is_not_trained_again(tiny, tmp_path, monkeypatch):
    run_dir, history = train(tiny, tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run_dir.iterdir()}
    monkeypatch.setattr(training, "train_epoch", lambda *args: pytest.fail("trained again"))
    assert train(tiny, tmp_path) == (run_dir, history)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run_dir.iterdir()} == before


def test_the_seed_decides(tiny, tmp_path, uninterrupted):
    assert outcome(train(tiny, tmp_path)[0]) == uninterrupted["constant"]
    other = train(tiny, tmp_path, seed=1)[0]
    assert other.name == "seed1" and outcome(other)[0] != uninterrupted["constant"][0]


def test_what_was_drawn_before_a_run_has_no_influence(tiny, tmp_path, uninterrupted):
    torch.manual_seed(12345)
    torch.rand(7)
    assert outcome(train(tiny, tmp_path)[0]) == uninterrupted["constant"]


def test_a_saved_network_says_again_what_its_probabilities_say(tiny, tmp_path):
    run_dir, _ = train(tiny, tmp_path)
    config = runs.load_config(run_dir)
    model = runs.load_weights(run_dir, training.build(config))
    dataset = training.open_dataset(tiny, config["feature"], config["scale"])
    dataset.normalise(**config["normalisation"])
    for split in ("validation", "test"):
        saved = runs.load_probabilities(run_dir, split)
        again = training.predict(model, dataset, dataset.rows[split]).numpy()
        np.testing.assert_allclose(again, saved["probabilities"], atol=1e-6)
        assert saved["tracks"].tolist() == dataset.tracks.index[dataset.rows[split]].tolist()
    assert saved["genres"].tolist() == list(GENRES)


def test_predictions_do_not_depend_on_how_they_are_batched(tiny):
    dataset = training.open_dataset(tiny, "chroma_cqt")
    model, rows = training.MODELS["SquareCNN"](12, 64, 4), dataset.rows["validation"]
    whole = training.predict(model.train(), dataset, rows)              # eval mode, whatever it was in
    torch.testing.assert_close(training.predict(model, dataset, rows, batch_size=5), whole)


# ---- the epoch is chosen on validation, and test has no say ------------------------------------------------


def test_poisoned_test_clips_change_neither_weights_nor_epoch(tiny, tmp_path, uninterrupted):
    data = shutil.copytree(tiny, tmp_path / "tiny")
    values = np.load(data / "features" / "chroma_cqt.npy")
    values[52:] = 1000
    np.save(data / "features" / "chroma_cqt.npy", values)
    tracks = (data / "fma_metadata" / "tracks.csv").read_text().splitlines()
    tracks[3 + 52:] = [line.replace("Folk", "Rock").replace("Metal", "Hip-Hop") for line in tracks[3 + 52:]]
    (data / "fma_metadata" / "tracks.csv").write_text("\n".join(tracks) + "\n")
    weights, history, said = outcome(train(data, tmp_path / "runs")[0])
    assert (weights, history) == uninterrupted["constant"][:2]
    assert said["validation"] == uninterrupted["constant"][2]["validation"]
    assert said["test"]["probabilities"] != uninterrupted["constant"][2]["test"]["probabilities"]   # it was poisoned


def test_watching_test_changes_nothing_but_its_column(tiny, tmp_path, uninterrupted):
    weights, history, said = outcome(train(tiny, tmp_path, watch_test=2)[0])
    assert [epoch["epoch"] for epoch in history if "test_accuracy" in epoch] == [2, 4]
    for epoch in history:
        epoch.pop("test_accuracy", None)
    assert (weights, history, said) == uninterrupted["constant"]


def script_validation(monkeypatch, *loss_and_accuracy):
    script = iter(loss_and_accuracy)
    monkeypatch.setattr(training, "score", lambda *args: next(script))


def test_the_weights_kept_are_those_of_the_chosen_epoch(tiny, tmp_path, monkeypatch):
    script_validation(monkeypatch, (1.0, 0.5), (0.9, 0.7), (0.8, 0.7), (0.1, 0.6))
    run_dir, history = train(tiny, tmp_path / "four")
    assert runs.selected(history)["epoch"] == 3             # of two equal accuracies the lower loss
    script_validation(monkeypatch, (1.0, 0.5), (0.9, 0.6), (0.8, 0.7))
    three, _ = train(tiny, tmp_path / "three", epochs=3)
    assert (run_dir / "model.safetensors").read_bytes() == (three / "model.safetensors").read_bytes()


@pytest.mark.parametrize("epochs, chosen", [
    ([(1.0, 0.5), (0.9, 0.5), (0.95, 0.5)], 2), ([(0.9, 0.6), (0.1, 0.5)], 1), ([(0.5, 0.5), (0.5, 0.5)], 1),
])
def test_ties_go_to_the_lower_validation_loss(epochs, chosen):
    history = [{"epoch": k + 1, "validation_loss": loss, "validation_accuracy": accuracy, "test_accuracy": k}
               for k, (loss, accuracy) in enumerate(epochs)]
    assert runs.selected(history)["epoch"] == chosen


@pytest.mark.parametrize("patience, epochs", [(0, 6), (1, 3), (2, 4), (3, 6)])
def test_patience_counts_epochs_since_the_best(tiny, tmp_path, monkeypatch, patience, epochs):
    script_validation(monkeypatch, *[(1.0, a) for a in (0.3, 0.5, 0.4, 0.4, 0.9, 0.9)])
    _, history = train(tiny, tmp_path, epochs=6, patience=patience)
    assert len(history) == epochs


# ---- settings do what their lines say ----------------------------------------------------------------------


@pytest.mark.parametrize("one_cycle", [True, False])
def test_the_optimizer_gets_the_scheduled_rates(tiny, tmp_path, one_cycle):
    settings = Training(**SHORT, one_cycle=one_cycle)
    _, history = train(tiny, tmp_path, one_cycle=one_cycle)
    assert [e["lr"] for e in history] == [learning_rate(last, 12, settings) for last in (2, 5, 8, 11)]  # 3 steps each


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_clip_norm_bounds_every_gradient(tiny, tmp_path, monkeypatch, precision):
    norms = []

    class Watched(torch.optim.Adam):
        def step(self):
            norms.append(torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm().item())
            super().step()

    monkeypatch.setitem(training.OPTIMIZERS, "adam", Watched)
    train(tiny, tmp_path / "free", epochs=2, precision=precision)
    free, norms[:] = norms[:], []
    train(tiny, tmp_path / "clipped", epochs=2, clip_norm=0.1, precision=precision)
    assert 0.1 < min(free) and max(free) < 100 and len(norms) == len(free) == 6     # not those of a scaled loss
    assert norms == pytest.approx([0.1] * 6, rel=1e-4)


def test_adamw_decays_weights_by_rate_times_decay(tiny, tmp_path):
    settings = {"epochs": 1, "lr": 0.01, "weight_decay": 0.5, "clip_norm": 1e-25}       # no gradient to speak of
    decoupled, _ = train(tiny, tmp_path, optimizer="adamw", **settings)
    torch.manual_seed(0)
    start = training.build(runs.load_config(decoupled)).state_dict()
    after = runs.load_weights(decoupled, training.build(runs.load_config(decoupled))).state_dict()
    name = "classify.1.weight"
    torch.testing.assert_close(after[name], start[name] * (1 - 0.01 * 0.5) ** 3)
    penalised, _ = train(tiny, tmp_path / "adam", optimizer="adam", **settings)
    other = runs.load_weights(penalised, training.build(runs.load_config(penalised))).state_dict()[name]
    assert (other - start[name]).abs().median() > 0.02                                  # three steps of the full rate
