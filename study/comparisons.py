"""Comparisons of trained experiments, for the notebooks."""

import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from cnn_models import layer_table
from dataset import JointDataset
from learning.devices import autocast, choose_precision, inference_autocast, keep_memory
from learning.runs import fold_runs, load_config, load_probabilities, load_weights
from study.predictions import LEVEL, compare_columns, compare_predictions, prediction_table
from study.predictions import right_by_clip as right_by_clip  # for notebooks
from study.rows import EXPERIMENTS, find_row
from study.tables import p_word
from training import MODELS, build

SHOWN = ("Conv2d", "MaxPool2d", "AvgPool2d", "AvgPool1d", "LSTM", "GRU", "Linear")     # without norms and dropouts
SHAPES = "frequency", "square"      # of the plain networks that others are compared with


def network_of(name, dataset):
    """An untrained network of an experiment for a data set's clips."""
    row = find_row(name)
    return MODELS[row["model"]](*dataset.shape, len(dataset.genres), **row.get("args", {}))


def layers(name, dataset):
    """Layers of an experiment's network, at the size of a data set's clips.

    Parameters
    ----------
    name : str
        One that `rows.find_row` knows.
    dataset : FeatureDataset

    Returns
    -------
    DataFrame with columns layer, kernel, output (channels, bins, frames) and parameters, one row per layer;
        the last row counts all parameters, including those of layers not shown.
    """
    table = pd.DataFrame(layer_table(network_of(name, dataset), *dataset.shape),
                         columns=["name", "layer", "kernel", "output", "parameters"])
    total = table["parameters"].sum()
    table = table[table["layer"].isin(SHOWN)].astype({"kernel": object}).fillna({"kernel": ""})
    table = table.set_index("name").rename_axis(None)
    table["kernel"] = [" × ".join(map(str, k)) for k in table["kernel"]]
    table["output"] = [" × ".join(map(str, o)) for o in table["output"]]
    table.loc["all"] = ["", "", "", total]
    return table


def compare_runs(runs, pairs=None):
    """Test pairs of experiments on the same test clips, and correct for their number.

    Parameters
    ----------
    runs : dict of str to list of Path
        Experiment to its finished runs, one for each seed, as `runner.run_experiments` gives.
    pairs : list of (str, str), optional
        All by default.

    Returns
    -------
    DataFrame, one row per pair: ``difference`` of mean accuracy in points, its 95 % ``interval`` over artists, ``p`` of
        the test that exchanges answers artist by artist, and ``p (Holm)``, corrected for the number of pairs
    """
    tables = {name: prediction_table([load_probabilities(run) for run in paths], range(len(paths)))
              for name, paths in runs.items()}
    found = compare_predictions(tables, pairs)
    return pd.DataFrame({
        "difference": found["difference"].round(1).to_numpy(),
        "interval": [f"{low:+.1f} to {high:+.1f}" for low, high in zip(found["low"], found["high"], strict=True)],
        "p": found["p"].round(4).to_numpy(), "p (Holm)": found["p (Holm)"].round(4).to_numpy(),
    }, index=[f"{a} − {b}" for a, b in zip(found["a"], found["b"], strict=True)])


def verdicts(table):
    """The result of `compare_runs` in lines: each significant difference, and the number of the others."""
    real = table[table["p (Holm)"] < LEVEL]
    lines = [f"{pair}: {row['difference']:+.1f} points (corrected p: {p_word(row['p (Holm)'])})"
             for pair, row in real.iterrows()]
    if len(table) > len(real):
        lines.append(f"no significant difference in {len(table) - len(real)} of {len(table)} pairs")
    return "\n".join(lines)


def optimism(results):
    """Test accuracy of each run by protocol: of the epoch chosen on validation, and of the best epoch on test.

    Parameters
    ----------
    results : dict of str to dict
        As `runner.run_experiments` gives; runs that did not evaluate test during training are left out.

    Returns
    -------
    DataFrame with columns network, seed, chosen on validation, best of the saved epochs (both in per cent)
    """
    rows = [(name, s["seed"], 100 * s["test"], 100 * s["test_max"])
            for name, result in results.items() for s in result["seeds"] if s["test_max"] is not None]
    return pd.DataFrame(rows, columns=["experiment", "seed", "chosen on validation", "best of the saved epochs"])


def choosing_on_test(results):
    """A sentence: how much accuracy gains on average if the epoch is chosen on test."""
    both = optimism(results)
    if both.empty:
        return "nothing to choose from: test was watched every fifth epoch, and these trainings are shorter"
    gain = (both["best of the saved epochs"] - both["chosen on validation"]).mean()
    return f"choosing the epoch on the test set adds {gain:+.1f} points on average over {len(both)} run(s)"


def with_others(summary):
    """How far an accuracy would move with other artists, in words; with other clips where artists are unknown."""
    low, high = summary["interval"]
    if low is None:
        return "all test clips by one artist"
    others = "other clips, artists unknown," if summary["artists"] is None else "other artists"
    return f"with {others} between {100 * low:.0f} and {100 * high:.0f} %"


def best_on_validation(results):
    """Name of the experiment with the highest mean validation accuracy; the test set must not choose."""
    return max(results, key=lambda name: np.mean([s["validation"] for s in results[name]["seeds"]]))


def surest_mistakes(run, tracks, most=5):
    """The most confident wrong predictions of a run on test, at most one for each artist.

    Parameters
    ----------
    run : Path
        A finished run.
    tracks : DataFrame
        Metadata by track id, as ``FeatureDataset.tracks``; ``artist`` and ``title`` are shown if present.
    most : int

    Returns
    -------
    DataFrame by track id, most confident first: artist, title, true and predicted genre, probability in per cent
    """
    test = load_probabilities(run)
    said = pd.DataFrame({"by": test["artists"], "true": test["genres"][test["labels"]],
                         "predicted": test["genres"][test["probabilities"].argmax(1)],
                         "probability %": 100 * test["probabilities"].max(1)}, test["tracks"])
    wrong = said[said["true"] != said["predicted"]].sort_values("probability %", ascending=False, kind="stable")
    wrong = wrong.drop_duplicates("by").drop(columns="by").head(most).round().astype({"probability %": int})
    return tracks.loc[wrong.index, [name for name in ("artist", "title") if name in tracks]].fillna("").join(wrong)


def shuffled_accuracy(run, dataset, piece=20, seed=0):
    """Test accuracy of a finished run on intact clips, and on clips cut into pieces in random order.

    Parameters
    ----------
    run : Path
        A finished run, or a cross-validated seed, whose networks are tested on their own test clips.
    dataset : FeatureDataset
        The data set that the run was trained on.
    piece : int
        Frames of a piece. Each clip is shuffled differently.
    seed : int
        Seed of the shuffling.

    Returns
    -------
    in_order, shuffled : float
        Accuracies, 0 to 1.
    """
    if parts := fold_runs(run):
        clips = [len(load_probabilities(part)["labels"]) for part in parts]
        both = [shuffled_accuracy(part, dataset, piece, seed) for part in parts]
        return tuple(np.average(both, axis=0, weights=clips).tolist())
    config = load_config(run)
    network = load_weights(run, build(config)).to(dataset.device, memory_format=torch.channels_last).eval()
    dataset.normalise(**config["normalisation"])
    rows = dataset.tracks.index.get_indexer(load_probabilities(run)["tracks"])
    rng, right = np.random.default_rng(seed), np.zeros(2)
    pieces = np.array_split(np.arange(dataset.shape[1]), -(-dataset.shape[1] // piece))
    with torch.no_grad():
        for part in np.array_split(rows, -(-len(rows) // 64)):
            clips, labels = dataset.batch(part)
            orders = [np.concatenate([pieces[k] for k in rng.permutation(len(pieces))]) for _ in part]
            mixed = torch.stack([clip[:, order] for clip, order in zip(clips, orders, strict=True)])
            with inference_autocast(config["training"]["precision"], dataset.device):
                right += [(network(x).argmax(1) == labels).sum().item() for x in (clips, mixed)]
    return tuple((right / len(rows)).tolist())


def step_seconds(name, dataset, batch_size=32, steps=3):
    """Seconds of one training step of an experiment's network, the fastest of a few, on random clips.

    Parameters
    ----------
    name : str
        One that `rows.find_row` knows.
    dataset : FeatureDataset or JointDataset
        Gives the size of a clip, the number of genres, and the device.
    """
    keep_memory()                                       # as training does
    device = dataset.device
    network = network_of(name, dataset).to(device, memory_format=torch.channels_last)
    sizes = zip(*dataset.shape, strict=True) if isinstance(dataset, JointDataset) else [dataset.shape]
    clips = [torch.rand(batch_size, *size, device=device) for size in sizes]
    clips = clips if len(clips) > 1 else clips[0]
    precision = choose_precision("auto", device, network, clips)
    taken = []
    for _ in range(steps):
        start = time.perf_counter()
        with autocast(precision, device):
            loss = network(clips).float().logsumexp(1).mean()
        loss.backward()
        loss.item()                                     # waits for a GPU
        taken.append(time.perf_counter() - start)
    return min(taken)


def recorded_size(result):
    """The part of a data set that `layers` and `step_seconds` need, from a result: no data is needed then."""
    size = result["config"]["model"]["args"]
    return SimpleNamespace(shape=(size["n_bins"], size["n_frames"]), genres=list(result["test"]["genres"]),
                           device=torch.device("cpu"))


def contrast(plus, minus):
    """Weights for `contrasts`: the mean of some models minus the mean of others.

    >>> contrast(["a", "b"], ["c"])
    {'a': 0.5, 'b': 0.5, 'c': -1.0}
    """
    return {name: 1 / len(plus) for name in plus} | {name: -1 / len(minus) for name in minus}


def contrasts(right, questions):
    """Answer questions about several models by tests of weighted sums of their accuracies, corrected for their number.

    Parameters
    ----------
    right : DataFrame
        From `right_by_clip`.
    questions : dict of str to dict
        Question to the weight of each model.

    Returns
    -------
    DataFrame with the columns of `predictions.compare_columns`, one row for each question whose models all have results
    """
    asked = {label: weights for label, weights in questions.items() if set(weights) <= set(right)}
    return compare_columns(right, list(asked.values())).set_axis(list(asked))


def in_words(table, questions=()):
    """Lines: each significant difference, the number of the others, and the number of questions not yet measured."""
    real = table[table["p (Holm)"] < LEVEL]
    lines = [f"{label}: {row['difference']:+.1f} points ({row['low']:+.1f} to {row['high']:+.1f}), significant"
             for label, row in real.iterrows()]
    if len(table) > len(real):
        lines.append(f"no significant difference in {len(table) - len(real)} of {len(table)} comparisons")
    if len(questions) > len(table):
        lines.append(f"{len(questions) - len(table)} of {len(questions)} not measured yet")
    return "\n".join(lines)


def _plain(feature, change=""):
    """Names of the plain networks on a feature, with one thing changed."""
    return [f"{feature}_{shape}{change}" for shape in SHAPES]


def cqt_against_mel():
    """Questions for `contrasts`: does the CQT beat mel, on the original study's linear input, and in decibels?"""
    linear, normalised, decibels = (contrast(_plain("cqt", change), _plain("mel_stft", change))
                                    for change in ("_linear_raw", "_linear", ""))
    return {"CQT − mel, as the original fed them": linear, "CQT − mel, the same normalised": normalised,
            "CQT − mel, in decibels": decibels,
            **{f"{feature} in decibels, normalised − as the original fed it":
               contrast(_plain(feature), _plain(feature, "_linear_raw")) for feature in ("mel_stft", "cqt")},
            "by how much they close the gap": linear | {name: -weight for name, weight in decibels.items()}}


def from_mel_to_cqt():
    """Questions for `contrasts`: what do the single steps between mel and the CQT change, in decibels?"""
    steps = {"CQT − mel": ("cqt", "mel_stft"),
             "mel, 84 bands from C1 to B7 − mel": ("mel84", "mel_stft"),
             "… with 186 ms instead of 46": ("mel84_fine", "mel84"),
             "… at semitones": ("logstft84", "mel84_fine"),
             "… by constant Q: CQT": ("cqt", "logstft84"),
             "mel with 186 ms − mel": ("mel_fine", "mel_stft"),
             "CQT of 128 bins − CQT": ("cqt128", "cqt")}
    return {title: contrast(_plain(to), _plain(start)) for title, (to, start) in steps.items()}


def blocks_against_plain(feature):
    """Questions for `contrasts`: are ResNet or DenseNet blocks better than the convolutions they replace?"""
    plain, asked = f"{feature}_frequency", {}
    for kind, title in (("resnet", "ResNet"), ("densenet", "DenseNet")):
        names = {place: f"{plain}_{kind}_{place}" for place in ("second", "all")}
        asked[f"{feature}: both {title} networks"] = contrast(names.values(), [plain])
        asked |= {f"{feature}: {title}, {place}": contrast([name], [plain]) for place, name in names.items()}
    changed = [f"{plain}_resnet_all_linear_raw"], [f"{plain}_linear_raw"]
    return asked | ({f"{feature}, as the original fed it: ResNet, all": contrast(*changed)}
                    if changed[0][0] in EXPERIMENTS else {})


def recurrent_against_plain(feature):
    """Questions for `contrasts`: are networks with a recurrent layer better than plain ones, also after a change?"""
    members = {f"four {kind}": [f"{feature}_{kind}_{cell}" for cell in ("lstm", "lstm_bi", "gru", "gru_bi")]
               for kind in ("sequential", "parallel")}
    members = {"all eight": sum(members.values(), []), **members}
    asked = {f"{feature}: {title} − {shape}": contrast(names, [f"{feature}_{shape}"])
             for shape in SHAPES for title, names in members.items()}
    for change in ("linear_raw", "one_dropout"):
        names = [f"{feature}_{kind}_gru_{change}" for kind in ("sequential", "parallel")]
        asked |= {f"{feature}, {change}: both GRU − {shape}": contrast(names, [f"{feature}_{shape}_{change}"])
                  for shape in SHAPES}
    return asked
