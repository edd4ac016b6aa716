"""What is given away: calibrated on answers of folds, with a detector of other sounds; a card says so."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from synthetic import RATE, make_collection, tone

import training
from audio.transforms import mel128
from classifier import outside, shipping
from classifier.calibration import fit_temperature, log_probabilities
from classifier.linear import fit_linear, fit_runs
from classifier.network import load_classifier
from classifier.outside import fit_detector, hear, noise
from classifier.shipping import calibrate, export_run
from classifier.songs import NONE, classify
from fma import DataError
from learning import runs
from learning.folds import leave_test_out

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """In two folds noises, and tones as clips of a known genre, as classifier/outside.py lays them out."""
    folder = tmp_path_factory.mktemp("outside")
    for k in range(6):
        clicks = (np.arange(30 * RATE) % (2000 + 500 * k) == 0).astype(np.float32)
        for kind, y, rate in (("noise", noise(k), outside.RATE), ("Folk", tone(30, pitch=200 + 50 * k), RATE),
                              ("clicks", clicks, RATE)):
            path = folder / str(k % 2) / kind / f"{k}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, y, rate, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A collection whose clips are tones, each genre in its own octave, and its folds' runs."""
    folder = tmp_path_factory.mktemp("data")
    data = make_collection(folder / "tiny", features=(("mel128", 128),), frames=128)
    values = np.load(data / "features" / "mel128.npy")
    for clip in range(len(values)):
        y = tone(3, 44_100, pitch=150 * 2 ** (clip % 4) * (1 + clip / 200))[:, 0]
        values[clip] = mel128(np.resize(y, 30 * 44_100), 44_100)
    np.save(data / "features" / "mel128.npy", values)
    return data, *fit_runs(data, "mel128", folder / "runs")


def test_a_linear_network_weighs_clips_and_is_not_upset_by_what_never_changes():
    rng = np.random.default_rng(0)
    x, labels = torch.from_numpy(rng.normal(size=(200, 6, 1)).astype(np.float32)), np.arange(200) % 2
    x[:, 0, 0] += torch.from_numpy(2.0 * labels)
    x[:, 5] = 3.0
    network = fit_linear(x, labels)
    assert (network(x).argmax(1).numpy() == labels).mean() > 0.75
    other = x[:1].clone()
    other[:, 5] = 4.0
    assert (network(other) - network(x[:1])).abs().max() < 0.1
    often = fit_linear(x, labels, np.where(labels == 1, 9.0, 1.0))
    assert often(x).softmax(1)[:, 1].mean() > 0.75 > 0.6 > network(x).softmax(1)[:, 1].mean()


def test_folds_hear_no_clip_of_their_test_and_the_run_hears_all(tones):
    data, run_dir, folds_dir = tones
    said = runs.load_probabilities(folds_dir)
    assert sorted(said["tracks"]) == list(range(2, 66)) and (said["probabilities"].argmax(1) == said["labels"]).all()
    assert runs.load_config(run_dir)["clips"] == 64 and not runs.is_finished(run_dir)
    assert sum(64 - runs.load_config(fold)["clips"] for fold in runs.fold_runs(folds_dir)) == 64


def test_temperature_of_a_run_without_a_test_is_cross_fitted(tmp_path):
    """Of each fold that of the others; what is written is that of all."""
    rng = np.random.default_rng(0)
    clips = np.arange(300)
    said = {"labels": rng.integers(0, 3, 300), "genres": np.array(["a", "b", "c"]), "artists": clips.astype(str),
            "tracks": clips, "fold": clips % 3}
    logits = 4 * np.eye(3)[said["labels"]] + rng.normal(size=(300, 3)) * 4
    logits[said["fold"] == 2] *= 5
    said["probabilities"] = np.exp(logits - logits.max(1, keepdims=True))
    said["probabilities"] /= said["probabilities"].sum(1, keepdims=True)
    found = calibrate(tmp_path, said)
    assert found["temperature"] == pytest.approx(fit_temperature(log_probabilities(said), said["labels"]), abs=1e-4)
    assert found["calibrated_on"] == "the answers about 300 clips in 3 folds by artist"
    own = {k: fit_temperature(log_probabilities(said)[said["fold"] != k], said["labels"][said["fold"] != k])
           for k in range(3)}
    assert own[2] < own[0]                              # which the fold of the sure ones is judged by
    assert found["log_loss"]["after"] < found["log_loss"]["before"] and found["tested_on"] == "folds"


def test_what_is_shipped_refuses_noise_and_keeps_music(tones, sounds, tmp_path):
    data, run_dir, folds_dir = tones
    card = export_run(run_dir, tmp_path / "w", folds_dir, sounds, data)
    rows = {row["sounds"]: row for row in card["none_of_these"]["table"]}
    assert [rows[name]["known"] for name in ("folds", "Folk", "noise")] == [True, True, False]
    assert rows["noise"]["clips"] == 6 and rows["noise"]["unheard"] is not None
    at = card["none_of_these"]["thresholds"].index(card["none_of_these"]["threshold"])
    assert rows["noise"]["refused"][at] > 0.6 and rows["folds"]["refused"][at] < 0.1
    text = (tmp_path / "w.md").read_text(encoding="utf-8")
    assert "| noise " in text and "(cross-validation)" in text and "64 clips in 5 folds by artist" in text
    loud, pure = classify([(noise(9), outside.RATE), (tone(31, 44_100), 44_100)], tmp_path / "w")
    assert loud["genre"] == NONE and loud["none"] > 0.5 and loud["course"][0]["genre"] == NONE
    assert pure["genre"] in card["genres"] and pure["none"] < 0.5 and len(loud["probabilities"]) == 4


def test_each_sound_is_heard(sounds, tones):
    x, kinds, folds = hear(sounds, runs.load_config(tones[1]))
    assert x.shape == (18, 128, 128) and sorted(set(kinds)) == ["Folk", "clicks", "noise"] and set(folds) == {0, 1}


def test_a_kind_that_is_silent_is_named(sounds, tones, tmp_path):
    shutil.copytree(sounds, tmp_path / "s")
    soundfile.write(tmp_path / "s" / "0" / "noise" / "none.wav", np.zeros(RATE * 5), RATE)
    with pytest.raises(DataError, match=r"0/noise/none.wav: silence: delete it"):
        hear(tmp_path / "s", runs.load_config(tones[1]))
    with pytest.raises(DataError, match="holds no clips: python -m classifier.outside"):
        hear(tmp_path / "nothing", runs.load_config(tones[1]))


def test_what_is_no_clip_is_named(sounds, tones, tmp_path):
    for name in ("x/noise/a.wav", "0/Pop/Rock/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
        with pytest.raises(DataError, match="is no clip: delete it, the layout is"):
            hear(tmp_path, runs.load_config(tones[1]))
        shutil.rmtree(tmp_path / name.partition("/")[0])


def test_sounds_in_one_fold_alone_are_refused(sounds, tones, tmp_path):
    shutil.copytree(sounds / "0", tmp_path / "s" / "0")
    with pytest.raises(DataError, match="has sounds of no known genre in 1 folds: put some into two at least"):
        fit_detector(load_classifier_of(tones[1]), tones[0], tmp_path / "s")


def test_music_is_linked_whatever_its_genres_and_files_are_called(tmp_path, monkeypatch):
    """Also where two files have one name; tracks without a genre or a fold are counted, and left out."""
    monkeypatch.setattr(outside, "EACH", 0)
    data = make_collection(tmp_path / "tiny", features=())
    path = data / "fma_metadata" / "tracks.csv"
    tracks = pd.read_csv(path, index_col=0, header=[0, 1])
    tracks["track", "genre_top"] = ["Pop/Rock", None, *["Folk"] * 62]
    tracks["track", "file"] = [f"{k}/same.wav" for k in range(64)]
    tracks["set", "fold"] = [*range(5), -1, *[0] * 58]
    tracks.to_csv(path)
    for _ in range(2):
        assert outside.make(tmp_path / "o", data) == 2
        links = list((tmp_path / "o").glob("*/*/*"))
        assert len(links) == len({link.readlink() for link in links}) == 62 and all(link.is_symlink() for link in links)
    assert (tmp_path / "o" / "0" / "Pop-Rock" / "same.wav").readlink() == data / "0" / "same.wav"


def test_what_cannot_be_shipped_is_one_line(tones, sounds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, run_dir, folds_dir = map(str, tones)
    for given, words in ((["", "--folds", folds_dir], "an empty argument"),
                         ([".", "--folds", folds_dir], "names no weights"),
                         (["w"], "has no validation to fit its temperature on: pass --folds"),
                         (["w", "--folds", folds_dir, "--outside", str(sounds)], "pass --data-dir"),
                         (["w", "--folds", folds_dir, "--outside", ""], "an empty argument")):
        with pytest.raises(DataError, match=words):
            shipping.main([run_dir, *given])
    assert not list(tmp_path.iterdir())
    shipping.main([run_dir, "w/a.json", "--folds", folds_dir])
    assert {path.name for path in (tmp_path / "w").iterdir()} == {"a.json", "a.md", "a.safetensors"}


def test_folds_of_another_network_or_that_have_learned_the_test_are_refused(tones, run_dir, tmp_path):
    data, whole, folds_dir = tones
    with pytest.raises(DataError, match="is of another network than"):
        export_run(run_dir, tmp_path / "w", folds_dir)
    tested = tmp_path / "seed0"
    shutil.copytree(whole, tested)
    shutil.copy(runs.fold_runs(folds_dir)[0] / "probabilities.npz", tested)
    with pytest.raises(DataError, match="has learned .* test clips of .*: leave these out"):
        export_run(tested, tmp_path / "w", folds_dir)
    with pytest.raises(DataError, match="holds no folds"):
        export_run(run_dir, tmp_path / "w", tmp_path)
    assert not list(tmp_path.glob("w*"))


def test_folds_that_leave_the_official_test_out(tmp_path):
    data = make_collection(tmp_path / "tiny", features=(("cqt", 84),))
    folds = leave_test_out(data, tmp_path / "calibration")
    table = pd.read_csv(tmp_path / "calibration" / "fma_metadata" / "folds.csv").set_index("track_id")["fold"]
    assert table.equals(folds.astype("int64")) and (table == -1).sum() == 12 and set(table) == {-1, 0, 1, 2, 3, 4}
    assert (table.loc[range(54, 66)] == -1).all()
    run_dir, _ = training.run("x", {"feature": "cqt", "model": "SquareCNN"}, tmp_path / "calibration",
                              {"epochs": 1, "precision": "float32"}, tmp_path / "runs", device="cpu", progress=False,
                              fold=0)
    assert not set(runs.load_probabilities(run_dir)["tracks"]) & set(range(54, 66))


def test_a_detector_judges_each_fold_without_it(tones, sounds):
    """And clips in no fold, which are the official test, by one that has learned all folds."""
    data, run_dir, _ = tones
    classifier = load_classifier_of(run_dir)
    _, judged, others, unheard = fit_detector(classifier, data, sounds)
    assert sorted(judged) == list(range(2, 66))
    assert set(others) == {"clicks", "noise", "Folk"} and set(unheard) == {"clicks", "noise"}
    assert all(0 <= value <= 1 for value in [*judged.values(), *others["noise"], *unheard["noise"]])


def load_classifier_of(run_dir):
    from classifier.network import Classifier

    config = runs.load_config(run_dir)
    return Classifier(runs.load_weights(run_dir, training.build(config)).eval(), config, 1.0)


def test_a_damaged_detector_is_one_line(tones, sounds, tmp_path):
    data, run_dir, folds_dir = tones
    export_run(run_dir, tmp_path / "w", folds_dir, sounds, data)
    card = json.loads((tmp_path / "w.json").read_text())
    for threshold in ("high", 7, None):
        card["none_of_these"]["threshold"] = threshold
        (tmp_path / "w.json").write_text(json.dumps(card))
        with pytest.raises(DataError, match="w.json is damaged"):
            load_classifier(tmp_path / "w")
