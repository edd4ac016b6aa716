"""Twelve classifiers on track statistics, fitted, saved and summarised like the networks."""

import importlib.metadata
import json
import platform
import time
from pathlib import Path

import numpy as np
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

from audio.cache import save_text
from dataset import leaking_artists
from fma import SPLITS, progress_bar
from learning.folds import take_fold
from learning.runs import commit, is_finished, load_config, load_probabilities, run_folder, save_probabilities
from study.result_files import accuracy_of, count_seeds, make_result, parts_of, read_result, save_result, seed_line


class ShrunkQDA(ClassifierMixin, BaseEstimator):
    """Quadratic discriminant analysis with shrunk covariances: one Gaussian for each genre [1]_.

    scikit-learn's default inverts each genre's sample covariance, which is singular where a genre has fewer clips than
    there are columns. Ledoit and Wolf's estimate is always invertible, has no parameter to choose, and approaches the
    sample covariance as the number of clips grows.

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
    """A classifier behind a scaler, which is fitted with it on the training clips alone."""
    return make_pipeline(StandardScaler(), classifier)


# Name to a function of the seed. Other settings are scikit-learn's defaults, as in the original study.
CLASSIFIERS = {
    "LogisticRegression": lambda seed: _scaled(LogisticRegression(max_iter=2000)),      # 100 may not converge
    "RidgeClassifier": lambda seed: _scaled(RidgeClassifier()),
    "LinearSVC": lambda seed: _scaled(LinearSVC(max_iter=20_000, random_state=seed)),   # 1000 may not converge
    "SVC": lambda seed: _scaled(SVC(break_ties=True)),      # so that the highest score is always the prediction
    "RandomForest": lambda seed: _scaled(RandomForestClassifier(random_state=seed)),
    "AdaBoost": lambda seed: _scaled(AdaBoostClassifier(random_state=seed)),
    "GaussianNB": lambda seed: _scaled(GaussianNB()),
    "LDA": lambda seed: _scaled(LinearDiscriminantAnalysis()),
    "QDA": lambda seed: _scaled(ShrunkQDA()),               # the default's covariances may be singular
    "OneVsRest": lambda seed: _scaled(OneVsRestClassifier(LogisticRegression(max_iter=2000))),
    "KNeighbors": lambda seed: _scaled(KNeighborsClassifier()),
    "MLP": lambda seed: _scaled(MLPClassifier(max_iter=2000, random_state=seed)),       # 200 do not converge
}

# Test accuracy reported by the original study, in per cent: 518 columns, standardised, then a random split of the
# tracks, in which an artist may be on both sides.
REPORTED = {"SVC": 47.8, "RandomForest": 46.2, "LDA": 45.6}


def scores_of(model, x):
    """Scores of a fitted pipeline for each clip and genre; the highest is its prediction.

    Probabilities where the classifier has them, else its decision function: either ranks the clips for a ROC
    curve. Probabilities of Gaussians round to 0 and 1, which would tie many clips, so log odds stand for them.

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
    """Fit a classifier and save its scores on validation and test, unless they exist for the same data."""
    import torch

    if is_finished(run_dir):
        there = load_config(run_dir)
        if all(there.get(part) == config[part] for part in ("model", "feature_parameters", "training")):
            return
        (run_dir / "probabilities.npz").unlink()
    model, start = CLASSIFIERS[name](seed), time.process_time()     # not wall time: other processes may share the cores
    model.fit(*data.part("training"))
    config = {**config, "seconds": round(time.process_time() - start, 3)}
    run_dir.mkdir(parents=True, exist_ok=True)
    save_text(run_dir / "config.json", json.dumps(config, indent=1))
    save_probabilities(run_dir, data, {split: torch.from_numpy(scores_of(model, data.part(split)[0]))
                                       for split in SPLITS[1:]})


def fit_baselines(data, names=tuple(CLASSIFIERS), repeats=None, results_dir="results", runs_dir="runs", progress=True,
                  folds=False):
    """Fit classifiers on the training clips and write their results.

    Parameters
    ----------
    data : Statistics
    names : sequence of str
        Keys of `CLASSIFIERS`.
    repeats : int, optional
        Number of seeds of classifiers that draw random numbers; the others are fitted once. By default as many as
        the existing result has, else one.
    results_dir, runs_dir : path-like
        ``<results_dir>/<dataset>/baseline_<name>.json`` is for the tables,
        ``<runs_dir>/<dataset>/baseline_<name>/seed<k>/`` holds each clip's scores. A run of the same classifier,
        columns and values is not repeated. With fewer columns, ``_<only>`` is appended to the name.
    progress : bool
    folds : bool or None
        Cross-validate by artist (learning/folds.py), with one classifier per seed and fold. None: if existing results
        are cross-validated.

    Returns
    -------
    results : dict of str to dict
        Name to result, as `result_files.make_result` gives it.
    runs : dict of str to list of Path
        Name to its runs, for `runs.load_probabilities`.
    """
    versions = {"python": platform.python_version(),
                **{lib: importlib.metadata.version(lib) for lib in ("numpy", "scipy", "scikit-learn")}}
    common = {"dataset": data.name, "feature": data.feature, "scale": "standardised on training", "device": "cpu",
              "versions": versions, "commit": commit()}
    paths = {name: Path(results_dir) / data.name / f"baseline_{name}{data.suffix}.json" for name in names}
    if folds is None:
        folds = any((read_result(path) or {}).get("folds") for path in paths.values())
    seeds = {name: range(_count_seeds(name, paths[name], repeats, folds)) for name in names}
    count, runs = take_fold(data, 0) if folds else 1, {name: [] for name in names}
    for fold in range(count) if folds else [None]:
        config = common | ({"fold": fold, "folds": take_fold(data, fold)} if folds else {})
        config |= {"feature_parameters": {"columns": len(data.columns), "sha256": data.fingerprint()},
                   "leaks": leaking_artists(data, ["test"])}
        for name in progress_bar(names, unit="classifier", delay=2, show=progress):  # no bar if all exist
            for seed in seeds[name]:
                run_dir = run_folder(runs_dir, data.name, paths[name].stem, seed, fold)
                model = {"class": name, "args": {"classifier": repr(CLASSIFIERS[name](seed)[-1])}}
                fit_seed(name, data, seed, run_dir, {**config, "model": model, "training": {"seed": seed}})
                runs[name] += [run_dir.parent if folds else run_dir] * (not fold)
    return {name: _summarise(paths[name], runs[name], None if data.suffix else REPORTED.get(name))
            for name in names}, runs


def _count_seeds(name, path, repeats, folds):
    """How many seeds to fit: one for a classifier that draws no random numbers."""
    count = count_seeds(path, repeats, folds)
    return count if repr(CLASSIFIERS[name](0)) != repr(CLASSIFIERS[name](1)) else 1


def _summarise(path, runs, reported):
    """Write the result of a classifier, for the same tables as the networks' results."""
    configs = [load_config(part) for run in runs for part in parts_of(run)]
    seeds, tests = [seed_line(run, _outcome) for run in runs], [load_probabilities(run) for run in runs]
    result = make_result(path.stem, configs, seeds, tests, parameters=None, reported=reported,
                         commit=configs[0].get("commit"))
    save_result(path, result, tests)
    return result


def _outcome(run):
    """Accuracies and time of one run, as `result_files.seed_line` takes them."""
    right = {split: accuracy_of(load_probabilities(run, split)) for split in SPLITS[1:]}
    return {"epoch": None, "epochs": None, **right, "test_max": None, "seconds": load_config(run)["seconds"]}


def tsne_map(values):
    """Map clips to a plane so that neighbours stay neighbours, by t-SNE [1]_ of their statistics.

    Parameters
    ----------
    values : ndarray, shape (clips, columns)
        The columns are standardised and reduced to 50 principal components first.

    Returns
    -------
    points : ndarray, shape (clips, 2)
        Only small distances have a meaning.

    References
    ----------
    .. [1] L. van der Maaten, G. Hinton, "Visualizing data using t-SNE", Journal of Machine Learning Research 9, 2008.
    """
    x = StandardScaler().fit_transform(values)
    x = PCA(min(50, *x.shape), random_state=0).fit_transform(x)
    return TSNE(perplexity=min(30, (len(x) - 1) / 3), init="pca", random_state=0).fit_transform(x)
