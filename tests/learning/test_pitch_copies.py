"""Copies of training clips are what a pitch shift gives, and nothing but training batches is made of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAULTS, ROOT
from synthetic import make_collection
from threadpoolctl import threadpool_limits

import features
import training
from audio.cache import copy_name, load_index
from audio.transforms import read_audio
from dataset import FeatureDataset, JointDataset
from fma import DataError, audio_path, load_tracks
from learning import runs, steps
from learning.augmentation import Augmentation
from learning.pitch_copies import clips_or_copies, pitch_shifts

pytestmark = pytest.mark.usefixtures("one_thread")
SHIFTS = (-2, 1)
NAMES = ("cqt", "mel128")
COPIES = tuple(copy_name(name, s) for name in NAMES for s in SHIFTS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- one clip


def tone(pitch, sample_rate, seconds=2):
    return np.sin(2 * np.pi * pitch * np.arange(seconds * sample_rate) / sample_rate).astype(np.float32)


def loudest(x):
    return int(np.median(x.argmax(0)))


@pytest.mark.parametrize("sample_rate", [22_050, 44_100])
@pytest.mark.parametrize("semitones", [-12, -2, -1, 1, 2, 12])
def test_a_tone_moves_by_its_semitones_and_lasts_as_long(semitones, sample_rate):
    names = ["cqt", "mel_stft", "mel128"]
    copies = [copy_name(name, semitones) for name in names]
    found = features.compute(tone(440, sample_rate), sample_rate, names + copies)
    assert set(found) == {*names, *copies}
    sung = features.compute(tone(440 * 2 ** (semitones / 12), sample_rate), sample_rate, names)
    for name, shifted in zip(names, copies, strict=True):
        assert found[shifted].shape == found[name].shape
        assert loudest(found[shifted]) == loudest(sung[name]) != loudest(found[name])
    assert loudest(found[copies[0]]) == loudest(found["cqt"]) + semitones      # a bin is a semitone
    played = np.abs(found[copies[0]] - sung["cqt"])[:, 5:-5]
    assert np.median(played[loudest(sung["cqt"])]) < 0.5                        # as loud, in dB


# ---------------------------------------------------------------- the cache


@pytest.fixture(scope="module")
def few(small, tmp_path_factory):
    """Six clips of `small`: two good ones of training and one each of validation and test, a silent and a missing."""
    folder = tmp_path_factory.mktemp("few") / "few"
    split = load_tracks(small)["split"].drop(list(FAULTS.values()))
    chosen = [i for name, count in (("training", 2), ("validation", 1), ("test", 1))
              for i in split.index[split == name][:count]] + [FAULTS["silent"], FAULTS["missing"]]
    tracks = pd.read_csv(small / "fma_metadata" / "tracks.csv", index_col=0, header=[0, 1])
    (folder / "fma_metadata").mkdir(parents=True)
    tracks[tracks.index.isin(chosen)].to_csv(folder / "fma_metadata" / "tracks.csv")
    for path in (audio_path(small, i) for i in chosen):
        if path.exists():
            (folder / path.relative_to(small)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.relative_to(small))
    return folder


def command(few, folder, *more):
    return ["--data-dir", str(few), "--features-dir", str(folder), "--workers", "1", "--features", *NAMES, *more]


SHIFTED = ("--pitch-shift", "1", "-2")


@pytest.fixture(scope="module")
def shifted(few, tmp_path_factory):
    """Cache of `few` with copies, made in one go. Read it, change a copy."""
    folder = tmp_path_factory.mktemp("shifted") / "features"
    features.main(command(few, folder, *SHIFTED))
    return folder


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_copies_hold_the_training_clips_and_zeros(few, shifted):
    index, split = load_index(shifted), load_tracks(few)["split"].to_numpy()
    assert {p.name for p in shifted.iterdir()} == {"index.csv"} | {
        f"{name}.{kind}" for name in (*NAMES, *COPIES) for kind in ("npy", "json")}
    made = (split == "training") & (index["status"] == "ok").to_numpy()
    assert made.sum() == 2
    for name in COPIES:
        array, of = np.load(shifted / f"{name}.npy"), np.load(shifted / f"{name.partition('_')[0]}.npy")
        assert array.shape == of.shape and array.dtype == of.dtype
        assert [row.any() for row in array] == made.tolist()
    row = int(np.flatnonzero(made)[-1])
    with threadpool_limits(1):                  # as in the workers: the same sums in the same order
        found = features.compute(*read_audio(audio_path(few, index["track_id"][row])), COPIES)
    for name in COPIES[:2]:
        np.testing.assert_array_equal(np.load(shifted / f"{name}.npy")[row], found[name][:, :640].astype("float16"))


def test_the_json_of_a_copy_is_the_feature_s_and_says_the_shift(shifted):
    for name in NAMES:
        own = json.loads((shifted / f"{name}.json").read_text())
        copied = json.loads((shifted / f"{name}_pitch-2.json").read_text())
        assert own == {k: copied[k] for k in own}
        assert copied["pitch_shift"] == -2 and "validation and test" in copied["zeros"]


def test_features_and_index_are_the_same_bytes_without_copies(few, shifted, tmp_path):
    plain = tmp_path / "features"
    features.main(command(few, plain))
    assert contents(plain).items() <= contents(shifted).items()
    features.main(command(few, plain, *SHIFTED))                        # copies that are made later
    assert contents(plain) == contents(shifted)


def test_each_clip_is_decoded_once_for_all_arrays(few, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("audio.clips.read_audio", lambda path, *part: seen.append(path) or read_audio(path, *part))
    features.main(command(few, tmp_path / "features", *SHIFTED))
    assert len(seen) == len(set(seen)) == 5                             # the missing one is not tried


def test_killed_while_it_shifts_it_ends_in_the_same_bytes(few, shifted, tmp_path):
    folder = tmp_path / "features"
    journal = folder / ".partial" / "progress.csv"
    args = [sys.executable, ROOT / "features.py", *command(few, folder, *SHIFTED)]
    environment = {k: v for k, v in os.environ.items() if k != "DATA_DIR"} | {"TQDM_DISABLE": "1"}
    process, end = subprocess.Popen(args, env=environment), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if journal.exists() and "ok" in journal.read_text():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not list(folder.glob("*.npy"))
    features.main(command(few, folder, *SHIFTED))
    assert contents(folder) == contents(shifted)


@pytest.mark.parametrize("values, said", [
    (["0"], "invalid choice"), (["13"], "invalid choice"), (["1.5"], "invalid int"), (["x"], "invalid int"),
    ([], "expected at least one"), (["1", "--statistics"], "copies of features, not of statistics"),
])
def test_a_wrong_shift_is_one_line(values, said, capsys):
    with pytest.raises(SystemExit) as caught:
        features.main(["--pitch-shift", *values])
    assert caught.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


# ---------------------------------------------------------------- in training

FEATURES = (("chroma_cqt", 12), ("cqt", 84))


def add_copies(folder, name, shifts=SHIFTS, elsewhere=np.nan):
    """Copies that are 1000 dB louder per semitone, stored in other units, with NaN in validation and test."""
    values = np.load(folder / "features" / f"{name}.npy").astype(np.float32)
    training_rows = load_tracks(folder)["split"].to_numpy() == "training"
    info = json.loads((folder / "features" / f"{name}.json").read_text())
    for s in shifts:
        stored = np.where(training_rows[:, None, None], values / 2, elsewhere).astype(np.float32)
        np.save(folder / "features" / f"{copy_name(name, s)}.npy", stored)
        (folder / "features" / f"{copy_name(name, s)}.json").write_text(
            json.dumps(info | {"scale": 2.0, "offset": 1000.0 * s}))


@pytest.fixture
def data(tmp_path):
    """A small collection of two features with copies by -2 and 1 semitones."""
    folder = make_collection(tmp_path / "data", FEATURES)
    for name, _ in FEATURES:
        add_copies(folder, name)
    return folder


def drawn_shifts(dataset, rows, seed):
    """The semitones that a batch was drawn with, for each clip and part."""
    drawn, own = clips_or_copies(dataset, rows, seeded(seed)), dataset.raw(rows)
    drawn, own = (drawn, own) if isinstance(own, list) else ([drawn], [own])
    moved = [(x - y) / 1000 for x, y in zip(drawn, own, strict=True)]
    assert all((x.amax((1, 2)) - x.amin((1, 2))).abs().max() < 1e-3 for x in moved)      # a whole clip, of its own row
    return [x.mean((1, 2)).round().int().tolist() for x in moved]


@pytest.mark.parametrize("hold", [True, False])
def test_batches_draw_clips_and_copies_alike_and_seeded(data, hold):
    dataset = FeatureDataset(data, "cqt", hold=hold)
    assert pitch_shifts(dataset) == [-2, 1]
    assert all(isinstance(twin.array, torch.Tensor) == hold for twin in dataset.copies.values())
    rows = torch.from_numpy(dataset.rows["training"])
    [first] = drawn_shifts(dataset, rows, 1)
    assert [first] == drawn_shifts(dataset, rows, 1) != drawn_shifts(dataset, rows, 2)
    many = np.concatenate([drawn_shifts(dataset, rows, seed)[0] for seed in range(60)])
    shares = [np.mean(many == s) for s in (-2, 0, 1)]
    assert sum(shares) == pytest.approx(1) and max(abs(share - 1 / 3) for share in shares) < 0.05


def test_several_features_of_a_clip_are_shifted_alike(data):
    dataset = JointDataset(data, ["chroma_cqt", "cqt"])
    rows = torch.from_numpy(dataset.rows["training"])
    one, other = drawn_shifts(dataset, rows, 0)
    assert one == other and set(one) == {-2, 0, 1}
    for path in data.glob("features/cqt_pitch-2.*"):
        path.unlink()
    dataset = JointDataset(data, ["chroma_cqt", "cqt"])
    one, other = drawn_shifts(dataset, rows, 0)
    assert pitch_shifts(dataset) == [1] and one == other and set(one) == {0, 1}     # what both have
    for path in data.glob("features/chroma_cqt_pitch+1.*"):
        path.unlink()
    with pytest.raises(DataError, match="copies of chroma_cqt.cqt have no shift in common.*--features chroma_cqt cqt"):
        pitch_shifts(JointDataset(data, ["chroma_cqt", "cqt"]))


def test_a_training_batch_has_the_labels_of_its_clips_whatever_was_drawn(data):
    dataset = FeatureDataset(data, "cqt")
    mean, std = (torch.tensor(v)[:, None] for v in dataset.normalise())
    rows = torch.from_numpy(dataset.rows["training"][:16])
    x, y, targets = steps.training_batch(dataset, rows, training.Training(pitch_copies=True), seeded(5))
    assert torch.equal(y, dataset.labels[rows]) and torch.equal(targets.argmax(1), y)
    expected = clips_or_copies(dataset, rows, seeded(5))
    torch.testing.assert_close(x, (expected - mean) / std)
    assert not torch.equal(x, dataset.batch(rows)[0]) and Augmentation(pitch_copies=True).is_on()


ROW = {"feature": "cqt", "model": "SquareCNN"}


def train(data, runs_dir, row=ROW, **settings):
    run_dir, history = training.run("x", row, data, {"epochs": 2, "precision": "float32", "patience": 0, **settings},
                                    runs_dir, device="cpu", progress=False)
    return runs.load_config(run_dir), history, runs.load_probabilities(run_dir)


@pytest.fixture
def longer(tmp_path):
    """As `data`, of one feature, with clips long enough for SquareCNN."""
    folder = make_collection(tmp_path / "longer", (("cqt", 84),), frames=80)
    add_copies(folder, "cqt")
    return folder


def test_copies_never_reach_normalisation_validation_or_test(longer, tmp_path):
    plain, _, _ = train(longer, tmp_path / "plain")
    first = train(longer, tmp_path / "first", pitch_copies=True)
    assert plain["normalisation"] == first[0]["normalisation"]          # copies are 1000 dB and more away
    assert "pitch_shifts" not in plain and first[0]["pitch_shifts"] == [-2, 1]
    add_copies(longer, "cqt", elsewhere=0.0)
    second = train(longer, tmp_path / "second", pitch_copies=True)
    for one, other in zip(first[1], second[1], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0} and np.isfinite(one["validation_loss"])
    np.testing.assert_array_equal(first[2]["probabilities"], second[2]["probabilities"])


def test_a_run_does_not_go_on_with_other_copies(longer, tmp_path):
    train(longer, tmp_path / "runs", pitch_copies=True)
    add_copies(longer, "cqt", shifts=[2])
    with pytest.raises(DataError, match="was begun with another pitch_shifts"):
        train(longer, tmp_path / "runs", pitch_copies=True)


def test_a_cache_without_copies_says_how_to_make_them(tiny, tmp_path):
    with pytest.raises(DataError) as caught:
        train(tiny, tmp_path / "runs", pitch_copies=True)
    assert str(caught.value) == (
        f"{tiny}/features/cqt_pitch*.npy not found: pitch_copies needs python features.py --data-dir {tiny} "
        "--features cqt --pitch-shift -2 -1 1 2")
    assert not (tmp_path / "runs").exists()


def test_copies_of_other_clips_or_splits_are_refused(data):
    path = data / "features" / "cqt_pitch+1.npy"
    array = np.load(path)
    np.save(path, array[..., 1:])
    with pytest.raises(DataError, match=r"cqt_pitch\+1.npy has clips of \(84, 63\), cqt of \(84, 64\): delete"):
        pitch_shifts(FeatureDataset(data, "cqt"))
    array[3] = 0                                                        # as if track 5 had been in validation
    np.save(path, array)
    with pytest.raises(DataError, match=r"cqt_pitch\+1.npy has nothing of training track 5, .*--pitch-shift again"):
        pitch_shifts(FeatureDataset(data, "cqt"))
