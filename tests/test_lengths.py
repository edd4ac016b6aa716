"""Clips of any length, any part of a file: what is read, what is padded, and who says so."""

import json
import os

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_cache, write_tracks
from synthetic import make_collection

import features
import fma
import predict
import training
from audio import transforms
from audio.audit import durations
from audio.clips import clip_features
from classifier.network import load_classifier
from dataset import FeatureDataset
from features import fill_cache
from fma import DataError, audio_path, run_command
from study.statistics import load_statistics

RATE = 8000
LENGTHS = {2: 10.0, 3: 9.3, 4: 8.8, 5: 12.0, 6: 10.2}       # seconds of each track; 5 alone is much longer than ten


def noise(seconds, rate=RATE):
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


@pytest.fixture
def songs(tmp_path):
    """Five clips of about ten seconds without a cache."""
    folder = tmp_path / "songs"
    write_tracks(folder, list(LENGTHS), {("set", "split"): ["training"], ("set", "subset"): ["small"],
                                         ("track", "genre_top"): ["Folk", "Rock"]})
    (folder / "fma_small" / "000").mkdir(parents=True)
    for i, seconds in LENGTHS.items():
        soundfile.write(audio_path(folder, i), noise(seconds), RATE, format="WAV")
    return folder


def command(capsys, module, *args):
    """Exit status and what a command prints, run here."""
    capsys.readouterr()
    status = run_command(lambda: module.main([str(arg) for arg in args]))
    said = capsys.readouterr()
    return status, said.err + said.out


# ---- one file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "frames"), [(30, 640), (10, 213), (27, 576), (3.5, 74)])
def test_a_clip_is_padded_where_a_frame_is_missing_and_short_below_nine_tenths(tmp_path, seconds, frames):
    noise = np.random.default_rng(0).normal(0, 0.1, (frames - 1) * 1024)
    least = -int(-0.9 * seconds * 22050 // 1)
    part = {"seconds": seconds, "from": "start"}
    at_48_khz = np.resize(noise, int(len(noise) / 22050 * 48000) + 1)
    for name, y, rate in (("ok", noise, 22050), ("ok48", at_48_khz, 48000), ("padded", noise[1:], 22050),
                          ("padded9", noise[:least], 22050), ("short", noise[: least - 1], 22050)):
        soundfile.write(tmp_path / f"{name}.wav", y, rate)
        status, found = clip_features(tmp_path / f"{name}.wav", ["mfcc", "mel128"], part)
        assert status == name.rstrip("0123456789")
        shapes = {name: x.shape for name, x in found.items()}
        assert shapes == ({} if status == "short" else {"mfcc": (20, frames), "mel128": (128, 128)})


def test_a_padded_clip_goes_on_with_its_own_beginning(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 28 * 22050).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", noise, 22050, subtype="FLOAT")
    status, found = clip_features(tmp_path / "clip.wav", ["mel_stft"])
    expected = transforms.extract(np.concatenate([noise, noise[: 2 * 22050]]), 22050, ["mel_stft"])["mel_stft"]
    assert status == "padded" and np.array_equal(found["mel_stft"], expected[:, :640])


@pytest.mark.parametrize(("start", "first"), [("start", 0), ("middle", 11), (15, 15), (40, None)])
def test_the_part_of_a_long_file_that_is_asked_for_is_read(tmp_path, start, first):
    second = np.arange(32 * 1000) // 1000 / 100                 # each sample says in which second it is
    soundfile.write(tmp_path / "song.flac", second, 1000)
    if first is None:
        assert clip_features(tmp_path / "song.flac", ["mfcc"], {"seconds": 10, "from": start}) == ("short", {})
        return
    y, _ = transforms.read_audio(tmp_path / "song.flac", 10, start)
    assert np.allclose(y, second[first * 1000 : (first + 10) * 1000], atol=1e-4)


def test_a_long_file_is_read_for_thirty_seconds_by_default(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 33 * 22050)
    soundfile.write(tmp_path / "long.flac", noise, 22050)
    y, rate = transforms.read_audio(tmp_path / "long.flac")
    assert len(y) == 30 * 22050 and rate == 22050


# ---- the cache -----------------------------------------------------------------------------------------------


def test_a_padded_clip_is_used_like_any_other_and_a_short_one_is_not(songs, capsys):
    args = "--data-dir", songs, "--workers", 1
    status, said = command(capsys, features, *args, "--features", "mfcc", "mel128", "--statistics", "--seconds", 10)
    assert status == 0 and "5 tracks, 3 ok, 1 padded, 1 short" in said and "short: 4" in said
    assert said.splitlines()[-1] == ("  1 files are longer than 10 s: their first 10 s are used; --from middle takes "
                                     "the middle")
    data = FeatureDataset(songs, "mfcc")
    assert data.shape == (20, 213) and data.rows["training"].tolist() == [0, 1, 3, 4]
    assert data.raw([1]).any() and not data.raw([2]).any()
    assert load_statistics(songs).index.tolist() == [2, 3, 5, 6]
    for name in ("mfcc", "mel128", "statistics"):
        info = json.loads((songs / "features" / f"{name}.json").read_text())
        assert (info["seconds"], info["from"]) == (10, "start")
        assert "30 s" not in json.dumps(info)


def test_a_cache_keeps_its_length_for_features_that_come_later(songs, capsys):
    args = "--data-dir", songs, "--workers", 1, "--features"
    assert command(capsys, features, *args, "mfcc", "--seconds", 9, "--from", "middle")[0] == 0
    status, said = command(capsys, features, *args, "mel_stft")
    assert status == 0 and "longer" not in said         # said when the cache was begun
    assert np.load(songs / "features" / "mel_stft.npy").shape[2] == 192
    for other in (("--seconds", 10), ("--from", "start"), ("--from", 3)):
        status, said = command(capsys, features, *args, "mel_stft", *other)
        assert status == 2 and f"{songs}/features was made with --seconds 9 --from middle" in said
    assert fill_cache(songs, ["mfcc"], progress=False)["status"].tolist() == ["ok", "ok", "padded", "ok", "ok"]


def test_a_cache_from_before_lengths_is_one_of_thirty_seconds(songs):
    fill_cache(songs, ["mel128"], workers=1, progress=False)
    path = songs / "features" / "mel128.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in info.items() if key not in ("seconds", "from")}))
    fill_cache(songs, ["mel128"], progress=False, seconds=30)
    with pytest.raises(DataError, match="mel128.json was made with seconds 30, this run needs 10"):
        fill_cache(songs, ["mel128"], progress=False, seconds=10)


def test_a_cache_made_elsewhere_has_any_number_of_frames(songs):
    write_cache(songs, "mine", np.ones((5, 8, 1292), np.float32), list(LENGTHS), ["ok", "padded", "short", "ok", "ok"])
    assert FeatureDataset(songs, "mine").shape == (8, 1292)
    assert len(FeatureDataset(songs, "mine").rows["training"]) == 4


def test_a_gpu_is_given_clips_of_that_length(songs, tmp_path):
    given = {"names": ["mfcc"], "workers": 1, "progress": False, "seconds": 10, "start": "middle"}
    fill_cache(songs, features_dir=tmp_path / "a", **given)
    index = fill_cache(songs, features_dir=tmp_path / "b", device=torch.device("cpu"), **given)
    assert index["status"].tolist() == ["ok", "padded", "short", "ok", "ok"]
    a, b = (np.load(tmp_path / name / "mfcc.npy") for name in "ab")
    np.testing.assert_allclose(a, b, atol=0.05)
    assert a[[0, 1, 3, 4]].any(axis=(1, 2)).all() and (tmp_path / "a" / "index.csv").read_bytes() == (
        tmp_path / "b" / "index.csv").read_bytes()


@pytest.mark.parametrize(("args", "said"), [
    (["--seconds", "0.5"], "--seconds 0.5 is out of range: choose 1 to 3600"),
    (["--seconds", "nan"], "--seconds nan is out of range"), (["--from", "-1"], "--from -1 is unknown"),
    (["--seconds", "20"], "last 18 s (--seconds 20): python fma.py lists lengths"),
])
def test_a_length_that_is_of_no_use_is_said_in_a_line(songs, capsys, args, said):
    status, line = command(capsys, features, "--data-dir", songs, "--features", "mfcc", "--workers", 1, *args)
    assert status == 2 and said in line and "Traceback" not in line


def test_clips_too_short_for_networks_are_said_twice(songs, tmp_path, capsys):
    _, said = command(capsys, features, "--data-dir", songs, "--features", "mfcc", "--workers", 1, "--seconds", 2)
    assert "42 frames a clip: most networks need 64 (--seconds 3)" in said
    data = make_collection(tmp_path / "tiny", features=(("mfcc", 20),), frames=42)
    with pytest.raises(DataError, match="20 bins x 42 frames is too small: this network needs at least 8 x 64"):
        training.run("x", {"feature": "mfcc", "model": "SquareCNN"}, data, {"epochs": 1}, tmp_path / "runs",
                     device="cpu", progress=False)


# ---- the audit -----------------------------------------------------------------------------------------------


def test_the_audit_counts_lengths_and_names_one_that_keeps_all(songs, capsys):
    _, said = command(capsys, fma, "--data-dir", songs, "--seconds", 10)
    assert "audio: 5 files of 8.8 to 12.0 s; at --seconds 10: 3 ok, 1 padded, 1 short" in said
    assert "1 clips are shorter than 9 s, so short at --seconds 10: 4; --seconds 9 would keep all" in said
    _, said = command(capsys, fma, "--data-dir", songs, "--seconds", 9)
    assert "at --seconds 9: 4 ok, 1 padded, 0 short" in said and "would keep" not in said
    assert "5 clips are shorter than 27 s" in command(capsys, fma, "--data-dir", songs)[1]
    fill_cache(songs, ["mfcc"], workers=1, progress=False, seconds=10)
    _, said = command(capsys, fma, "--data-dir", songs)
    assert f"{songs}/features/index.csv: 3 ok, 1 padded, 1 short" in said and "at --seconds 10: 3 ok" in said


@pytest.mark.parametrize("seconds", [1, 3, 9.5, 10, 27, 29.97, 30, 100])
def test_what_the_audit_calls_ok_has_all_frames(seconds):
    enough = (transforms.count_frames(seconds) - 1) * 1024
    assert transforms.length_status(enough / 22050, seconds) == "ok"
    assert transforms.length_status((enough - 1) / 22050, seconds) == "padded"
    assert transforms.length_status(0.9 * seconds - 1e-4, seconds) == "short"


@pytest.mark.parametrize("ending", ["mp3", "flac", "ogg", "wav"])
def test_a_file_that_was_cut_off_is_as_long_as_what_is_left(songs, ending, capfd):
    path = audio_path(songs, 2)
    soundfile.write(path, noise(30, 44_100), 44_100, format=ending.upper())
    assert durations([path]) == pytest.approx([30], abs=0.05)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    [found] = durations([path])
    assert found == pytest.approx(0 if ending == "flac" else 10, abs=0.5)
    assert capfd.readouterr().err == ""             # what decoders remark on it is not ours


def test_files_that_are_no_audio_are_named(songs, capsys):
    soundfile.write(audio_path(songs, 3), noise(30), RATE, format="MP3")
    audio_path(songs, 3).write_bytes(audio_path(songs, 3).read_bytes()[:567])         # its header says 30 s
    audio_path(songs, 5).unlink()
    os.mkfifo(audio_path(songs, 5))
    soundfile.write(audio_path(songs, 6), noise(0.5), RATE, format="WAV")
    _, said = command(capsys, fma, "--data-dir", songs, "--seconds", 8)
    assert "2 files are unreadable, damaged or hold less than a second of audio: 3, 6" in said
    assert durations([audio_path(songs, 5), songs, songs / "nothing"]) == [0, 0, 0]
    assert "audio: 2 files of 8.8 to 10.0 s" in said


# ---- a network of such clips ---------------------------------------------------------------------------------


def test_predict_reads_windows_as_long_as_the_clips_that_a_network_learned(tmp_path, one_thread):
    data = make_collection(tmp_path / "tiny", features=(("mfcc", 20),), frames=213)
    path = data / "features" / "mfcc.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 10, "from": "start"}))
    run_dir, _ = training.run("x", {"feature": "mfcc", "model": "SquareCNN"}, data,
                              {"epochs": 1, "precision": "float32"}, tmp_path / "runs", device="cpu", progress=False)
    soundfile.write(tmp_path / "song.wav", noise(35), RATE)
    [found] = predict.classify([tmp_path / "song.wav"], load_classifier(run_dir))
    assert [part["start"] for part in found["course"]] == [0, 10, 20, 25]
