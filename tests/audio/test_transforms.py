"""The features of a clip are librosa's, those with other parameters too.

REAL_AUDIO=FOLDER           also compares with librosa on the mp3s there
FMA_SMALL_DIR=FOLDER        compares mel128 with the cache of a data folder that has some of FMA's audio
"""

import json
import os
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import write_tracks

from audio import spectra, transforms
from audio.cache import load_index
from audio.clips import clip_features
from audio.transforms import FEATURES
from features import fill_cache
from fma import audio_path

ALL = tuple(FEATURES)
TOLERANCE = {name: 1e-3 if name.startswith("chroma") else 0.05 for name in ALL}     # 0.05 dB
TOLERANCE["mel128"] = 0.5 * 80 / 255 + 0.01     # half a step of uint8


def what_librosa_says(path):
    """The study's features and mel128, by the direct calls that their definitions name, of the first 30 s.

    A list for each: two tunings that are equally likely make two chromas.
    """
    y, sr = librosa.load(path, sr=22050, duration=30)
    C = np.abs(librosa.cqt(y, sr=sr, hop_length=1024, bins_per_octave=12, n_bins=84))
    S = np.abs(librosa.stft(y, n_fft=1024, hop_length=1024))
    mel = librosa.feature.melspectrogram(S=S**2, sr=sr, n_fft=1024, hop_length=1024)
    mel = librosa.power_to_db(mel, ref=1.0, amin=1e-10, top_db=None)
    study = {
        "cqt": librosa.amplitude_to_db(C, ref=1.0, amin=1e-5, top_db=None),
        "chroma_cqt": librosa.feature.chroma_cqt(C=C),
        "chroma_cens": librosa.feature.chroma_cens(C=C),
        "chroma_stft": [librosa.feature.chroma_stft(S=S**2, n_fft=1024, hop_length=1024, n_chroma=12, tuning=tuning)
                        for tuning in tunings(S**2)],
        "mel_stft": mel,
        "mfcc": librosa.feature.mfcc(S=mel, n_mfcc=20),
        **variants_by_librosa(y),
    }
    y, sr = librosa.load(path, sr=None, duration=30)
    mel128 = librosa.feature.melspectrogram(y=y, sr=sr, n_fft=2048, hop_length=512, n_mels=128)
    mel128 = librosa.power_to_db(mel128, ref=np.max, top_db=80)
    kept = [int((j + 0.5) / 128 * mel128.shape[1]) for j in range(128)]
    study = {name: [x[:, :640] for x in (found if name == "chroma_stft" else [found])] for name, found in study.items()}
    return study | {"mel128": [mel128[:, kept]]}


def variants_by_librosa(y):
    """The features with other parameters; the semitone bands, which librosa has not, by their definition."""
    def mel(n_fft, **bands):
        power = librosa.feature.melspectrogram(y=y, sr=22050, n_fft=n_fft, hop_length=1024, **bands)
        return librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)

    narrow = {"n_mels": 84, "fmin": librosa.note_to_hz("C1"), "fmax": librosa.note_to_hz("B7")}
    C = librosa.cqt(y, sr=22050, hop_length=1024, bins_per_octave=15, n_bins=128, fmin=librosa.note_to_hz("A#0"))
    S = np.abs(librosa.stft(y, n_fft=4096, hop_length=1024)) ** 2
    bins, bands = np.arange(2049) * 22050 / 4096, np.zeros((84, 2049))
    for k, centre in enumerate(librosa.note_to_hz("C1") * 2 ** (np.arange(84) / 12)):
        below, above = centre - centre / 2 ** (1 / 12), centre * 2 ** (1 / 12) - centre
        corners = [centre - max(below, bins[1]), centre, centre + max(above, bins[1])]
        bands[k] = np.interp(bins, corners, [0, 1, 0])
    return {"mel84": mel(1024, **narrow), "mel_fine": mel(4096), "mel84_fine": mel(4096, **narrow),
            "logstft84": librosa.power_to_db(bands @ S, ref=1.0, amin=1e-10, top_db=None),
            "cqt128": librosa.amplitude_to_db(np.abs(C), ref=1.0, amin=1e-5, top_db=None)}


def tunings(S):
    """What librosa.estimate_tuning may say: the fullest bin of its histogram, or any of those that are equally full."""
    pitch, height = librosa.piptrack(S=S, sr=22050, n_fft=1024)
    there = pitch > 0
    heard = pitch[there & (height >= np.median(height[there]))] if there.any() else np.array([440.0])
    off = np.mod(12 * librosa.hz_to_octs(heard), 1.0)
    counts, edges = np.histogram(np.where(off >= 0.5, off - 1, off), np.linspace(-0.5, 0.5, 101))
    found = edges[:-1][counts == counts.max()]
    assert np.isclose(found, librosa.estimate_tuning(S=S, sr=22050, n_fft=1024)).any()
    return found


def stored_values(folder, name):
    """Every row of a feature as the contract says to read it, with NumPy alone."""
    info = json.loads((folder / f"{name}.json").read_text())
    return np.load(folder / f"{name}.npy", allow_pickle=False).astype(float) * info["scale"] + info["offset"]


def worst_differences(data_dir, folder, most):
    """Largest difference to librosa, for each feature and clip of status ok; so many of each format at most."""
    index = load_index(folder)
    index["path"] = [audio_path(data_dir, i) for i in index["track_id"]]
    sound = index[index["status"] == "ok"]
    formats = [f"{info.samplerate} {info.channels}" for info in map(soundfile.info, sound["path"])]
    rows = sound.groupby(np.array(formats)).head(most).index
    values = {name: stored_values(folder, name) for name in ALL}
    return pd.DataFrame.from_dict({
        index["track_id"][row]: {name: min(np.abs(values[name][row] - x).max() for x in xs)
                                 for name, xs in what_librosa_says(index["path"][row]).items()}
        for row in rows}, orient="index")  # fmt: skip


def sounds(rate):
    """Thirty seconds each of what breaks transforms: pure, sparse, flat, detuned, faint, clipped, half silent."""
    rng, n = np.random.default_rng(0), 30 * rate
    t = np.arange(n) / rate
    chord = sum(np.sin(2 * np.pi * 440 * 2 ** ((k + 0.37) / 12) * t + k) for k in (-9, -5, -2, 3, 7)) / 6
    ticks = np.exp(-300 * (t % 0.35)) * np.sin(2 * np.pi * 1500 * (t % 0.35))   # one sample alone has a flat
    return {
        "sine": 0.5 * np.sin(2 * np.pi * 440 * t),
        "chirp": 0.5 * np.sin(2 * np.pi * (40 * t + 0.5 * 300 * t**2)),
        "ticks": 0.9 * ticks,       # spectrum: which of its bins is a peak, and so the tuning, is up to rounding
        "noise": rng.normal(0, 0.2, n),
        "detuned chord": chord + rng.normal(0, 1e-3, n),
        "faint": 1e-3 * chord + rng.normal(0, 1e-5, n),
        "clipped": np.clip(5 * chord + rng.normal(0, 0.5, n), -1, 1),
        "half silent": np.where(t < 15, rng.normal(0, 0.2, n), 0),
    }


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Those sounds as a collection; the names end in mp3 as FMA's do, libsndfile looks at the content."""
    folder, rates = tmp_path_factory.mktemp("sounds"), (22050, 44100, 48000)
    ids = list(range(100, 100 + len(sounds(100))))
    write_tracks(folder, ids, {("set", "split"): ["training"], ("set", "subset"): ["small"],
                               ("track", "genre_top"): ["Folk"]})
    (folder / "fma_small" / "000").mkdir(parents=True)
    for k, i in enumerate(ids):
        y = list(sounds(rates[k % 3]).values())[k].astype(np.float32)
        y = np.stack([y, 0.5 * y], axis=1) if k % 2 else y
        soundfile.write(audio_path(folder, i), y, rates[k % 3], format="WAV", subtype="FLOAT")
    fill_cache(folder, ALL, workers=1, progress=False)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning:audioread")
@pytest.mark.parametrize("kind", ["demo", "synthetic", "real"])
def test_cached_values_are_librosas(kind, request, tmp_path):
    if kind == "demo":
        folder, data_dir = request.getfixturevalue("cache"), request.getfixturevalue("small")
    elif kind == "synthetic":
        data_dir = request.getfixturevalue("synthetic")
        folder = data_dir / "features"
    else:
        if not os.environ.get("REAL_AUDIO"):
            pytest.skip("REAL_AUDIO names no folder of mp3s")
        data_dir, folder = tmp_path, tmp_path / "features"
        paths = sorted(Path(os.environ["REAL_AUDIO"]).glob("**/*.mp3"))[:10]
        write_tracks(data_dir, range(len(paths)), {("set", "split"): ["training"], ("set", "subset"): ["small"],
                                                   ("track", "genre_top"): ["Folk"]})
        (data_dir / "fma_small" / "000").mkdir(parents=True)
        for i, path in enumerate(paths):
            os.symlink(path.resolve(), audio_path(data_dir, i))
        fill_cache(data_dir, ALL, workers=1, progress=False)
    worst = worst_differences(data_dir, folder, most=2 if kind == "demo" else 10)
    assert len(worst) and set(worst) == set(ALL)
    assert (worst <= pd.Series(TOLERANCE)[list(worst)]).all(axis=None), "\n" + worst.round(4).to_string()


def test_mel128_is_that_of_the_given_cache():
    if not os.environ.get("FMA_SMALL_DIR"):
        pytest.skip("FMA_SMALL_DIR names no data folder with mel128 and audio")
    data_dir = Path(os.environ["FMA_SMALL_DIR"])
    index, array = load_index(data_dir / "features"), np.load(data_dir / "features" / "mel128.npy", mmap_mode="r")
    rows = [row for row, i in enumerate(index["track_id"]) if audio_path(data_dir, i).is_file()]
    assert rows
    for row in rows:
        status, found = clip_features(audio_path(data_dir, index["track_id"][row]), ["mel128"])
        assert status == index["status"][row]
        if status == "ok":
            steps = np.round((found["mel128"] + 80) * 255 / 80) - array[row]
            assert np.abs(steps).max() <= 1


@pytest.mark.filterwarnings("ignore:Empty filters:UserWarning")
@pytest.mark.parametrize("rate", [1000, 8000, 22_050, 44_100, 48_000, 768_000])
def test_mel_filters_are_librosas(rate):
    for n_fft, given in ((1024, {}), (2048, {}), (4096, {"n_mels": 84, "fmin": 32.703, "fmax": min(3951, rate / 2)})):
        ours, expected = spectra.mel_filter(rate, n_fft, **given), librosa.filters.mel(sr=rate, n_fft=n_fft, **given)
        assert ours.dtype == expected.dtype
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("name", [*sounds(100), "tone that moves between kept frames", "a second"])
def test_mel128_has_the_maximum_of_all_frames_as_its_reference(name):
    """Of few frames the spectrum is computed: the bound that spares the others must hold."""
    t = np.arange(30 * 22_050) / 22_050
    more = {"tone that moves between kept frames": np.sin(2 * np.pi * (3000 - 2900 * (t % 4 < 0.05)) * t),
            "a second": np.sin(2 * np.pi * 440 * t[:22_050])}
    y = (sounds(22_050) | more)[name].astype(np.float32)
    M = librosa.feature.melspectrogram(y=y, sr=22_050, n_fft=2048, hop_length=512)
    kept = ((np.arange(128) + 0.5) / 128 * M.shape[1]).astype(int)
    expected = librosa.power_to_db(M, ref=np.max, top_db=80)[:, kept]
    np.testing.assert_allclose(transforms.mel128(y, 22_050), expected, atol=1e-3)       # dB


def test_tuning_decides_where_a_detuned_chord_falls():
    y = sounds(22050)["detuned chord"].astype(np.float32)
    S = transforms.stft_power(y)
    tuning = librosa.estimate_tuning(S=S, sr=22050, n_fft=1024)
    assert abs(tuning) > 0.2            # else the sound would not tell estimation from none
    assert transforms.estimate_tuning(S) == pytest.approx(tuning, abs=1e-6)


def test_extract_computes_a_feature_alike_alone_and_in_company(small, cache):
    y, rate = transforms.read_audio(audio_path(small, load_index(cache).query("status == 'ok'")["track_id"].iloc[0]))
    together = transforms.extract(y, rate, ALL)
    for name in ALL:
        alone = transforms.extract(y, rate, [name])
        assert list(alone) == [name] and np.array_equal(alone[name], together[name])
