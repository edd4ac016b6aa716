"""Every row of the study as data: run them, and print the tables.

    python experiments.py list
    python experiments.py run cqt_square cqt_bbnn --repeats 3 --data-dir data/emotify
    python experiments.py table --data-dir data/emotify

`run` skips what is done and goes on with what was cut off. Each experiment leaves one JSON in
``results/<dataset>/``, from which every table is made.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from evaluation import format_table, summarise
from fma import SUBSETS, DataError, dataset_name, find_data, progress_bar, run_command, some
from runs import load_config, load_history, load_probabilities, selected
from study import DEMO, EXPERIMENTS, QUICK, QUICK_EPOCHS, features_of
from tables import (
    load_results,
    read_result,
    results_table,
    save_figures,
    save_intervals,
    save_result,
    write_marked_tables,
)


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


def run_experiment(name, data_dir, repeats=1, settings=None, results_dir=None, progress=True, seed=0, **where):
    """Train an experiment with seeds 0, 1, ... and write its result.

    Parameters
    ----------
    name : str
        A key of `EXPERIMENTS`.
    data_dir : path-like
    repeats : int
        Number of seeds.
    settings : dict, optional
        Training settings that take precedence over the experiment's.
    results_dir : path-like, optional
        ``results`` by default.
    seed : int
        The first of the seeds.
    **where
        ``runs_dir``, ``subset``, ``features_dir``, ``device`` of `training.run`.

    Returns
    -------
    result : dict
        See `summarise_runs`.
    """
    from training import run

    folder = Path(results_dir or "results") / dataset_name(data_dir, where.get("subset") or "small")
    path, seeds = folder / f"{name}.json", range(seed, seed + repeats)
    lost = would_be_lost(path, EXPERIMENTS[name], settings or {}, seeds)
    if lost:
        raise DataError(f"{path} holds {lost}: pass another --results-dir, or delete it")
    runs = [run(name, EXPERIMENTS[name], data_dir, {**(settings or {}), "seed": k}, progress=progress, **where)[0]
            for k in seeds]
    result = summarise_runs(name, runs)
    save_result(path, result, [load_probabilities(run) for run in runs])
    return result


def would_be_lost(path, row, settings, seeds):
    """What of a result that is there an experiment would overwrite: seeds, or a schedule, that it does not have.

    Returns
    -------
    str
        Empty if nothing would be lost.
    """
    from training import Training

    there = read_result(path)
    if there is None:
        return ""
    others = [s["seed"] for s in there["seeds"] if s["seed"] not in seeds]
    if others:
        return f"more seeds ({some(others)})"
    old = there["config"]["training"]
    try:
        new = asdict(Training(**{**row.get("training", {}), **settings}))
    except (TypeError, DataError):
        return ""                                           # what is wrong with them is the run's to say
    old = asdict(Training()) | old                          # what is off is not in it
    differ = [key for key in new if key not in ("seed", "precision") and new[key] != old[key]]
    return f"runs with {', '.join(f'{key} {old[key]}' for key in differ)}" if differ else ""


def run_experiments(names, data_dir, epochs, repeats=1, seed=0, runs_dir=None, results_dir="results", **where):
    """Train several experiments on one schedule, as the notebooks do: one cycle, test watched every fifth epoch.

    Parameters
    ----------
    names : sequence of str
        Keys of `EXPERIMENTS`.
    data_dir : path-like
    epochs : int
        Passes over the training clips.
    repeats : int or None
        Number of seeds; None: as many as the result there has, or one.
    seed : int
        The first of the seeds.
    runs_dir : path-like, optional
        Finished runs are read from here; ``runs/<epochs>_epochs`` by default, so that schedules keep apart.
    results_dir : path-like
        A result of more seeds or of another schedule that is there stays; the new one goes to `runs_dir`.

    Returns
    -------
    results : dict of str to dict
        Name to what `run_experiment` gives.
    runs : dict of str to list of Path
        Name to its runs, one for each seed.
    """
    settings = {"epochs": epochs, "one_cycle": True, "watch_test": 5}
    runs_dir = Path(runs_dir or f"runs/{epochs}_epochs")
    folder, results = Path(results_dir) / dataset_name(data_dir, where.get("subset") or "small"), {}
    for name in progress_bar(names, unit="experiment", leave=False, delay=2):       # none where all are finished
        path, there = folder / f"{name}.json", read_result(folder / f"{name}.json")
        count = repeats or (len(there["seeds"]) if there else 1)
        lost = would_be_lost(path, EXPERIMENTS[name], settings, range(seed, seed + count))
        if lost:
            print(f"{path} holds {lost} and stays as it is: this result goes to {runs_dir}/results")
        results[name] = run_experiment(name, data_dir, count, settings, runs_dir / "results" if lost else results_dir,
                                       seed=seed, runs_dir=runs_dir, **where)
    return results, {name: [runs_dir / result["dataset"] / name / f"seed{s['seed']}" for s in result["seeds"]]
                     for name, result in results.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description="List the study's experiments, run them, print their results.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all names")
    run = commands.add_parser("run", help="train experiments; what is done is not done again")
    run.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(DEMO)}")
    run.add_argument("--repeats", type=int, default=1, help="seeds (default 1)")
    run.add_argument("--quick", action="store_true", help=f"a short schedule: {QUICK}")
    run.add_argument("--epochs", type=int)
    run.add_argument("--figures", action="store_true", help="save curves, ROC and confusion of each")
    table = commands.add_parser("table", help="print the results of a data set")
    table.add_argument("--readme", metavar="FILE", help="write its marked tables anew from the results, instead")
    table.add_argument("--image", type=Path, metavar="PNG", help="draw the accuracies with their intervals, too")
    run.add_argument("--features-dir", help="the feature cache (default: features in the data folder)")
    run.add_argument("--device", help="cpu, cuda, mps (default: cuda if there is one)")
    for command in (run, table):
        command.add_argument("--data-dir", help="in FMA's layout (default: $DATA_DIR, data, or the demo corpus)")
        command.add_argument("--subset", default="small", choices=SUBSETS)
        command.add_argument("--runs-dir", help="default: runs, or runs/quick")
        command.add_argument("--results-dir", help="default: results, or runs/quick/results")
    args = parser.parse_args(argv)
    if args.command == "list":
        print(format_table([[name, e["model"], "+".join(features_of(e)), e.get("reported")]
                            for name, e in EXPERIMENTS.items()],
                           ["experiment", "network", "feature", "reported by the original %"]))
        return
    quick = args.command == "run" and args.quick       # kept apart from the study's own runs
    runs_dir = args.runs_dir or ("runs/quick" if quick else "runs")
    results_dir = args.results_dir or ("runs/quick/results" if quick else "results")
    if args.command == "table" and args.readme:
        write_marked_tables(args.readme, results_dir)
        return
    data_dir = find_data(args.data_dir)
    if args.command == "table":
        results = load_results(Path(results_dir) / dataset_name(data_dir, args.subset))
        print(results_table(results))
        if args.image:
            save_intervals(results, args.image)
        return
    unknown = [name for name in args.names if name not in EXPERIMENTS]
    if unknown or args.repeats < 1:
        raise DataError(f"no experiment is named {some(unknown)}: see python experiments.py list" if unknown
                        else "--repeats must be at least 1")
    results = []
    for name in args.names or DEMO:
        settings = {**QUICK, "epochs": QUICK_EPOCHS.get(EXPERIMENTS[name]["model"], QUICK["epochs"])} if quick else {}
        settings = settings if args.epochs is None else {**settings, "epochs": args.epochs}
        results.append(run_experiment(name, data_dir, args.repeats, settings, results_dir, runs_dir=runs_dir,
                                      subset=args.subset, features_dir=args.features_dir, device=args.device))
    print("\n" + results_table(results, seconds=True))
    if args.figures:
        folder = Path(runs_dir) / results[0]["dataset"] / "figures"
        for result in results:
            save_figures(result, runs_dir, folder)
        print(f"\nCurves, ROC and confusion matrix of each: {folder}/<experiment>_*.png")


if __name__ == "__main__":
    sys.exit(run_command(main))
