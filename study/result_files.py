"""Results of experiments: assembled from runs, written, checked and read."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from audio.cache import save_text, save_whole
from evaluation import summarise
from fma import SPLITS, DataError
from learning.runs import (
    fold_runs,
    is_finished,
    known_artists,
    load_config,
    load_history,
    load_probabilities,
    run_folder,
    selected,
)
from study.predictions import prediction_table
from study.rows import EXPERIMENTS, find_row


def read_result(path):
    """One result, or None if there is none yet; a DataError if the file is damaged."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        if _is_result(result):
            return result
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DataError(f"{path} is damaged: delete it and run the experiment again")


def _is_result(result):
    """Whether a result has everything that tables and notebooks read, and its accuracies lie between 0 and 1."""
    config, test, seeds = result["config"], result["test"], result["seeds"]
    genres, (low, high) = list(test["genres"].values()), test["interval"]
    kinds = {str: [result["experiment"], result["dataset"], config["feature"], config["model"]["class"]],
             dict: [config["model"]["args"], config["feature_parameters"], config["training"], test["genres"]],
             list: [seeds, test["confusion"], test["interval"]],
             int: [test["clips"], test["seeds"], *(genre["clips"] for genre in genres), *(s["seed"] for s in seeds)],
             int | None: [result["parameters"], test["artists"], *(seed["epoch"] for seed in seeds)],
             int | float | None: [seed["seconds"] for seed in seeds]}
    shares = [test["accuracy"], *(seed[split] for seed in seeds for split in ("validation", "test"))]
    optional = [low, high, test["accuracy_sd"], test["macro_auc"], *(seed["test_max"] for seed in seeds),
                *(genre["accuracy"] for genre in genres)]
    shares += [share for share in optional if share is not None]
    return bool(seeds and genres and all(0 <= share <= 1 for share in shares) and
                all(isinstance(value, kind) for kind, values in kinds.items() for value in values))


def count_seeds(path, repeats=None, folds=False):
    """How many seeds to run: ``repeats``, by default as many as the result in the file has, else one.

    A DataError if ``repeats`` is below 1, or if the result would be lost: it has more seeds, or another protocol.
    """
    result = read_result(path)
    if result and bool(result.get("folds")) != folds:
        raise DataError(f"{path} holds {other_protocol(folds)}: pass another --results-dir, or delete it")
    there = len(result["seeds"]) if result else 1
    if repeats is not None and repeats < 1:
        raise DataError("--repeats must be at least 1")
    if repeats and repeats < there:
        raise DataError(f"{path} has {there} seeds: pass --repeats {there}, or another --results-dir")
    return repeats or there


def other_protocol(folds):
    """Name of an existing result's protocol, if it is the other than `folds` says."""
    return "a result on the split of tracks.csv" if folds else "a cross-validated result"


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
    save_text(path, json.dumps(result, indent=1) + "\n")


def load_results(folder, runs_folder=None):
    """The results in a folder: baselines, then experiments in the order of `EXPERIMENTS`, your own, then ensembles.

    With a folder ``runs/<dataset>`` also its finished runs that no result holds, see `load_runs`.
    """
    order = list(EXPERIMENTS)

    def place(path):
        name = path.stem
        return (name.startswith("ensemble_") - name.startswith("baseline_"),
                order.index(name) if name in EXPERIMENTS else len(order), path.name)

    paths = [path for path in Path(folder).glob("*.json") if place(path)[0] or find_row(path.stem)]
    results = [read_result(path) for path in sorted(paths, key=place)]
    results += load_runs(runs_folder, results) if runs_folder else []
    if not results:
        raise DataError(f"no results in {folder}: python experiments.py run NAMES")
    return results


def load_runs(folder, stored=()):
    """Results of the finished runs in a folder ``runs/<dataset>``, such as training.py leaves.

    Parameters
    ----------
    folder : path-like
    stored : sequence of dict
        Results; runs of their seeds, settings and protocol are left out.

    Returns
    -------
    results : list of dict
        As `summarise_runs` gives them, with the folders in ``runs``. Seeds of the same settings are one result, and so
        are folds once all are there; a single fold, and what differs from a result, are named behind the experiment.
    """
    groups, stored = {}, {result["experiment"]: result for result in stored}
    for path in sorted(Path(folder).glob("*/seed*")):
        parts, there = fold_runs(path), stored.get(path.parent.name)
        whole = all(map(_is_trained, parts_of(path)))
        for run in [path] if whole else filter(_is_trained, parts):
            config = load_config(parts_of(run)[0])
            settings = tuple(settings_of(config["training"]).items())
            if (there and bool(there.get("folds")) == bool(parts)
                    and dict(settings) == settings_of(there["config"]["training"])
                    and config["training"]["seed"] in [seed["seed"] for seed in there["seeds"]]):
                continue
            what = path.parent.name + (f", {run.name.replace('fold', 'fold ')}" if run.name.startswith("fold") else
                                       ", folds" if parts else "")
            groups.setdefault(what, {}).setdefault(settings, []).append(run)
    found = []
    for what, by_settings in groups.items():
        experiment = what.partition(", ")[0]
        usual = [settings_of(stored[experiment]["config"]["training"]).items()] if experiment in stored else by_settings
        same = set.intersection(*map(set, usual))
        for settings, runs in by_settings.items():
            name = what if experiment in [*groups, *stored] else what.removesuffix(", folds")
            name += "".join(f", {key} {x}" for key, x in settings if (key, x) not in same)
            name += "".join(f", {run.name}" for run in runs if name in stored)
            found.append(summarise_runs(name, runs) | {"runs": list(map(str, runs))})
    return found


def parts_of(run):
    """The runs of all folds of a cross-validated seed, or the only one."""
    return fold_runs(run) or [run]


def settings_of(given):
    """The settings that make a run's network, of those that were given: a dict, with the defaults of the others."""
    from training import Training

    return {key: given.get(key, default) for key, default in asdict(Training()).items()
            if key not in ("seed", "precision", "graph")}


def _is_trained(run):
    """Whether a run is finished and a network's: classifiers have no history."""
    return is_finished(run) and (run / "history.jsonl").is_file()


def accuracy_of(said):
    """Accuracy of a run on one split, from the output of `runs.load_probabilities`."""
    return round(float((said["probabilities"].argmax(1) == said["labels"]).mean()), 6)


def make_result(name, configs, seeds, tests, **more):
    """Assemble the result of an experiment.

    Parameters
    ----------
    name : str
    configs : list of dict
        Of all runs; the first is stored.
    seeds : list of dict
        From `seed_line`.
    tests : list of dict
        As `runs.load_probabilities` gives them, one for each run, of the same clips.
    **more
        Other entries, such as the number of parameters.

    Returns
    -------
    result : dict
        The content of ``results/<dataset>/<name>.json``; ``test`` is what `evaluation.summarise` returns. With folds,
        ``folds``: their ``count``, the ``test`` accuracy of each (mean over seeds), and its standard deviation over
        folds, ``test_sd``. If artists are in both training and test, their number as ``leaks``. (An AUC over all
        clips of folds compares scores of several networks, which lowers it.)
    """
    one, config = tests[0], configs[0]
    summary = summarise(one["labels"], np.stack([test["probabilities"] for test in tests]), known_artists(one),
                        one["genres"].tolist())
    result = {"experiment": name, "dataset": config["dataset"], "seeds": seeds, "test": summary,
              "config": {k: config[k] for k in ("model", "feature", "feature_parameters", "scale", "training")},
              "device": config["device"], "versions": config["versions"], **more}
    if "folds" in seeds[0]:
        each = np.mean([[fold["test"] for fold in seed["folds"]] for seed in seeds], axis=0)
        result["folds"] = {"count": len(each), "test": each.round(6).tolist(),
                           "test_sd": round(float(each.std(ddof=1)), 6)}
    if leaks := {artist for each in configs for artist in each.get("leaks", [])}:
        result["leaks"] = len(leaks)
    return result


def summarise_runs(name, runs):
    """The result of an experiment, assembled from its runs.

    Parameters
    ----------
    name : str
    runs : list of Path
        Finished runs on the same clips, one for each seed; if cross-validated, the folders with the runs of all folds.

    Returns
    -------
    result : dict
        As `make_result` gives it. Of each seed: the chosen epoch, the accuracies of that epoch on validation and test,
        and ``test_max``, the best test accuracy, where test was evaluated during training.
    """
    from training import build

    tests = [load_probabilities(run) for run in runs]
    configs = [load_config(part) for run in runs for part in parts_of(run)]
    if any(not np.array_equal(test["tracks"], tests[0]["tracks"]) for test in tests):
        raise DataError(f"{runs[0].parent}: its runs were tested on different clips: delete them and run again")
    data = [each["data"] for each in configs if each.get("data")]       # older runs did not record it
    if any(each != data[0] for each in data):
        raise DataError(f"{runs[0].parent}: its runs were trained on different data: delete them and run again")
    seeds = [seed_line(run, _network_outcome) for run in runs]
    commits = sorted({each["commit"] for each in configs if each.get("commit")})
    size = sum(p.numel() for p in build(configs[0]).parameters() if p.requires_grad)
    return make_result(name, configs, seeds, tests, parameters=size, data=data[0] if data else None,
                       commit=", ".join(commits) or None)


def _network_outcome(run):
    """Epochs, accuracies and time of one run, as `seed_line` takes them."""
    history, test = load_history(run), load_probabilities(run)
    best, watched = selected(history), [epoch["test_accuracy"] for epoch in history if "test_accuracy" in epoch]
    return {"epoch": best["epoch"], "epochs": len(history), "validation": round(best["validation_accuracy"], 6),
            "test": accuracy_of(test), "test_max": round(max(watched), 6) if watched else None,
            "seconds": round(sum(epoch["seconds"] for epoch in history), 1)}


def seed_folders(result, runs_dir):
    """The runs of a result: list of Path, one for each seed."""
    folders = [run_folder(runs_dir, result["dataset"], result["experiment"], seed["seed"],
                          0 if result.get("folds") else None) for seed in result["seeds"]]
    return [folder.parent if result.get("folds") else folder for folder in folders]


def seed_line(run, outcome):
    """The entry of a seed in a result.

    Parameters
    ----------
    run : Path
        A finished run, or the folder with the runs of all folds.
    outcome : function of a Path
        Returns epoch, epochs, validation, test, test_max and seconds of a single run.

    Returns
    -------
    dict
        With folds, accuracies are over the clips of all folds, each validated and tested once, the epoch is the
        median, and ``folds`` holds the entry of each.
    """
    parts = parts_of(run)
    seed = load_config(parts[0])["training"]["seed"]
    if parts == [run]:
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
