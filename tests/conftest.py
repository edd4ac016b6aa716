"""Collections that the tests read: the demo corpus, and a sixth of it where a fresh cache is needed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from filelock import FileLock
from synthetic import RATE, make_collection, tone

import demo as corpus
import features
import training
from classifier.network import load_classifier
from fma import audio_path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("audio", "learning", "study", "plots", "classifier")
FAULTS = {track["fault"]: i for i, track in corpus.TRACKS.items() if track["fault"]}


def copy_code(folder):
    """Copy all modules to a folder, as a clone has them."""
    for path in [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).glob("*.py"))]:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def alone():
    """What one process of `make test` holds while the other waits."""
    (ROOT / "data").mkdir(exist_ok=True)
    return FileLock(ROOT / "data" / ".tests.lock")


@pytest.fixture(scope="session", autouse=True)
def compiled():
    """librosa as numba compiles it on first use: of two processes at once each would spoil the other's files."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        with alone():
            features._compile(tuple(features.FEATURES))


@pytest.fixture(scope="session")
def demo():
    """The demo corpus with its feature cache, as `make demo` leaves it. Shared: read it, change a copy."""
    with alone():
        folder = corpus.make(ROOT / "data" / "demo")
        features.fill_cache(folder, progress=False)
    return folder


@pytest.fixture(scope="session")
def small(demo, tmp_path_factory):
    """A tenth of the demo corpus without a cache: four genres, all splits, all faults, both rates, mono and stereo."""
    folder = tmp_path_factory.mktemp("collection") / "small"
    (folder / "fma_metadata").mkdir(parents=True)
    sound = {i: track for i, track in corpus.TRACKS.items() if not track["fault"]}
    chosen = set(FAULTS.values())
    for genre in {corpus.TRACKS[i]["genre"] for i in FAULTS.values()}:
        for split in ("training", "validation", "test"):
            chosen.add(next(i for i, t in sound.items() if (t["genre"], t["split"]) == (genre, split)))
    genres = {corpus.TRACKS[i]["genre"] for i in chosen}
    formats = {i: soundfile.info(demo / t["path"]) for i, t in sound.items() if t["genre"] in genres}
    chosen.add(next(i for i, info in formats.items() if info.channels == 1))
    chosen.add(next(i for i, info in formats.items() if info.samplerate == 48_000))
    chosen = sorted(chosen, reverse=True)       # not in FMA's order: a row is not found by luck
    tracks = pd.read_csv(demo / "fma_metadata" / "tracks.csv", index_col=0, header=[0, 1])
    tracks.loc[chosen].to_csv(folder / "fma_metadata" / "tracks.csv")
    for i in chosen:
        source, copy = demo / corpus.TRACKS[i]["path"], folder / corpus.TRACKS[i]["path"]
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.exists():
            shutil.copy(source, copy)
    return folder


@pytest.fixture(scope="session")
def cache(small, tmp_path_factory):
    """All seven features of `small`, made in one go by one process. Shared: read it, change a copy."""
    folder = tmp_path_factory.mktemp("cache") / "features"
    features.fill_cache(small, tuple(features.FEATURES), features_dir=folder, workers=1, progress=False)
    return folder


def write_tracks(data_dir, ids, columns):
    """Write tracks.csv as FMA does, with pandas, from {("set", "split"): values, ...}."""
    table = pd.DataFrame({k: np.resize(np.array(v, dtype=object), len(ids)) for k, v in columns.items()},
                         index=pd.Index(ids, name="track_id"))
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    path = Path(data_dir) / "fma_metadata" / "tracks.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path)
    return path


def write_cache(data_dir, name, stored, ids=None, status=None, **info):
    """Write a cache with nothing but the contract: an index, an array, and a JSON with scale and offset."""
    folder = Path(data_dir) / "features"
    folder.mkdir(parents=True, exist_ok=True)
    if ids is not None:
        pd.DataFrame({"track_id": ids, "status": status or "ok"}).to_csv(folder / "index.csv", index=False)
    np.save(folder / f"{name}.npy", stored)
    (folder / f"{name}.json").write_text(json.dumps({"scale": 1.0, "offset": 0.0} | info))
    return folder


@pytest.fixture
def healthy(tmp_path, monkeypatch):
    """Twelve tracks of two genres and six artists in FMA's layout, audio included, with nothing wrong."""
    ids = [3, 10, 11, 12, 13, 14, 150, 151, 152, 153, 1154, 155_000]
    write_tracks(tmp_path, ids, {
        ("album", "id"): np.repeat(range(6), 2), ("artist", "id"): np.repeat(range(6), 2),
        ("set", "split"): np.repeat(["training", "validation", "test"] * 2, 2), ("set", "subset"): ["small"],
        ("track", "genre_top"): np.repeat(["Folk", "Rock"], 6), ("track", "title"): ['One, "two"\nthree', "Ünï"],
    })  # fmt: skip
    for i in ids:
        path = audio_path(tmp_path, i)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr("audio.audit.FEW_CLIPS", 2)        # which the genres of so small a collection have
    monkeypatch.setattr("audio.audit.FEW_ARTISTS", 3)
    return tmp_path


@pytest.fixture(autouse=True)
def every_epoch_is_saved(monkeypatch):
    """Epochs of these tests take milliseconds: all of them are saved, where longer trainings save every few seconds."""
    monkeypatch.setattr("training.SAVE_EVERY", 0)


@pytest.fixture(scope="module")
def one_thread():
    """One thread for torch, as in the subprocesses: the same sums in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small collection of random features. Shared within a module: read it, change a copy."""
    return make_collection(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A finished run on features of mel128's shape."""
    folder = tmp_path_factory.mktemp("predict")
    data = make_collection(folder / "tiny", features=(("mel128", 128),), frames=128)
    return training.run("x", {"feature": "mel128", "model": "SquareCNN"}, data,
                        {"epochs": 3, "lr": 3e-3, "precision": "float32"}, folder / "runs", device="cpu",
                        progress=False)[0]


@pytest.fixture(scope="session")
def classifier(run_dir):
    return load_classifier(run_dir)


@pytest.fixture(scope="session")
def song(tmp_path_factory):
    """75 seconds, under a name that needs quoting."""
    path = tmp_path_factory.mktemp("music") / "söng ' \"1.wav"
    soundfile.write(path, tone(75), RATE, subtype="FLOAT")
    return path


BAD = {
    "empty.mp3": b"", "text.mp3": b"this is no music\n" * 500, "zeros.wav": bytes(4096),
    "cut.flac": b"fLaC\x00\x00\x00\x22", "id3.mp3": b"ID3\x04\x00\x00\x00\x00\x0f\x7f" + bytes(range(256)) * 8,
}


@pytest.fixture(scope="session")
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
