"""The answer of a song is that of the network on its windows, wherever the song comes from."""

import json
import os
import sys
import time

import numpy as np
import pytest
import soundfile
from conftest import BAD
from hostile import encode
from synthetic import RATE, ROOT, tone

from audio.transforms import mel128, resample
from classifier import songs
from classifier.network import Classifier
from classifier.songs import classify
from fma import DataError

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- windows -------------------------------------------------------------------------------------------------


def test_windows_cover_the_track_and_the_last_ends_with_it(song):
    y, found = tone(75)[:, 0], list(songs.windows(song))
    assert [start for start, _, _ in found] == [0.0, 30.0, 45.0]
    for start, window, rate in found:
        first = round(start * RATE)
        assert rate == RATE and np.array_equal(window, y[first : first + 30 * RATE])


@pytest.mark.parametrize("seconds, starts", [(30, [0]), (30.5, [0]), (31.5, [0, 1.5]), (60, [0, 30]), (12, [0])])
def test_how_many_windows(tmp_path, seconds, starts):
    soundfile.write(tmp_path / "x.wav", tone(seconds), RATE)
    found = list(songs.windows(tmp_path / "x.wav"))
    assert [round(start, 3) for start, _, _ in found] == starts
    assert all(len(y) == 30 * RATE for _, y, _ in found)


def test_a_short_track_is_repeated(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(12), RATE, subtype="FLOAT")
    [(_, y, _)] = songs.windows(tmp_path / "x.wav")
    assert np.array_equal(y[: 12 * RATE], tone(12)[:, 0]) and np.array_equal(y[12 * RATE : 24 * RATE], y[: 12 * RATE])


def test_a_clip_of_nearly_a_window_stays_as_it_is(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(29.98), RATE, subtype="FLOAT")
    [(start, y, _)] = songs.windows(tmp_path / "x.wav")
    assert start == 0 and np.array_equal(y, tone(29.98)[:, 0])


def test_channels_are_averaged(tmp_path):
    both = tone(31, channels=2) * np.float32([1, 0])
    soundfile.write(tmp_path / "x.wav", both, RATE, subtype="FLOAT")
    _, y, _ = next(iter(songs.windows(tmp_path / "x.wav")))
    np.testing.assert_allclose(y, both[: 30 * RATE].mean(1), atol=1e-7)


def test_memory_does_not_grow_with_the_track(song, monkeypatch):
    most, read = [], soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda file, frames, **kwargs: (
        most.append(frames) or read(file, frames, **kwargs)))
    assert len(list(songs.windows(song))) == 3 and max(most) == 30 * RATE


# ---- answers -------------------------------------------------------------------------------------------------


def test_the_answer_is_the_mean_over_windows(song, classifier):
    [found] = classify([song], classifier)
    assert [part["start"] for part in found["course"]] == [0, 30, 45]
    for part, (_, y, rate) in zip(found["course"], songs.windows(song), strict=True):
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
    assert songs.usual_rate(config) == 44_100
    assert all(songs.usual_rate(config | other) is None for other in ({"dataset": "mine"}, {"feature": "cqt"}))
    x = {}
    for rate in (22_050, 44_100, 48_000):
        soundfile.write(tmp_path / f"{rate}.wav", tone(31, rate), rate, subtype="FLOAT")
        x[rate] = songs.clip_features(tmp_path / f"{rate}.wav", config)[1]
    tone_band = x[44_100][0].mean(1).argmax()
    assert all(other[0].mean(1).argmax() == tone_band for other in x.values())
    assert x[22_050][0, 110:].max() < -60                   # above half of its rate there is nothing
    own = songs.clip_features(tmp_path / "22050.wav", config | {"dataset": "mine"})[1]
    assert own[0].mean(1).argmax() > tone_band


def test_the_highest_frequency_of_each_feature_is_known():
    found = {name: songs.highest(name, 44_100) for name in songs.FEATURES}
    assert found["mel128"] == 22_050 and found["mel_stft"] == 11_025 and found["cqt128"] == pytest.approx(10_795, abs=1)
    assert found["cqt"] == found["chroma_cqt"] == found["logstft84"] == pytest.approx(4_186, abs=1)     # C8


def test_silent_windows_are_left_out(tmp_path, classifier):
    silence = np.zeros((30 * RATE, 1), np.float32)
    soundfile.write(tmp_path / "x.wav", np.concatenate([tone(30), silence, tone(30)]), RATE)
    [found] = classify([tmp_path / "x.wav"], classifier)
    assert [part["start"] for part in found["course"]] == [0, 60]


@pytest.mark.parametrize("ending, options", [
    ("wav", {}), ("flac", {}), ("ogg", {}), ("mp3", {}), ("aiff", {}), ("wav", {"subtype": "PCM_24"})])
def test_formats(tmp_path, classifier, ending, options):
    path = tmp_path / f"x.{ending}"
    soundfile.write(path, tone(31, 44_100, channels=2), 44_100, **options)
    [found] = classify([path], classifier)
    assert "error" not in found and found["genre"] in classifier.genres


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_is_no_music_is_reported_and_the_rest_go_on(bad, classifier, workers):
    paths = sorted(bad.iterdir())
    found = {os.path.basename(f["file"]): f for f in classify(paths, classifier, workers)}
    assert list(found) == [path.name for path in paths] and len(found) == len(BAD) + 5
    assert [name for name, f in found.items() if "error" not in f] == ["good.wav"]
    assert found["silence.wav"]["error"] == "silence" and "0.20 seconds" in found["blip.wav"]["error"]
    assert "not numbers" in found["nan.wav"]["error"] and "no audio in it" in found["none.wav"]["error"]
    assert not [f for f in found.values() if "\n" in f.get("error", "")]


def test_a_process_that_dies_costs_its_file_only(song, bad, classifier, tmp_path, monkeypatch):
    """The middle file crashes its process; the workers are other processes, so a file makes them do so."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if 'DIE_ON' in os.environ:\n"
        "    import soundfile\n"
        "    whole = soundfile.SoundFile.__init__\n"
        "    def dying(self, file, *args, **kwargs):\n"
        "        if os.path.samestat(os.fstat(file), os.stat(os.environ['DIE_ON'])):\n"
        "            os._exit(1)\n"
        "        whole(self, file, *args, **kwargs)\n"
        "    soundfile.SoundFile.__init__ = dying\n")
    monkeypatch.setenv("DIE_ON", str(bad / "text.mp3"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    found = list(classify([song, bad / "text.mp3", bad / "good.wav"], classifier, workers=2))
    assert found[1]["error"] == "decoding it killed its process (exit status 1)"
    assert "genre" in found[0] and "genre" in found[2]


def test_torch_is_imported_while_the_first_file_is_decoded(song, monkeypatch):
    """Decoding does not wait for the network, and an error of the network ends the command."""
    order = []
    read = songs.clip_features
    monkeypatch.setattr(songs, "clip_features", lambda *args: (order.append("decoded"), read(*args))[1])

    def load(path):
        end = time.monotonic() + 5
        while not order and time.monotonic() < end:
            time.sleep(0.01)
        raise DataError("no network" if order else "nothing was decoded meanwhile")

    monkeypatch.setattr(songs, "load_classifier", load)
    with pytest.raises(DataError, match="no network"):
        list(classify([song]))


# ---- in Python -----------------------------------------------------------------------------------------------


def test_a_song_may_be_a_path_bytes_a_file_or_samples(song, classifier):
    y, rate = soundfile.read(song, dtype="float32")
    with open(song, "rb") as file:
        found = list(classify([str(song), song.read_bytes(), file, (y, rate), (y[:9], rate)], classifier, workers=2))
    assert [each["file"] for each in found] == [str(song), "song 2", "song 3", "song 4", "song 5"]
    assert len({json.dumps(each["course"]) for each in found[:4]}) == 1 and "only 0.00 seconds" in found[4]["error"]
    for one in (song, str(song), song.read_bytes(), (y, rate)):             # alone, without a list
        assert [each["course"] for each in classify(one, classifier)] == [found[0]["course"]]


def test_a_song_whose_highs_are_missing_has_a_note(classifier):
    """Of half the sample rate, or behind the low-pass of a small mp3: a network of FMA expects them."""
    fma = Classifier(classifier.network, classifier.config | {"dataset": "fma_small"}, 1.0)
    noise = np.random.default_rng(0).normal(0, 0.1, 31 * 44_100).astype(np.float32)
    dull = resample(resample(noise, 44_100, 22_050), 22_050, 44_100)
    whole, low, filtered = classify([(noise, 44_100), (resample(noise, 44_100, 22_050), 22_050), (dull, 44_100)], fma)
    assert "note" not in whole and "nothing above 11.0 kHz" in low["note"] and "nothing above 11" in filtered["note"]
    [own] = classify((resample(noise, 44_100, 22_050), 22_050), classifier)             # its collection's own rate
    assert "note" not in own


def test_an_mp3_that_was_not_read_to_its_end_has_a_note(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    mp3 = encode(tone(10, 44_100), 44_100, "MP3")
    [found] = classify(mp3 + mp3, classifier)
    assert "its last 50 % were not read: PyAV (pip install av)" in found["note"]
