"""Late fusion: trained models of different kinds asked together, each weighted as validation says.

    python -m study.ensembles ensemble_scratch --data-dir data/fma_small --repeats 3

The members are trained first, by experiments.py and baselines.py; what they said is read from their runs. Seed k of an
ensemble is made of seed k of each network, and of the classifiers, which draw no random numbers. Members are one of
each kind, by validation; their test accuracies were known when they were listed. Weights are fitted on validation
too, so an ensemble's accuracy there flatters it.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from fma import SUBSETS, DataError, dataset_name, find_data, run_command
from learning.runs import commit, load_config, load_probabilities
from study.result_files import read_result, save_result, summarise_tests
from study.tables import results_table

FROM_SCRATCH = ("statistics_resnet", "fusion_scratch", "baseline_SVC_mel128+mfcc_3s")
ENSEMBLES = {
    "ensemble_scratch": FROM_SCRATCH,
    "ensemble_vggish": (*FROM_SCRATCH, "fusion_vggish", "vggish_dense", "baseline_SVC_vggish"),
}


def fit_weights(log_scores, labels):
    """Weights of several models whose weighted log scores, summed, are the best probabilities [1]_.

    Parameters
    ----------
    log_scores : ndarray, shape (models, clips, classes)
        Log probabilities, or other scores that a softmax turns into probabilities.
    labels : ndarray of int, shape (clips,)
        Of clips that no model learned: validation.

    Returns
    -------
    ndarray, shape (models,)
        Not below zero. They minimise the cross entropy of the softmax of the sum, so they calibrate as well.

    References
    ----------
    .. [1] G. E. Hinton, "Training products of experts by minimizing contrastive divergence", Neural Computation 14(8),
       2002: probabilities multiplied; here with an exponent each.

    Examples
    --------
    >>> knows, guesses = np.log([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]]), np.log(np.full((3, 2), 0.5))
    >>> knows_weight, guesses_weight = fit_weights(np.stack([knows, guesses]), np.array([0, 1, 0]))
    >>> bool(knows_weight > 0.5 and abs(guesses_weight - 0.5) < 1e-6)       # what always says the same changes nothing
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
    """What a member said of a split: log scores (clips, classes), and all that `load_probabilities` gives."""
    said = load_probabilities(run_dir, split)
    scores = said["probabilities"].astype(float)
    if scores.min() >= 0 and np.allclose(scores.sum(1), 1, atol=1e-2):      # else a decision function
        scores = np.log(scores.clip(1e-9))
    return log_softmax(scores, axis=1), said


def join_runs(run_dirs):
    """One ensemble: probabilities on validation and test of several finished runs, weighted on validation.

    Returns
    -------
    weights : ndarray, shape (members,)
    said : dict of str to dict
        Split to what `runs.load_probabilities` gives, with the ensemble's probabilities.
    """
    said, weights = {}, None
    for split in ("validation", "test"):
        scores, each = zip(*(member_scores(run, split) for run in run_dirs), strict=True)
        for run, other in zip(run_dirs, each, strict=True):
            if not (np.array_equal(other["tracks"], each[0]["tracks"]) and
                    np.array_equal(other["genres"], each[0]["genres"])):
                raise DataError(f"{run} and {run_dirs[0]} are not of the same {split} clips: run both on one cache")
        if weights is None:
            weights = fit_weights(np.stack(scores), each[0]["labels"])
        said[split] = each[0] | {"probabilities": softmax(np.tensordot(weights, np.stack(scores), 1), axis=1)}
    return weights, said


def run_ensemble(name, data_dir, repeats=None, subset="small", runs_dir="runs", results_dir="results"):
    """Ask the members of an ensemble together and write its result.

    Parameters
    ----------
    name : str
        A key of `ENSEMBLES`.
    data_dir : path-like
    repeats : int, optional
        Seeds 0, 1, ...; by default as many as the result there has, else one.

    Returns
    -------
    result : dict
        Laid out as `result_files.summarise_runs` does; ``config`` has the members and their weights for each seed.
    """
    dataset = dataset_name(data_dir, subset)
    path = Path(results_dir) / dataset / f"{name}.json"
    there = read_result(path)
    there = len(there["seeds"]) if there else 1
    if repeats and repeats < there:
        raise DataError(f"{path} has {there} seeds: pass --repeats {there}, or another --results-dir")
    folders = [Path(runs_dir) / dataset / member for member in ENSEMBLES[name]]
    seeds, tests, weights = [], [], []
    for seed in range(repeats or there):
        run_dirs = [_seed_of(folder, seed) for folder in folders]
        w, said = join_runs(run_dirs)
        weights.append({member: round(float(x), 3) for member, x in zip(ENSEMBLES[name], w, strict=True)})
        right = {s: float((d["probabilities"].argmax(1) == d["labels"]).mean()) for s, d in said.items()}
        seeds.append({"seed": seed, "epoch": None, "epochs": None, "validation": round(right["validation"], 6),
                      "test": round(right["test"], 6), "test_max": None, "seconds": None})
        tests.append(said["test"])
    config = load_config(_seed_of(folders[0], 0))
    features = sorted({f for folder in folders for f in load_config(_seed_of(folder, 0))["feature"].split("+")})
    result = {"experiment": name, "dataset": dataset, "seeds": seeds, "test": summarise_tests(tests),
              "parameters": None, "reported": None,
              "config": {"model": {"class": f"{len(folders)} models", "args": {"weights": weights}},
                         "feature": "+".join(features), "feature_parameters": {}, "scale": "db", "training": {}},
              "device": config["device"], "versions": config["versions"], "commit": commit(),
              "data": {member: _data_of(load_config(_seed_of(folder, 0)))
                       for member, folder in zip(ENSEMBLES[name], folders, strict=True)}}
    save_result(path, result, tests)
    return result


def _data_of(config):
    """The fingerprint of what a member learned; None in runs from before it was noted."""
    return config.get("data") or config["feature_parameters"].get("sha256")


def _seed_of(folder, seed):
    """The run of a seed; of a classifier, that of seed 0: the ones used here draw no random numbers."""
    chosen = folder / f"seed{seed if 'baseline_' not in folder.name else 0}"
    if not (chosen / "probabilities.npz").is_file():
        how = "experiments.py run" if "baseline_" not in folder.name else "baselines.py --features"
        raise DataError(f"{chosen} is not there, or not finished: train it first, python {how}")
    return chosen


def main(argv=None):
    parser = argparse.ArgumentParser(description="Ask trained models together, weighted on validation.")
    parser.add_argument("names", nargs="+", choices=ENSEMBLES, metavar="NAME", help=f"of {', '.join(ENSEMBLES)}")
    parser.add_argument("--data-dir", help="in FMA's layout (default: $DATA_DIR, data, or the demo corpus)")
    parser.add_argument("--subset", default="small", choices=SUBSETS)
    parser.add_argument("--repeats", type=int, help="seeds (default: as many as the result there has, else 1)")
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--results-dir", default="results")
    args = parser.parse_args(argv)
    if args.repeats is not None and args.repeats < 1:
        raise DataError("--repeats must be at least 1")
    results = [run_ensemble(name, find_data(args.data_dir), args.repeats, args.subset, args.runs_dir, args.results_dir)
               for name in args.names]
    print(results_table(results))
    for result in results:
        print(f"\nweights of {result['experiment']}: "
              + json.dumps(result["config"]["model"]["args"]["weights"][0]))


if __name__ == "__main__":
    sys.exit(run_command(main))
