"""Track statistics as a dataset with splits: FMA's features.csv, or those of features.py --statistics."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd

from audio.cache import USABLE
from dataset import FeatureDataset, remarks
from fma import SPLITS, DataError, artists_of, dataset_name, load_tracks, some

LEVELS = ("feature", "statistics", "number")    # levels of the columns of FMA's features.csv
# Subsets of the 518 columns and what their names, such as mfcc.mean.01, begin with: means and deviations of MFCC, which
# is all that our copy of FMA has, and the families of features. A name ends in its number of columns.
ONLY = {"mfcc40": r"mfcc\.(mean|std)", "mfcc140": "mfcc", "spectral84": "spectral|rmse|zcr", "tonnetz42": "tonnetz",
        **{f"{name}84": name for name in ("chroma_stft", "chroma_cqt", "chroma_cens")}}


def load_statistics(data_dir, subset="small", features_dir=None):
    """Read the track statistics of a collection.

    Parameters
    ----------
    data_dir : path-like
        ``fma_metadata/features.csv`` is read if it exists, otherwise the cache.
    subset : str
    features_dir : path-like, optional
        ``<data_dir>/features`` by default.

    Returns
    -------
    statistics : DataFrame, float32, indexed by track_id
        The tracks of the subset that have statistics. Columns have FMA's three levels: feature, statistics, number.

    Raises
    ------
    DataError
        If neither exists, or the file is damaged.
    """
    path = Path(data_dir) / "fma_metadata" / "features.csv"
    if path.is_file():
        table = _read_features(path)
        return table[table.index.isin(load_tracks(data_dir, subset).index)]
    features_dir = Path(features_dir or Path(data_dir) / "features")
    if not (features_dir / "statistics.npy").is_file():
        raise DataError(f"neither {path} nor {features_dir}/statistics.npy exists: "
                        f"run features.py --statistics --data-dir {data_dir}")
    cache, table = _summaries(data_dir, "statistics", subset, features_dir)
    columns = [tuple(column.split(".")) for column in cache.info.get("columns", [])]
    if cache.shape != (len(columns), 1) or any(len(column) != 3 for column in columns):
        raise DataError(f"{features_dir}/statistics.json does not name the columns of statistics.npy: "
                        f"delete {features_dir}/statistics.* and run features.py --statistics again")
    return table.set_axis(pd.MultiIndex.from_tuples(columns, names=LEVELS), axis=1)


def _read_features(path):
    """Read FMA's features.csv, 106,574 rows: 220 MB in single precision, 660 MB while they are read."""
    try:
        table = pd.read_csv(path, header=[0, 1, 2], index_col=0)
        if (*table.columns.names, table.index.name) != (*LEVELS, "track_id") or table.index.dtype != np.int64:
            raise ValueError("its first column must read " + ", ".join([*LEVELS, "track_id"]) + " and numbers")
        table = table.astype(np.float32)
    except (ValueError, IndexError) as error:                               # pandas' and Unicode's are ValueErrors
        raise DataError(f"{path} is not in FMA's layout ({' '.join(str(error).split())}): download it again, or delete "
                        "it to use features.py --statistics") from error
    if table.index.has_duplicates:
        raise DataError(f"{path} has track {table.index[table.index.duplicated()][0]} twice: remove one row")
    return table


def cached_statistics(data_dir, features, subset="small", features_dir=None):
    """Statistics over each clip of cached features, computed by `resnet_models.ClipStatistics`.

    Parameters
    ----------
    data_dir : path-like
    features : sequence of str
        Names of arrays in the cache. One with a single frame, such as an embedding, is used as it is.
    subset : str
    features_dir : path-like, optional

    Returns
    -------
    statistics : DataFrame, float32, indexed by track_id
        Tracks with status ok or padded; columns (feature, number).
    """
    if len(set(features)) < len(features):
        raise DataError(f"a feature is named twice: {' '.join(features)}")
    return pd.concat({name: _summaries(data_dir, name, subset, features_dir)[1] for name in features}, axis=1)


def _summaries(data_dir, name, subset, features_dir):
    """A cached feature, and the statistics over each of its usable clips: DataFrame, one row per track."""
    import torch

    from resnet_models import ClipStatistics

    cache = FeatureDataset(data_dir, name, subset=subset, features_dir=features_dir)
    bins, frames = cache.shape
    summary = torch.nn.Flatten() if frames == 1 else ClipStatistics(bins, least=1e-9)
    good = np.flatnonzero(cache.tracks["status"].isin(USABLE))
    values = torch.cat([summary(cache.raw(part)) for part in np.array_split(good, -(-len(good) // 256))])
    return cache, pd.DataFrame(values.numpy(), index=cache.tracks.index[good])


class Statistics:
    """Track statistics of a collection, with genres and splits like `dataset.FeatureDataset`.

    Parameters
    ----------
    data_dir : path-like
    subset : str
    features_dir : path-like, optional
    only : str, optional
        A key of `ONLY`: use these columns only; the names of results contain it.
    features : sequence of str, optional
        Use `cached_statistics` of these features instead; the names of results contain theirs.

    Attributes
    ----------
    values : ndarray, shape (tracks, columns), float64
        Each statistic in its own unit; NaN for missing ones.
    columns : MultiIndex
        FMA's names, or feature and number.
    feature : str
        "statistics", or the names of the features joined by +.
    genres, tracks, labels, rows, artists
        As in `FeatureDataset`. Only tracks whose statistics are all finite are used.
    left_out : int
        Number of tracks with a genre and a split, but without usable statistics.
    """

    def __init__(self, data_dir, subset="small", features_dir=None, only=None, features=()):
        import torch

        table = (cached_statistics(data_dir, features, subset, features_dir) if features
                 else load_statistics(data_dir, subset, features_dir))
        self.tracks, self.feature = load_tracks(data_dir, subset), "+".join(features) or "statistics"
        self.data_dir, self.subset = data_dir, subset
        self.suffix = f"_{only or self.feature}" if only or features else ""  # in the names of results and runs
        if only:
            table = table.loc[:, [bool(re.match(ONLY[only], ".".join(column))) for column in table.columns]]
        if not len(table.columns):
            raise DataError(f"{data_dir}: the statistics have no columns of {only}: run baselines.py without --only")
        self.name, self.columns = dataset_name(data_dir, subset), table.columns
        self.values = table.reindex(self.tracks.index).to_numpy(np.float64, copy=True)
        self.genres = sorted(self.tracks["genre"].dropna().unique())
        labels = pd.Categorical(self.tracks["genre"], self.genres).codes.astype(np.int64)
        self.labels, self.artists = torch.from_numpy(labels), artists_of(self.tracks)
        self.use_split(self.tracks["split"].to_numpy())

    def use_split(self, split):
        """Use another split, as `FeatureDataset.use_split` does."""
        self.tracks, labels = self.tracks.assign(split=split), self.labels.numpy()
        wanted = (labels >= 0) & self.tracks["split"].isin(SPLITS).to_numpy()
        usable = wanted & np.isfinite(self.values).all(axis=1)
        self.rows = {s: np.flatnonzero(usable & (split == s)) for s in SPLITS}
        self.left_out = int(wanted.sum() - usable.sum())
        counts = np.bincount(labels[self.rows["training"]], minlength=len(self.genres))
        few = [genre for genre, count in zip(self.genres, counts, strict=True) if count < 2]
        empty = [split for split in SPLITS if not len(self.rows[split])]
        if few or empty or counts.sum() < 5:    # two have a variance, five are neighbours
            what = f"genre {some(few)} has fewer than two training clips" if few else (
                f"there is no {some(empty)} clip" if empty else "there are fewer than five training clips")
            raise DataError(f"{self.data_dir}: {what} with statistics ({self.left_out} tracks have none); "
                            "python fma.py lists the problems of the metadata")

    def __repr__(self):
        counts = ", ".join(f"{len(self.rows[s]):,} {s}" for s in SPLITS)
        return (f"{self.name}: {len(self.columns)} statistics, {len(self.genres)} genres, {counts}, "
                f"{self.left_out} left out{remarks(self)}")

    def part(self, split):
        """Values (clips, columns) and labels (clips,) of a split."""
        return self.values[self.rows[split]], self.labels[self.rows[split]].numpy()

    def fingerprint(self):
        """A hash of a classifier's whole input: values, labels, splits, columns."""
        code = hashlib.sha256(repr((self.genres, list(self.columns))).encode())
        for split in SPLITS:
            for array in (self.tracks.index[self.rows[split]].to_numpy(np.int64), *self.part(split)):
                code.update(np.ascontiguousarray(array))
        return code.hexdigest()[:16]
