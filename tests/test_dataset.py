"""The cache as a dataset: what a batch holds, what normalisation sees, and what is refused."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, write_cache, write_tracks

from audio.cache import load_index
from dataset import FeatureDataset
from fma import DataError

IDS = [70, 9, 800, 12, 11, 10, 4, 5, 6, 7, 33, 34]     # no row is where its id would sort
SPLIT = ["training", "validation", "test"] * 4
GENRE = ["Rock", "Folk", "Rock", "Folk", "Rock", "Rock", None, "Folk", "Folk", "Rock", "Rock", "Folk"]
STATUS = ["ok"] * 7 + ["padded", "silent", "ok", "undecodable", "ok"]
BINS, FRAMES = 4, 6
SCALARS = {"scale": 0.5, "offset": -80.0}
PER_BIN = {"scale": [0.5, 1.0, 2.0, 0.25], "offset": [-80.0, 0.0, 3.5, 100.0]}


@pytest.fixture
def folder(tmp_path):
    """A collection of twelve tracks with an empty index; tests add the arrays."""
    order = sorted(range(12), key=lambda row: IDS[row])         # tracks.csv has an order of its own
    write_tracks(tmp_path, [IDS[row] for row in order], {
        ("artist", "id"): [IDS[row] // 10 for row in order], ("set", "split"): [SPLIT[row] for row in order],
        ("set", "subset"): ["small"], ("track", "genre_top"): [GENRE[row] for row in order],
    })  # fmt: skip
    write_cache(tmp_path, "noise", stored("float16"), IDS, STATUS)
    return tmp_path


def stored(dtype):
    rng = np.random.default_rng(1)
    if dtype == "uint8":
        return rng.integers(0, 256, (12, BINS, FRAMES), dtype=np.uint8)
    return rng.normal(-20, 30, (12, BINS, FRAMES)).astype(dtype)


def by_hand(array, info):
    """The contract's formula: value = stored * scale + offset, scalars or one per bin."""
    scale, offset = (np.broadcast_to(info[k], BINS)[:, None] for k in ("scale", "offset"))
    return array.astype(np.float64) * scale + offset


def the_error(*args, **kwargs):
    with pytest.raises(DataError) as caught:
        FeatureDataset(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("info", [SCALARS, PER_BIN], ids=["scalars", "per bin"])
@pytest.mark.parametrize("dtype", ["float16", "uint8", "float32"])
def test_a_batch_is_what_numpy_computes(folder, dtype, info, hold):
    write_cache(folder, "x", stored(dtype), **info)
    data, values = FeatureDataset(folder, "x", hold=hold), by_hand(stored(dtype), info)
    rows = [9, 0, 3, 0]
    np.testing.assert_allclose(data.raw(rows), values[rows], rtol=1e-5, atol=1e-4)
    mean, std = data.normalise()
    seen = values[data.rows["training"]]
    np.testing.assert_allclose(mean, seen.mean(axis=(0, 2)), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(std, seen.std(axis=(0, 2)), rtol=1e-4)
    x, y = data.batch(rows)
    expected = (values[rows] - np.array(mean)[:, None]) / np.array(std)[:, None]
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)
    assert x.dtype == torch.float32 and x.shape == (4, BINS, FRAMES)
    assert y.dtype == torch.int64 and y.tolist() == [1, 1, 0, 1]        # Rock, Rock, Folk, Rock


@pytest.mark.parametrize("rows", [[2, 1], np.array([2, 1]), torch.tensor([2, 1]), (2, 1)], ids=type)
@pytest.mark.parametrize("hold", [True, False])
def test_rows_may_be_given_as_anything(folder, rows, hold):
    data = FeatureDataset(folder, "noise", hold=hold)
    x, y = data.batch(rows)
    np.testing.assert_array_equal(x, stored("float16")[[2, 1]].astype(np.float32))
    assert y.tolist() == [1, 0]


def test_mapped_and_held_arrays_give_the_same_bits(demo):
    held, mapped = (FeatureDataset(demo, "mel_stft", hold=hold) for hold in (True, False))
    assert isinstance(mapped.array, np.memmap) and isinstance(held.array, torch.Tensor)
    rows = held.rows["test"][::-1][:9].copy()
    assert held.normalise() == mapped.normalise()
    assert torch.equal(held.batch(rows)[0], mapped.batch(rows)[0])


def test_a_batch_never_writes_into_the_array(folder):
    for hold in (True, False):
        data = FeatureDataset(folder, "noise", hold=hold)
        data.normalise()
        first, again = data.batch([0, 1])[0], data.batch([0, 1])[0]
        assert torch.equal(first, again)
    write_cache(folder, "x", stored("float32"))         # float32 needs no conversion that would copy
    data = FeatureDataset(folder, "x", hold=True)
    data.normalise()
    assert torch.equal(data.batch([0, 1])[0], data.batch([0, 1])[0])
    np.testing.assert_array_equal(np.load(folder / "features" / "x.npy"), stored("float32"))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_linear_undoes_decibels(folder, power):
    linear = np.random.default_rng(0).lognormal(0, 3, (12, BINS, FRAMES))       # amplitude, or power
    write_cache(folder, "x", (20 / power * np.log10(linear)).astype(np.float32), power=power)
    np.testing.assert_allclose(FeatureDataset(folder, "x", scale="linear").raw(range(12)), linear, rtol=1e-4)


def test_linear_is_refused_where_nothing_is_in_decibels(folder):
    assert "noise" in the_error(folder, "noise", scale="linear")
    assert "log" in the_error(folder, "noise", scale="log")


# ---------------------------------------------------------------- rows, labels, genres


def test_rows_are_usable_and_in_their_split(folder):
    data = FeatureDataset(folder, "noise")
    assert {k: v.tolist() for k, v in data.rows.items()} == {
        "training": [0, 3, 9],          # 6 has no genre
        "validation": [1, 4, 7],        # 10 is undecodable
        "test": [2, 5, 11],             # 8 is silent
    }
    assert data.genres == ["Folk", "Rock"]
    assert data.labels.tolist() == [-1 if genre is None else data.genres.index(genre) for genre in GENRE]
    assert data.tracks.index.tolist() == IDS and data.tracks["status"].tolist() == STATUS
    assert data.artists.tolist() == [str(i // 10) for i in IDS]
    assert data.shape == (BINS, FRAMES)


def test_the_demo_corpus_says_that_it_is_synthetic(demo):
    shown = repr(FeatureDataset(demo, "cqt"))
    assert "SYNTHETIC" in shown and "84 × 640" in shown and "8 genres" in shown


def test_artists_are_never_on_both_sides(demo):
    data = FeatureDataset(demo, "mfcc")
    artists = [set(data.artists[rows]) for rows in data.rows.values()]
    assert not (artists[0] & artists[1] or artists[0] & artists[2] or artists[1] & artists[2])
    assert sum(map(len, data.rows.values())) == (load_index(demo / "features")["status"] == "ok").sum()


def test_a_genre_without_training_clips_is_refused(folder):
    index = pd.read_csv(folder / "features" / "index.csv")
    index.loc[index["track_id"] == IDS[3], "status"] = "short"          # the only Folk to train on
    index.to_csv(folder / "features" / "index.csv", index=False)
    assert "no usable training clip of genre Folk" in the_error(folder, "noise")


# ---------------------------------------------------------------- normalisation


@pytest.mark.parametrize("hold", [True, False])
def test_normalisation_sees_training_clips_alone(folder, hold):
    before = FeatureDataset(folder, "noise", hold=hold).normalise()
    array, training = stored("float16"), FeatureDataset(folder, "noise").rows["training"]
    array[np.setdiff1d(np.arange(12), training)] = 1e4          # validation, test, faults and unknown genres
    write_cache(folder, "noise", array)
    assert FeatureDataset(folder, "noise", hold=hold).normalise() == before


def test_without_normalisation_values_stay_as_they_are(folder):
    data = FeatureDataset(folder, "noise")
    assert data.normalise(per="nothing") == ([0.0] * data.shape[0], [1.0] * data.shape[0])
    rows = data.rows["training"][:2]
    assert data.batch(rows)[0].equal(data.raw(rows))


def test_normalisation_per_something_else_is_one_line(folder):
    with pytest.raises(DataError, match="per 'clip': choose bin or nothing"):
        FeatureDataset(folder, "noise").normalise(per="clip")


def test_normalisation_is_numpys_on_more_clips_than_are_summed_at_once(demo):
    data = FeatureDataset(demo, "cqt")
    assert len(data.rows["training"]) > 64
    seen = np.load(demo / "features" / "cqt.npy", mmap_mode="r")[data.rows["training"]].astype(float)
    mean, std = data.normalise()
    np.testing.assert_allclose(mean, seen.mean(axis=(0, 2)), rtol=1e-5)
    np.testing.assert_allclose(std, seen.std(axis=(0, 2)), rtol=1e-5)


@pytest.mark.parametrize("value", [0, 37, 255])
def test_a_bin_that_never_changes_is_not_blown_up(demo, folder, value):
    array = np.random.default_rng(0).integers(0, 256, (12, BINS, 2000), dtype=np.uint8)
    array[:, 2] = value
    write_cache(folder, "x", array, scale=80 / 255, offset=-80.0)
    data = FeatureDataset(folder, "x")
    mean, std = data.normalise()
    assert std[2] == 1 and std[1] > 20 and mean[2] == pytest.approx(value * 80 / 255 - 80, abs=1e-4)
    assert data.batch([0])[0][:, 2].abs().max() < 1e-4


def test_a_loud_bin_with_small_changes_is_normalised_exactly(folder):
    array = (-90 + 0.01 * np.random.default_rng(0).normal(size=(12, BINS, 3000))).astype(np.float32)
    write_cache(folder, "x", array)
    data = FeatureDataset(folder, "x")
    seen = array[data.rows["training"]].astype(float)
    np.testing.assert_allclose(data.normalise()[1], seen.std(axis=(0, 2)), rtol=1e-3)


def test_saved_normalisation_is_applied_as_given(folder):
    fitted = FeatureDataset(folder, "noise")
    mean, std = fitted.normalise()
    given = FeatureDataset(folder, "noise")
    assert given.normalise(mean, std) == (mean, std)
    assert torch.equal(given.batch([5])[0], fitted.batch([5])[0])
    json.dumps([mean, std])             # it goes in a run's config.json


# ---------------------------------------------------------------- caches made elsewhere, and broken ones


def test_a_cache_made_elsewhere_drops_in(folder):
    """The JSON of FMA-small's mel128 as others ship it: no versions, words where numbers may be."""
    array = stored("uint8")
    write_cache(folder, "mel128", array, **{
        "feature": "mel128", "unit": "dB relative to the clip maximum", "shape": list(array.shape), "dtype": "uint8",
        "axes": ["track", "mel band, lowest first", "frame"], "scale": 0.3137254901960784, "offset": -80.0,
        "sample_rate": "native (mostly 44100)", "power": 2.0, "top_db": 80.0, "value": "stored * scale + offset",
    })  # fmt: skip
    np.testing.assert_allclose(FeatureDataset(folder, "mel128").raw([1]), array[[1]] * (80 / 255) - 80, atol=1e-4)
    write_cache(folder, "bare", array)      # nothing but scale and offset
    assert FeatureDataset(folder, "bare").raw([1]).tolist() == array[[1]].tolist()


def test_features_dir_may_be_anywhere(folder, tmp_path_factory):
    elsewhere = shutil.move(folder / "features", tmp_path_factory.mktemp("elsewhere") / "cache")
    assert len(FeatureDataset(folder, "noise", features_dir=elsewhere).rows["training"]) == 3


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def npz(path):
    np.savez(path.with_suffix(".npz"), x=stored("float16"))
    path.with_suffix(".npz").rename(path)


DAMAGE = {
    "no array": ("npy", Path.unlink),
    "cut array": ("npy", cut),
    "empty array": ("npy", lambda p: p.write_bytes(b"")),
    "text as array": ("npy", lambda p: p.write_text("not an array")),
    "pickle as array": ("npy", lambda p: np.save(p, np.array([{}], dtype=object), allow_pickle=True)),
    "archive as array": ("npy", npz),
    "too few rows": ("npy", lambda p: np.save(p, stored("float16")[:11])),
    "too many rows": ("npy", lambda p: np.save(p, np.zeros((13, BINS, FRAMES), np.float16))),
    "too few axes": ("npy", lambda p: np.save(p, np.zeros((12, BINS), np.float16))),
    "text in array": ("npy", lambda p: np.save(p, np.full((12, BINS, FRAMES), "x"))),
    "no json": ("json", Path.unlink),
    "cut json": ("json", lambda p: p.write_text('{"scale": 1.0, "off')),
    "binary json": ("json", lambda p: p.write_bytes(b"\xff\xfe\x00")),
    "list as json": ("json", lambda p: p.write_text("[1, 0]")),
    "no scale": ("json", lambda p: p.write_text('{"offset": 0}')),
    "word as scale": ("json", lambda p: p.write_text('{"scale": "big", "offset": 0}')),
    "null as offset": ("json", lambda p: p.write_text('{"scale": 1, "offset": null}')),
    "scale of other bins": ("json", lambda p: p.write_text('{"scale": [1, 1, 1], "offset": 0}')),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_feature_is_named_in_one_line(folder, damage):
    extension, do = DAMAGE[damage]
    do(folder / "features" / f"noise.{extension}")
    message = the_error(folder, "noise")
    assert f"{folder}/features/noise" in message and "features.py" in message


def test_a_pickle_is_never_loaded(folder):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(folder / "sprung"),)

    path = folder / "features" / "noise.npy"
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    the_error(folder, "noise")
    path.write_bytes(pickle.dumps(Trap()))
    the_error(folder, "noise", hold=False)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("content", ["", "nonsense", "track_id,status\n1,fine\n",
                                     "track_id,status\n2,ok\n2,ok\n", "id,state\n1,ok\n", "\x00\x01",
                                     'track_id,status\n"1,ok\n', "track_id,status\n1,ok,3,4\n2\n"])
def test_a_damaged_index_is_named_in_one_line(folder, content):
    (folder / "features" / "index.csv").write_text(content)
    assert f"{folder}/features" in the_error(folder, "noise")


def test_a_cache_of_other_tracks_is_refused(folder):
    pd.DataFrame({"track_id": [*IDS[:-1], 4242], "status": "ok"}).to_csv(folder / "features" / "index.csv", index=False)
    message = the_error(folder, "noise")
    assert "4242" in message and "--features-dir" in message


def test_what_is_not_there_says_what_to_run(folder):
    assert "there are: noise" in the_error(folder, "cqt") and "--features cqt" in the_error(folder, "cqt")
    shutil.rmtree(folder / "features")
    assert f"features.py --data-dir {folder}" in the_error(folder, "noise")


# ---------------------------------------------------------------- training needs no audio library


def test_training_from_a_cache_imports_no_audio_library(folder):
    code = (f"import sys, dataset, fma\nd = dataset.FeatureDataset({str(folder)!r}, 'noise')\nd.normalise()\n"
            "d.batch([0])\nprint(*{m.split('.')[0] for m in sys.modules})")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {"librosa", "soundfile", "soxr", "sklearn", "matplotlib", "scipy", "numba"}
