"""Nothing that is learned is tested: artists, albums, recordings, chunks and altered copies stay on their side.

How much each leak would be worth is leakage.py's to measure; that its rungs leak what they say, test_leakage.py's.
FMA_SMALL_DIR and EMOTIFY_DIR name folders with the real collections, where they are at hand.
"""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_tracks
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_collection

import fma
import training
from audio.audit import audit
from audio.cache import load_index, open_feature
from dataset import FeatureDataset
from learning import inference
from learning.augmentation import evenly_spaced_chunks

pytestmark = pytest.mark.usefixtures("one_thread")
REAL = {name: os.environ.get(f"{name.upper()}_DIR") for name in ("fma_small", "emotify")}
COUNTS = {"fma_small": (6400, 800, 800), "emotify": (239, 81, 80)}


def collection(folder, splits, artists, albums=None, genre="Folk"):
    """Metadata of as many tracks as there are splits, ids from 1."""
    columns = {("set", "split"): splits, ("set", "subset"): ["small"], ("track", "genre_top"): [genre],
               ("artist", "id"): artists}
    write_tracks(folder, range(1, len(splits) + 1), columns | ({("album", "id"): albums} if albums else {}))
    return folder


def write_audio(folder, contents):
    for track, content in contents.items():
        path = fma.audio_path(folder, track)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# ---- artists and albums -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(fma.SPLITS), st.sampled_from([7, 8, 9, None])), min_size=3, max_size=12))
def test_whichever_artists_are_on_both_sides_are_named(tmp_path_factory, tracks):
    splits, artists = zip(*tracks, strict=True)
    folder = collection(tmp_path_factory.mktemp("x"), splits, artists)
    sides = {artist: {s for s, other in tracks if other == artist} for artist in set(artists) - {None}}
    crossing = sorted(artist for artist, where in sides.items() if len(where) > 1)
    said = [line for line in audit(folder) if "artists are in more than one split" in line]
    named = [int(float(x)) for x in said[0].split(": artist ")[1].split(", ")] if said else []
    assert named == crossing


def test_a_compilation_on_both_sides_is_reported_though_its_artists_are_apart(tmp_path):
    folder = collection(tmp_path, ["training", "test", "validation"], [1, 2, 3], [50, 50, 51])
    problems = audit(folder)
    assert any("1 albums are in more than one split: album 50" in line for line in problems)
    assert not any("artists are in" in line for line in problems)


# ---- the same recording twice -----------------------------------------------------------------------------------


def test_a_recording_on_both_sides_is_found_under_whichever_artist(tmp_path):
    rng = np.random.default_rng(0)
    one, other, third = (rng.bytes(100_000) for _ in range(3))
    near = other[:30] + b"?" + other[31:]               # of the same size, with the same middle
    folder = collection(tmp_path, ["training", "test", "training", "training", "test", "validation", "test"],
                        [1, 2, 3, 4, 5, 6, 7])
    write_audio(folder, {1: one, 2: one, 3: third, 4: third, 5: other, 6: near, 7: b""})
    said = [line for line in audit(folder) if "recording" in line]
    assert said == ["the same recording is in more than one split: tracks 1, 2"]   # 3 and 4 are both learned


def identical_features(features_dir, name, splits):
    """Groups of track ids whose rows of an array are alike, and those of them that are in more than one split."""
    index = load_index(features_dir)
    array, _ = open_feature(features_dir, name, len(index))
    found = {}
    for row in np.flatnonzero(index["status"] == "ok"):
        found.setdefault(hashlib.sha256(np.ascontiguousarray(array[row])).digest(), []).append(index["track_id"][row])
    groups = [ids for ids in found.values() if len(ids) > 1]
    return groups, [ids for ids in groups if splits[ids].nunique() > 1]


def test_identical_features_would_be_found(tiny, tmp_path):
    data = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    splits = fma.load_tracks(data)["split"]
    assert identical_features(data / "features", "cqt", splits) == ([], [])
    array = np.load(data / "features" / "cqt.npy")
    array[1], array[60] = array[0], array[3]            # tracks 2 and 3 are learned, 5 is and 62 is tested
    np.save(data / "features" / "cqt.npy", array)
    assert identical_features(data / "features", "cqt", splits) == ([[2, 3], [5, 62]], [[5, 62]])


# ---- what training is given -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """A collection with copies of its training clips, shifted by a semitone: those of other clips are zeros."""
    data = make_collection(tmp_path_factory.mktemp("data") / "longer", features=(("cqt", 84),), frames=80)
    array = np.load(data / "features" / "cqt.npy")
    copies = np.roll(array, 1, axis=1)
    copies[40:] = 0
    np.save(data / "features" / "cqt_pitch+1.npy", copies)
    shutil.copy(data / "features" / "cqt.json", data / "features" / "cqt_pitch+1.json")
    return data


def test_chunks_copies_and_mixtures_are_made_of_training_clips_alone(longer, tmp_path, monkeypatch):
    """Every row that is read while the network learns is a training clip's, and each clip has its own label."""
    read, learning, step, raw = [], [], training.train_epoch, FeatureDataset.raw

    def watched(dataset, rows):
        if learning:
            read.extend(torch.as_tensor(rows).tolist())
        return raw(dataset, rows)

    def learn(*args):
        learning.append(True)
        try:
            return step(*args)
        finally:
            learning.clear()

    monkeypatch.setattr(FeatureDataset, "raw", watched)
    monkeypatch.setattr(training, "train_epoch", learn)
    given = {"epochs": 1, "chunk": 64, "mixup": 0.5, "pitch_copies": True, "roll": True, "mix_style": 0.5,
             "precision": "float32"}
    training.run("x", {"feature": "cqt", "model": "SquareCNN"}, longer, given, tmp_path, device="cpu", progress=False)
    dataset = FeatureDataset(longer, "cqt")
    assert set(read) == set(dataset.rows["training"])
    assert not set(read) & {*dataset.rows["validation"], *dataset.rows["test"]}


def test_no_row_is_in_two_splits_and_no_artist_either(longer):
    dataset = FeatureDataset(longer, "cqt")
    rows = np.concatenate(list(dataset.rows.values()))
    assert len(set(rows)) == len(rows) == 64
    assert training.leaking_artists(dataset) == []


def test_the_chunks_of_a_clip_answer_for_that_clip_alone():
    """All chunks of a batch pass through the network at once; what is said of a clip must not be of its neighbour."""
    clips = torch.arange(5.0).reshape(5, 1, 1).expand(5, 3, 100) + torch.rand(5, 3, 100) / 10
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 40, 4, bias=False))
    together = inference.clip_logits(network, clips, chunk=40)
    alone = torch.cat([inference.clip_logits(network, clip[None], chunk=40) for clip in clips])
    torch.testing.assert_close(together, alone)
    by_hand = torch.stack([network(chunks).mean(0) for chunks in evenly_spaced_chunks(clips, 40)])
    torch.testing.assert_close(together, by_hand)


# ---- the official split -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, counts, said", [
    ("fma_small", (6400, 800, 800), False), ("fma_small", (6400, 800, 799), True), ("fma_small", (40, 5, 5), True),
    ("mine", (40, 5, 5), False), ("mine", (6400, 799, 800), True),      # of FMA's size: taken for it
])
def test_another_count_than_fmas_own_is_said(tmp_path, name, counts, said):
    folder = collection(tmp_path / name, np.repeat(fma.SPLITS, counts).tolist(), range(sum(counts)))
    found = [line for line in audit(folder) if "FMA's small has (6400, 800, 800)" in line]
    assert bool(found) is said and all(str(counts) in line for line in found)


@pytest.mark.parametrize("name", REAL)
def test_the_real_collections_are_split_as_they_should_be(name):
    if not REAL[name]:
        pytest.skip(f"{name.upper()}_DIR names no folder with the collection itself")
    tracks = fma.load_tracks(REAL[name])
    assert tuple((tracks["split"] == split).sum() for split in fma.SPLITS) == COUNTS[name]
    problems = [line for line in audit(REAL[name]) if "more than one split" in line or "FMA's small" in line]
    assert problems == []
    features_dir = Path(REAL[name]) / "features"
    dataset = FeatureDataset(REAL[name], "mel128", hold=False)
    assert training.leaking_artists(dataset) == []
    groups, crossing = identical_features(features_dir, "mel128", tracks["split"])
    assert crossing == [], f"the same clip is learned and tested: {crossing}"
    if name == "fma_small":
        assert len(groups) == 12                        # the same clip under two numbers, each time in one split
    unknown = pd.isna(tracks["artist_id"]).groupby(tracks["split"]).sum()
    print(f"{name}: {len(groups)} clips twice, tracks without an artist: {unknown.to_dict()}")
