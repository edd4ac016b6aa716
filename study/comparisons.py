"""Several experiments side by side: what a notebook asks of them once they are trained."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from cnn_models import layer_table
from datasets import JointDataset
from evaluation import compare_correctness, holm
from fma import DataError
from learning.devices import autocast, choose_precision, keep_memory
from learning.runs import fold_runs, load_config, load_probabilities, load_weights
from study.predictions import compare_predictions, correctness, load_predictions, prediction_table
from study.rows import EXPERIMENTS
from training import MODELS, build

SHOWN = ("Conv2d", "MaxPool2d", "AvgPool2d", "AvgPool1d", "LSTM", "GRU", "Linear")


def layers(name, dataset, shown=SHOWN):
    """What the network of an experiment is made of, at the size of a data set's clips.

    Parameters
    ----------
    name : str
        A key of `EXPERIMENTS`.
    dataset : FeatureDataset
    shown : sequence of str
        Kinds of layers to list; norms, activations and dropouts are left out by default.

    Returns
    -------
    DataFrame with columns layer, kernel, output (channels, bins, frames) and parameters, a row per layer;
        the last row counts every parameter, of the layers not shown as well.
    """
    row = EXPERIMENTS[name]
    network = MODELS[row["model"]](*dataset.shape, len(dataset.genres), **row.get("args", {}))
    table = pd.DataFrame(layer_table(network, *dataset.shape),
                         columns=["name", "layer", "kernel", "output", "parameters"])
    total = table["parameters"].sum()
    table = table[table["layer"].isin(shown)].astype({"kernel": object}).fillna({"kernel": ""})
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
    DataFrame, a row per pair: ``difference`` of mean accuracy in points, its 95 % ``interval`` over artists, the
        ``p`` of a test that exchanges the two artist by artist, and ``p (Holm)``, corrected for the number of pairs.
    """
    tables = {name: prediction_table([load_probabilities(run) for run in paths], range(len(paths)))
              for name, paths in runs.items()}
    found = compare_predictions(tables, pairs)
    return pd.DataFrame({
        "difference": found["difference"].round(1).to_numpy(),
        "interval": [f"{low:+.1f} to {high:+.1f}" for low, high in zip(found["low"], found["high"], strict=True)],
        "p": found["p"].round(4).to_numpy(), "p (Holm)": found["p (Holm)"].round(4).to_numpy(),
    }, index=[f"{a} − {b}" for a, b in zip(found["a"], found["b"], strict=True)])


def verdicts(table, level=0.05):
    """The result of `compare_runs` in sentences, one for each pair that differs, or one that says none does."""
    real = table[table["p (Holm)"] < level]
    lines = [f"{pair}: {row['difference']:+.1f} points (p {p} after correction)" for (pair, row), p in
             zip(real.iterrows(), (f"= {p:.3f}" if p >= 0.0005 else "< 0.001" for p in real["p (Holm)"]), strict=True)]
    rest = len(table) - len(real)
    return "\n".join([*lines, f"{rest} of {len(table)} pairs cannot be told apart on these clips"] if rest else lines)


def optimism(results):
    """Test accuracy by protocol, for each run: of the epoch that validation chose, and the best one on test.

    Parameters
    ----------
    results : dict of str to dict
        As `runner.run_experiments` gives; runs in which test was not watched are left out.

    Returns
    -------
    DataFrame with columns network, seed, chosen on validation, best of the saved epochs (both in per cent)
    """
    rows = [(name, s["seed"], 100 * s["test"], 100 * s["test_max"])
            for name, result in results.items() for s in result["seeds"] if s["test_max"] is not None]
    return pd.DataFrame(rows, columns=["experiment", "seed", "chosen on validation", "best of the saved epochs"])


def best_on_validation(results):
    """Name of the experiment of highest mean validation accuracy: test may not choose."""
    return max(results, key=lambda name: np.mean([s["validation"] for s in results[name]["seeds"]]))


def surest_mistakes(run, tracks, most=5):
    """The test clips of which a run was surest, and wrong: at most one for each artist.

    Parameters
    ----------
    run : Path
        A finished run.
    tracks : DataFrame
        Metadata by track id, as ``FeatureDataset.tracks``; ``artist`` and ``title`` are shown if they are there.
    most : int

    Returns
    -------
    DataFrame by track id, surest first: artist, title, true genre, predicted genre, its probability in per cent
    """
    test = load_probabilities(run)
    said = test["probabilities"].argmax(1)
    sureness = test["probabilities"].max(1)
    wrong = np.flatnonzero(said != test["labels"])
    order = wrong[np.argsort(-sureness[wrong], kind="stable")]
    first = sorted(np.unique(test["artists"][order], return_index=True)[1])[:most]
    order = order[first]
    names = [column for column in ("artist", "title") if column in tracks]
    return tracks.loc[test["tracks"][order], names].fillna("").assign(
        true=test["genres"][test["labels"][order]], predicted=test["genres"][said[order]],
        **{"probability %": (100 * sureness[order]).round().astype(int)})


def shuffled_accuracy(run, dataset, piece=20, seed=0):
    """Test accuracy of a finished run on clips as they are, and cut into pieces that are put together at random.

    Parameters
    ----------
    run : Path
        A finished run, or a cross-validated seed: each network is asked the clips that it was tested on.
    dataset : FeatureDataset
        The one that the run was trained on.
    piece : int
        Frames of a piece. Every clip gets an order of its own.
    seed : int
        Of the orders.

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
            with autocast(config["training"]["precision"], dataset.device):
                right += [(network(x).argmax(1) == labels).sum().item() for x in (clips, mixed)]
    return tuple((right / len(rows)).tolist())


def step_seconds(name, dataset, batch_size=32, steps=3):
    """Seconds of one training step of an experiment's network, the best of a few, on random clips of a data set's size.

    Parameters
    ----------
    name : str
        A key of `EXPERIMENTS`.
    dataset : FeatureDataset or JointDataset
        Gives the size of a clip, the number of genres, and the device.
    """
    keep_memory()                                       # as training does
    row, device = EXPERIMENTS[name], dataset.device
    network = MODELS[row["model"]](*dataset.shape, len(dataset.genres), **row.get("args", {}))
    network = network.to(device, memory_format=torch.channels_last)
    sizes = zip(*dataset.shape, strict=True) if isinstance(dataset, JointDataset) else [dataset.shape]
    clips = [torch.rand(batch_size, *size, device=device) for size in sizes]
    precision = choose_precision("auto", device)
    taken = []
    for _ in range(steps):
        start = time.perf_counter()
        with autocast(precision, device):
            loss = network(clips if len(clips) > 1 else clips[0]).float().logsumexp(1).mean()
        loss.backward()
        loss.item()                                     # waits for a GPU
        taken.append(time.perf_counter() - start)
    return min(taken)


def recorded_size(result):
    """What `layers` and `step_seconds` need of a data set, from a result alone: they need no data then."""
    size = result["config"]["model"]["args"]
    return SimpleNamespace(shape=(size["n_bins"], size["n_frames"]), genres=list(result["test"]["genres"]),
                           device=torch.device("cpu"))


def load_answers(results, results_dir="results"):
    """What the models said of each test clip, where that is kept beside the result.

    Parameters
    ----------
    results : list of dict
        As `result_files.load_results` gives them.
    results_dir : path-like

    Returns
    -------
    dict of str to DataFrame
        Experiment to its `predictions.prediction_table`; results without one are left out.
    """
    found = {}
    for r in results:
        path = Path(results_dir) / r["dataset"] / f"{r['experiment']}.csv"
        if path.is_file():
            table = found[r["experiment"]] = load_predictions(path)
            if len(table) != r["test"]["clips"] or abs(correctness(table).mean() - r["test"]["accuracy"]) > 1e-4:
                raise DataError(f"{path} is not of the same runs as the result beside it: run the experiment again")
    return found


def right_by_clip(answers):
    """Share of each model's seeds that were right about each test clip.

    Returns
    -------
    DataFrame, a row per clip, a column per model, 0 to 1; indexed by track_id, artist and genre
    """
    if not answers:
        return pd.DataFrame()
    one = next(iter(answers.values()))
    for name, table in answers.items():
        if set(table.index) != set(one.index):
            raise DataError(f"{name} was tested on other clips than {next(iter(answers))}: train it on the same data")
    index = one.set_index(["artist", "genre"], append=True).index
    return pd.DataFrame({name: correctness(table.loc[one.index]) for name, table in answers.items()}, index=index)


def contrast(plus, minus):
    """Weights for `contrasts`: the mean of some models minus the mean of others.

    >>> contrast(["a", "b"], ["c"])
    {'a': 0.5, 'b': 0.5, 'c': -1.0}
    """
    return {name: 1 / len(plus) for name in plus} | {name: -1 / len(minus) for name in minus}


def contrasts(right, questions):
    """Test weighted sums of accuracies against zero, artist by artist, and correct for their number.

    Parameters
    ----------
    right : DataFrame
        From `right_by_clip`.
    questions : dict of str to dict
        What is asked, to the weight of each model.

    Returns
    -------
    DataFrame with the columns of `predictions.compare_predictions` but a and b, a row for each question that the
        models at hand can answer
    """
    asked = {label: weights for label, weights in questions.items() if set(weights) <= set(right)}
    found = [compare_correctness(right[list(weights)] @ pd.Series(weights), np.zeros(len(right)),
                                 right.index.get_level_values("artist")) for weights in asked.values()]
    table = pd.DataFrame([[100 * f["difference"], *(100 * np.array(f["interval"], dtype=float)), f["p_value"]]
                          for f in found], index=list(asked), columns=["difference", "low", "high", "p"])
    return table.assign(**{"p (Holm)": holm(table["p"]) if asked else []})


def in_words(table, questions=(), level=0.05):
    """The differences that are real, a sentence each; how many are not, and how many questions nothing answers yet."""
    real = table[table["p (Holm)"] < level]
    lines = [f"{label}: {row['difference']:+.1f} points ({row['low']:+.1f} to {row['high']:+.1f}), real"
             for label, row in real.iterrows()]
    if len(table) > len(real):
        lines.append(f"{len(table) - len(real)} of {len(table)} cannot be told from zero")
    if len(questions) > len(table):
        lines.append(f"{len(questions) - len(table)} of {len(questions)} have not been measured yet")
    return "\n".join(lines)


def cqt_against_mel(shapes=("frequency", "square")):
    """Questions for `contrasts`: does the CQT beat mel, as the original fed them, and in decibels?"""
    def of(feature, change=""):
        return [f"{feature}_{shape}{change}" for shape in shapes]

    linear = contrast(of("cqt", "_linear_raw"), of("mel_stft", "_linear_raw"))
    decibels = contrast(of("cqt"), of("mel_stft"))
    return {"CQT − mel, as the original fed them": linear, "CQT − mel, in decibels": decibels,
            "what decibels give to mel": contrast(of("mel_stft"), of("mel_stft", "_linear_raw")),
            "what decibels give to the CQT": contrast(of("cqt"), of("cqt", "_linear_raw")),
            "by how much they close the gap": linear | {name: -weight for name, weight in decibels.items()}}


def blocks_against_plain(feature):
    """Questions for `contrasts`: are ResNet or DenseNet blocks better than the convolutions that they replace?"""
    plain, asked = f"{feature}_frequency", {}
    for kind, title in (("resnet", "ResNet"), ("densenet", "DenseNet")):
        names = {place: f"{plain}_{kind}_{place}" for place in ("second", "all")}
        asked[f"{feature}: both {title} networks"] = contrast(names.values(), [plain])
        asked |= {f"{feature}: {title}, {place}": contrast([name], [plain]) for place, name in names.items()}
    changed = [f"{plain}_resnet_all_linear_raw"], [f"{plain}_linear_raw"]
    return asked | ({f"{feature}, as the original fed it: ResNet, all": contrast(*changed)}
                    if changed[0][0] in EXPERIMENTS else {})


def recurrent_against_plain(feature, shapes=("frequency", "square")):
    """Questions for `contrasts`: are networks with a recurrent layer better than plain ones, and with what changed?"""
    members = {f"four {kind}": [f"{feature}_{kind}_{cell}" for cell in ("lstm", "lstm_bi", "gru", "gru_bi")]
               for kind in ("sequential", "parallel")}
    members = {"all eight": sum(members.values(), []), **members}
    asked = {f"{feature}: {title} − {shape}": contrast(names, [f"{feature}_{shape}"])
             for shape in shapes for title, names in members.items()}
    for change in ("linear_raw", "one_dropout"):
        names = [f"{feature}_{kind}_gru_{change}" for kind in ("sequential", "parallel")]
        asked |= {f"{feature}, {change}: both GRU − {shape}": contrast(names, [f"{feature}_{shape}_{change}"])
                  for shape in shapes}
    return asked
