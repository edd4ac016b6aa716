"""Every notebook runs on a collection of five genres without artists, and on a feature that only its owner can make."""

import contextlib
import io
import json
import os
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, write_cache, write_tracks
from test_notebooks import NOTEBOOKS, QUICK, cells

import features
from audio.cache import load_index
from fma import DataError, audio_paths, load_tracks

GENRES = {"Electronic": "Электронная музыка", "Folk": "Contemporary Singer-Songwriter and Folk Revival (North)",
          "Hip-Hop": "R&B | $oul", "Rock": "Rock", "Pop": "Pop_1"}
READS_RESULTS = "results"                       # last: what the others trained and fitted is there


@pytest.fixture(scope="module")
def five(demo, tmp_path_factory):
    """Fifty clips of the demo corpus under other names of genres, their cache, and ``own``, 24 bins of 100 frames."""
    data, names = tmp_path_factory.mktemp("five") / "five", [*features.STUDY_FEATURES, "mel128"]
    features.fill_cache(demo, names, progress=False)
    tracks, index = load_tracks(demo), load_index(demo / "features")
    usable = index["track_id"][index["status"] == "ok"]
    chosen = tracks.loc[usable][tracks.loc[usable, "genre"].isin(GENRES)]
    counts = {"training": 6, "validation": 2, "test": 2}
    chosen = pd.concat([part.head(counts[split]) for (_, split), part in chosen.groupby(["genre", "split"])])
    rows = index.index[index["track_id"].isin(chosen.index)]
    ids = index["track_id"][rows]
    write_tracks(data, ids, {("set", "split"): chosen["split"][ids], ("set", "subset"): ["small"],
                             ("track", "genre_top"): chosen["genre"][ids].map(GENRES)})
    os.symlink(demo / "fma_small", data / "fma_small")
    arrays = {name: np.load(demo / "features" / f"{name}.npy")[rows] for name in names}
    for name, values in arrays.items():
        write_cache(data, name, values, ids, **json.loads((demo / "features" / f"{name}.json").read_text()) | {
            "shape": list(values.shape)})
    write_cache(data, "own", arrays["cqt"][:, 12::3, :600:6] - arrays["cqt"].min())
    mfcc = arrays["mfcc"].astype(float)
    columns = pd.MultiIndex.from_tuples([("mfcc", what, f"{k:02d}") for what in ("mean", "std") for k in range(1, 21)],
                                        names=["feature", "statistics", "number"])
    table = pd.DataFrame(np.hstack([mfcc.mean(2), mfcc.std(2)]), pd.Index(ids, name="track_id"), columns)
    table.to_csv(data / "fma_metadata" / "features.csv")
    return data


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return {name: str(tmp_path_factory.mktemp(name)) for name in ("runs_dir", "results_dir")}


def run_cells(path, parameters):
    """Run a notebook's code in this process; what it prints, and what it leaves."""
    said, left = io.StringIO(), {"__name__": "__main__"}
    with contextlib.redirect_stdout(said):
        for k, cell in enumerate(cells(path)):
            exec(compile("".join(cell["source"]), f"{path.name}, code cell {k}", "exec"), left)
            if k == 0:
                left |= parameters
    return said.getvalue(), left


@pytest.mark.parametrize("path", sorted(NOTEBOOKS, key=lambda path: path.stem == READS_RESULTS), ids=lambda p: p.stem)
def test_notebook_runs_on_any_collection_and_feature(path, five, places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    asks = "".join(cells(path)[0]["source"])
    parameters = {"data_dir": str(five), **QUICK[path.stem], "epochs": 2, "feature": "own", **places}
    if path.stem == READS_RESULTS:
        parameters |= {"dataset": "five", "second": "", "results_dir": str(tmp_path)}      # runs alone, no baselines
    said, left = run_cells(path, {name: value for name, value in parameters.items() if f"{name} = " in asks})
    assert capsys.readouterr().err == "", "a warning"
    assert path.stem == "your_music" or "does not hold for five" in said       # the text is about other data
    assert not re.search(r"\bnan\b|\bNone (?!is)", said)
    assert path.stem == "predict" or "8 genres" not in said


def test_a_feature_that_nobody_has_made_is_named(five):
    with pytest.raises(DataError, match="nothing.npy not found, and features.py cannot make it: write it"):
        features.fill_cache(five, ["cqt", "nothing"])


def test_your_music_begins_with_a_folder_for_each_genre(five, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    tracks = load_tracks(five)
    for track, path in audio_paths(five, tracks).items():
        (folder := tmp_path / "music" / tracks["genre"][track]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"song {track}.mp3")
    [path] = [path for path in NOTEBOOKS if path.stem == "your_music"]
    said, left = run_cells(path, {"source": tmp_path / "music", "data_dir": str(tmp_path / "mine"), "seconds": 3,
                                  "epochs": 1, "runs_dir": str(tmp_path), "results_dir": str(tmp_path)})
    assert "mine: 50 tracks of 5 genres" in said and "artists: unknown" in said and capsys.readouterr().err == ""
    assert (left["dataset"].shape, left["index"]["status"].unique().tolist()) == ((84, 64), ["ok"])
    assert np.sum(left["test"]["confusion"]) == left["test"]["clips"] == 10
