"""Data leakage in steps: the same clips and network, with splits that leak more and more of the test into training.

    python -m study.leakage cqt_square --frames 106 --data-dir data/emotify --repeats 3

Each clip is cut into chunks, on which the network is trained and tested. Each rung of this ladder splits them
differently:

    official              by artist, the collection's own split
    official_augmented    the same, with altered copies of the training chunks
    track                 by track, at random: other tracks of the test's artists are in training
    chunk                 by chunk, at random: other seconds of the test's tracks are in training
    augmented             by copy, at random: altered copies of the test's chunks are in training

A rung is a data set, a folder in FMA's layout. Several published accuracies of 90 % and more were measured with splits
like the last rungs.
"""

import argparse
import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from audio.cache import USABLE, load_index, open_feature
from fma import SPLITS, DataError, add_data_options, artists_of, dataset_name, find_data, load_tracks, run_command
from study.rows import EXPERIMENTS
from study.runner import run_experiments
from study.tables import RUNGS, ladder_table

COPIES = 2                      # altered copies of each chunk
SEED = 0                        # of the random splits and of the copies
GAIN_DB, NOISE_DB = 6.0, 1.0    # most change of level, standard deviation of noise


def chunks(tracks, n_frames, length):
    """Table of chunks, in the order of the tracks.

    Parameters
    ----------
    tracks : DataFrame, indexed by track_id
        With the columns row (in the feature's array), genre, split and artist.
    n_frames, length : int
        Frames of a clip, and of a chunk; a shorter rest at the end of a clip is not used.

    Returns
    -------
    DataFrame with columns track_id, row, genre, split, artist, start and copy (0)
    """
    starts = np.arange(0, n_frames - length + 1, length)
    table = tracks.reset_index().loc[np.repeat(np.arange(len(tracks)), len(starts))].reset_index(drop=True)
    return table.assign(start=np.tile(starts, len(tracks)), copy=0)


def shared_out(table, unit):
    """A table with its splits permuted at random among units of the same genre.

    Each genre keeps its number of units in each split.

    Parameters
    ----------
    table : DataFrame
        With the columns genre, split and those of `unit`.
    unit : list of str
        Columns that identify a unit: a track, a chunk, or a single row.
    """
    rng = np.random.default_rng(SEED)
    units = table.drop_duplicates(unit).copy()
    for rows in units.groupby("genre").groups.values():
        units.loc[rows, "split"] = rng.permutation(units.loc[rows, "split"])
    return table.drop(columns="split").merge(units[[*unit, "split"]], on=unit, how="left", validate="many_to_one")


def climb(table, rung):
    """The chunks of one rung, with copies and splits, from a table of `chunks`."""
    if rung.endswith("augmented"):
        copied = table[table["split"] == "training"] if rung == "official_augmented" else table
        table = pd.concat([table, *(copied.assign(copy=k) for k in range(1, COPIES + 1))], ignore_index=True)
    units = {"track": ["track_id"], "chunk": ["track_id", "start"], "augmented": ["track_id", "start", "copy"]}
    return shared_out(table, units[rung]) if rung in units else table


def altered(values, rng):
    """An augmented copy of a chunk in decibels: shifted in time, changed in level, with a little noise."""
    shifted = np.roll(values, rng.integers(values.shape[1]), axis=1)
    return shifted + rng.uniform(-GAIN_DB, GAIN_DB) + rng.normal(0, NOISE_DB, values.shape)


def make_rung(data_dir, rung, folder, feature, length, subset="small"):
    """Write the data set of one rung, unless it exists.

    Parameters
    ----------
    data_dir : path-like
    rung : str
        One of `RUNGS`.
    folder : Path
        Written in FMA's layout.
    feature : str
        Stored in decibels.
    length : int
        Frames of a chunk.

    Returns
    -------
    Path
        `folder`.
    """
    features_dir = Path(data_dir) / "features"
    index = load_index(features_dir)
    array, info = open_feature(features_dir, feature, len(index))
    if "power" not in info:
        raise DataError(f"{feature} is not stored in decibels: choose cqt, mel_stft or mel128")
    if not 0 < length <= array.shape[2]:
        raise DataError(f"{feature} has {array.shape[2]} frames: a chunk cannot have {length}")
    made = {**info, "ladder": {"rung": rung, "seed": SEED, "frames": length, "copies": COPIES}}
    if (folder / "features" / f"{feature}.json").is_file():
        with suppress(ValueError):
            if json.loads((folder / "features" / f"{feature}.json").read_text(encoding="utf-8")) == made:
                return folder
        raise DataError(f"{folder} holds another rung, or a damaged one: delete it")
    tracks = load_tracks(data_dir, subset).loc[index["track_id"]]
    tracks = tracks.assign(row=np.arange(len(index)), artist=artists_of(tracks), status=index["status"].to_numpy())
    good = tracks[tracks["status"].isin(USABLE) & tracks["genre"].notna() & tracks["split"].isin(SPLITS)]
    table = climb(chunks(good[["row", "genre", "split", "artist"]], array.shape[2], length), rung)
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "features").mkdir(parents=True)
    _write_metadata(unfinished, table)
    _write_array(unfinished / "features" / f"{feature}.npy", array, table, length, info)
    (unfinished / "features" / f"{feature}.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
    unfinished.rename(folder)
    return folder


def _write_metadata(folder, table):
    """Write tracks.csv in FMA's layout, with one track per chunk, and the index of the cache."""
    ids = np.arange(1, len(table) + 1)
    columns = {("set", "split"): table["split"], ("set", "subset"): "small", ("track", "genre_top"): table["genre"],
               ("artist", "id"): pd.factorize(table["artist"])[0], ("chunk", "track_id"): table["track_id"],
               ("chunk", "start"): table["start"], ("chunk", "copy"): table["copy"]}
    tracks = pd.DataFrame(columns).set_index(pd.Index(ids, name="track_id"))
    (folder / "fma_metadata").mkdir()
    tracks.to_csv(folder / "fma_metadata" / "tracks.csv")
    pd.DataFrame({"track_id": ids, "status": "ok"}).to_csv(folder / "features" / "index.csv", index=False)


def _write_array(path, array, table, length, info):
    """Write the chunks of the table, in the dtype, scale and offset of the array that they are cut from."""
    out = np.lib.format.open_memmap(path, "w+", array.dtype, (len(table), array.shape[1], length))
    scale, offset = (np.reshape(np.asarray(info[key], float), (-1, 1)) for key in ("scale", "offset"))
    limits = (np.iinfo if array.dtype.kind in "iu" else np.finfo)(array.dtype)
    for place, (row, start, copy) in enumerate(zip(table["row"], table["start"], table["copy"], strict=True)):
        chunk = array[row, :, start : start + length]
        if copy:
            rng = np.random.default_rng([SEED, row, start, copy])
            chunk = (altered(chunk * scale + offset, rng) - offset) / scale
            chunk = np.clip(np.round(chunk) if array.dtype.kind in "iu" else chunk, limits.min, limits.max)
        out[place] = chunk
    out.flush()


def run_ladder(data_dir, experiment, length, epochs, repeats=1, subset="small", **where):
    """Train one experiment on every rung: the data go to ``ladder`` in the data folder, results to ``results/ladder``.

    Parameters
    ----------
    data_dir : path-like
    experiment : str
        A key of `rows.EXPERIMENTS`.
    length : int
        Frames of a chunk.
    epochs, repeats : int

    Returns
    -------
    dict of str to dict
        Rung to its result.
    """
    found = {}
    for rung in RUNGS:
        folder = Path(data_dir) / "ladder" / f"{dataset_name(data_dir, subset)}_{rung}"
        data = make_rung(data_dir, rung, folder, EXPERIMENTS[experiment]["feature"], length, subset)
        results, _ = run_experiments([experiment], data, epochs, repeats, results_dir="results/ladder", **where)
        found[rung] = results[experiment]
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description="Train one network with splits that leak more and more.")
    parser.add_argument("experiment", nargs="?", default="mel128_square", choices=EXPERIMENTS, metavar="EXPERIMENT",
                        help="a name from: python experiments.py list (default: mel128_square)")
    add_data_options(parser)
    parser.add_argument("--frames", type=int, default=64, help="frames of a chunk (default: 64)")
    parser.add_argument("--epochs", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=1, help="seeds (default: %(default)s)")
    args = parser.parse_args(argv)
    results = run_ladder(find_data(args.data_dir), args.experiment, args.frames, args.epochs, args.repeats, args.subset)
    print("\n" + ladder_table(results))


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=True))
