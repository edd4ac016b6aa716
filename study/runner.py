"""Train experiments with several seeds and save their results."""

from pathlib import Path

from fma import DataError, dataset_name, load_tracks, progress_bar, some
from learning.folds import take_fold
from learning.runs import load_probabilities
from study.result_files import (
    count_seeds,
    other_protocol,
    read_result,
    save_result,
    seed_folders,
    settings_of,
    summarise_runs,
)
from study.rows import find_row


def run_experiment(name, data_dir, repeats=None, settings=None, results_dir="results", progress=True, seed=0,
                   folds=False, **where):
    """Train an experiment with seeds 0, 1, ... and write its result.

    Parameters
    ----------
    name : str
        One that `rows.find_row` knows.
    data_dir : path-like
    repeats : int, optional
        Number of seeds; by default as many as the existing result has, else one.
    settings : dict, optional
        Training settings that override the experiment's.
    results_dir : path-like
    seed : int
        The first seed.
    folds : bool
        Cross-validate by artist (learning/folds.py), with one network per seed and fold.
    **where
        ``runs_dir``, ``subset``, ``features_dir``, ``device`` of `training.run`.

    Returns
    -------
    result : dict
        See `summarise_runs`.
    """
    from training import open_row, run

    path = Path(results_dir) / dataset_name(data_dir, where.get("subset") or "small") / f"{name}.json"
    row, settings = find_row(name), settings or {}
    seeds = range(seed, seed + count_seeds(path, repeats, folds))
    lost = would_be_lost(path, row, settings, seeds, folds)
    if lost:
        raise DataError(f"{path} holds {lost}: pass another --results-dir, or delete it")
    opened = open_row(row, data_dir, **{key: where.get(key) for key in ("subset", "features_dir", "device")})
    count, runs = take_fold(opened, 0) if folds else 1, []
    for k in seeds:
        for fold in range(count) if folds else [None]:
            run_dir, _ = run(name, row, data_dir, {**settings, "seed": k}, fold=fold, dataset=opened,
                             progress=progress, **where)
        runs.append(run_dir.parent if folds else run_dir)
    result = summarise_runs(name, runs)
    save_result(path, result, [load_probabilities(run) for run in runs])
    return result


def would_be_lost(path, row, settings, seeds, folds=False):
    """What an experiment would overwrite in an existing result: other seeds, settings or another protocol.

    Returns
    -------
    str
        Empty if nothing would be lost.
    """
    there = read_result(path)
    if there is None:
        return ""
    if bool(there.get("folds")) != folds:
        return other_protocol(folds)
    others = [s["seed"] for s in there["seeds"] if s["seed"] not in seeds]
    if others:
        return f"more seeds ({some(others)})"
    old, new = settings_of(there["config"]["training"]), settings_of(row.get("training", {}) | settings)
    differ = [key for key in new if new[key] != old[key] and (key, old[key]) != ("watch_test", 0)]      # 0: not watched
    return f"runs with {', '.join(f'{key} {old[key]}' for key in differ)}" if differ else ""


def usual_schedule(data_dir, subset="small", epochs=None):
    """Training settings of docs/results.md: one cycle, test evaluated every fifth epoch.

    By default of 60 epochs for a few hundred clips, of 20 for thousands and, to be quick, for the demo corpus.
    """
    if epochs is None:
        few = len(load_tracks(data_dir, subset)) < 2000
        epochs = 60 if few and dataset_name(data_dir, subset) != "demo" else 20
    return {"epochs": epochs, "one_cycle": True, "watch_test": 5}


def run_experiments(names, data_dir, epochs=None, repeats=1, seed=0, runs_dir=None, results_dir="results", folds=False,
                    **where):
    """Train several experiments on the notebooks' schedule: one cycle, test evaluated every fifth epoch.

    Parameters
    ----------
    names : sequence of str
        Such that `rows.find_row` knows.
    data_dir : path-like
    epochs : int, optional
        Passes over the training clips; by default as `usual_schedule`.
    repeats : int or None
        Number of seeds; None for as many as the existing result has, or one.
    seed : int
        The first one.
    runs_dir : path-like, optional
        Folder of the runs, by default ``runs/{epochs}_epochs``: the number takes the place of ``{epochs}``, which keeps
        schedules separate.
    results_dir : path-like
        An existing result with more seeds, another schedule or protocol is kept; the new one goes to `runs_dir`.
    folds : bool or None
        Cross-validate by artist; None: if the existing result is cross-validated.

    Returns
    -------
    results : dict of str to dict
        Name to the output of `run_experiment`.
    runs : dict of str to list of Path
        Name to its runs, one for each seed; with folds, the folder of its folds' runs, which `load_probabilities` and
        `load_history` of learning/runs.py take for one.
    """
    subset = where.get("subset") or "small"
    settings = usual_schedule(data_dir, subset, epochs)
    runs_dir = Path(str(runs_dir or "runs/{epochs}_epochs").replace("{epochs}", str(settings["epochs"])))
    folder, results = Path(results_dir) / dataset_name(data_dir, subset), {}
    for name in progress_bar(names, unit="experiment", leave=False, delay=2):       # no bar if all are finished
        path, there = folder / f"{name}.json", read_result(folder / f"{name}.json")
        count = repeats or (len(there["seeds"]) if there else 1)
        by_fold = bool(there and there.get("folds")) if folds is None else folds
        lost = would_be_lost(path, find_row(name), settings, range(seed, seed + count), by_fold)
        if lost:
            print(f"{path} holds {lost} and is kept: this result goes to {runs_dir}/results")
        results[name] = run_experiment(name, data_dir, count, settings, runs_dir / "results" if lost else results_dir,
                                       seed=seed, folds=by_fold, runs_dir=runs_dir, **where)
    return results, {name: seed_folders(result, runs_dir) for name, result in results.items()}
