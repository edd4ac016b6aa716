"""Recurrence is what librosa's calls give, its statistics what is counted by hand, and both are in the cache."""

import json

import librosa
import numpy as np
import pytest

from audio.cache import load_index
from audio.clips import clip_features, compute
from audio.recurrence import BANDS, COLUMNS, LAGS, STEP, lag_statistics, stretches, time_lag
from dataset import FeatureDataset
from features import fill_cache
from fma import audio_path
from study.statistics import cached_statistics

RATE = 22_050


def by_librosa(y):
    """Recurrence of a clip at 22,050 Hz, by the calls that `time_lag` names."""
    chroma = librosa.feature.chroma_cqt(C=np.abs(librosa.cqt(y, sr=RATE, hop_length=1024)))
    steps = librosa.util.sync(chroma[:, : chroma.shape[1] // 5 * 5], range(0, chroma.shape[1] // 5 * 5, 5), pad=True)
    x = librosa.feature.stack_memory(steps - steps.mean(axis=1, keepdims=True), n_steps=4, mode="edge")
    alike = 1 - librosa.segment.recurrence_matrix(x, mode="distance", metric="cosine", full=True)
    return librosa.segment.recurrence_to_lag(alike, pad=True)[: -LAGS - 1 : -1]


def play(notes, seconds=0.25):
    """A tune of sines, as semitones above A4."""
    t = np.arange(int(seconds * RATE)) / RATE
    return np.concatenate([0.3 * np.sin(2 * np.pi * 440 * 2 ** (k / 12) * t) for k in notes]).astype(np.float32)


def described(notes):
    found = compute(play(notes), RATE, ["recurrence", "recurrence_statistics"])
    return found["recurrence"], dict(zip(COLUMNS, found["recurrence_statistics"][:, 0], strict=True))


@pytest.mark.parametrize("which", [0, 1])
def test_values_are_librosas(small, cache, which):
    index = load_index(cache)
    path = audio_path(small, index["track_id"][index["status"] == "ok"].iloc[which])
    theirs = by_librosa(librosa.load(path, sr=RATE, duration=30)[0])[:, :128]
    ours = clip_features(path, ["recurrence"])[1]["recurrence"]
    assert ours.shape == theirs.shape == (64, 128) and np.abs(ours).max() > 0.5
    assert np.abs(ours - theirs).max() < 5e-3


def test_a_loop_is_a_line_at_its_length_and_a_tune_that_goes_on_is_none():
    rng = np.random.default_rng(0)
    loop, other = rng.permutation(12), rng.integers(0, 12, 108)
    seen, loop = described(np.tile(loop, 9))            # 3 s, nine times
    lag = round(3 / STEP)
    assert seen[lag - 1, lag + 4 :].mean() > 0.9 > 0.3 > seen[lag // 2 - 1].mean()
    assert loop["peak lag"] % 3 == pytest.approx(0, abs=STEP / 2) or loop["peak lag"] % 3 > 3 - STEP / 2
    assert loop["covered"] > 0.8 and loop["stretch longest"] > 10
    _, other = described(other)
    assert other["covered"] < 0.2 and other["stretch longest"] < 3 and other["repeated"] < loop["repeated"] / 2


def test_statistics_are_those_counted_by_hand():
    similarity = np.zeros((LAGS, 100))
    similarity[19, 30:40] = 0.9             # ten steps at a lag of 20
    similarity[19, 50:52], similarity[29, 60:62] = 0.7, 0.8
    similarity[2, 10:50] = 1.0              # at a lag of 3, held notes repeat: no repetition
    similarity[39, 70:80] = 0.4             # alike, but not alike enough
    found = dict(zip(COLUMNS, lag_statistics(similarity), strict=True))
    bands = [40 / 97 / 4, 0, 0, (10.4 / 80 + 1.6 / 70) / 17, 4 / 60 / 30]
    expected = {"repeated": 14 / sum(100 - lag for lag in range(5, 65)), "covered": 0.1, "peak lag": 3 * STEP,
                "peak prominence": 40 / 97, "in long stretches": 10 / 14, "stretch mean": 14 / 3 * STEP,
                "stretch longest": 10 * STEP, "stretch entropy": -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3),
                **{f"correlation at {band}": mean for band, mean in zip(BANDS, bands, strict=True)}}
    assert found == pytest.approx(expected)


def test_a_stretch_ends_with_its_row():
    lengths, each = stretches(np.array([[0, 1, 1], [1, 1, 1], [1, 0, 1]], dtype=bool))
    assert lengths.tolist() == [2, 3, 1, 1] and each.tolist() == [[0, 2, 2], [3, 3, 3], [1, 0, 1]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("frames", [5, 20, 160, 4000])
def test_what_never_changes_or_hardly_lasts_repeats_nothing(frames):
    rng = np.random.default_rng(0)
    for chroma in (np.full((12, frames), 0.3, dtype=np.float32), np.zeros((12, frames)), rng.random((12, frames))):
        similarity = time_lag(chroma)
        assert similarity.shape == (LAGS, frames // 5) and np.isfinite(lag_statistics(similarity)).all()
        assert not similarity[np.arange(frames // 5) < np.arange(1, LAGS + 1)[:, None]].any()
        assert similarity.any() == (frames > 5 and chroma.std() > 0.1)


def test_the_cache_has_both_and_a_classifier_reads_the_statistics(small, tmp_path):
    names = ["recurrence", "recurrence_statistics"]
    index = fill_cache(small, names, features_dir=tmp_path, workers=1, progress=False, seconds=10)
    data = FeatureDataset(small, "recurrence", features_dir=tmp_path)
    assert data.shape == (64, 42) and data.info["frames_averaged"] == 5 and data.info["seconds"] == 10
    row = index.index[index["status"] == "ok"][0]
    found = clip_features(audio_path(small, index["track_id"][row]), names, {"seconds": 10, "from": "start"})[1]
    assert np.array_equal(data.array[row], found["recurrence"].astype(np.float16))
    assert json.loads((tmp_path / "recurrence_statistics.json").read_text())["columns"] == list(COLUMNS)
    table = cached_statistics(small, names[1:], features_dir=tmp_path)
    assert np.array_equal(table.loc[index["track_id"][row]], found["recurrence_statistics"][:, 0])
    assert fill_cache(small, names, features_dir=tmp_path, progress=False).equals(index)       # only read
