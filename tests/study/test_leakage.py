"""Each rung of the ladder leaks what it says, and no more; the last rungs flatter."""

import json

import numpy as np
import pandas as pd
import pytest
from synthetic import make_collection

from dataset import FeatureDataset
from fma import DataError, artists_of, load_tracks
from study import leakage, marked_tables

pytestmark = pytest.mark.usefixtures("one_thread")



@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("data") / "tiny", features=(("cqt", 84),), frames=150)


@pytest.fixture(scope="module")
def rungs(tiny, tmp_path_factory):
    """Rung to its folder and its chunks: where from, in which split."""
    folder = tmp_path_factory.mktemp("ladder")
    found = {}
    for rung in leakage.RUNGS:
        data = leakage.make_rung(tiny, rung, folder / rung, "cqt", 64)
        table = pd.read_csv(data / "fma_metadata" / "tracks.csv", header=[0, 1], index_col=0)
        table.columns = ["artist" if column == ("artist", "id") else column[1] for column in table.columns]
        found[rung] = data, table.rename_axis("chunk")
    return found


def crossing(table, unit):
    """Number of units with chunks in more than one split."""
    return int((table.groupby(unit)["split"].nunique() > 1).sum())


@pytest.mark.parametrize(("rung", "artists", "tracks", "chunks"), [
    ("official", False, False, False), ("official_augmented", False, False, False), ("track", True, False, False),
    ("chunk", True, True, False), ("augmented", True, True, True),
])
def test_what_crosses_the_split_is_what_the_rung_says(rungs, rung, artists, tracks, chunks):
    _, table = rungs[rung]
    assert (crossing(table, "artist") > 0) is artists
    assert (crossing(table, "track_id") > 0) is tracks
    assert (crossing(table, ["track_id", "start"]) > 0) is chunks


def test_every_rung_has_the_same_chunks_and_as_many_of_each_genre(rungs):
    clean = {rung: table[table["copy"] == 0] for rung, (_, table) in rungs.items()}
    official = clean["official"]
    assert len(official) == 2 * 64                                  # 150 frames are two chunks of 64
    for rung, table in clean.items():
        pd.testing.assert_frame_equal(table[["track_id", "start", "genre_top"]].reset_index(drop=True),
                                      official[["track_id", "start", "genre_top"]].reset_index(drop=True))
        if rung != "augmented":
            counts = table.groupby(["genre_top", "split"]).size()
            pd.testing.assert_series_equal(counts, official.groupby(["genre_top", "split"]).size())


def test_augmenting_under_the_official_split_leaves_validation_and_test_alone(rungs):
    _, table = rungs["official_augmented"]
    assert set(table["copy"]) == {0, 1, 2} and set(table.loc[table["copy"] > 0, "split"]) == {"training"}
    assert (table["split"] == "training").sum() == 3 * 80


def test_chunks_are_cut_from_their_clip_and_copies_are_near_them(rungs, tiny):
    data, table = rungs["augmented"]
    source, stored = np.load(tiny / "features" / "cqt.npy"), np.load(data / "features" / "cqt.npy")
    rows = pd.Series(np.arange(64), load_tracks(tiny).index)
    for place in (0, 1, 77):
        row = table.iloc[place]
        assert row["copy"] == 0
        np.testing.assert_array_equal(stored[place], source[rows[row["track_id"]], :, row["start"]:row["start"] + 64])
    first = table.iloc[0]
    same = (table["track_id"] == first["track_id"]) & (table["start"] == first["start"])
    copies = stored[np.flatnonzero(same & (table["copy"] > 0))].astype(float)
    assert len(copies) == leakage.COPIES and not np.array_equal(*copies)
    spectrum = stored[0].astype(float).mean(1)
    for copy in copies:                                             # but for level and noise, the spectrum is the same
        difference = copy.mean(1) - spectrum
        assert np.std(difference) < 0.5 and abs(difference.mean()) <= leakage.GAIN_DB


def test_a_rung_is_made_once_and_alike_on_any_machine(rungs, tiny, tmp_path):
    folder, _ = rungs["augmented"]
    array = folder / "features" / "cqt.npy"
    before = array.stat().st_mtime_ns
    assert leakage.make_rung(tiny, "augmented", folder, "cqt", 64) == folder and array.stat().st_mtime_ns == before
    again = leakage.make_rung(tiny, "augmented", tmp_path / "again", "cqt", 64)
    assert (again / "features" / "cqt.npy").read_bytes() == array.read_bytes()
    with pytest.raises(DataError, match="holds another rung, or a damaged one: delete it"):
        leakage.make_rung(tiny, "chunk", folder, "cqt", 64)
    (again / "features" / "cqt.json").write_text('{"feature')
    with pytest.raises(DataError, match="or a damaged one"):
        leakage.make_rung(tiny, "augmented", again, "cqt", 64)


def test_an_interrupted_rung_is_not_taken_for_a_whole_one(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(leakage, "_write_array", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        leakage.make_rung(tiny, "chunk", tmp_path / "chunk", "cqt", 64)
    assert not (tmp_path / "chunk").exists()
    monkeypatch.undo()
    leakage.make_rung(tiny, "chunk", tmp_path / "chunk", "cqt", 64)
    assert len(FeatureDataset(tmp_path / "chunk", "cqt").tracks) == 128


@pytest.mark.parametrize(("change", "message"), [
    ({"length": 151}, "a chunk cannot have 151"), ({"feature": "mfcc"}, "mfcc.npy not found"),
])
def test_what_cannot_be_cut_is_one_line(tiny, tmp_path, change, message):
    given = {"feature": "cqt", "length": 64} | change
    with pytest.raises(DataError, match=message) as error:
        leakage.make_rung(tiny, "chunk", tmp_path / "x", **given)
    assert "\n" not in str(error.value) and not (tmp_path / "x").exists()


def test_the_ladder_is_trained_and_its_results_are_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = leakage.run_ladder(tiny, "cqt_square", 64, epochs=1, device="cpu", progress=False)
    assert list(found) == list(leakage.RUNGS)
    for rung, result in found.items():
        path = tmp_path / "results" / "ladder" / f"tiny_{rung}" / "cqt_square.json"
        assert json.loads(path.read_text())["test"]["accuracy"] == result["test"]["accuracy"]
    table = leakage.ladder_table(found)
    assert "official, augmented" in table and table.count("\n| ") == 5
    assert table.endswith("Measured on tiny: cqt_square on chunks of 64 frames; 1 seed, epoch chosen on validation, "
                          "interval over artists.")
    text = "<!-- ladder tiny cqt_square -->\n<!-- end -->"
    assert f"\n{table}\n" in marked_tables.marked_tables(text, tmp_path / "results")
    assert len(set(artists_of(load_tracks(tiny / "ladder" / "tiny_track")))) == 32
