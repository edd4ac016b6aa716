"""Every clip is tested once, by a network that has heard none of its artist; folds are drawn once and kept."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import GENRES
from torch import nn

import training
from dataset import FeatureDataset, JointDataset
from fma import SPLITS, DataError, load_tracks
from learning import folds, runs, steps
from learning.folds import draw_folds, leave_test_out, load_folds, take_fold
from training import Training

pytestmark = pytest.mark.usefixtures("one_thread")
ROW = {"feature": "chroma_cqt", "model": "SquareCNN"}
SHORT = {"epochs": 2, "batch_size": 16, "lr": 3e-3, "precision": "float32"}


def with_folds(tiny, folder, values):
    """A copy of the collection whose tracks.csv has folds: a function of the artist, 0 to 31."""
    data = folder / "tiny"
    shutil.copytree(tiny, data)
    path = data / "fma_metadata" / "tracks.csv"
    tracks = pd.read_csv(path, index_col=0, header=[0, 1])
    tracks["set", "fold"] = [values(artist - 100) for artist in tracks["artist", "id"]]
    tracks.to_csv(path)
    return data


@pytest.fixture
def four(tiny, tmp_path):
    """The collection with four folds of its own, each with all genres."""
    return with_folds(tiny, tmp_path, lambda artist: artist // 2 % 4)


@pytest.fixture
def drawn(tiny, tmp_path):
    """The collection without any: five are drawn."""
    return shutil.copytree(tiny, tmp_path / "drawn" / "tiny")


@pytest.mark.parametrize(("collection", "count"), [("four", 4), ("drawn", 5)])
@pytest.mark.parametrize("features", ["cqt", ("chroma_cqt", "cqt")])
def test_every_clip_is_tested_once_with_its_artist_on_one_side(request, collection, count, features):
    data = request.getfixturevalue(collection)
    dataset = training.open_row({"feature": features}, data, device="cpu")
    dataset.tracks.iloc[7, dataset.tracks.columns.get_loc("status")] = "silent"
    for part in dataset.parts:
        part.usable = part.usable & (np.arange(64) != 7)        # a clip that cannot be used stays out
    tested, validated = [], []
    for fold in range(count):
        assert take_fold(dataset, fold) == count
        sides = {split: set(dataset.artists[dataset.rows[split]]) for split in SPLITS}
        assert sum(map(len, sides.values())) == len(set.union(*sides.values()))
        assert sorted(np.concatenate(list(dataset.rows.values()))) == [k for k in range(64) if k != 7]
        assert set(dataset.labels[dataset.rows["training"]].tolist()) == set(range(4))
        tested.append(dataset.rows["test"].tolist())
        validated.append(dataset.rows["validation"].tolist())
        for part in dataset.parts:
            assert part.rows["training"].tolist() == dataset.rows["training"].tolist()
    assert sorted(sum(tested, [])) == [k for k in range(64) if k != 7]
    assert validated == tested[1:] + tested[:1]


def test_drawn_folds_are_stratified_kept_and_the_same_for_all(drawn, monkeypatch):
    tracks = load_tracks(drawn)
    first = load_folds(drawn, "small", tracks)
    stored = pd.read_csv(drawn / "fma_metadata" / "folds.csv", index_col="track_id")["fold"]
    assert stored[tracks.index].tolist() == first.tolist()
    counts = pd.crosstab(tracks["genre"], first)
    assert counts.shape == (4, 5) and counts.to_numpy().min() >= 2 and counts.to_numpy().max() <= 4    # of 16
    assert draw_folds(tracks.iloc[::-1])[tracks.index].tolist() != [0] * 64
    monkeypatch.setattr(folds, "draw_folds", lambda tracks: pytest.fail("drawn again"))
    shuffled = tracks.sample(frac=1, random_state=0)
    assert load_folds(drawn, "small", shuffled).tolist() == stored[shuffled.index].tolist()
    assert not list((drawn / "fma_metadata").glob(".*"))


def test_folds_of_the_collection_are_used_as_they_are(four):
    dataset = FeatureDataset(four, "cqt")
    take_fold(dataset, 3)
    assert set(dataset.rows["test"] // 4 % 4) == {3} and set(dataset.rows["validation"] // 4 % 4) == {0}
    assert not (four / "fma_metadata" / "folds.csv").exists()


def test_a_track_without_a_fold_is_on_no_side(tiny, tmp_path):
    dataset = FeatureDataset(with_folds(tiny, tmp_path, lambda artist: artist // 2 % 4 if artist > 0 else None), "cqt")
    take_fold(dataset, 0)
    assert sorted(np.concatenate(list(dataset.rows.values()))) == list(range(2, 64))


@pytest.mark.parametrize(("values", "words"), [
    (lambda artist: "first" if artist == 3 else artist % 4, "has first as folds"),
    (lambda artist: 1.5 if artist == 3 else artist % 4, "has 1.5 as folds"),
    (lambda artist: artist % 2, "has 0, 1 as folds"), (lambda artist: artist % 3 * 2, "has 0, 2, 4 as folds"),
    (lambda artist: 1 + artist % 3, "has 1, 2, 3 as folds"), (lambda artist: None, "has nothing as folds"),
])
def test_what_are_no_folds_is_one_line(tiny, tmp_path, values, words):
    data = with_folds(tiny, tmp_path, values)
    with pytest.raises(DataError, match=f"^{data}/fma_metadata/tracks.csv {words}: they are 0, 1, 2") as error:
        take_fold(FeatureDataset(data, "cqt"), 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "words"), [
    ("", "is not a table"), ("track_id,k\n2,0\n", "is not a table"), ("track_id,fold\n2,0\n", "lacks 63 tracks"),
    ("track_id,fold\n2,0\n2,1\n", "names track 2 twice"), ("\x00\xff", "is not a table"),
])
def test_a_damaged_or_stale_file_of_folds_is_one_line(drawn, content, words):
    (drawn / "fma_metadata" / "folds.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=f"folds.csv {words}") as error:
        take_fold(FeatureDataset(drawn, "cqt"), 0)
    assert "\n" not in str(error.value)


def test_a_fold_that_is_not_there_and_too_few_artists_are_one_line(four, drawn):
    with pytest.raises(DataError, match="fold 4 is unknown: .* has folds 0 to 3"):
        take_fold(FeatureDataset(four, "cqt"), 4)
    tracks = load_tracks(drawn)
    with pytest.raises(DataError, match="of 4 artists: 5 folds need 5 artists"):
        draw_folds(tracks[tracks["artist_id"] < 104])


def test_a_folder_that_links_would_spoil_is_refused_before_anything_is_written(drawn, four, tmp_path):
    shutil.rmtree(drawn / "features")
    before = sorted(tmp_path.rglob("*"))
    for data, folder, words in ((drawn, drawn, "is not a new folder"), (drawn, "", "is not a new folder"),
                                (drawn, four, "belongs to another collection"),
                                (four, tmp_path / "new", "has folds of its own")):
        with pytest.raises(DataError, match=words):
            leave_test_out(data, folder)
    assert sorted(tmp_path.rglob("*")) == before
    assert leave_test_out(drawn, tmp_path / "new").equals(leave_test_out(drawn, tmp_path / "new"))
    with pytest.raises(DataError, match="belongs to another collection"):
        leave_test_out(shutil.copytree(drawn, tmp_path / "copy"), tmp_path / "new")


# ---- what a fold's network is given ------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", [lambda data: FeatureDataset(data, "cqt"),
                                    lambda data: JointDataset(data, ("chroma_cqt", "cqt"))])
def test_normalisation_is_fitted_on_the_training_clips_of_the_fold(four, opened):
    dataset = opened(four)
    take_fold(dataset, 0)
    dataset.normalise()
    take_fold(dataset, 2)
    before = dataset.normalise()
    others = np.concatenate([dataset.rows["validation"], dataset.rows["test"]])
    for part in dataset.parts:
        part.array[others] = 6e4
    assert dataset.normalise() == before
    for part in dataset.parts:
        part.array[dataset.rows["training"][0]] = 6e4
    assert dataset.normalise() != before


def test_a_run_on_a_fold_does_not_depend_on_the_folds_before_it(four, tmp_path):
    dataset = training.open_row(ROW, four, device="cpu")
    where = {"device": "cpu", "progress": False}
    for fold in (0, 1, 2):
        shared, _ = training.run("short", ROW, four, SHORT, tmp_path / "shared", fold=fold, dataset=dataset, **where)
    alone, _ = training.run("short", ROW, four, SHORT, tmp_path / "alone", fold=2, **where)
    assert shared.relative_to(tmp_path / "shared") == alone.relative_to(tmp_path / "alone")
    assert alone.parts[-2:] == ("seed0_folds", "fold2")
    assert (shared / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    assert runs.load_config(shared) == runs.load_config(alone)
    said = [runs.load_probabilities(run) for run in (shared, alone)]
    assert all(np.array_equal(said[0][key], said[1][key]) for key in said[0])


def test_a_run_does_not_go_on_after_the_folds_have_changed(drawn, tmp_path):
    train = {"device": "cpu", "progress": False, "fold": 0}
    training.run("short", ROW, drawn, SHORT, tmp_path / "runs", **train)
    path = drawn / "fma_metadata" / "folds.csv"
    changed = pd.read_csv(path, index_col="track_id")
    changed["fold"] = changed["fold"].map({0: 0, 1: 1, 2: 3, 3: 2, 4: 4})       # fold 0 has the same clips on each side
    changed.to_csv(path)
    with pytest.raises(DataError, match="was begun with other data .tracks.csv.: delete it"):
        training.run("short", ROW, drawn, SHORT, tmp_path / "runs", **train)


def test_copies_that_only_the_official_training_clips_have_are_refused(four, tmp_path):
    with pytest.raises(DataError, match="pitch_copies are of the training clips of tracks.csv's split"):
        training.run("short", ROW, four, SHORT | {"pitch_copies": True}, tmp_path, device="cpu", progress=False, fold=1)


# ---- genres that differ in size ----------------------------------------------------------------------------------


@pytest.fixture
def unequal(tiny, tmp_path):
    """24 clips less of three genres in training: 16 of the first, two of each other."""
    data = shutil.copytree(tiny, tmp_path / "tiny")
    index = pd.read_csv(data / "features" / "index.csv")
    index.loc[[k for k in range(8, 40) if k % 4], "status"] = "short"
    index.to_csv(data / "features" / "index.csv", index=False)
    return data


def test_a_balanced_loss_gives_every_genre_the_same_say(unequal):
    dataset = FeatureDataset(unequal, "chroma_cqt")
    dataset.normalise()
    counts = torch.bincount(dataset.labels[dataset.rows["training"]])
    assert counts.tolist() == [10, 2, 2, 2]
    assert dataset.class_weights.tolist() == pytest.approx([16 / 4 / 10] + [16 / 4 / 2] * 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12 * 64, 4))
    rows = torch.from_numpy(dataset.rows["training"])
    x, y = dataset.batch(rows)
    each = nn.functional.cross_entropy(model(x), y, reduction="none").detach()
    by_genre = torch.stack([each[y == k].mean() for k in range(4)]).mean()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.0), steps.gradient_scaler("float32", dataset.device)
    for balance, mean in ((True, by_genre), (False, each.mean())):
        settings = Training(balance=balance, precision="float32")
        loss, _ = steps.learn(model, dataset, optimizer, scaler, settings, None, rows, 16)
        assert loss / 16 == pytest.approx(float(mean), rel=1e-5)


def test_a_balanced_run_says_so_and_others_are_as_before(unequal, tmp_path):
    where = {"device": "cpu", "progress": False}
    plain, _ = training.run("short", ROW, unequal, SHORT, tmp_path / "plain", **where)
    balanced, _ = training.run("short", ROW, unequal, SHORT | {"balance": True}, tmp_path / "balanced", **where)
    assert "balance" not in runs.load_config(plain)["training"]
    assert runs.load_config(balanced)["training"]["balance"] is True
    assert (plain / "model.safetensors").read_bytes() != (balanced / "model.safetensors").read_bytes()
    assert GENRES[0] in runs.load_config(plain)["genres"]


def test_a_huge_fold_is_named(drawn):
    tracks = load_tracks(drawn, "small")
    table = pd.DataFrame({"fold": [1e30, *np.arange(len(tracks) - 1) % 3]}, index=tracks.index)
    table.to_csv(drawn / "fma_metadata" / "folds.csv")
    with pytest.raises(DataError, match=r"folds.csv has 1e\+30 as folds"):
        load_folds(drawn, "small", tracks)
