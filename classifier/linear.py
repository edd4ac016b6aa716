"""Logistic regression as a network: fitted at once, with no epoch to choose, so that all clips can be learned.

    python -m classifier.linear musicnn --data-dir data/allmusic        # an embedding of the cache
    python -m classifier.linear cqt --data-dir data/allmusic            # or statistics over time of a feature

writes ``runs/<dataset>/linear_<feature>/seed0``, which has learned every clip, and ``seed0_folds``, where each clip is
answered by one that has heard none of its artist. classifier/shipping.py makes of both what is given away.
"""

import argparse
import json
import sys

import numpy as np

from dataset import FeatureDataset
from fma import add_data_options, find_data, run_command
from learning import runs
from learning.folds import call_out_leaks, load_folds

STRENGTH = 0.01     # scikit-learn's C, for a mean weight of 1: on the folds' validation clips, 0.003 to 0.1 are level


def fit_linear(x, labels, weights=None):
    """Fit a `resnet_models.Linear`.

    Parameters
    ----------
    x : Tensor, shape (clips, bins, frames), float32
        Normalised.
    labels : ndarray of int, shape (clips,)
    weights : ndarray, shape (clips,), optional
        How much each clip counts; equally by default.

    Returns
    -------
    Linear
        In evaluation mode.
    """
    import torch
    from sklearn.linear_model import LogisticRegression

    from resnet_models import Linear

    network = Linear(*x.shape[1:], int(labels.max()) + 1).eval()
    weights = np.ones(len(x)) if weights is None else weights / weights.mean()
    with torch.inference_mode():
        values = torch.cat([network.statistics(part) for part in x.split(256)]).double()
        share = torch.from_numpy(weights / weights.sum())[:, None]
        mean = (share * values).sum(0)
        variance = (share * (values - mean).square()).sum(0)
        network.scale.running_mean.copy_(mean)
        network.scale.running_var.copy_(torch.where(variance > 1e-8, variance, 1.0))    # of what never changes
        scaled = network.scale(values.float()).numpy()
        model = LogisticRegression(C=STRENGTH, max_iter=5000).fit(scaled, labels, sample_weight=weights)
        lines, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(lines) == 1:                             # of two classes: the log odds of the second
            lines, bias = (torch.cat([torch.zeros_like(part), part]) for part in (lines, bias))
        network.classify.weight.copy_(lines)
        network.classify.bias.copy_(bias)
    return network


def fit_runs(data_dir, feature, runs_dir="runs", subset="small"):
    """Fit a network on each fold's other clips and one on all; write them as runs.

    Returns
    -------
    run_dir, folds_dir : Path
        Of the one on all clips, which nothing is left to test, and of the folds.
    """
    import torch

    dataset = FeatureDataset(data_dir, feature, subset=subset)
    folds = load_folds(data_dir, subset, dataset.tracks)
    for fold in (*range(folds.max() + 1), None):
        dataset.use_split(np.where(folds < 0, "none", np.where(folds == fold, "test", "training")))
        call_out_leaks(dataset)
        mean, std = dataset.normalise()
        network = fit_linear(*(part.cpu() for part in dataset.batch(dataset.rows["training"])))
        args = dict(zip(("n_bins", "n_frames"), dataset.shape, strict=True)) | {"n_classes": len(dataset.genres)}
        config = {"experiment": f"linear_{feature}", "dataset": dataset.name, "feature": feature,
                  "model": {"class": "Linear", "args": args, "fingerprint": runs.fingerprint(network)},
                  "feature_parameters": dataset.info, "scale": "db", "normalisation": {"mean": mean, "std": std},
                  "genres": dataset.genres, "training": {"seed": 0, "strength": STRENGTH},
                  "versions": runs.versions(), "commit": runs.commit(),
                  "clips": len(dataset.rows["training"])}
        config |= {} if fold is None else {"fold": fold, "folds": int(folds.max()) + 1}
        run_dir = runs.run_folder(runs_dir, dataset.name, config["experiment"], 0, fold)
        run_dir.mkdir(parents=True, exist_ok=True)
        runs.save_text(run_dir / "config.json", json.dumps(config, indent=1))
        runs.save_weights(run_dir, network.state_dict())
        if fold is not None:
            with torch.inference_mode():
                said = network(dataset.batch(dataset.rows["test"])[0]).softmax(1)
            runs.save_probabilities(run_dir, dataset, {"test": said})
    return run_dir, runs.run_folder(runs_dir, dataset.name, f"linear_{feature}", 0, 0).parent


def main(argv=None):
    parser = argparse.ArgumentParser(description="Fit a logistic regression on each fold, and on all clips.")
    parser.add_argument("feature", help="an array of the cache")
    add_data_options(parser)
    parser.add_argument("--runs-dir", default="runs")
    args = parser.parse_args(argv)
    run_dir, folds_dir = fit_runs(find_data(args.data_dir), args.feature, args.runs_dir, args.subset)
    said = runs.load_probabilities(folds_dir)
    right = said["probabilities"].argmax(1) == said["labels"]
    print(f"{run_dir} and {folds_dir}: {100 * right.mean():.1f} % of {len(right)} clips by folds")


if __name__ == "__main__":
    sys.exit(run_command(main))
