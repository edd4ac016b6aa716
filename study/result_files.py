"""Results of experiments: assembled from runs, written, checked and read."""

import json
from pathlib import Path

import numpy as np

from evaluation import summarise
from fma import DataError
from learning.runs import load_config, load_history, load_probabilities, save_whole, selected
from study.predictions import prediction_table
from study.rows import EXPERIMENTS


def read_result(path):
    """One result, or None if there is none yet; a DataError if the file is damaged."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        if _is_result(result):
            return result
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DataError(f"{path} is damaged: delete it and run the experiment again")


def _is_result(result):
    """Whether a result has everything that tables and notebooks read, and its accuracies lie between 0 and 1."""
    config, test, seeds, (low, high) = result["config"], result["test"], result["seeds"], result["test"]["interval"]
    kinds = {str: [result["experiment"], result["dataset"], config["feature"], config["model"]["class"]],
             dict: [config["model"]["args"], config["feature_parameters"], config["training"], test["genres"]],
             list: [seeds, test["confusion"], test["interval"]],
             int: [test["clips"], test["artists"], test["seeds"], *(seed["seed"] for seed in seeds)],
             int | None: [result["parameters"], *(seed["epoch"] for seed in seeds)],
             int | float | None: [seed["seconds"] for seed in seeds]}
    shares = [test["accuracy"], *(seed[split] for seed in seeds for split in ("validation", "test"))]
    optional = [low, high, test["accuracy_sd"], test["macro_auc"], *(seed["test_max"] for seed in seeds)]
    shares += [share for share in optional if share is not None]
    return bool(seeds and test["genres"] and all(0 <= share <= 1 for share in shares) and
                all(isinstance(value, kind) for kind, values in kinds.items() for value in values))


def count_seeds(path, repeats=None):
    """How many seeds to run: ``repeats``, by default as many as the result in the file has, else one.

    A DataError if the result there has more seeds than ``repeats``, because they would be lost.
    """
    result = read_result(path)
    there = len(result["seeds"]) if result else 1
    if repeats and repeats < there:
        raise DataError(f"{path} has {there} seeds: pass --repeats {there}, or another --results-dir")
    return repeats or there


def save_table(results_dir, dataset, name, table):
    """Write numbers that belong to no single experiment to ``<results_dir>/<dataset>/<name>.csv``.

    Parameters
    ----------
    results_dir : path-like
    dataset, name : str
    table : DataFrame
        Its index is not written.

    Returns
    -------
    path : Path
    """
    path = Path(results_dir) / dataset / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(path, lambda temporary: table.round(6).to_csv(temporary, index=False, lineterminator="\n"))
    return path


def save_result(path, result, tests):
    """Write a result, and beside it the predictions of each run for every test clip.

    Parameters
    ----------
    path : Path
        ``<results>/<dataset>/<experiment>.json``; the predictions go to the CSV of the same name.
    result : dict
    tests : list of dict
        As `runs.load_probabilities` gives them, one for each of the result's seeds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = prediction_table(tests, [seed["seed"] for seed in result["seeds"]])
    save_whole(path.with_suffix(".csv"), lambda temporary: table.to_csv(temporary, lineterminator="\n"))
    text = json.dumps(result, indent=1) + "\n"
    save_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def load_results(folder):
    """The results in a folder: baselines, then experiments in the order of `EXPERIMENTS`, then ensembles."""
    first, last = (sorted(Path(folder).glob(f"{kind}_*.json")) for kind in ("baseline", "ensemble"))
    paths = [*first, *(Path(folder) / f"{name}.json" for name in EXPERIMENTS), *last]
    results = [result for result in map(read_result, paths) if result]
    if not results:
        raise DataError(f"no results in {folder}: python experiments.py run NAMES")
    return results


def count_parameters(name, args):
    """Trainable parameters of a network."""
    from training import MODELS

    return sum(p.numel() for p in MODELS[name](**args).parameters() if p.requires_grad)


def accuracy(said):
    """Accuracy of a run on one split, from what `runs.load_probabilities` gives."""
    return round(float((said["probabilities"].argmax(1) == said["labels"]).mean()), 6)


def make_result(name, config, seeds, tests, **more):
    """Assemble the result of an experiment.

    Parameters
    ----------
    name : str
    config : dict
        Of one of its runs.
    seeds : list of dict
        For each run its seed, epochs, accuracies and seconds.
    tests : list of dict
        As `runs.load_probabilities` gives them, one for each run, of the same clips.
    **more
        Other entries, such as the number of parameters.

    Returns
    -------
    result : dict
        The content of ``results/<dataset>/<name>.json``; ``test`` is what `evaluation.summarise` returns.
    """
    summary = summarise(tests[0]["labels"], np.stack([test["probabilities"] for test in tests]), tests[0]["artists"],
                        tests[0]["genres"].tolist())
    return {"experiment": name, "dataset": config["dataset"], "seeds": seeds, "test": summary,
            "config": {k: config[k] for k in ("model", "feature", "feature_parameters", "scale", "training")},
            "device": config["device"], "versions": config["versions"], **more}


def summarise_runs(name, runs):
    """The result of an experiment, assembled from its runs.

    Parameters
    ----------
    name : str
    runs : list of Path
        Finished runs on the same clips, one for each seed.

    Returns
    -------
    result : dict
        As `make_result` gives it. Of each seed: the chosen epoch, the accuracies of that epoch on validation and test,
        and ``test_max``, the best test accuracy, where test was evaluated during training.
    """
    tests, configs = [load_probabilities(run) for run in runs], [load_config(run) for run in runs]
    if any(not np.array_equal(test["tracks"], tests[0]["tracks"]) for test in tests):
        raise DataError(f"{runs[0].parent}: its runs were tested on different clips: delete them and run again")
    data = [each["data"] for each in configs if each.get("data")]       # older runs did not record it
    if any(each != data[0] for each in data):
        raise DataError(f"{runs[0].parent}: its runs were trained on different data: delete them and run again")
    seeds = []
    for config, test, history in zip(configs, tests, map(load_history, runs), strict=True):
        best, watched = selected(history), [e["test_accuracy"] for e in history if "test_accuracy" in e]
        seeds.append({
            "seed": config["training"]["seed"], "epoch": best["epoch"], "epochs": len(history),
            "validation": round(best["validation_accuracy"], 6), "test": accuracy(test),
            "test_max": round(max(watched), 6) if watched else None,
            "seconds": round(sum(epoch["seconds"] for epoch in history), 1),
        })
    model = configs[0]["model"]
    return make_result(name, configs[0], seeds, tests, parameters=count_parameters(model["class"], model["args"]),
                       data=data[0] if data else None,
                       commit=", ".join(sorted({each["commit"] for each in configs if each.get("commit")})) or None)
