"""A result of an experiment: put together from its runs, written, checked and read."""

import json
from pathlib import Path
from types import UnionType

import numpy as np

from evaluation import summarise
from fma import SPLITS, DataError
from learning.runs import (
    fold_runs,
    known_artists,
    load_config,
    load_history,
    load_probabilities,
    run_folder,
    save_whole,
    selected,
)
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
    "test": {"clips": int, "artists": int | None, "seeds": int, "accuracy": _share, "accuracy_sd": _share_or_none,
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
        Finished runs on the same clips; of a cross-validated experiment, the folders that hold those of all folds.

    Returns
    -------
    result : dict
        What ``results/<dataset>/<name>.json`` holds: per seed the chosen epoch, its validation and test
        accuracy and ``test_max`` where it was watched; over seeds what `evaluation.summarise` gives; and what
        `seed_line` and `over_folds` add for folds.
    """
    tests, parts = [load_probabilities(run) for run in runs], [part for run in runs for part in fold_runs(run) or [run]]
    configs = [load_config(part) for part in parts]
    config = configs[0]
    if any(not np.array_equal(test["tracks"], tests[0]["tracks"]) for test in tests):
        raise DataError(f"{runs[0].parent}: its runs were tested on different clips: delete them and run again")
    data = [each["data"] for each in configs if each.get("data")]       # runs from before it was noted have none
    if any(each != data[0] for each in data):
        raise DataError(f"{runs[0].parent}: its runs were trained on different data: delete them and run again")
    seeds = [seed_line(run, _network_outcome) for run in runs]
    model = config["model"]
    return {"experiment": name, "dataset": config["dataset"], "seeds": seeds, "test": summarise_tests(tests),
            "parameters": count_parameters(model["class"], model["args"]),
            "config": {k: config[k] for k in ("model", "feature", "feature_parameters", "scale", "training")},
            "device": config["device"], "versions": config["versions"], "data": data[0] if data else None,
            "commit": ", ".join(sorted({each["commit"] for each in configs if each.get("commit")})) or None,
            **over_folds(seeds, configs)}


def _network_outcome(run):
    """What the run of a network came to, as a line of a result holds it."""
    history, test = load_history(run), load_probabilities(run)
    best, watched = selected(history), [epoch["test_accuracy"] for epoch in history if "test_accuracy" in epoch]
    return {"epoch": best["epoch"], "epochs": len(history), "validation": round(best["validation_accuracy"], 6),
            "test": accuracy_of(test), "test_max": round(max(watched), 6) if watched else None,
            "seconds": round(sum(epoch["seconds"] for epoch in history), 1)}


def accuracy_of(said):
    """Accuracy of what `runs.load_probabilities` gives."""
    return round(float((said["probabilities"].argmax(1) == said["labels"]).mean()), 6)


def summarise_tests(tests):
    """What `evaluation.summarise` says of the tests of several seeds, as `runs.load_probabilities` gives them."""
    one = tests[0]
    return summarise(one["labels"], np.stack([test["probabilities"] for test in tests]), known_artists(one),
                     one["genres"].tolist())


def other_protocol(folds):
    """What a result that is there is called, where the new one is cross-validated, or is not."""
    return "a result on the split of tracks.csv" if folds else "a cross-validated result"


def seed_folders(result, runs_dir):
    """The runs that a result was made of: list of Path, one for each seed."""
    folders = [run_folder(runs_dir, result["dataset"], result["experiment"], seed["seed"],
                          0 if result.get("folds") else None) for seed in result["seeds"]]
    return [folder.parent if result.get("folds") else folder for folder in folders]


def seed_line(run, outcome):
    """What a seed came to.

    Parameters
    ----------
    run : Path
        A finished run, or the folder of those of all folds.
    outcome : function of a Path
        Gives the line of a single run: epoch, epochs, validation, test, test_max, seconds.

    Returns
    -------
    dict
        With folds, the accuracies are over the clips of all of them, each validated and tested once; the epoch is
        the median; ``folds`` holds the line of each.
    """
    parts = fold_runs(run)
    seed = load_config((parts or [run])[0])["training"]["seed"]
    if not parts:
        return {"seed": seed, **outcome(run)}
    folds = [{"fold": k, **outcome(part)} for k, part in enumerate(parts)]
    clips = {split: [len(load_probabilities(part, split)["labels"]) for part in parts] for split in SPLITS[1:]}


    def over(what, count, **how):
        values = [fold[what] for fold in folds]
        return None if None in values else round(float(count(values, **how)), 6)

    epoch, epochs = over("epoch", np.median), over("epochs", max)
    return {"seed": seed, "epoch": epoch and int(epoch), "epochs": epochs and int(epochs),
            "validation": over("validation", np.average, weights=clips["validation"]),
            "test": over("test", np.average, weights=clips["test"]),
            "test_max": over("test_max", np.average, weights=clips["test"]),
            "seconds": over("seconds", sum), "folds": folds}


def over_folds(seeds, configs):
    """What a result says of its protocol where that is not the collection's split by artist.

    Parameters
    ----------
    seeds : list of dict
        From `seed_line`.
    configs : list of dict
        Of all runs.

    Returns
    -------
    dict
        With folds, ``folds``: their ``count``, the ``test`` accuracy of each (mean over seeds), and its standard
        deviation over them, ``test_sd``. If artists are in training and in test, ``leaks``: how many.
        (An AUC over all clips compares scores of several networks, which makes it rather low.)
    """
    found, leaks = {}, {artist for config in configs for artist in config.get("leaks", [])}
    if "folds" in seeds[0]:
        tests = np.mean([[fold["test"] for fold in seed["folds"]] for seed in seeds], axis=0)
        found["folds"] = {"count": len(tests), "test": tests.round(6).tolist(),
                          "test_sd": round(float(tests.std(ddof=1)), 6)}
    return found | ({"leaks": len(leaks)} if leaks else {})
