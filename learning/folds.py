"""Cross-validation by artist: every clip is tested once, by a network that has heard none of its artist.

    fma_metadata/tracks.csv     set,fold: 0, 1, ... for each track, where a collection comes with folds
    fma_metadata/folds.csv      track_id,fold: drawn on first use where it does not, and then used by all runs

Fold k is the test, the next one (after the last the first) chooses the epoch, and the others are learned.

    python -m learning.folds data/fma_small data/fma_calibration

links a collection whose official test is in no fold: what is fitted on the folds' answers can be tested there.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

import numpy as np

from audio.cache import save_whole
from dataset import leaking_artists
from fma import DataError, artists_of, load_tracks, run_command, some

FOLDS = 5       # where they are drawn


def load_folds(data_dir, subset, tracks):
    """The fold of each track, drawn and stored beside the metadata where the collection has none.

    Parameters
    ----------
    data_dir : path-like
    subset : str
    tracks : DataFrame, indexed by track_id
        Of the collection, as `fma.load_tracks` gives them: all, or those of a cache.

    Returns
    -------
    folds : ndarray of int, shape (tracks,)
        -1 where a track is in no fold.

    Raises
    ------
    DataError
        If folds are not numbered 0, 1, 2, ..., at least three, or the stored ones lack a track.
    """
    import pandas as pd

    folder = Path(data_dir) / "fma_metadata"
    if "fold" in tracks:
        path, values = folder / "tracks.csv", tracks["fold"]
    else:
        path = folder / ("folds.csv" if subset == "small" else f"folds_{subset}.csv")
        if not path.is_file():
            drawn = draw_folds(load_tracks(data_dir, subset))
            save_whole(path, lambda temporary: drawn.to_csv(temporary, lineterminator="\n"))
        values = _read_folds(path).reindex(tracks.index)
        absent = tracks.index[values.isna() & tracks["genre"].notna()]
        if len(absent):
            raise DataError(f"{path} lacks {len(absent)} tracks of tracks.csv ({some(absent)}): delete it, and folds "
                            "are drawn anew")
    folds = pd.to_numeric(values, errors="coerce")
    wrong = values[values.notna() & ~folds.isin(range(-1, 1000))].unique()
    there = [] if len(wrong) else sorted(set(folds[folds >= 0].astype(int)))
    if len(there) < 3 or there[-1] >= len(there):
        raise DataError(f"{path} has {some(wrong) or some(there) or 'nothing'} as folds: they are 0, 1, 2 and so on, "
                        "three at least and none left out")
    return folds.fillna(-1).to_numpy(int)


def draw_folds(tracks):
    """`FOLDS` folds with whole artists in each and nearly the same share of every genre, by StratifiedGroupKFold.

    Parameters
    ----------
    tracks : DataFrame
        From `fma.load_tracks`; those without a genre are in no fold.

    Returns
    -------
    folds : Series of int, indexed by track_id
    """
    import pandas as pd
    from sklearn.model_selection import StratifiedGroupKFold

    known = tracks[tracks["genre"].notna()]
    folds = pd.Series(-1, index=known.index, name="fold")
    artists = len(set(artists_of(known)))
    if artists < FOLDS or known["genre"].value_counts().max() < FOLDS:
        raise DataError(f"tracks.csv has {len(known)} tracks with a genre, of {artists} artists: {FOLDS} folds need "
                        f"{FOLDS} artists, and as many tracks of a genre")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # of genres with fewer clips than folds: fma.audit names them
        splits = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(
            known, known["genre"], artists_of(known))
        for fold, (_, tested) in enumerate(splits):
            folds.iloc[tested] = fold
    return folds.sort_index()


def _read_folds(path):
    import pandas as pd

    try:
        folds = pd.read_csv(path).set_index("track_id")["fold"]
    except (KeyError, ValueError) as error:     # pandas' own are ValueErrors
        raise DataError(f"{path} is not a table of track_id and fold: delete it, and folds are drawn anew") from error
    if folds.index.has_duplicates:
        raise DataError(f"{path} names track {folds.index[folds.index.duplicated()][0]} twice: remove one row")
    return folds


def take_fold(dataset, fold):
    """Let a fold be the test of a dataset, the next one its validation, and the others its training.

    The dataset's rows and ``tracks`` change, and its normalisation is to be fitted again. Returns the number of folds.
    """
    folds = load_folds(dataset.data_dir, dataset.subset, dataset.tracks)
    count = int(folds.max()) + 1
    if not 0 <= fold < count:
        raise DataError(f"fold {fold} is unknown: {dataset.data_dir} has folds 0 to {count - 1}")
    names = np.array(["training"] * count + [None], dtype=object)       # the last is that of fold -1
    names[fold], names[(fold + 1) % count] = "test", "validation"
    dataset.use_split(names[folds])
    dataset.tracks = dataset.tracks.assign(fold=folds)
    return count


def call_out_leaks(dataset):
    """Say on stderr which artists are in training and elsewhere, if there are any."""
    leaks = leaking_artists(dataset)
    if leaks:
        print(f"warning: {len(leaks)} artists are in training and in validation or test ({some(leaks)}): "
              "a network that recognises the artist will seem to recognise the genre.", file=sys.stderr)


def leave_test_out(data_dir, folder):
    """Link a collection and its cache into a folder, with folds drawn of its training and validation clips alone."""
    if not str(folder) or Path(folder).resolve() == Path(data_dir).resolve():
        raise DataError(f"{str(folder)!r} is not a new folder: name one beside {data_dir}")
    data_dir, folder = Path(data_dir), Path(folder)
    metadata, tracks = folder / "fma_metadata", load_tracks(data_dir)
    if "fold" in tracks:                # which `load_folds` would use, with the test in them
        raise DataError(f"{data_dir}/fma_metadata/tracks.csv has folds of its own, in the column set,fold: write -1 "
                        "there for the tracks of the test, in a copy of the collection")
    links = {folder / "features": data_dir / "features",
             metadata / "tracks.csv": data_dir / "fma_metadata" / "tracks.csv"}
    for link, source in links.items():
        if os.path.lexists(link) and link.resolve() != source.resolve():
            raise DataError(f"{link} belongs to another collection than {data_dir}: name a new folder")
    folds = draw_folds(tracks[tracks["split"] != "test"]).reindex(tracks.index, fill_value=-1)
    metadata.mkdir(parents=True, exist_ok=True)
    for link, source in links.items():
        if not link.is_symlink():
            link.symlink_to(os.path.abspath(source))
    save_whole(metadata / "folds.csv", lambda temporary: folds.to_csv(temporary, lineterminator="\n"))
    return folds


def main(argv=None):
    parser = argparse.ArgumentParser(description="Link a collection with folds that leave its official test out.")
    parser.add_argument("data_dir")
    parser.add_argument("folder", help="new; its name is that of its runs")
    args = parser.parse_args(argv)
    folds = leave_test_out(args.data_dir, args.folder)
    print(f"{args.folder}: {(folds >= 0).sum()} clips in {folds.max() + 1} folds by artist, "
          f"{(folds < 0).sum()} in none")


if __name__ == "__main__":
    sys.exit(run_command(main))
