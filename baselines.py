"""Twelve classifiers on track statistics: what can be had without a network.

    python baselines.py                         # all twelve, on fma_metadata/features.csv where FMA is
    python baselines.py SVC LDA --data-dir data/emotify --repeats 3

The statistics are FMA's own where its features.csv is, else those that ``features.py --statistics`` computes.
Results stand beside the networks' in ``results/<dataset>/baseline_<name>.json``. There is nothing to choose, so
validation only stands beside the test.
"""

import argparse
import csv
import hashlib
import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import AdaBoostClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.manifold import TSNE
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from datasets import load_index, open_feature
from evaluation import summarise
from fma import (
    SPLITS,
    SUBSETS,
    DataError,
    artists_of,
    dataset_name,
    find_data,
    load_tracks,
    progress_bar,
    run_command,
    some,
)
from runs import is_finished, load_config, load_probabilities, save_probabilities, save_whole
from tables import results_table

LEVELS = ("feature", "statistics", "number")    # of the columns of FMA's features.csv


class ShrunkQDA(ClassifierMixin, BaseEstimator):
    """Quadratic discriminant analysis: a Gaussian for each genre, its covariance shrunk as far as needed [1]_.

    scikit-learn's default inverts each genre's sample covariance, which has no inverse where a genre has fewer
    clips than there are columns. Ledoit and Wolf's estimate always has one, has no parameter to choose, and comes
    near the sample's where clips are many.

    References
    ----------
    .. [1] O. Ledoit, M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of
       Multivariate Analysis 88(2), 2004.
    """

    def fit(self, x, y):
        self.classes_, counts = np.unique(y, return_counts=True)
        self.log_priors_ = np.log(counts / len(y))
        self.gaussians_ = [LedoitWolf().fit(x[y == k]) for k in self.classes_]
        self.log_volumes_ = np.array([np.linalg.slogdet(g.covariance_)[1] for g in self.gaussians_]) / 2
        return self

    def predict_joint_log_proba(self, x):       # (clips, classes), up to a constant
        distances = np.stack([g.mahalanobis(x) for g in self.gaussians_], axis=1)
        return self.log_priors_ - self.log_volumes_ - distances / 2

    def predict(self, x):
        return self.classes_[self.predict_joint_log_proba(x).argmax(axis=1)]


def _scaled(classifier):
    """The scaler is part of what is fitted, and so sees the training clips alone."""
    return make_pipeline(StandardScaler(), classifier)


# Name to a function of the seed. Settings are scikit-learn's defaults, as in the original study, but for those given.
CLASSIFIERS = {
    "LogisticRegression": lambda seed: _scaled(LogisticRegression(max_iter=2000)),      # 100 may not converge
    "RidgeClassifier": lambda seed: _scaled(RidgeClassifier()),
    "LinearSVC": lambda seed: _scaled(LinearSVC(max_iter=20_000, random_state=seed)),   # 1000 may not converge
    "SVC": lambda seed: _scaled(SVC(break_ties=True)),      # the highest score is the prediction, on a tie of votes too
    "RandomForest": lambda seed: _scaled(RandomForestClassifier(random_state=seed)),
    "AdaBoost": lambda seed: _scaled(AdaBoostClassifier(random_state=seed)),
    "GaussianNB": lambda seed: _scaled(GaussianNB()),
    "LDA": lambda seed: _scaled(LinearDiscriminantAnalysis()),
    "QDA": lambda seed: _scaled(ShrunkQDA()),               # the default's covariances may be singular
    "OneVsRest": lambda seed: _scaled(OneVsRestClassifier(LogisticRegression(max_iter=2000))),
    "KNeighbors": lambda seed: _scaled(KNeighborsClassifier()),
    "MLP": lambda seed: _scaled(MLPClassifier(max_iter=2000, random_state=seed)),       # 200 do not converge
}

# Test accuracy as the original study reports it, in per cent: 518 columns, standardised over all splits together.
REPORTED = {"SVC": 47.8, "RandomForest": 46.2, "LDA": 45.6}


# ---------------------------------------------------------------- statistics


def load_statistics(data_dir, subset="small", features_dir=None):
    """Read the track statistics of a collection.

    Parameters
    ----------
    data_dir : path-like
        ``fma_metadata/features.csv`` is read if it is there, else the cache.
    subset : str
    features_dir : path-like, optional
        ``<data_dir>/features`` by default.

    Returns
    -------
    statistics : DataFrame, float32, indexed by track_id
        Columns have FMA's three levels: feature, statistics, number. Tracks of the subset that have any.

    Raises
    ------
    DataError
        If there is neither, or what is there is damaged.
    """
    path, ids = Path(data_dir) / "fma_metadata" / "features.csv", load_tracks(data_dir, subset).index
    if path.is_file():
        table = _read_features(path)
        return table[table.index.isin(ids)]
    features_dir = Path(features_dir or Path(data_dir) / "features")
    if not (features_dir / "statistics.npy").is_file():
        raise DataError(f"neither {path} nor {features_dir}/statistics.npy is there: "
                        f"run features.py --statistics --data-dir {data_dir}")
    index = load_index(features_dir)
    array, info = open_feature(features_dir, "statistics", len(index))
    columns = [tuple(column.split(".")) for column in info.get("columns", [])]
    if array.shape[1:] != (len(columns), 1) or any(len(column) != 3 for column in columns):
        raise DataError(f"{features_dir}/statistics.json does not name the columns of statistics.npy: "
                        f"delete {features_dir}/statistics.* and run features.py --statistics again")
    good = (index["status"] == "ok").to_numpy() & index["track_id"].isin(ids).to_numpy()
    return pd.DataFrame(array[good, :, 0], index=pd.Index(index["track_id"][good], name="track_id"),
                        columns=pd.MultiIndex.from_tuples(columns, names=LEVELS))


def _read_features(path):
    """FMA's features.csv, all 106,574 rows of it: in single precision it takes 220 MB."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header, fourth = [next(reader) for _ in LEVELS], next(reader)
        if tuple(row[0] for row in header) != LEVELS or fourth[0] != "track_id":
            raise ValueError("its first column must read " + ", ".join([*LEVELS, "track_id"]))
        types = {0: np.int64, **dict.fromkeys(range(1, len(header[0])), np.float32)}
        table = pd.read_csv(path, skiprows=4, header=None, index_col=0, dtype=types)
        table.columns = pd.MultiIndex.from_arrays([row[1:] for row in header], names=LEVELS)
    except (StopIteration, ValueError, IndexError, csv.Error) as error:     # pandas' and Unicode's are ValueErrors
        reason = " ".join(str(error).split()) or "it is cut short"
        raise DataError(f"{path} is not laid out like FMA's ({reason}): fetch it again, or delete it to use "
                        "features.py --statistics") from error
    if table.index.has_duplicates:
        raise DataError(f"{path} names track {table.index[table.index.duplicated()][0]} twice: remove one row")
    return table.rename_axis("track_id")


class Statistics:
    """Track statistics of a collection, with genres and splits as `datasets.FeatureDataset` has them.

    Parameters
    ----------
    data_dir : path-like
    subset : str
    features_dir : path-like, optional

    Attributes
    ----------
    values : ndarray, shape (tracks, columns), float64
        In each statistic's own unit; NaN where there is none.
    columns : MultiIndex
        FMA's names.
    genres, tracks, labels, rows, artists
        As those of `FeatureDataset`. A track is used if each of its statistics is a number.
    left_out : int
        Tracks that have a genre and a split, and no usable statistics.
    """

    def __init__(self, data_dir, subset="small", features_dir=None):
        import torch

        table, self.tracks = load_statistics(data_dir, subset, features_dir), load_tracks(data_dir, subset)
        self.name, self.columns = dataset_name(data_dir, subset), table.columns
        self.values = table.reindex(self.tracks.index).to_numpy(np.float64, copy=True)
        self.genres = sorted(self.tracks["genre"].dropna().unique())
        labels = pd.Categorical(self.tracks["genre"], self.genres).codes.astype(np.int64)
        wanted = (labels >= 0) & self.tracks["split"].isin(SPLITS).to_numpy()
        usable = wanted & np.isfinite(self.values).all(axis=1)
        self.rows = {s: np.flatnonzero(usable & (self.tracks["split"] == s).to_numpy()) for s in SPLITS}
        self.left_out = int(wanted.sum() - usable.sum())
        counts = np.bincount(labels[self.rows["training"]], minlength=len(self.genres))
        few = [genre for genre, count in zip(self.genres, counts, strict=True) if count < 2]
        empty = [split for split in SPLITS if not len(self.rows[split])]
        if few or empty or counts.sum() < 5:    # two to have a variance, five to be neighbours
            what = f"genre {some(few)} has fewer than two training clips" if few else (
                f"there is no {some(empty)} clip" if empty else "there are fewer than five training clips")
            raise DataError(f"{data_dir}: {what} with statistics ({self.left_out} tracks have none); "
                            "python fma.py says what is wrong with the metadata")
        self.labels, self.artists = torch.from_numpy(labels), artists_of(self.tracks)

    def __repr__(self):
        counts = ", ".join(f"{len(self.rows[s]):,} {s}" for s in SPLITS)
        return (f"{self.name}: {len(self.columns)} statistics, {len(self.genres)} genres, {counts}, "
                f"{self.left_out} left out" + (" - SYNTHETIC" if self.name == "demo" else ""))

    def part(self, split):
        """Values (clips, columns) and labels (clips,) of a split."""
        return self.values[self.rows[split]], self.labels[self.rows[split]].numpy()

    def fingerprint(self):
        """A hash of all that a classifier is given: values, labels, splits, columns."""
        code = hashlib.sha256(repr((self.genres, list(self.columns))).encode())
        for split in SPLITS:
            for array in (self.tracks.index[self.rows[split]].to_numpy(np.int64), *self.part(split)):
                code.update(np.ascontiguousarray(array))
        return code.hexdigest()[:16]


# ---------------------------------------------------------------- classifiers


def scores_of(model, x):
    """What a fitted pipeline gives each clip and genre; the highest is its prediction.

    Probabilities where the classifier has them, else its decision function: either ranks the clips of a ROC
    curve. Gaussians' probabilities round to 0 and 1, and clips would tie: theirs are given as log odds.

    Parameters
    ----------
    model : Pipeline
    x : ndarray, shape (clips, columns)

    Returns
    -------
    scores : ndarray, shape (clips, classes), float64
    """
    scaler, classifier = model
    x = scaler.transform(x)
    if hasattr(classifier, "predict_joint_log_proba"):
        joint = classifier.predict_joint_log_proba(x)
        others = [np.logaddexp.reduce(np.delete(joint, k, axis=1), axis=1) for k in range(joint.shape[1])]
        return joint - np.stack(others, axis=1)
    if hasattr(classifier, "predict_proba"):
        return classifier.predict_proba(x)
    scores = classifier.decision_function(x)
    return scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)      # of two genres


def fit_seed(name, data, seed, run_dir, config):
    """Fit a classifier and keep its scores of validation and test, unless they are there of the same data."""
    import torch

    if is_finished(run_dir):
        there = load_config(run_dir)
        if all(there.get(part) == config[part] for part in ("model", "feature_parameters", "training")):
            return
        (run_dir / "probabilities.npz").unlink()
    model, start = CLASSIFIERS[name](seed), time.process_time()     # not the wall clock: others may share the cores
    model.fit(*data.part("training"))
    config = {**config, "seconds": round(time.process_time() - start, 3)}
    run_dir.mkdir(parents=True, exist_ok=True)
    save_whole(run_dir / "config.json", lambda path: path.write_text(json.dumps(config, indent=1), encoding="utf-8"))
    save_probabilities(run_dir, data, {split: torch.from_numpy(scores_of(model, data.part(split)[0]))
                                       for split in SPLITS[1:]})


def fit_baselines(data, names=tuple(CLASSIFIERS), repeats=1, results_dir="results", runs_dir="runs", progress=True):
    """Fit classifiers on the training clips, and write their results.

    Parameters
    ----------
    data : Statistics
    names : sequence of str
        Keys of `CLASSIFIERS`.
    repeats : int
        Seeds 0, 1, ... of those that draw random numbers; the others are fitted once.
    results_dir, runs_dir : path-like
        ``<results_dir>/<dataset>/baseline_<name>.json`` is what a table needs;
        ``<runs_dir>/<dataset>/baseline_<name>/seed<k>/`` keeps each clip's scores. What is there of the same
        classifier, columns and values is not fitted again.
    progress : bool

    Returns
    -------
    results : dict of str to dict
        Name to result, laid out as `experiments.summarise_runs` does.
    runs : dict of str to list of Path
        Name to its runs, for `runs.load_probabilities`.
    """
    versions = {"python": platform.python_version(),
                **{lib: importlib.metadata.version(lib) for lib in ("numpy", "scipy", "scikit-learn")}}
    common = {"dataset": data.name, "feature": "statistics", "scale": "standardised on training", "device": "cpu",
              "feature_parameters": {"columns": len(data.columns), "sha256": data.fingerprint()}, "versions": versions}
    runs = {}
    for name in progress_bar(names, unit="classifier", delay=2, show=progress):      # none where all is there already
        drawn = repr(CLASSIFIERS[name](0)) != repr(CLASSIFIERS[name](1))
        seeds = range(repeats if drawn else 1)
        path = Path(results_dir) / data.name / f"baseline_{name}.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["test"]["seeds"] > len(seeds):
            raise DataError(f"{path} has more than {repeats} seed(s): pass --repeats as many, or another --results-dir")
        runs[name] = [Path(runs_dir) / data.name / f"baseline_{name}" / f"seed{seed}" for seed in seeds]
        for seed, run_dir in zip(seeds, runs[name], strict=True):
            model = {"class": name, "args": {"classifier": repr(CLASSIFIERS[name](seed)[-1])}}
            fit_seed(name, data, seed, run_dir, {**common, "model": model, "training": {"seed": seed}})
    results = {name: _summarise(name, paths) for name, paths in runs.items()}
    for name, result in results.items():
        path = Path(results_dir) / data.name / f"baseline_{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1) + "\n"
        save_whole(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    return results, runs


def _summarise(name, runs):
    """The result of a classifier, for the tables that the networks' results are in."""
    tests, configs = [load_probabilities(run) for run in runs], [load_config(run) for run in runs]
    seeds = [{"seed": config["training"]["seed"], "epoch": None, "epochs": None,
              **{split: _accuracy(load_probabilities(run, split)) for split in SPLITS[1:]},
              "test_max": None, "seconds": config["seconds"]} for run, config in zip(runs, configs, strict=True)]
    summary = summarise(tests[0]["labels"], np.stack([test["probabilities"] for test in tests]), tests[0]["artists"],
                        tests[0]["genres"].tolist())
    config = configs[0]
    return {"experiment": f"baseline_{name}", "dataset": config["dataset"], "seeds": seeds, "test": summary,
            "parameters": None, "reported": REPORTED.get(name),
            "config": {k: config[k] for k in ("model", "feature", "feature_parameters", "scale", "training")},
            "device": config["device"], "versions": config["versions"]}


def _accuracy(said):
    return round(float((said["probabilities"].argmax(1) == said["labels"]).mean()), 6)


def tsne_map(values, seed=0):
    """Lay clips out in a plane so that neighbours stay neighbours, by t-SNE [1]_ of their statistics.

    Parameters
    ----------
    values : ndarray, shape (clips, columns)
        Each column is standardised, then the clips are turned to their 50 main axes.
    seed : int

    Returns
    -------
    points : ndarray, shape (clips, 2)
        Distances across the map mean nothing.

    References
    ----------
    .. [1] L. van der Maaten, G. Hinton, "Visualizing data using t-SNE", Journal of Machine Learning Research 9, 2008.
    """
    x = StandardScaler().fit_transform(values)
    x = PCA(min(50, *x.shape), random_state=seed).fit_transform(x)
    return TSNE(perplexity=min(30, (len(x) - 1) / 3), init="pca", random_state=seed).fit_transform(x)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Fit classifiers on track statistics and print their results.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(CLASSIFIERS)} (default: all)")
    parser.add_argument("--data-dir", help="in FMA's layout (default: $DATA_DIR, data, or the demo corpus)")
    parser.add_argument("--subset", default="small", choices=SUBSETS)
    parser.add_argument("--repeats", type=int, default=1, help="seeds of those that draw random numbers (default 1)")
    parser.add_argument("--features-dir", help="the feature cache (default: features in the data folder)")
    parser.add_argument("--runs-dir", default="runs", help="keeps each clip's scores (default: runs)")
    parser.add_argument("--results-dir", default="results")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in CLASSIFIERS]
    if unknown or args.repeats < 1:
        raise DataError(f"no classifier is named {some(unknown)}: choose of {', '.join(CLASSIFIERS)}" if unknown
                        else "--repeats must be at least 1")
    data = Statistics(find_data(args.data_dir), args.subset, args.features_dir)
    print(data)
    results, _ = fit_baselines(data, args.names or tuple(CLASSIFIERS), args.repeats, args.results_dir, args.runs_dir)
    print("\n" + results_table(list(results.values()), seconds=True))


if __name__ == "__main__":
    sys.exit(run_command(main))
