"""The feature cache as a dataset that trains fast: rows, splits and normalisation, nothing copied.

    features/index.csv      track_id,status: line i is row i of every array
    features/cqt.npy        (tracks, bins, frames); value = stored * scale + offset
    features/cqt.json       scale, offset, unit, parameters, versions
    features/cqt_pitch+1.*  the same of the training clips a semitone up; rows of validation and test are never read
"""

import math
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from audio.cache import USABLE, load_index, open_feature
from fma import SPLITS, DataError, artists_of, dataset_name, load_tracks, some

SPLIT = ("tracks", "rows", "class_weights")     # what changes with the split


class FeatureDataset:
    """One feature of a collection, with labels and splits, read by rows.

    The array is held in memory, or on the GPU, if it fits there; else it stays memory-mapped. Splits are
    rows of one array. A batch is one gather and one multiply-add, whatever its size.

    Parameters
    ----------
    data_dir : path-like
    feature : str
        Name of an array in the cache.
    scale : {"db", "linear"}
        For a feature stored in decibels: as it is, or back to amplitude (cqt) or power (mel).
    subset : str
    features_dir : path-like, optional
        ``<data_dir>/features`` by default.
    device : str or torch.device
        Where batches are wanted.
    hold : bool, optional
        Hold the array there; by default if it takes less than half of it.
    beside : int
        How many arrays of such a size are to have room there.

    Attributes
    ----------
    genres : list of str
        Sorted; the classes.
    tracks : DataFrame
        Metadata of each row of the array.
    labels : Tensor, shape (tracks,), int64
        -1 where the genre is unknown.
    rows : dict of str to ndarray
        Split to rows that are of status ok or padded and have a genre.
    class_weights : Tensor, shape (genres,)
        Training clips over genres times a genre's training clips: for a loss in which every genre counts as much.
    shape : tuple
        (bins, frames).
    info : dict
        The cache's JSON: unit, parameters, versions.
    """

    tags = None         # or what `tag_models.training_tags` gives, if the network learns from them

    def __init__(self, data_dir, feature, scale="db", subset="small", features_dir=None, device="cpu", hold=None,
                 beside=1):
        import pandas as pd
        import torch

        features_dir = Path(features_dir or Path(data_dir) / "features")
        self.name, self.feature, self.scale = dataset_name(data_dir, subset), feature, scale
        self.data_dir, self.subset = data_dir, subset
        self.device, self.features_dir = torch.device(device), features_dir
        self.copies, self.hashes = None, {}     # semitones to shifted copies; files that learning/runs.py has hashed
        index = load_index(features_dir)
        self.array, self.info = open_feature(features_dir, feature, len(index))
        self.shape = self.array.shape[1:]
        if scale not in ("db", "linear"):
            raise DataError(f'scale {scale!r} is unknown: choose "db" or "linear"')
        if scale == "linear" and "power" not in self.info:
            raise DataError(f"{feature} is not stored in decibels: it has no linear scale to go back to")
        tracks = load_tracks(data_dir, subset)
        lost = index["track_id"][~index["track_id"].isin(tracks.index)]
        if len(lost):
            raise DataError(f"{features_dir}/index.csv lists track {lost.iloc[0]}, which tracks.csv has not in its "
                            f"{subset} subset: the cache is of other data, pass --features-dir")
        if len(index) < len(tracks):
            raise DataError(f"{features_dir}/index.csv lists {len(index)} of the {len(tracks)} tracks of the {subset} "
                            "subset: run features.py, into a cache of its own with --features-dir")
        self.tracks = tracks.loc[index["track_id"]].assign(status=index["status"].to_numpy())
        self.genres = sorted(self.tracks["genre"].dropna().unique())
        labels = pd.Categorical(self.tracks["genre"], self.genres).codes
        self.usable = self.tracks["status"].isin(USABLE).to_numpy() & (labels >= 0)
        self.labels = torch.as_tensor(labels.astype(np.int64), device=self.device)
        self.artists = artists_of(self.tracks)
        self.use_split(self.tracks["split"].to_numpy())
        self.prepare(feature, hold, beside)
        self.mean, self.std = torch.zeros_like(self._stored[0]), torch.ones_like(self._stored[0])

    def use_split(self, split):
        """Share the clips out anew: training, validation or test for each row, or anything else for neither.

        The normalisation stays that of the old training clips until it is fitted again.
        """
        import torch

        self.tracks = self.tracks.assign(split=split)
        self.rows = {s: np.flatnonzero(self.usable & (split == s)) for s in SPLITS}
        counts = torch.bincount(self.labels[self.rows["training"]], minlength=len(self.genres)).float()
        empty = [genre for genre, count in zip(self.genres, counts.tolist(), strict=True) if not count]
        if empty or not self.genres:
            found = ", ".join(f"{n} {s}" for s, n in self.tracks["status"].value_counts().items())
            raise DataError(f"{self.data_dir}: no usable training clip of genre {some(empty) or '(there is none)'} "
                            f"(clips: {found}); python fma.py says what is wrong with the metadata")
        self.class_weights = counts.sum() / (len(counts) * counts)

    def prepare(self, name, hold=None, count=1):
        """Hold the array where batches are wanted, by default if `count` of its size have room, and its scale too."""
        import torch

        if hold or (hold is None and count * self.array.nbytes < spare_memory(self.device)):
            array = np.load(self.features_dir / f"{name}.npy", allow_pickle=False)
            self.array = torch.from_numpy(array).to(self.device)
        else:
            self._file = open(self.features_dir / f"{name}.npy", "rb")  # noqa: SIM115 - as long as the data set is
        self._stored = [torch.as_tensor(self.info[k], dtype=torch.float32, device=self.device).reshape(-1, 1)
                        for k in ("scale", "offset")]

    def __repr__(self):
        shapes = ", ".join(f"{part.feature} {part.shape[0]} × {part.shape[1]}" for part in self.parts)
        scale = f" ({self.scale})" if "power" in self.parts[0].info else ""
        counts = ", ".join(f"{len(self.rows[s]):,} {s}" for s in SPLITS)
        return f"{self.name}: {shapes}{scale}, {len(self.genres)} genres, {counts}{remarks(self)}"

    @property
    def parts(self):
        """The data set of each feature: itself, as `JointDataset` has several."""
        return [self]

    def is_held(self):
        """Whether all values are where batches are wanted, not on a disk."""
        return not any(isinstance(part.array, np.ndarray) for part in self.parts)

    def expect(self, rows):
        """Have the system read rows that are soon asked for, if they are on a disk, while other work goes on."""
        for part in self.parts:
            if not part.is_held() and hasattr(os, "posix_fadvise"):
                file, start, size = part._file.fileno(), part.array.offset, part.array[0].nbytes
                for row in rows.tolist():
                    os.posix_fadvise(file, start + row * size, size, os.POSIX_FADV_WILLNEED)

    def raw(self, rows):
        """Values of some rows in the feature's unit, without normalisation.

        Returns
        -------
        x : Tensor, shape (len(rows), bins, frames), float32
        """
        import torch

        if not self.is_held():
            rows = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else np.asarray(rows)
            x = torch.from_numpy(self.array[rows]).to(self.device)
        else:
            x = self.array[torch.as_tensor(rows, device=self.array.device)]
        x = x.float().mul_(self._stored[0]).add_(self._stored[1])
        return x.mul_(self.info["power"] / 20 * np.log(10)).exp_() if self.scale == "linear" else x

    def batch(self, rows):
        """Normalised values and labels of some rows.

        Parameters
        ----------
        rows : sequence of int, ndarray or Tensor

        Returns
        -------
        x : Tensor, shape (batch, bins, frames), float32
        y : Tensor, shape (batch,), int64
        """
        import torch

        return self.normalised(self.raw(rows)), self.labels[torch.as_tensor(rows, device=self.device)]

    def normalised(self, x):
        """Values in the feature's unit, normalised in their place as the last call of `normalise` says."""
        return x.sub_(self.mean).div_(self.std)

    def normalise(self, mean=None, std=None, per="bin"):
        """Set the normalisation of each bin: as given, or fitted on the training clips alone.

        Parameters
        ----------
        mean, std : sequence of float, optional
            One for each bin, as an earlier call returned them.
        per : {"bin", "nothing"}
            Fit a mean and a deviation for each bin, or leave values as they are.

        Returns
        -------
        mean, std : list of float, one for each bin
            To save with a run. A bin that never changes gets 1 as its deviation.
        """
        import torch

        if per not in ("bin", "nothing"):
            raise DataError(f"values cannot be normalised per {per!r}: choose bin or nothing")
        if mean is None:
            total = torch.zeros(2, self.shape[0], dtype=torch.float64, device=self.device)
            rows = self.rows["training"]
            for part in np.array_split(rows, -(-len(rows) // 64)):
                x = self.raw(part).double()     # in single precision, mean² would swamp a small deviation
                total += torch.stack([x.sum((0, 2)), x.square_().sum((0, 2))])
            mean, square = total / (len(rows) * self.shape[1])
            if not square.isfinite().all():
                raise DataError(f"{self.feature}.npy holds values that are not numbers: make it again")
            std = (square - mean**2).clamp(min=0).sqrt()
            std[std < 1e-6 * mean.abs().clamp(min=1e-6)] = 1
            if per == "nothing":
                mean, std = torch.zeros_like(mean), torch.ones_like(std)
        self.mean, self.std = (torch.as_tensor(v, dtype=torch.float32, device=self.device).reshape(-1, 1)
                               for v in (mean, std))
        return self.mean.flatten().tolist(), self.std.flatten().tolist()


class JointDataset(FeatureDataset):
    """Several features of the same clips: values are lists, one element for each feature.

    Parameters are those of `FeatureDataset`, with several names for `features`, and "db" the only scale.

    Attributes
    ----------
    parts : list of FeatureDataset
    shape : tuple of list
        Bins of each feature, and frames of each.
    info : dict of str to dict
        Feature to its JSON.
    """

    parts = None        # an attribute here

    def __init__(self, data_dir, features, scale="db", subset="small", features_dir=None, device="cpu", hold=None):
        if len(set(features)) < 2 or len(set(features)) < len(features):
            raise DataError(f"features to join must be two or more, each once, not {some(list(features)) or 'none'}")
        if scale != "db":
            raise DataError(f'features are joined as they are stored: scale "db", not {scale!r}')
        self.parts = [FeatureDataset(data_dir, name, "db", subset, features_dir, device, hold, len(features))
                      for name in features]
        self.feature, self.scale = "+".join(features), scale
        self.shape = tuple([part.shape[axis] for part in self.parts] for axis in (0, 1))
        self.info = {part.feature: part.info for part in self.parts}
        for what in ("name", "data_dir", "subset", "genres", "labels", "artists", "device", *SPLIT):
            setattr(self, what, getattr(self.parts[0], what))

    def use_split(self, split):
        for part in self.parts:
            part.use_split(split)
        for what in SPLIT:
            setattr(self, what, getattr(self.parts[0], what))

    def raw(self, rows):
        return [part.raw(rows) for part in self.parts]

    def normalised(self, x):
        return [part.normalised(values) for part, values in zip(self.parts, x, strict=True)]

    def normalise(self, mean=None, std=None, per="bin"):
        nothing = [None] * len(self.parts)
        given = zip(self.parts, mean or nothing, std or nothing, strict=True)
        return tuple(map(list, zip(*(part.normalise(m, s, per) for part, m, s in given), strict=True)))


def leaking_artists(dataset, splits=("validation", "test")):
    """Artists with clips both in training and in one of some other splits."""
    others = np.concatenate([dataset.artists[dataset.rows[split]] for split in splits])
    return np.intersect1d(dataset.artists[dataset.rows["training"]], others).tolist()


def remarks(dataset):
    """What is said behind the description of a dataset: a leak, and that it is no music."""
    leaks = len(leaking_artists(dataset, ["test"]))
    return f" - {leaks} ARTISTS IN TRAINING AND IN TEST" * bool(leaks) + " - SYNTHETIC" * (dataset.name == "demo")


def open_dataset(data_dir, feature, *args, **kwargs):
    """A `FeatureDataset` of one feature, by its name, or a `JointDataset` of several, by a list of names."""
    return (FeatureDataset if isinstance(feature, str) else JointDataset)(data_dir, feature, *args, **kwargs)


def memory_limit(groups="/proc/self/cgroup", root="/sys/fs/cgroup"):
    """Bytes of memory that this process may have: the machine's, or less in a container or a batch job (cgroup v2)."""
    found = [math.inf]
    with suppress(AttributeError, ValueError):                  # Windows; a system that has no such name
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError):                                     # not Linux
        group = Path(root, Path(groups).read_text().rpartition("0::/")[2].strip())
        for folder in (group, *group.parents):                  # a group is under the limits of those around it
            with suppress(OSError, ValueError):                 # no such file, or "max"
                found.append(int((folder / "memory.max").read_text()))
    return min(found)


def spare_memory(device):
    """Bytes that arrays may take: half of this process's memory, or 60 % of what is free on the GPU."""
    if device.type == "cuda":
        import torch

        return 0.6 * torch.cuda.mem_get_info(device)[0]
    return 0.5 * memory_limit() / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
