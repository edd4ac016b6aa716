"""The 518 statistics are what FMA's procedure gives, and the cache keeps them as it keeps every feature.

FMA_SMALL_DIR=FOLDER        compares with the features.csv of a data folder that has some of FMA's audio
"""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats
from threadpoolctl import threadpool_limits

import features
from audio import clips
from audio.cache import load_index
from audio.statistics import COLUMNS, MOMENTS, SIZES, courses, moments, track_statistics
from audio.transforms import read_audio
from fma import audio_path


def column_names():
    return pd.MultiIndex.from_tuples(COLUMNS, names=("feature", "statistics", "number"))


def by_librosa_and_scipy(y, sr):
    """FMA's 518 numbers by one call after the other, as its features.py has them."""
    C = np.abs(librosa.cqt(y, sr=sr, hop_length=512, bins_per_octave=12, n_bins=84, tuning=None))
    S = np.abs(librosa.stft(y, n_fft=2048, hop_length=512))
    cens = librosa.feature.chroma_cens(C=C, n_chroma=12, n_octaves=7)
    mel = librosa.feature.melspectrogram(sr=sr, S=S**2)
    found = {}
    for feature, x in {
        "zcr": librosa.feature.zero_crossing_rate(y, frame_length=2048, hop_length=512),
        "chroma_cqt": librosa.feature.chroma_cqt(C=C, n_chroma=12, n_octaves=7),
        "chroma_cens": cens, "tonnetz": librosa.feature.tonnetz(chroma=cens),
        "chroma_stft": librosa.feature.chroma_stft(S=S**2, n_chroma=12), "rmse": librosa.feature.rms(S=S),
        "spectral_centroid": librosa.feature.spectral_centroid(S=S),
        "spectral_bandwidth": librosa.feature.spectral_bandwidth(S=S),
        "spectral_contrast": librosa.feature.spectral_contrast(S=S, n_bands=6),
        "spectral_rolloff": librosa.feature.spectral_rolloff(S=S),
        "mfcc": librosa.feature.mfcc(S=librosa.power_to_db(mel), n_mfcc=20),
    }.items():
        for moment, values in {"mean": x.mean(1), "std": x.std(1), "skew": stats.skew(x, axis=1), "min": x.min(1),
                               "kurtosis": stats.kurtosis(x, axis=1), "median": np.median(x, axis=1),
                               "max": x.max(1)}.items():
            found |= {(feature, moment, f"{k + 1:02d}"): value for k, value in enumerate(values)}
    return pd.Series(found).sort_index()


# ---------------------------------------------------------------- numbers


def test_columns_are_fmas_by_name_number_and_order():
    assert len(COLUMNS) == len(set(COLUMNS)) == 518 == 7 * 74
    assert column_names().equals(column_names().sort_values())      # as FMA's file is
    assert {feature: sum(column[0] == feature for column in COLUMNS) // 7 for feature in SIZES} == {
        "chroma_cens": 12, "chroma_cqt": 12, "chroma_stft": 12, "mfcc": 20, "rmse": 1, "spectral_bandwidth": 1,
        "spectral_centroid": 1, "spectral_contrast": 7, "spectral_rolloff": 1, "tonnetz": 6, "zcr": 1}
    assert {c[1] for c in COLUMNS} == set(MOMENTS) == {"kurtosis", "max", "mean", "median", "min", "skew", "std"}
    assert COLUMNS[0] == ("chroma_cens", "kurtosis", "01") and COLUMNS[-1] == ("zcr", "std", "01")


@pytest.mark.parametrize("which", [0, 1])
def test_statistics_are_librosas_and_scipys(small, cache, which):
    index = load_index(cache)
    clip = index["track_id"][index["status"] == "ok"].iloc[which]
    y, rate = read_audio(audio_path(small, clip))
    ours, theirs = pd.Series(track_statistics(y, rate), index=column_names()), by_librosa_and_scipy(y, rate)
    assert list(theirs.index) == list(ours.index)
    scale = theirs.groupby(level=0).transform(lambda x: x.abs().max())
    moment = np.isin(theirs.index.get_level_values(1), ["kurtosis", "skew"])       # near 0 by cancellation
    wrong = (ours - theirs).abs() > 2e-4 * theirs.abs() + 1e-6 * scale + 2e-5 * moment      # theirs: single precision
    assert not wrong.any(), pd.DataFrame({"ours": ours, "theirs": theirs})[wrong]


def test_a_clip_is_not_resampled_and_a_rate_counts_where_fma_names_it():
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * 44100).astype(np.float32)
    at44, at22 = (dict(zip(COLUMNS, track_statistics(noise, rate), strict=True)) for rate in (44100, 22050))
    for feature in SIZES:
        same = np.isclose(at44[feature, "mean", "01"], at22[feature, "mean", "01"], rtol=1e-6)
        assert same == (feature not in ("chroma_cens", "chroma_cqt", "tonnetz", "mfcc")), feature


SOUNDS = {
    "constant": lambda t: np.full_like(t, 0.5), "silence": lambda t: 0 * t, "sine": lambda t: np.sin(2765 * t),
    "click": lambda t: (np.arange(len(t)) == 9000).astype(float), "hardly anything": lambda t: 1e-30 * np.sin(999 * t),
    "half silent": lambda t: np.where(t < 2, np.random.default_rng(0).normal(0, 0.2, len(t)), 0),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SOUNDS)
def test_whatever_is_played_gives_numbers_and_no_warning(name):
    y = SOUNDS[name](np.arange(4 * 22050) / 22050).astype(np.float32)
    assert np.isfinite(track_statistics(y, 22050)).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rate", [4000, 8000, 11025, 48000, 96000, 192000])
def test_any_sample_rate_gives_numbers_and_no_warning(rate):
    y = np.random.default_rng(0).normal(0, 0.1, 3 * rate).astype(np.float32)
    assert np.isfinite(track_statistics(y, rate)).all()
    assert courses(y, rate)["mfcc"].shape[0] == 20


@pytest.mark.filterwarnings("error")
def test_rows_that_do_not_move_have_the_moments_of_fmas_day():
    rng = np.random.default_rng(0)
    moving = rng.gamma(1, 1, 500)
    nearly = np.full(500, 0.3, dtype=np.float32)
    nearly[::7] = np.nextafter(np.float32(0.3), np.float32(1))          # rounding only
    found = moments(np.stack([moving, np.full(500, -7.25), nearly, np.zeros(500)]))
    assert np.isclose(found["skew"][0], stats.skew(moving)) and np.isclose(found["kurtosis"][0], stats.kurtosis(moving))
    assert found["skew"][1:].tolist() == [0, 0, 0] and found["kurtosis"][1:].tolist() == [-3, -3, -3]
    assert found["mean"][1] == found["max"][1] == found["min"][1] == found["median"][1] == -7.25
    small = moments(1e-20 * moving[None])                               # quiet is not constant
    assert np.isclose(small["skew"][0], found["skew"][0])


def test_they_are_those_of_the_given_features_csv():
    """The means and deviations of 20 MFCC there have seven digits: half a unit of the last is 5e-5 above 100.

    They are those of the same 30 s clip by today's librosa, not those that FMA publishes for a track.
    """
    if not os.environ.get("FMA_SMALL_DIR"):
        pytest.skip("FMA_SMALL_DIR names no data folder with features.csv and audio")
    data_dir = Path(os.environ["FMA_SMALL_DIR"])
    given = pd.read_csv(data_dir / "fma_metadata" / "features.csv", header=[0, 1, 2], index_col=0)
    given = given.loc[[i for i in given.index if audio_path(data_dir, i).is_file()]]
    assert len(given)
    for track, row in given.iterrows():
        found = pd.Series(track_statistics(*read_audio(audio_path(data_dir, track))), index=column_names())
        assert (found[row.index] - row).abs().max() < 1e-4, track


# ---------------------------------------------------------------- the cache


@pytest.fixture(scope="module")
def filled(small, tmp_path_factory):
    """Statistics of `small`, made in one go."""
    folder = tmp_path_factory.mktemp("statistics") / "features"
    with warnings.catch_warnings():
        for kind in (UserWarning, RuntimeWarning, FutureWarning):
            warnings.simplefilter("error", kind)
        features.fill_cache(small, ["statistics"], features_dir=folder, workers=1, progress=False)
    return folder


def test_the_cache_holds_a_row_for_each_track_and_says_what_it_is(small, filled, cache):
    assert {path.name for path in filled.iterdir()} == {"index.csv", "statistics.npy", "statistics.json"}
    index, array = load_index(filled), np.load(filled / "statistics.npy", allow_pickle=False)
    assert index.equals(load_index(cache))      # short, silent, undecodable and missing, as for every feature
    info = json.loads((filled / "statistics.json").read_text())
    assert array.shape == tuple(info["shape"]) == (len(index), 518, 1)
    assert array.dtype == info["dtype"] == "float32" and (info["scale"], info["offset"]) == (1.0, 0.0)
    assert [tuple(name.split(".")) for name in info["columns"]] == list(COLUMNS)
    assert {"librosa", "scipy", "numpy"} <= info["versions"].keys() and info["n_fft"] == 2048
    for row, status in enumerate(index["status"]):
        assert array[row].any() == (status == "ok") and np.isfinite(array[row]).all()
    row = index.index[index["status"] == "ok"][-1]
    y, rate = read_audio(audio_path(small, index["track_id"][row]))
    with threadpool_limits(1):                  # as in the workers: the same sums in the same order
        assert np.array_equal(array[row, :, 0], track_statistics(y, rate))


def command(*args, **kwargs):
    environment = {k: v for k, v in os.environ.items() if k != "DATA_DIR"} | {"TQDM_DISABLE": "1"}
    return subprocess.Popen([sys.executable, ROOT / "features.py", *map(str, args)], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)


def test_killed_while_it_computes_statistics_it_ends_in_the_same_bytes(small, filled, tmp_path):
    folder = tmp_path / "features"
    journal = folder / ".partial" / "progress.csv"
    args = "--statistics", "--data-dir", small, "--features-dir", folder
    process, end = command(*args, "--workers", 1), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if journal.exists() and journal.read_text().count("\n") >= 5:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (folder / "index.csv").exists()
    done = journal.read_text().count("\n")
    assert done >= 5
    process = command(*args, "--workers", 2)
    said, complaint = process.communicate()
    assert process.returncode == 0, complaint
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in filled.iterdir()}
    assert f"{folder}: " in said and "Warning" not in complaint


def asked_for(monkeypatch, data_dir, *args):
    """The arrays that `python features.py ARGS` would compute."""
    names, index = [], pd.DataFrame({"track_id": [2], "status": ["ok"]})
    monkeypatch.setattr(features, "fill_cache", lambda data_dir, chosen, *rest, **more: (
        names.extend(chosen) or index))
    features.main(["--data-dir", str(data_dir), *args])
    return names


def test_statistics_are_computed_when_asked_for_and_only_then(small, monkeypatch):
    assert asked_for(monkeypatch, small) == list(features.STUDY_FEATURES)
    assert asked_for(monkeypatch, small, "--statistics") == ["statistics"]
    assert asked_for(monkeypatch, small, "--statistics", "--features", "mfcc", "cqt") == ["cqt", "mfcc", "statistics"]


def test_beside_other_features_they_are_the_same(small, filled):
    clip = load_index(filled).query("status == 'ok'")["track_id"].iloc[0]
    with threadpool_limits(1):                  # as the processes that fill a cache: two threads round otherwise
        status, found = clips.clip_features(audio_path(small, clip), ["mfcc", "statistics"])
    row = load_index(filled)["track_id"].tolist().index(clip)
    assert status == "ok" and set(found) == {"mfcc", "statistics"} and found["mfcc"].shape == (20, 640)
    assert np.array_equal(found["statistics"], np.load(filled / "statistics.npy")[row])
