"""Late fusion: an ensemble of trained models of different kinds, weighted on validation.

    python -m study.ensembles ensemble_scratch --data-dir data/fma_small --repeats 3
    python -m study.ensembles ensemble_musicnn --data-dir data/allmusic --folds

The members are trained first, with experiments.py and baselines.py; their probabilities are read from their runs. Seed
k of an ensemble combines seed k of each network with the classifiers, which draw no random numbers; of cross-validated
ones fold by fold, each with weights of its own. The members are the
best of each kind on validation; their test accuracies were known when the list was made. The weights are fitted on
validation, so an ensemble's validation accuracy is optimistic.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from fma import SPLITS, DataError, add_data_options, dataset_name, find_data, run_command
from learning.runs import commit, fold_runs, load_config, load_probabilities
from study.result_files import accuracy_of, count_seeds, make_result, parts_of, save_result
from study.tables import results_table

FROM_SCRATCH = ("statistics_resnet", "fusion_scratch", "baseline_SVC_mel128+mfcc_3s")
VGGISH = ("fusion_vggish", "vggish_dense", "baseline_SVC_vggish")
ENSEMBLES = {
    "ensemble_scratch": FROM_SCRATCH,
    "ensemble_vggish": (*FROM_SCRATCH, *VGGISH),
    "ensemble_bbnn": (*FROM_SCRATCH, "mel128_bbnn_paper"),
    "ensemble_bbnn_vggish": (*FROM_SCRATCH, "mel128_bbnn_paper", *VGGISH),
    "ensemble_cqt_mel_mfcc": ("cqt_square", "mel_stft_square", "mfcc_square"),
    "ensemble_recurrence": ("cqt_square", "recurrence_square"),
    "ensemble_musicnn_alone": ("musicnn_dense", "baseline_SVC_musicnn"),
    "ensemble_musicnn": ("musicnn_dense", "baseline_SVC_musicnn", "baseline_LogisticRegression_cqt+mel_stft",
                         "fusion_musicnn"),
}


def fit_weights(log_scores, labels):
    """Weights of several models, such that the weighted sum of their log scores predicts best [1]_.

    Parameters
    ----------
    log_scores : ndarray, shape (models, clips, classes)
        Log probabilities, or other scores that a softmax turns into probabilities.
    labels : ndarray of int, shape (clips,)
        Of clips that no model was trained on: validation.

    Returns
    -------
    ndarray, shape (models,)
        Zero or more. They minimise the cross entropy of the softmax of the sum, which calibrates it as well.

    References
    ----------
    .. [1] G. E. Hinton, "Training products of experts by minimizing contrastive divergence", Neural Computation 14(8),
       2002: a product of probabilities; here each has an exponent.

    Examples
    --------
    >>> knows, guesses = np.log([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]]), np.log(np.full((3, 2), 0.5))
    >>> knows_weight, guesses_weight = fit_weights(np.stack([knows, guesses]), np.array([0, 1, 0]))
    >>> bool(knows_weight > 0.5 and abs(guesses_weight - 0.5) < 1e-6)       # a constant changes nothing
    True
    """
    log_scores = np.asarray(log_scores, dtype=float)
    clips = np.arange(len(labels))

    def loss(weights):
        joint = np.tensordot(weights, log_scores, 1)                                    # (clips, classes)
        wrong = softmax(joint, axis=1)
        wrong[clips, labels] -= 1
        return (-log_softmax(joint, axis=1)[clips, labels].mean(),
                (log_scores * wrong).sum((1, 2)) / len(labels))

    start = np.full(len(log_scores), 1 / len(log_scores))
    return minimize(loss, start, jac=True, bounds=[(0, None)] * len(start), method="L-BFGS-B").x


def member_scores(run_dir, split):
    """Log scores of a member on a split, (clips, classes), and all that `load_probabilities` gives."""
    said = load_probabilities(run_dir, split)
    scores = said["probabilities"].astype(float)
    if scores.min() >= 0 and np.allclose(scores.sum(1), 1, atol=1e-2):      # otherwise a decision function
        scores = np.log(scores.clip(1e-9))
    return log_softmax(scores, axis=1), said


def join_runs(run_dirs):
    """Combine finished runs: weights fitted on validation, and probabilities on validation and test.

    Returns
    -------
    weights : ndarray, shape (members,)
    said : dict of str to dict
        Split to the output of `runs.load_probabilities`, with the ensemble's probabilities.
    """
    said, weights = {}, None
    for split in ("validation", "test"):
        scores, each = zip(*(member_scores(run, split) for run in run_dirs), strict=True)
        for run, other in zip(run_dirs, each, strict=True):
            if not (np.array_equal(other["tracks"], each[0]["tracks"]) and
                    np.array_equal(other["genres"], each[0]["genres"])):
                raise DataError(f"{run} and {run_dirs[0]} have different {split} clips: run both on one cache")
        if weights is None:
            weights = fit_weights(np.stack(scores), each[0]["labels"])
        said[split] = each[0] | {"probabilities": softmax(np.tensordot(weights, np.stack(scores), 1), axis=1)}
    return weights, said


def join_seed(run_dirs):
    """The same of one seed of each member, or of all its folds.

    Returns
    -------
    weights : list of ndarray, shape (members,)
        One, or one for each fold.
    line : dict
        The ensemble's entry in a result, but for the seed.
    test : dict
        What it says of the test clips, of all folds.
    """
    parts = list(zip(*map(parts_of, run_dirs), strict=True))
    weights, said = zip(*map(join_runs, parts), strict=True)
    tests = {split: {key: np.concatenate([each[split][key] for each in said]) if key != "genres" else value
                     for key, value in said[0][split].items()} for split in SPLITS[1:]}
    line, nothing = {split: accuracy_of(tests[split]) for split in tests}, dict.fromkeys(
        ("epoch", "epochs", "test_max", "seconds"))
    folds = [{"fold": k, **nothing, **{split: accuracy_of(each[split]) for split in tests}}
             for k, each in enumerate(said)]
    return weights, {**nothing, **line, **({"folds": folds} if fold_runs(run_dirs[0]) else {})}, tests["test"]


def run_ensemble(name, data_dir, repeats=None, subset="small", runs_dir="runs", results_dir="results", folds=False):
    """Evaluate an ensemble and write its result.

    Parameters
    ----------
    name : str
        A key of `ENSEMBLES`.
    data_dir : path-like
    repeats : int, optional
        Number of seeds; by default as many as the existing result has, else one.
    folds : bool
        Of the cross-validated runs of the members.

    Returns
    -------
    result : dict
        As `result_files.make_result` gives it; ``config`` has the members' weights for each seed and fold.
    """
    dataset = dataset_name(data_dir, subset)
    path = Path(results_dir) / dataset / f"{name}.json"
    folders = [Path(runs_dir) / dataset / member for member in ENSEMBLES[name]]
    seeds, tests, weights = [], [], []
    for seed in range(count_seeds(path, repeats, folds)):
        found, line, test = join_seed([_seed_of(folder, seed, folds) for folder in folders])
        weights += [{member: round(float(x), 3) for member, x in zip(ENSEMBLES[name], w, strict=True)} for w in found]
        seeds.append({"seed": seed, **line})
        tests.append(test)
    configs = {folder.name: load_config(parts_of(_seed_of(folder, 0, folds))[0]) for folder in folders}
    config = configs[folders[0].name] | {
        "model": {"class": f"{len(folders)} models", "args": {"weights": weights}}, "feature_parameters": {},
        "feature": "+".join(sorted({f for each in configs.values() for f in each["feature"].split("+")})),
        "scale": "db", "training": {}}
    data = {member: each.get("data") or each["feature_parameters"].get("sha256") for member, each in configs.items()}
    result = make_result(name, [config, *configs.values()], seeds, tests, parameters=None, reported=None,
                         commit=commit(), data=data)
    save_result(path, result, tests)
    return result


def _seed_of(folder, seed, folds=False):
    """The run of a seed; of a classifier always seed 0, because those used here draw no random numbers."""
    chosen = folder / f"seed{seed if 'baseline_' not in folder.name else 0}{'_folds' if folds else ''}"
    if not all((part / "probabilities.npz").is_file() for part in parts_of(chosen)):
        how = "experiments.py run" if "baseline_" not in folder.name else "baselines.py --features"
        raise DataError(f"{chosen} does not exist or is not finished: train it first with python {how}"
                        f"{' and --folds' if folds else ''}")
    return chosen


def main(argv=None):
    parser = argparse.ArgumentParser(description="Evaluate ensembles of trained models, weighted on validation.")
    parser.add_argument("names", nargs="+", choices=ENSEMBLES, metavar="NAME", help=f"of {', '.join(ENSEMBLES)}")
    add_data_options(parser)
    parser.add_argument("--folds", action="store_true", help="of members that were cross-validated by artist")
    parser.add_argument("--repeats", type=int, help="seeds (default: as many as the existing result has, else 1)")
    parser.add_argument("--runs-dir", default="runs", help="of the members (default: %(default)s)")
    parser.add_argument("--results-dir", default="results", help="default: %(default)s")
    args = parser.parse_args(argv)
    results = [run_ensemble(name, find_data(args.data_dir), args.repeats, args.subset, args.runs_dir, args.results_dir,
                            args.folds)
               for name in args.names]
    print(results_table(results))
    for result in results:
        print(f"\nweights of {result['experiment']}: "
              + json.dumps(result["config"]["model"]["args"]["weights"][0]))


if __name__ == "__main__":
    sys.exit(run_command(main))
