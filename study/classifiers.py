"""Twelve classifiers on track statistics: what can be had without a network.

    python baselines.py                         # all twelve, on fma_metadata/features.csv where FMA is
    python baselines.py SVC LDA --data-dir data/emotify --repeats 3
    python baselines.py --data-dir data/emotify --only mfcc40       # fewer columns, beside all of them
    python baselines.py SVC --features mel128 vggish                # statistics of features in the cache instead

The statistics are FMA's own where its features.csv is, else those that ``features.py --statistics`` computes.
Results stand beside the networks' in ``results/<dataset>/baseline_<name>.json``. There is nothing to choose, so
validation only stands beside the test.
"""

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

from fma import SPLITS, DataError, progress_bar
from learning.folds import leaking_artists, take_fold
from learning.runs import (
    commit,
    fold_runs,
    is_finished,
    load_config,
    load_probabilities,
    run_folder,
    save_probabilities,
    save_whole,
)
from study.result_files import (
    accuracy_of,
    other_protocol,
    over_folds,
    read_result,
    save_result,
    seed_line,
    summarise_tests,
)


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

# Test accuracy as the original study reports it, in per cent: 518 columns, tracks split at random (an artist may be
# on both sides), standardised before the split.
REPORTED = {"SVC": 47.8, "RandomForest": 46.2, "LDA": 45.6}


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


def fit_baselines(data, names=tuple(CLASSIFIERS), repeats=None, results_dir="results", runs_dir="runs", progress=True,
                  folds=False):
    """Fit classifiers on the training clips, and write their results.

    Parameters
    ----------
    data : Statistics
    names : sequence of str
        Keys of `CLASSIFIERS`.
    repeats : int, optional
        Seeds 0, 1, ... of those that draw random numbers; the others are fitted once. By default as many as the
        result there has, else one.
    results_dir, runs_dir : path-like
        ``<results_dir>/<dataset>/baseline_<name>.json`` is what a table needs;
        ``<runs_dir>/<dataset>/baseline_<name>/seed<k>/`` keeps each clip's scores. What is there of the same
        classifier, columns and values is not fitted again. With fewer columns, ``_<only>`` follows the name.
    progress : bool
    folds : bool
        Cross-validate by artist, see learning/folds.py: with each seed a classifier for each fold.

    Returns
    -------
    results : dict of str to dict
        Name to result, laid out as `result_files.summarise_runs` does.
    runs : dict of str to list of Path
        Name to its runs, for `runs.load_probabilities`.
    """
    versions = {"python": platform.python_version(),
                **{lib: importlib.metadata.version(lib) for lib in ("numpy", "scipy", "scikit-learn")}}
    common = {"dataset": data.name, "feature": data.feature, "scale": "standardised on training", "device": "cpu",
              "versions": versions, "commit": commit()}
    paths = {name: Path(results_dir) / data.name / f"baseline_{name}{data.suffix}.json" for name in names}
    seeds = {name: range(_count_seeds(name, paths[name], repeats, folds)) for name in names}
    count, runs = take_fold(data, 0) if folds else 1, {name: [] for name in names}
    for fold in range(count) if folds else [None]:
        config = common | ({"fold": fold, "folds": take_fold(data, fold)} if folds else {})
        config |= {"feature_parameters": {"columns": len(data.columns), "sha256": data.fingerprint()},
                   "leaks": leaking_artists(data, ["test"])}
        for name in progress_bar(names, unit="classifier", delay=2, show=progress):  # none where all is there already
            for seed in seeds[name]:
                run_dir = run_folder(runs_dir, data.name, paths[name].stem, seed, fold)
                model = {"class": name, "args": {"classifier": repr(CLASSIFIERS[name](seed)[-1])}}
                fit_seed(name, data, seed, run_dir, {**config, "model": model, "training": {"seed": seed}})
                runs[name] += [run_dir.parent if folds else run_dir] * (not fold)
    results = {name: _summarise(name, paths, data.suffix) for name, paths in runs.items()}
    for name, result in results.items():
        save_result(paths[name], result, [load_probabilities(run) for run in runs[name]])
    return results, runs


def _count_seeds(name, path, repeats, folds):
    """How many seeds to fit: a result of more, or of another protocol, is not replaced."""
    result = read_result(path)
    if result and bool(result.get("folds")) != folds:
        raise DataError(f"{path} holds {other_protocol(folds)}: pass another --results-dir, or delete it")
    if repr(CLASSIFIERS[name](0)) == repr(CLASSIFIERS[name](1)):        # it draws nothing
        return 1
    there = len(result["seeds"]) if result else 1
    if repeats and there > repeats:
        raise DataError(f"{path} has more than {repeats} seed(s): pass --repeats {there}, or another --results-dir")
    return repeats or there


def _summarise(name, runs, suffix):
    """The result of a classifier, for the tables that the networks' results are in."""
    configs = [load_config(part) for run in runs for part in fold_runs(run) or [run]]
    config, seeds = configs[0], [seed_line(run, _outcome) for run in runs]
    return {"experiment": f"baseline_{name}{suffix}", "dataset": config["dataset"], "seeds": seeds,
            "test": summarise_tests([load_probabilities(run) for run in runs]),
            "parameters": None, "reported": None if suffix else REPORTED.get(name),
            "config": {k: config[k] for k in ("model", "feature", "feature_parameters", "scale", "training")},
            "device": config["device"], "versions": config["versions"], "commit": config.get("commit"),
            **over_folds(seeds, configs)}


def _outcome(run):
    """What a fitted classifier came to, as a line of a result holds it."""
    right = {split: accuracy_of(load_probabilities(run, split)) for split in SPLITS[1:]}
    return {"epoch": None, "epochs": None, **right, "test_max": None, "seconds": load_config(run)["seconds"]}


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
