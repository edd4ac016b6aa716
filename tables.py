"""Results as tables and figures: Markdown for notebooks, for the terminal and for the README.

In the README a table stands between two comments, of which the first says what it holds,

    <!-- table fma_small mel128_* baseline_* -->
    <!-- end -->

and ``python experiments.py table --readme README.md`` writes it anew from ``results/``.
"""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from evaluation import format_accuracy, format_interval, format_table
from fma import DataError
from runs import load_history, load_probabilities, save_whole
from study import EXPERIMENTS, TITLES

MARKED = re.compile(r"(<!-- table (\S+) (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def results_table(results, seconds=False):
    """The table of some results, as Markdown, with a line that says on what it was measured.

    Parameters
    ----------
    results : list of dict
        As `experiments.summarise_runs` gives them.
    seconds : bool
        Show what a run took: of use where all ran on one machine with nothing beside them.
    """
    columns = ["experiment", "network", "feature", "parameters", "validation %", "test %", "95 % interval", "macro AUC"]
    columns += ["seconds"] * seconds
    rows = [[r["experiment"], r["config"]["model"]["class"], _feature(r["config"]),
             None if r["parameters"] is None else f"{r['parameters']:,}",
             mean_and_sd([s["validation"] for s in r["seeds"]]), format_accuracy(r["test"]),
             format_interval(r["test"]["interval"]), f"{r['test']['macro_auc']:.3f}",
             *([_seconds(np.mean([s["seconds"] for s in r["seeds"]]))] * seconds)] for r in results]
    clips, artists, seeds = (span(sorted({r["test"][what] for r in results}))
                             for what in ("clips", "artists", "seeds"))
    trained = [r for r in results if r["seeds"][0]["epoch"] is not None]        # the others are baselines, and have
    absent = () if trained else ("parameters", "test_max %")                    # neither epochs nor these
    name, note = results[0]["dataset"], ""
    if name.startswith("fma_"):         # the original's figures beside its protocol; both choose the epoch on test
        reported = [_reported(r) for r in results]
        columns += ["test_max %"] + ["reported %"] * any(reported)
        note = (f" test_max{' and the original’s reported figures' * any(reported)}: best test accuracy over saved "
                "epochs, not comparable.")
        if len(trained) < len(results):
            note = (note if trained else "") + (" The original's baselines: all 518 statistics, a random split "
                                                "with artists on both sides.")
        for row, r, figure in zip(rows, results, reported, strict=True):
            best = [s["test_max"] for s in r["seeds"]]
            row += [None if None in best else mean_and_sd(best)] + [figure] * any(reported)
    kept = [k for k, column in enumerate(columns) if column not in absent]
    rows, columns = [[row[k] for k in kept] for row in rows], [columns[k] for k in kept]
    return (format_table(rows, columns) + f"\n\nMeasured on {TITLES.get(name, name)}; {clips} test clips of "
            f"{artists} artists, {seeds} seed{'' if seeds == '1' else 's'}, "
            f"{'epoch chosen on validation, ' if trained else ''}"
            f"interval over artists.{note}")


def span(values):
    """Sorted numbers in a word: 3, or 1 to 3."""
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _feature(config):
    columns = config["feature_parameters"].get("columns")       # which baselines' have
    return config["feature"] if columns is None else f"{config['feature']} ({columns})"


def _seconds(seconds):
    return f"{seconds:.0f}" if seconds >= 1 else f"{seconds:.2f}"


def _reported(result):
    return result["reported"] if "reported" in result else EXPERIMENTS[result["experiment"]].get("reported")


def mean_and_sd(values):
    """Mean and standard deviation over seeds, in per cent."""
    return format_accuracy({"accuracy": np.mean(values),
                            "accuracy_sd": np.std(values, ddof=1) if len(values) > 1 else None})


def save_figures(result, runs_dir, folder):
    """Curves, ROC and confusion matrix of an experiment, as PNG files."""
    from figures import plot_confusion, plot_history, plot_roc

    folder.mkdir(parents=True, exist_ok=True)
    name, genres = result["experiment"], list(result["test"]["genres"])
    runs = [Path(runs_dir) / result["dataset"] / name / f"seed{s['seed']}" for s in result["seeds"]]
    test = load_probabilities(runs[0])
    for kind, figure in (
        ("history", plot_history([load_history(run) for run in runs], selected=[s["epoch"] for s in result["seeds"]])),
        ("roc", plot_roc(test["labels"], test["probabilities"], genres)),
        ("confusion", plot_confusion(result["test"]["confusion"], genres)),
    ):
        figure.savefig(folder / f"{name}_{kind}.png")


def save_intervals(results, path):
    """Accuracies of some results with their intervals, as a PNG file."""
    from figures import plot_intervals

    tests = [r["test"] for r in results]
    figure = plot_intervals([r["experiment"] for r in results], [t["accuracy"] for t in tests],
                            [t["interval"] for t in tests], chance=1 / len(tests[0]["genres"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def read_result(path):
    """One result, or None where there is none yet; a DataError if the file is damaged."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        result["test"]["accuracy"], result["config"]["training"], [seed["seed"] for seed in result["seeds"]]
        return result
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: delete it and run the experiment again") from error


def load_results(folder):
    """The results in a folder: the baselines', then in the order of `EXPERIMENTS`."""
    paths = [*sorted(Path(folder).glob("baseline_*.json")), *(Path(folder) / f"{name}.json" for name in EXPERIMENTS)]
    results = [result for result in map(read_result, paths) if result]
    if not results:
        raise DataError(f"no results in {folder}: python experiments.py run NAMES")
    return results


def marked_tables(text, results_dir="results"):
    """A text with every marked table written anew from the results.

    Parameters
    ----------
    text : str
        With tables between ``<!-- table DATASET NAMES -->`` and ``<!-- end -->``; a name may hold ``*``.
    results_dir : path-like

    Returns
    -------
    str
    """
    def table(match):
        begin, dataset, names, end = match.groups()
        chosen = [r for r in load_results(Path(results_dir) / dataset)
                  if any(fnmatch(r["experiment"], name) for name in names.split())]
        if not chosen:
            raise DataError(f"{results_dir}/{dataset} has no result that is named {names}: mend the table's first line")
        return f"{begin}\n{results_table(chosen)}\n\n{end}"

    return MARKED.sub(table, text)


def write_marked_tables(path, results_dir="results"):
    """Bring the marked tables of a file up to date."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} not found: name the file whose tables are to be written")
    text = marked_tables(path.read_text(encoding="utf-8"), results_dir)
    save_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
