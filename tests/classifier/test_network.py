"""Exported weights say what their run says, calibrated; the shipped network says what it said."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import make_collection

import training
from classifier.calibration import calibration_error, fit_temperature, least_error
from classifier.card import model_card
from classifier.network import DEFAULT, NETWORKS, WEIGHTS, load_classifier, shipped
from classifier.onnx_export import export_onnx
from classifier.shipping import export_run
from classifier.songs import classify
from dataset import FeatureDataset
from fma import DataError
from learning import runs

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- export and calibration ----------------------------------------------------------------------------------


def test_exported_weights_say_what_the_run_says(run_dir, tmp_path, song):
    card = export_run(run_dir, tmp_path / "w" / "some")
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["some.json", "some.md", "some.safetensors"]
    assert card["test"]["clips"] == 12 and set(card["calibration_error"]) == {"before", "after", "least"}
    for path in ("some", "some.safetensors", "some.json"):
        exported = load_classifier(tmp_path / "w" / path)
        [found], [expected] = classify([song], exported), classify([song], load_classifier(run_dir))
        np.testing.assert_allclose(list(found["probabilities"].values()), list(expected["probabilities"].values()),
                                   atol=2e-4)


def test_the_network_is_fed_as_in_training(run_dir, classifier):
    dataset = FeatureDataset(run_dir.parents[3] / "tiny", "mel128")
    config, rows = runs.load_config(run_dir), dataset.rows["test"]
    dataset.normalise(**config["normalisation"])
    torch.testing.assert_close(classifier.normalised(dataset.raw(rows).numpy()), dataset.batch(rows)[0])
    said = runs.load_probabilities(run_dir)["probabilities"]
    again = classifier.logits(dataset.batch(rows)[0]).softmax(1).detach().numpy()
    np.testing.assert_allclose(again, said, atol=1e-5)


def test_a_run_trained_on_linear_values_is_fed_linear_values(tmp_path):
    data = make_collection(tmp_path / "tiny", features=(("mel128", 128),), frames=128)
    run_dir, _ = training.run("x", {"feature": "mel128", "model": "SquareCNN", "scale": "linear"}, data,
                              {"epochs": 1, "precision": "float32"}, tmp_path / "runs", device="cpu", progress=False)
    dataset = FeatureDataset(data, "mel128", "linear")
    dataset.normalise(**runs.load_config(run_dir)["normalisation"])
    decibels = FeatureDataset(data, "mel128").raw(dataset.rows["test"]).numpy()
    torch.testing.assert_close(load_classifier(run_dir).normalised(decibels), dataset.batch(dataset.rows["test"])[0])


def test_what_predict_cannot_feed_is_refused_before_anything_is_written(tmp_path):
    data = make_collection(tmp_path / "tiny", features=(("cqt", 16), ("mfcc", 16)), frames=32)
    joint, _ = training.run("x", {"feature": ("cqt", "mfcc"), "model": "Fusion"}, data,
                            {"epochs": 1, "precision": "float32"}, tmp_path / "runs", device="cpu", progress=False)
    for call in (lambda: load_classifier(joint), lambda: export_run(joint, tmp_path / "w" / "x")):
        with pytest.raises(DataError, match=r"needs cqt\+mfcc, which predict.py cannot compute"):
            call()
    assert not (tmp_path / "w").exists()


def test_a_name_with_dots_keeps_them(run_dir, tmp_path):
    for name in ("v1.2", "v1.3"):
        export_run(run_dir, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        f"v1.{k}.{ending}" for k in (2, 3) for ending in ("json", "md", "safetensors"))
    assert load_classifier(tmp_path / "v1.2").genres == load_classifier(tmp_path / "v1.3.json").genres


def test_a_card_of_a_genre_without_test_clips(run_dir, tmp_path):
    card = export_run(run_dir, tmp_path / "some")
    genre = card["genres"][0]
    card["test"]["genres"][genre] |= {"clips": 0, "accuracy": None, "interval": None, "auc": None}
    assert re.search(rf"^\| {genre} +\| +0 \| +– \| +– \| +– \|$", model_card("some", card), re.M)
    assert "Free Music Archive" not in model_card("some", card)
    assert "Free Music Archive" in model_card("some", card | {"dataset": "fma_small"})


def test_the_model_card_has_the_figures_of_the_export(run_dir, tmp_path):
    card = export_run(run_dir, tmp_path / "some")
    text = (tmp_path / "some.md").read_text(encoding="utf-8")
    assert f"**{100 * card['test']['accuracy']:.1f} %** of 12 test clips of 6 artists" in text
    assert all(re.search(rf"^\| {genre} +\| +{row['clips']} \|", text, re.M)
               for genre, row in card["test"]["genres"].items())
    assert f"divided by {card['temperature']}" in text and "What it must not be used for" in text and "{" not in text


@pytest.mark.parametrize("name", [name for names in NETWORKS.values() for name in names])
def test_each_shipped_card_is_that_of_the_shipped_network(name):
    path = WEIGHTS / name
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == model_card(name, card)
    assert path.with_suffix(".safetensors").stat().st_size < 10_000_000
    rows = {row["sounds"]: row for row in card["none_of_these"]["table"]}
    assert {"Classical", "noise", "speech"} <= set(rows) and len(card["genres"]) == 8
    assert card["dataset"] == ("fma_small" if name == "fma" else "allmusic")


def test_the_network_of_allmusic_is_the_best_that_is_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("ENCODERS_DIR", str(tmp_path))
    (tmp_path / "musicnn").mkdir()
    assert shipped("allmusic") == WEIGHTS / "allmusic_musicnn" and shipped("fma") == DEFAULT
    monkeypatch.setenv("ENCODERS_DIR", str(tmp_path / "nothing"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert shipped("allmusic") == WEIGHTS / "allmusic_cqt"
    assert load_classifier("allmusic").config["feature"] == "cqt"


GOLDEN = Path(__file__).parents[1] / "golden_probabilities.json"


def test_shipped_network_says_what_it_said(demo):
    """Probabilities of three demo clips, which are the same on every machine; another network needs another file."""
    files = [demo / "fma_small" / f"{int(name[:3]):03d}" / name for name in json.loads(GOLDEN.read_text())]
    for file, found in zip(files, classify(files, workers=1), strict=True):
        assert found["probabilities"] == pytest.approx(json.loads(GOLDEN.read_text())[file.name], abs=0.02)


@pytest.mark.skipif("FMA_SMALL_DIR" not in os.environ, reason="FMA_SMALL_DIR names no folder with FMA's own data")
def test_shipped_network_on_fmas_own_clips_is_fed_as_in_training():
    """Real mp3 files whose rows are in a given cache: what predict.py hears is what the network was trained on."""
    data = Path(os.environ["FMA_SMALL_DIR"])
    dataset, classifier = FeatureDataset(data, "mel128"), load_classifier()
    files = sorted((data / "fma_small").rglob("*.mp3"))
    assert files
    for file in files:
        row = dataset.tracks.index.get_loc(int(file.stem))
        expected = classifier.probabilities(dataset.raw([row]).numpy())[0]
        [found] = classify([file])
        np.testing.assert_allclose(list(found["probabilities"].values()), expected, atol=0.03)        # uint8


@pytest.mark.parametrize("ending, content", [(".json", b"{}"), (".json", b"\xff"), (".safetensors", b"xx")])
def test_damaged_weights_are_one_line(run_dir, tmp_path, ending, content):
    export_run(run_dir, tmp_path / "some")
    (tmp_path / f"some{ending}").write_bytes(content)
    with pytest.raises(DataError, match=f"some{ending} .*export the run again") as error:
        load_classifier(tmp_path / "some")
    assert "\n" not in str(error.value)


def test_temperature_makes_sureness_match():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5)) * 2
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(5, p=p) for p in chances])
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.06)
    assert calibration_error(chances, labels) < 0.03 < calibration_error(np.eye(5)[logits.argmax(1)], labels)


def test_true_probabilities_have_an_error_too():
    """As a perfect network would have on as many clips."""
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(4), 400)
    found = [calibration_error(chances, np.array([rng.choice(4, p=p) for p in chances])) for _ in range(20)]
    assert least_error(chances) == pytest.approx(np.mean(found), abs=0.006)


def test_calibration_error_by_hand():
    probabilities = [[0.85, 0.15], [0.15, 0.85], [0.6, 0.4], [1.0, 0.0]]
    assert calibration_error(probabilities, [0, 0, 0, 0]) == pytest.approx((2 * 0.35 + 0.4 + 0) / 4)


# ---- ONNX ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["shipped", "run"])
def test_the_onnx_file_says_what_torch_says(tmp_path, run_dir, weights):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    detects = weights == "shipped"
    classifier = load_classifier(DEFAULT if detects else run_dir)
    line = export_onnx(tmp_path / "x.onnx", "fma" if detects else run_dir)
    assert str(tmp_path / "x.onnx") in line and line.endswith("none of these") == detects
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    rng = np.random.default_rng(1)
    for clips in (1, 2, 7):
        x = (-40 + 20 * rng.normal(size=(clips, 128, 128))).clip(-80, 0).astype(np.float32)
        x[0, :, :9] = x[0, :, 9:10]                         # equal values, at the median too
        found, *none = session.run(None, {"clips": x})
        probabilities, refused = classifier.answers(x)
        np.testing.assert_allclose(found, probabilities, atol=1e-5)
        np.testing.assert_allclose(none, [refused] * detects, atol=1e-5)
    noted = session.get_modelmeta().custom_metadata_map
    assert json.loads(noted["labels"]) == classifier.genres and noted["feature"] == "mel128"
    assert json.loads(noted["preprocessing"])["hop_length"] == 512
    assert noted.get("accuracy") == ("0.4725" if detects else None)
    assert noted.get("threshold") == ("0.5" if detects else None)
    assert json.loads(noted.get("refused", "[]")) == ["Classical", "noise", "speech"] * detects


def test_export_names_the_package_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DataError, match="--export needs onnxruntime: pip install onnx onnxscript onnxruntime"):
        export_onnx(tmp_path / "x.onnx")
