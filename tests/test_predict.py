"""Any audio file gets an answer or a reason, and the answer is that of the network on its windows."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from synthetic import ROOT, make_collection

import predict
import training
from audio.transforms import mel128
from classifier.card import model_card
from classifier.network import DEFAULT, calibration_error, export_run, fit_temperature, load_classifier
from dataset import FeatureDataset
from fma import DataError, run_command
from learning import runs

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 22_050


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run on features of mel128's shape."""
    folder = tmp_path_factory.mktemp("predict")
    data = make_collection(folder / "tiny", features=(("mel128", 128),), frames=128)
    return training.run("x", {"feature": "mel128", "model": "SquareCNN"}, data,
                        {"epochs": 3, "lr": 3e-3, "precision": "float32"}, folder / "runs", device="cpu",
                        progress=False)[0]


@pytest.fixture(scope="module")
def classifier(run_dir):
    return load_classifier(run_dir)


def tone(seconds, rate=RATE, pitch=440.0, channels=1):
    """A tone with a little noise that slowly becomes brighter, so that no two windows are alike."""
    t = np.arange(int(seconds * rate)) / rate
    y = 0.3 * np.sin(2 * np.pi * pitch * (1 + t / 100) * t) + 0.01 * np.random.default_rng(0).normal(size=len(t))
    return np.repeat(y[:, None], channels, 1).astype(np.float32)


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("music") / "söng ' \"1.wav"
    soundfile.write(path, tone(75), RATE, subtype="FLOAT")
    return path


def command(capsys, *argv):
    capsys.readouterr()
    status = run_command(lambda: predict.main([str(arg) for arg in argv]))
    said = capsys.readouterr()
    return status, said.out, said.err


# ---- windows -------------------------------------------------------------------------------------------------


def test_windows_cover_the_track_and_the_last_ends_with_it(song):
    y, found = tone(75)[:, 0], list(predict.windows(song))
    assert [start for start, _, _ in found] == [0.0, 30.0, 45.0]
    for start, window, rate in found:
        first = round(start * RATE)
        assert rate == RATE and np.array_equal(window, y[first : first + 30 * RATE])


@pytest.mark.parametrize("seconds, starts", [(30, [0]), (30.5, [0]), (31.5, [0, 1.5]), (60, [0, 30]), (12, [0])])
def test_how_many_windows(tmp_path, seconds, starts):
    soundfile.write(tmp_path / "x.wav", tone(seconds), RATE)
    found = list(predict.windows(tmp_path / "x.wav"))
    assert [round(start, 3) for start, _, _ in found] == starts
    assert all(len(y) == 30 * RATE for _, y, _ in found)


def test_a_short_track_is_repeated(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(12), RATE, subtype="FLOAT")
    [(_, y, _)] = predict.windows(tmp_path / "x.wav")
    assert np.array_equal(y[: 12 * RATE], tone(12)[:, 0]) and np.array_equal(y[12 * RATE : 24 * RATE], y[: 12 * RATE])


def test_a_clip_of_nearly_a_window_stays_as_it_is(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(29.98), RATE, subtype="FLOAT")
    [(start, y, _)] = predict.windows(tmp_path / "x.wav")
    assert start == 0 and np.array_equal(y, tone(29.98)[:, 0])


def test_channels_are_averaged(tmp_path):
    both = tone(31, channels=2) * np.float32([1, 0])
    soundfile.write(tmp_path / "x.wav", both, RATE, subtype="FLOAT")
    _, y, _ = next(iter(predict.windows(tmp_path / "x.wav")))
    np.testing.assert_allclose(y, both[: 30 * RATE].mean(1), atol=1e-7)


def test_memory_does_not_grow_with_the_track(song, monkeypatch):
    most, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda file, frames, **kwargs: (
        most.append(frames) or read(file, frames, **kwargs)))
    assert len(list(predict.windows(song))) == 3 and max(most) == 30 * RATE


# ---- answers -------------------------------------------------------------------------------------------------


def test_the_answer_is_the_mean_over_windows(song, classifier):
    [found] = predict.classify([song], classifier)
    assert [part["start"] for part in found["course"]] == [0, 30, 45]
    for part, (_, y, rate) in zip(found["course"], predict.windows(song), strict=True):
        expected = classifier.probabilities(mel128(y, rate)[None])[0]
        np.testing.assert_allclose(list(part["probabilities"].values()), expected, atol=6e-5)
    mean = np.mean([list(part["probabilities"].values()) for part in found["course"]], axis=0)
    np.testing.assert_allclose(list(found["probabilities"].values()), mean, atol=1e-4)
    assert found["genre"] == max(found["probabilities"], key=found["probabilities"].get)
    assert list(found["probabilities"]) == classifier.genres and sum(found["probabilities"].values()) == pytest.approx(
        1, abs=1e-3)


def test_a_network_of_fma_hears_every_file_at_fmas_rate(tmp_path):
    """And one of another collection at the file's own, as that collection's cache was made."""
    config = {"feature": "mel128", "dataset": "fma_small"}
    assert predict.usual_rate(config) == 44_100
    assert all(predict.usual_rate(config | other) is None for other in ({"dataset": "mine"}, {"feature": "cqt"}))
    x = {}
    for rate in (22_050, 44_100, 48_000):
        soundfile.write(tmp_path / f"{rate}.wav", tone(31, rate), rate, subtype="FLOAT")
        x[rate] = predict.clip_features(tmp_path / f"{rate}.wav", "mel128", 44_100)[1]
    tone_band = x[44_100][0].mean(1).argmax()
    assert all(other[0].mean(1).argmax() == tone_band for other in x.values())
    assert x[22_050][0, 110:].max() < -60                   # above half of its rate there is nothing
    own = predict.clip_features(tmp_path / "22050.wav", "mel128")[1]
    assert own[0].mean(1).argmax() > tone_band


def test_silent_windows_are_left_out(tmp_path, classifier):
    silence = np.zeros((30 * RATE, 1), np.float32)
    soundfile.write(tmp_path / "x.wav", np.concatenate([tone(30), silence, tone(30)]), RATE)
    [found] = predict.classify([tmp_path / "x.wav"], classifier)
    assert [part["start"] for part in found["course"]] == [0, 60]


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


@pytest.mark.parametrize("ending, options", [
    ("wav", {}), ("flac", {}), ("ogg", {}), ("mp3", {}), ("aiff", {}), ("wav", {"subtype": "PCM_24"})])
def test_formats(tmp_path, classifier, ending, options):
    path = tmp_path / f"x.{ending}"
    soundfile.write(path, tone(31, 44_100, channels=2), 44_100, **options)
    [found] = predict.classify([path], classifier)
    assert "error" not in found and found["genre"] in classifier.genres


BAD = {
    "empty.mp3": b"", "text.mp3": b"this is no music\n" * 500, "zeros.wav": bytes(4096),
    "cut.flac": b"fLaC\x00\x00\x00\x22", "id3.mp3": b"ID3\x04\x00\x00\x00\x00\x0f\x7f" + bytes(range(256)) * 8,
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    for name, content in BAD.items():
        (folder / name).write_bytes(content)
    soundfile.write(folder / "nan.wav", np.full(40 * RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    soundfile.write(folder / "silence.wav", np.zeros(40 * RATE, np.float32), RATE)
    soundfile.write(folder / "blip.wav", tone(0.2), RATE)
    soundfile.write(folder / "none.wav", tone(0), RATE)
    soundfile.write(folder / "good.wav", tone(31), RATE)
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_is_no_music_is_reported_and_the_rest_go_on(bad, classifier, workers):
    paths = predict.audio_files([bad])
    found = {os.path.basename(f["file"]): f for f in predict.classify(paths, classifier, workers)}
    assert list(found) == [path.name for path in paths] and len(found) == len(BAD) + 5
    assert [name for name, f in found.items() if "error" not in f] == ["good.wav"]
    assert found["silence.wav"]["error"] == "silence" and "0.20 seconds" in found["blip.wav"]["error"]
    assert "not numbers" in found["nan.wav"]["error"] and "no audio in it" in found["none.wav"]["error"]
    assert not [f for f in found.values() if "\n" in f.get("error", "")]


def test_a_process_that_dies_costs_its_file_only(song, bad, classifier, monkeypatch):
    """The middle file crashes its process; the workers are other processes, so a file makes them do so."""
    (bad / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('DIE_ON_TEXT'):\n"
        "    import soundfile\n"
        "    whole = soundfile.SoundFile.__init__\n"
        "    def dying(self, file, *args, **kwargs):\n"
        "        os._exit(1) if os.fsdecode(file).endswith('text.mp3') else whole(self, file, *args, **kwargs)\n"
        "    soundfile.SoundFile.__init__ = dying\n")
    monkeypatch.setenv("DIE_ON_TEXT", "1")
    monkeypatch.setenv("PYTHONPATH", f"{bad}{os.pathsep}{ROOT}")
    found = list(predict.classify([song, bad / "text.mp3", bad / "good.wav"], classifier, workers=2))
    assert found[1]["error"] == "decoding it killed its process (exit status 1)"
    assert "genre" in found[0] and "genre" in found[2]


# ---- the command ---------------------------------------------------------------------------------------------


def test_the_printed_table(capsys, run_dir, bad, song):
    status, out, err = command(capsys, song, bad / "text.mp3", "--weights", run_dir, "--top", 2, "--course")
    lines = out.splitlines()
    assert status == 0 and len(lines) == 5 and err == ""
    assert lines[0].count("%") == 2 and lines[1].split()[0] == "0:00" and lines[3].split()[0] == "0:45"
    assert "text.mp3 " in lines[4] and "not classified: not audio that libsndfile can read" in lines[4]


def test_a_name_that_is_not_utf8(capsys, run_dir, tmp_path, song):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(song.read_bytes())
    status, out, _ = command(capsys, path, "--weights", run_dir, "--json")
    assert status == 0 and out.isascii() and json.loads(out)[0]["file"] == str(path)
    assert command(capsys, path, "--weights", run_dir)[0] == 0


def test_json_is_json(capsys, run_dir, song):
    status, out, _ = command(capsys, song, "--weights", run_dir, "--json")
    [found] = json.loads(out)
    assert status == 0 and found["file"] == str(song) and len(found["course"]) == 3


def test_exit_status_is_1_where_nothing_could_be_classified(capsys, run_dir, bad):
    assert command(capsys, bad / "text.mp3", "--weights", run_dir)[0] == 1


@pytest.mark.parametrize("given, message", [
    (["nothing.mp3"], "nothing.mp3 not found"), (["."], "holds no audio file"),
    (["x.wav", "--weights", "none"], "none is neither exported weights nor the folder of a run"),
])
def test_wrong_arguments_are_one_line(capsys, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    if "x.wav" in given:
        soundfile.write("x.wav", tone(2), RATE)
    status, out, err = command(capsys, *given)
    assert status == 2 and message in err and err.count("\n") == 1 and out == ""


def test_nothing_is_imported_that_an_answer_does_not_need(song):
    """Each of these takes longer to import than a song to classify."""
    code = ("import sys, predict\n"
            f"assert predict.main([{str(song)!r}]) == 0\n"
            "slow = {'librosa', 'numba', 'scipy', 'pandas', 'sympy', 'torch._dynamo'} & set(sys.modules)\n"
            "assert not slow, slow")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_torch_is_imported_while_the_first_file_is_decoded(song, monkeypatch):
    """Decoding does not wait for the network, and an error of the network ends the command."""
    order = []
    read = predict.clip_features
    monkeypatch.setattr(predict, "clip_features", lambda *args: (order.append("decoded"), read(*args))[1])

    def load(path):
        end = time.monotonic() + 5
        while not order and time.monotonic() < end:
            time.sleep(0.01)
        raise DataError("no network" if order else "nothing was decoded meanwhile")

    monkeypatch.setattr("classifier.network.load_classifier", load)
    with pytest.raises(DataError, match="no network"):
        list(predict.classify([song]))


def test_help_is_quick_and_needs_no_torch():
    code = ("import sys, predict\n"
            "try:\n    predict.main(['--help'])\nexcept SystemExit:\n    pass\n"
            "assert not {'torch', 'librosa', 'soundfile', 'scipy', 'pandas'} & set(sys.modules), sys.modules")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


# ---- export and calibration ----------------------------------------------------------------------------------


def test_exported_weights_say_what_the_run_says(run_dir, tmp_path, song):
    card = export_run(run_dir, tmp_path / "w" / "some")
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["some.json", "some.md", "some.safetensors"]
    assert card["test"]["clips"] == 12 and set(card["calibration_error"]) == {"before", "after"}
    for path in ("some", "some.safetensors", "some.json"):
        exported = load_classifier(tmp_path / "w" / path)
        [found], [expected] = predict.classify([song], exported), predict.classify([song], load_classifier(run_dir))
        np.testing.assert_allclose(list(found["probabilities"].values()), list(expected["probabilities"].values()),
                                   atol=2e-4)


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


def test_the_shipped_card_is_that_of_the_shipped_network():
    card = json.loads(DEFAULT.with_suffix(".json").read_text(encoding="utf-8"))
    assert DEFAULT.with_suffix(".md").read_text(encoding="utf-8") == model_card(DEFAULT.name, card, default=True)
    assert DEFAULT.with_suffix(".safetensors").stat().st_size < 10_000_000
    assert card["dataset"] == "fma_small" and card["feature"] == "mel128"


GOLDEN = Path(__file__).with_name("golden_probabilities.json")


def test_shipped_network_says_what_it_said(demo):
    """Probabilities of three demo clips, which are the same on every machine; another network needs another file."""
    files = [demo / "fma_small" / f"{int(name[:3]):03d}" / name for name in json.loads(GOLDEN.read_text())]
    for file, found in zip(files, predict.classify(files, workers=1), strict=True):
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
        [found] = predict.classify([file])
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


def test_calibration_error_by_hand():
    probabilities = [[0.85, 0.15], [0.15, 0.85], [0.6, 0.4], [1.0, 0.0]]
    assert calibration_error(probabilities, [0, 0, 0, 0]) == pytest.approx((2 * 0.35 + 0.4 + 0) / 4)
