"""Run the whole study on one data folder, after an estimate of the time.

    python -m study.reproduce --data-dir data --plan                # prints the estimate only
    python -m study.reproduce --data-dir data                       # all experiments with features, then the table
    python -m study.reproduce --folds --data-dir data/mymusic       # cross-validated by artist

The schedule is that of docs/results.md: one cycle, and our own networks' recipe. `--one-cycle false --epochs 50` is the
original's. After an interruption, the same command continues.
"""

import argparse
import sys
from fnmatch import fnmatch
from pathlib import Path

from audio.transforms import FEATURES
from dataset import open_dataset
from features import fill_cache
from fma import (
    DataError,
    add_data_options,
    dataset_name,
    find_data,
    load_genres,
    load_tracks,
    run_command,
    sub_genres,
)
from learning.devices import choose_device
from learning.folds import take_fold
from study import classifiers
from study.comparisons import step_seconds
from study.result_files import load_results
from study.rows import EXPERIMENTS, features_of
from study.runner import run_experiment, usual_schedule
from study.statistics import Statistics
from study.tables import format_table, results_table
from tag_models import LEARN_TAGS
from training import Training, add_settings, count_steps, given_settings

OVERHEAD = 1.2      # for validation, and for loading the clips of a step


def cached(data_dir, features_dir=None):
    """Names of the features in the cache."""
    return {path.stem for path in Path(features_dir or Path(data_dir) / "features").glob("*.npy")}


def chosen_rows(data_dir, patterns, subset="small", features_dir=None):
    """Names of the experiments that match the patterns and whose features are cached or can be computed from audio.

    Those on pitch-shifted copies and on recurrence are left out: features.py makes these on demand alone. So are those
    that learn from sub-genres, where a collection has none.
    """
    audio = (Path(data_dir) / f"fma_{subset}").is_dir()
    there = cached(data_dir, features_dir) | (set(FEATURES) if audio else set())
    names = [name for name, row in EXPERIMENTS.items() if any(fnmatch(name, pattern) for pattern in patterns)
             and set(features_of(row)) <= there and not row.get("training", {}).get("pitch_copies")]
    if sub_genres(load_tracks(data_dir, subset), load_genres(data_dir)).empty:
        names = [name for name in names if EXPERIMENTS[name]["model"] not in LEARN_TAGS
                 and "start" not in EXPERIMENTS[name]]
    if not names:
        raise DataError(f"no experiment matches {' '.join(patterns)} with features of {data_dir}: "
                        "see experiments.py list")
    return names


def with_schedule(name, schedule, given):
    """Training settings of a row: the schedule, of which a recipe has its own, and those given."""
    recipe = EXPERIMENTS[name].get("training", {}).get("one_cycle")
    return ({"watch_test": schedule["watch_test"]} if recipe else schedule) | given


def plan(names, data_dir, repeats=1, settings=None, subset="small", features_dir=None, device=None, folds=False):
    """Estimate the time of each experiment from a few training steps.

    Parameters
    ----------
    names : sequence of str
    data_dir : path-like
        With the features of all experiments cached.
    repeats : int
    settings : dict, optional
        Training settings that override the experiments'.
    folds : bool
        For all folds by artist.

    Returns
    -------
    dict of str to float
        Name to hours, over all repeats.
    """
    hours, datasets, timed, schedule = {}, {}, {}, usual_schedule(data_dir, subset)
    for name in names:
        row = EXPERIMENTS[name]
        feature = "+".join(features_of(row))
        network = feature, row["model"], str(row.get("args"))
        if feature not in datasets:
            datasets[feature] = open_dataset(data_dir, row["feature"], subset=subset, features_dir=features_dir,
                                             device=choose_device(device), hold=False)
        dataset = datasets[feature]
        times = repeats * (take_fold(dataset, 0) if folds else 1)
        training = Training(**{**row.get("training", {}), **with_schedule(name, schedule, settings or {})})
        if network not in timed:            # the same network takes the same time
            timed[network] = step_seconds(name, dataset, training.batch_size)
        steps = count_steps(len(dataset.rows["training"]), training.batch_size) * training.epochs
        hours[name] = timed[network] * steps * OVERHEAD * times / 3600
    return hours


def plan_table(hours):
    """The estimates as Markdown, longest first, and their sum."""
    rows = [[name, f"{value:.2f}"] for name, value in sorted(hours.items(), key=lambda item: -item[1])]
    total = f"{len(hours)} experiments, {sum(hours.values()):.1f} hours"
    return f"{format_table(rows, ['experiment', 'hours'])}\n\n{total}"


def main(argv=None):
    parser = argparse.ArgumentParser(description="Run the whole study, after an estimate of the time.")
    parser.add_argument("names", nargs="*", default=["*"], metavar="NAME", help="experiments, with * (default: all)")
    add_data_options(parser)
    parser.add_argument("--repeats", type=int, default=3, help="seeds (default 3)")
    parser.add_argument("--folds", action="store_true", help="cross-validate by artist")
    parser.add_argument("--runs-dir", default="runs/study")
    parser.add_argument("--results-dir", default="runs/study/results", help="default: runs/study/results")
    parser.add_argument("--plan", action="store_true", help="print the estimate and stop")
    add_settings(parser)
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats must be 1 or more, not {args.repeats}")
    data_dir = find_data(args.data_dir)
    names = chosen_rows(data_dir, args.names, args.subset, args.features_dir)
    wanted = {feature for name in names for feature in features_of(EXPERIMENTS[name])}
    missing = wanted - cached(data_dir, args.features_dir)
    if missing and args.plan:
        print(f"not in the plan, but made and trained on in a run: {', '.join(sorted(missing))}")
        names = [name for name in names if not missing & set(features_of(EXPERIMENTS[name]))]
    elif missing:
        fill_cache(data_dir, sorted(missing), args.subset, args.features_dir)
    given = given_settings(args)
    seed = given.pop("seed", 0)                         # the first one
    where = {"subset": args.subset, "features_dir": args.features_dir, "device": args.device, "folds": args.folds}
    print(plan_table(plan(names, data_dir, args.repeats, given, **where)), flush=True)
    if args.plan:
        return
    schedule = usual_schedule(data_dir, args.subset)
    for name in names:
        run_experiment(name, data_dir, args.repeats, with_schedule(name, schedule, given), args.results_dir, seed=seed,
                       runs_dir=args.runs_dir, **where)
    if (data_dir / "fma_metadata" / "features.csv").is_file():
        classifiers.fit_baselines(Statistics(data_dir, args.subset), repeats=args.repeats,
                                  results_dir=args.results_dir, runs_dir=args.runs_dir, folds=args.folds)
    print(results_table(load_results(Path(args.results_dir) / dataset_name(data_dir, args.subset)), seconds=True))


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=True))
