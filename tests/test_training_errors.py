"""What is wrong with a training is said in one line that names the remedy."""

import json
import pickle
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import SHORT, Cut, command, cut, train
from torch import nn
from tqdm.auto import tqdm

import training
from dataset import FeatureDataset
from fma import DataError
from learning import runs
from training import Training

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("options, words", [
    (["--optimizer", "sgd"], "optimizer 'sgd' is unknown: choose adam, adamw"),
    (["--precision", "float64"], "precision 'float64' is unknown: choose auto, float32, bfloat16, float16"),
    (["--epochs", 0], "epochs must be above 0"),
    (["--batch-size", -1], "batch_size must be above 1"),
    (["--lr", "nan"], "lr must be above 0"),
    (["--device", "gpu"], "device 'gpu' cannot be used"),
    (["--device", "meta"], "device 'meta' cannot be used"),
    (["--weight-decay", "nan"], "weight_decay must be from 0"),
    (["--clip-norm", "-1"], "clip_norm must be from 0"),
    (["--patience", "-1"], "patience must be from 0"),
    (["--seed", 10**15], "seed must be from 0 to below 4294967296"),
    (["--mixup", "1e300"], "mixup must be from 0 to below 100"),
])
def test_a_wrong_setting_is_one_line_and_leaves_nothing_behind(tiny, tmp_path, capsys, options, words):
    status, said = command(capsys, "chroma_cqt_square", "--data-dir", tiny, "--runs-dir", tmp_path / "runs", *options)
    assert status == 2 and len(said) == 1 and words in said[0]
    assert not (tmp_path / "runs").exists()                 # else the right setting would be refused after it


@pytest.mark.parametrize("text, value", [("true", True), ("false", False), ("True", True), ("FALSE", False)])
def test_true_and_false_parse(tiny, monkeypatch, text, value):
    got = {}
    monkeypatch.setattr(training, "run", lambda name, row, data, settings, *_, **__: got.update(settings) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.main(["chroma_cqt_square", "--data-dir", str(tiny), "--one-cycle", text])
    assert got == {"one_cycle": value}


@pytest.mark.parametrize("argv", [["chroma_cqt_square", "--one-cycle", "maybe"], ["chroma_cqt_square", "--epochs", "x"],
                                  ["no_such_experiment"]])
def test_what_does_not_parse_ends_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        training.main(argv)
    assert end.value.code == 2 and argv[-1] in capsys.readouterr().err


def test_every_setting_has_an_option(capsys):
    with pytest.raises(SystemExit) as end:
        training.main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    for field in fields(Training):
        assert f"--{field.name.replace('_', '-')} " in said


def copy_with(tiny, folder, **change):
    """The tiny collection with the splits of some clips renamed, or its chroma cache changed."""
    data = shutil.copytree(tiny, folder / "tiny")
    if "splits" in change:
        path = data / "fma_metadata" / "tracks.csv"
        path.write_text(path.read_text().replace(*change["splits"]))
    if "info" in change:
        path = data / "features" / "chroma_cqt.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change["info"]))
    if "values" in change:
        path = data / "features" / "chroma_cqt.npy"
        np.save(path, change["values"](np.load(path)))
    return data


@pytest.mark.parametrize("change, word", [
    ({"info": {"parameters": {"hop_length": 512}}}, "feature_parameters"),
    ({"values": lambda stored: stored + 20}, "normalisation"),
])
def test_going_on_with_another_cache_is_refused(tiny, tmp_path, change, word):
    run_dir, _ = train(tiny, tmp_path / "runs")
    with pytest.raises(DataError, match=f"^{run_dir} was begun with another {word}.*: delete it or pass"):
        train(copy_with(tiny, tmp_path, **change), tmp_path / "runs")


@pytest.mark.parametrize("other, word", [
    ({"lr": 0.1}, r"training \(lr\)"), ({"epochs": 5}, r"training \(epochs\)"), ({"model": "TemporalCNN"}, "model"),
    ({"feature": "cqt"}, "model"), ({"one_cycle": True, "patience": 3}, r"training \(one_cycle, patience\)"),
])
def test_going_on_with_another_setting_or_network_is_refused(tiny, tmp_path, other, word):
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Cut):
        cut(monkeypatch, tqdm, "update", 5)
        train(tiny, tmp_path)
    with pytest.raises(DataError, match=f"^{tmp_path}.*seed0 was begun with another {word}.*: delete it or pass"):
        train(tiny, tmp_path, **other)


@pytest.mark.parametrize("change, words", [
    ({"splits": ("validation", "training")}, "no usable validation clip"),
    ({"splits": (",test,", ",training,")}, "no usable test clip"),
    ({"values": lambda stored: stored[:, :, :32]}, "input of 12 bins x 32 frames is too small"),
])
def test_data_that_cannot_be_trained_on_is_one_line(tiny, tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        train(copy_with(tiny, tmp_path, **change), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_no_number_ends_the_run(tiny, tmp_path):
    with pytest.raises(DataError, match="the training loss became nan in epoch .*: try a lower lr"):
        train(tiny, tmp_path, lr=1e30)


def damage(path, content):
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[:len(whole) // 2] if content == "half" else content)


@pytest.mark.parametrize("content", [b"", b"garbage", "half"])
@pytest.mark.parametrize("name", ["state.pt", "config.json"])
def test_a_damaged_file_of_an_unfinished_run_is_one_line(tiny, tmp_path, name, content):
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Cut):
        cut(monkeypatch, tqdm, "update", 5)
        train(tiny, tmp_path)
    path = next(tmp_path.rglob(name))
    damage(path, content)
    with pytest.raises(DataError, match=f"^{path} is damaged.*: delete {path.parent} ") as error:
        train(tiny, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"garbage", "half"])
@pytest.mark.parametrize("name, read", [
    ("model.safetensors", lambda run_dir: runs.load_weights(run_dir, nn.Linear(2, 2))),
    ("probabilities.npz", runs.load_probabilities), ("history.jsonl", runs.load_history),
    ("config.json", runs.load_config),
])
def test_a_damaged_file_of_a_finished_run_is_one_line(tiny, tmp_path, name, read, content):
    path = train(tiny, tmp_path, epochs=1)[0] / name
    damage(path, content)
    with pytest.raises(DataError, match=f"^{path} ") as error:
        read(path.parent)
    assert "\n" not in str(error.value)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_state_from_a_stranger_cannot_run_code(tiny, tmp_path, save):
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Cut):
        cut(monkeypatch, tqdm, "update", 5)
        train(tiny, tmp_path)
    save({"model": Bomb(tmp_path / "exploded")}, next(tmp_path.rglob("state.pt")))
    with pytest.raises(DataError, match="state.pt is damaged or of another network: delete"):
        train(tiny, tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_network_whose_code_has_changed_is_another_network(tiny, tmp_path, monkeypatch):
    train(tiny, tmp_path, epochs=1)
    monkeypatch.setattr(nn.ReLU, "__repr__", lambda layer: "Identity()")        # as if a layer had been replaced
    with pytest.raises(DataError, match="another model .fingerprint."):
        train(tiny, tmp_path, epochs=1)


def test_fingerprint_sees_layers_and_forward():
    class Doubled(training.MODELS["SquareCNN"]):
        def forward(self, x):
            return 2 * super().forward(x)

    one, other, wider = (kind(12, n_classes=n) for kind, n in
                         ((training.MODELS["SquareCNN"], 8), (Doubled, 8), (training.MODELS["SquareCNN"], 9)))
    Doubled.__name__ = "SquareCNN"
    assert runs.fingerprint(one) == runs.fingerprint(training.MODELS["SquareCNN"](12))
    assert len({runs.fingerprint(model) for model in (one, other, wider)}) == 3


def test_artists_on_both_sides_are_called_out(tiny, tmp_path, capsys):
    data = tmp_path / "leaky"
    shutil.copytree(tiny, data)
    tracks = data / "fma_metadata" / "tracks.csv"
    lines = tracks.read_text().splitlines()
    lines[-1] = lines[-1].rsplit(",", 1)[0] + "," + lines[3].rsplit(",", 1)[1]   # a test clip by a training artist
    tracks.write_text("\n".join(lines) + "\n")
    for folder, warned in ((tiny, False), (data, True)):
        training.run("short", {"feature": "chroma_cqt", "model": "SquareCNN"}, folder, SHORT | {"epochs": 1},
                     tmp_path / "runs", device="cpu")
        assert ("warning: 1 artists" in capsys.readouterr().err) is warned
        said = repr(FeatureDataset(folder, "chroma_cqt"))           # what notebooks print first
        assert ("1 ARTISTS IN TRAINING AND IN TEST" in said) is warned


@pytest.mark.parametrize("row, message", [
    ({"model": "Squar"}, "no network is named 'Squar'"),
    ({"model": "SquareCNN", "training": {"epoch": 3}}, "unexpected keyword argument 'epoch'"),
    ({"model": "SquareCNN", "args": {"pool": 3}}, "unexpected keyword argument 'pool'"),
])
def test_mistyped_rows_are_one_line(tiny, tmp_path, row, message):
    with pytest.raises(DataError, match=message) as error:
        training.run("mine", {"feature": "cqt", **row}, tiny, {}, tmp_path, device="cpu", progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("split", ["training", "test"])
def test_values_that_are_not_numbers_name_the_file(tiny, tmp_path, split):
    data = tmp_path / "data"
    shutil.copytree(tiny, data)
    path = data / "features" / "cqt.npy"
    values = np.load(path)
    values[{"training": 0, "test": -1}[split], 3, 3] = np.nan
    np.save(path, values)
    with pytest.raises(DataError, match="cqt.npy holds values that are not numbers"):
        train(data, tmp_path, feature="cqt", epochs=1)


def test_a_normalisation_that_was_summed_in_another_order_is_the_same(tiny, tmp_path):
    """A run that a GPU finished is read where the CPU rounds its sums otherwise."""
    run_dir, _ = train(tiny, tmp_path)
    config = runs.load_config(run_dir)
    config["normalisation"]["mean"] = [value * (1 + 1e-9) for value in config["normalisation"]["mean"]]
    (run_dir / "config.json").write_text(json.dumps(config))
    assert train(tiny, tmp_path)[0] == run_dir
    config["normalisation"]["mean"][0] += 0.01
    (run_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="another normalisation"):
        train(tiny, tmp_path)
