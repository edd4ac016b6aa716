"""Run the experiments of the study, and print tables of their results.

    python experiments.py list
    python experiments.py run cqt_square cqt_bbnn --repeats 3 --data-dir data/emotify
    python experiments.py run cqt_square --folds --data-dir data/allmusic       # cross-validated by artist
    python experiments.py table --data-dir data/emotify

`run` skips finished runs and resumes interrupted ones; it takes the settings that training.py takes. Each experiment
writes one JSON to ``results/<dataset>/``, from which all tables are made; finished runs without one are rows as well.
"""

import argparse
import sys
from pathlib import Path

from fma import DataError, add_data_options, dataset_name, find_data, run_command, some
from plots.page import save_page
from study.marked_tables import write_marked_tables
from study.result_files import load_results
from study.rows import DEMO, EXPERIMENTS, QUICK, features_of, find_row
from study.runner import run_experiment
from study.tables import format_table, results_table

NEXT = ("Next: .venv/bin/python predict.py song.mp3 classifies a song of yours; README.md says how to train on "
        "your own collection or on FMA. The page of figures:")


def main(argv=None):
    parser = argparse.ArgumentParser(description="List the study's experiments, run them, print their results.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all names").set_defaults(do=list_rows)
    run = commands.add_parser("run", help="train experiments; finished runs are skipped")
    run.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(DEMO)}")
    run.add_argument("--repeats", type=int, help="seeds (default: as many as the result there has, else 1)")
    run.add_argument("--folds", action="store_true", help="cross-validate by artist: with each seed a network for each "
                                                          "fold, and every clip is tested once")
    run.add_argument("--quick", action="store_true", help=f"a short schedule: {QUICK}")
    run.add_argument("--page", action="store_true", help="save curves and confusion matrix of each, and a page of them")
    table = commands.add_parser("table", help="print the results of a data set")
    table.add_argument("--readme", metavar="FILE", help="instead, update the marked tables of a Markdown file")
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["run"]:
        from training import add_settings  # here: the other two do without torch

        add_settings(run)
    for command, do in ((run, run_rows), (table, show_table)):
        add_data_options(command)
        quick = command is run
        command.add_argument("--runs-dir", help="default: runs" + ", or runs/quick" * quick)
        command.add_argument("--results-dir", help="default: results" + ", or runs/quick/results" * quick)
        command.set_defaults(do=do)
    args = parser.parse_args(argv)
    args.do(args)


def list_rows(args):
    """Print every row of the study."""
    print(format_table([[name, e["model"], "+".join(features_of(e)), e.get("reported")]
                        for name, e in EXPERIMENTS.items()],
                       ["experiment", "network", "feature", "reported by the original %"]))


def show_table(args):
    """Print the results of a data set, or write them into a Markdown file."""
    results_dir = args.results_dir or "results"
    if args.readme:
        write_marked_tables(args.readme, results_dir)
        return
    name = dataset_name(find_data(args.data_dir), args.subset)
    print(results_table(load_results(Path(results_dir) / name, Path(args.runs_dir or "runs") / name)))


def run_rows(args):
    """Train the experiments that are named and print their results."""
    from training import given_settings

    runs_dir = args.runs_dir or ("runs/quick" if args.quick else "runs")        # separate from the study's own runs
    results_dir = args.results_dir or ("runs/quick/results" if args.quick else "results")
    data_dir = find_data(args.data_dir)
    unknown = [name for name in args.names if not find_row(name)]
    if unknown:
        raise DataError(f"no experiment is named {some(unknown)}: see python experiments.py list")
    results = []
    for name in args.names or DEMO:
        settings = (QUICK | DEMO.get(name, {}) if args.quick else {}) | given_settings(args)
        seed = settings.pop("seed", 0)                      # the first one
        results.append(run_experiment(name, data_dir, args.repeats, settings, results_dir, seed=seed, folds=args.folds,
                                      runs_dir=runs_dir, subset=args.subset, features_dir=args.features_dir,
                                      device=args.device))
    print("\n" + results_table(results, seconds=True))
    if args.page:
        page = save_page(results, runs_dir, Path(runs_dir) / results[0]["dataset"], data_dir, args.subset)
        print(f"\n{NEXT}\n{page}")


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=True))
