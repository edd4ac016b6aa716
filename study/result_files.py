"""A result of an experiment: put together from its runs, written, checked and read."""

import json
from pathlib import Path
from types import UnionType

import numpy as np

from evaluation import summarise
from fma import DataError
from learning.runs import load_config, load_history, load_probabilities, save_whole, selected
from study.predictions import prediction_table
from study.rows import EXPERIMENTS


def _share(value):
    return isinstance(value, int | float) and 0 <= value <= 1


def _share_or_none(value):
    return value is None or _share(value)


def _filled(value):
    return isinstance(value, dict) and value != {}


RESULT = {      # what is read of a result, as `_has_form` checks it
    "experiment": str, "dataset": str, "parameters": int | None,
    "config": {"model": {"class": str, "args": dict}, "feature": str, "feature_parameters": dict, "training": dict},
    "seeds": [{"seed": int, "epoch": int | None, "validation": _share, "test": _share, "test_max": _share_or_none,
               "seconds": float | int | None}],
    "test": {"clips": int, "artists": int, "seeds": int, "accuracy": _share, "accuracy_sd": _share_or_none,
             "interval": (_share_or_none, _share_or_none), "macro_auc": _share_or_none, "genres": _filled,
             "confusion": list},
}


def read_result(path):
    """One result, or None where there is none yet; a DataError if the file is damaged."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        result = None
    if not _has_form(result, RESULT):
        raise DataError(f"{path} is damaged: delete it and run the experiment again")
    return result


def _has_form(value, form):
    """Whether what JSON held has these keys (dict), such items (list), these (tuple), this type, or passes a test."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(key in value and _has_form(value[key], form[key]) for key in form)
    if isinstance(form, list):
        return isinstance(value, list) and value != [] and all(_has_form(item, form[0]) for item in value)
    if isinstance(form, tuple):
        return isinstance(value, list) and len(value) == len(form) and all(map(_has_form, value, form))
    return isinstance(value, form) if isinstance(form, type | UnionType) else form(value)


def save_table(results_dir, dataset, name, table):
    """Write figures that belong to no single experiment as ``<results_dir>/<dataset>/<name>.csv``.

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
    """Write a result, and beside it what each run said of every test clip.

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
    """The results in a folder: the baselines', then in the order of `EXPERIMENTS`, then ensembles'."""
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


def summarise_runs(name, runs):
    """Put the runs of an experiment, one for each seed, together.

    Parameters
    ----------
    name : str
    runs : list of Path
        Finished runs on the same clips.

    Returns
    -------
    result : dict
        What ``results/<dataset>/<name>.json`` holds: per seed the chosen epoch, its validation and test
        accuracy and ``test_max`` where it was watched; over seeds what `evaluation.summarise` gives.
    """
    tests, config = [load_probabilities(run) for run in runs], load_config(runs[0])
    configs = [load_config(run) for run in runs]
    if any(not np.array_equal(test["tracks"], tests[0]["tracks"]) for test in tests):
        raise DataError(f"{runs[0].parent}: its runs were tested on different clips: delete them and run again")
    data = [each["data"] for each in configs if each.get("data")]       # runs from before it was noted have none
    if any(each != data[0] for each in data):
        raise DataError(f"{runs[0].parent}: its runs were trained on different data: delete them and run again")
    seeds = []
    for run, test in zip(runs, tests, strict=True):
        history = load_history(run)
        best, watched = selected(history), [e["test_accuracy"] for e in history if "test_accuracy" in e]
        seeds.append({
            "seed": load_config(run)["training"]["seed"], "epoch": best["epoch"], "epochs": len(history),
            "validation": round(best["validation_accuracy"], 6),
            "test": round(float((test["probabilities"].argmax(1) == test["labels"]).mean()), 6),
            "test_max": round(max(watched), 6) if watched else None,
            "seconds": round(sum(epoch["seconds"] for epoch in history), 1),
        })
    summary = summarise(tests[0]["labels"], np.stack([t["probabilities"] for t in tests]), tests[0]["artists"],
                        tests[0]["genres"].tolist())
    model = config["model"]
    return {"experiment": name, "dataset": config["dataset"], "seeds": seeds, "test": summary,
            "parameters": count_parameters(model["class"], model["args"]),
            "config": {k: config[k] for k in ("model", "feature", "feature_parameters", "scale", "training")},
            "device": config["device"], "versions": config["versions"], "data": data[0] if data else None,
            "commit": ", ".join(sorted({each["commit"] for each in configs if each.get("commit")})) or None}
