"""Results as tables and figures: Markdown for notebooks, for the terminal and for the README.

In the README a table stands between two comments, of which the first says what it holds,

    <!-- table fma_small mel128_* baseline_* -->
    <!-- end -->

and ``python experiments.py table --readme README.md`` writes it anew from ``results/``. Instead of ``table``, the rows
of the study, there is ``ablations fma_small mel128_*``, those with one thing changed, and ``ladder fma_small
mel128_square``, splits that leak.
"""

import json
import re
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import UnionType

import numpy as np

from evaluation import format_accuracy, format_interval, format_table
from fma import DataError
from predictions import compare_predictions, load_predictions, prediction_table
from runs import load_history, load_probabilities, save_whole
from study import EXPERIMENTS, TITLES

MARKED = re.compile(r"(<!-- (table|ablations|ladder) (\S+) (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


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
RUNGS = ("official", "official_augmented", "track", "chunk", "augmented")       # of leakage.py, least leaky first


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
             format_interval(r["test"]["interval"]), _area(r["test"]["macro_auc"]),
             *([_seconds(r["seeds"])] * seconds)] for r in results]
    if not any(r["parameters"] for r in results):                               # baselines have none
        place = columns.index("parameters")
        rows, columns = [row[:place] + row[place + 1:] for row in rows], columns[:place] + columns[place + 1:]
    notes = []
    if results[0]["dataset"].startswith("fma_"):        # beside our protocol the original's, which chooses on test
        best = [[s["test_max"] for s in r["seeds"]] for r in results]
        best = [None if None in values else mean_and_sd(values) for values in best]
        reported = [_reported(r) for r in results]
        for column, cells in (("test_max %", best), ("reported %", reported)):
            if any(cells):
                columns, rows = [*columns, column], [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
        said = ["test_max"] * any(best) + ["the original’s reported figures"] * (any(best) and any(reported))
        if said:
            notes.append(f"{' and '.join(said)}: best test accuracy over saved epochs, not comparable.")
        if any(figure and r["experiment"].startswith("baseline_") for figure, r in zip(reported, results, strict=True)):
            notes.append("The original's baselines: all 518 statistics, a random split with artists on both sides.")
    return f"{format_table(rows, columns)}\n\n{' '.join([measured_on(results), *notes])}"


def measured_on(results):
    """The sentence under a table: data, clips, artists, seeds, protocol."""
    clips, artists, seeds = (span(sorted({r["test"][what] for r in results}))
                             for what in ("clips", "artists", "seeds"))
    name, trained = results[0]["dataset"], any(r["seeds"][0]["epoch"] is not None for r in results)
    fitted = any(r["experiment"].startswith("ensemble_") for r in results)
    return (f"Measured on {TITLES.get(name, name)}; {clips} test clips of {artists} artists, {seeds} "
            f"seed{'' if seeds == '1' else 's'}, {'epoch chosen on validation, ' if trained else ''}"
            f"{'weights of ensembles fitted on validation, ' if fitted else ''}interval over artists.")


def span(values):
    """Sorted numbers in a word: 3, or 1 to 3."""
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _feature(config):
    columns = config["feature_parameters"].get("columns")       # which baselines' have
    return config["feature"] if columns is None else f"{config['feature']} ({columns})"


def _seconds(seeds):
    if None in (seconds := [seed["seconds"] for seed in seeds]):    # an ensemble's members were trained elsewhere
        return None
    seconds = np.mean(seconds)
    return f"{seconds:.0f}" if seconds >= 1 else f"{seconds:.2f}"


def _area(value):
    return "–" if value is None else f"{value:.3f}"             # a test set of one genre has none


def _reported(result):
    return result["reported"] if "reported" in result else EXPERIMENTS.get(result["experiment"], {}).get("reported")


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
        save_whole(folder / f"{name}_{kind}.png", partial(figure.savefig, format="png"))


def save_intervals(results, path):
    """Accuracies of some results with their intervals, as a PNG file."""
    from figures import plot_intervals

    tests = [r["test"] for r in results]
    figure = plot_intervals([r["experiment"] for r in results], [t["accuracy"] for t in tests],
                            [t["interval"] for t in tests], chance=1 / len(tests[0]["genres"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(path, partial(figure.savefig, format="png"))


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


def ablation_pairs(results):
    """What was ablated: for each result with one thing changed the change, the row that it was made to, and itself."""
    there = {r["experiment"]: r for r in results}
    bases = {name: EXPERIMENTS.get(name, {}).get("ablates") for name in there}
    return [(name[len(base) + 1:], there[base], there[name]) for name, base in bases.items() if base in there]


def compare_ablations(results_dir, pairs):
    """Test every change: as `predictions.compare_predictions`, changed minus unchanged, with what was changed."""
    tables = {r["experiment"]: load_predictions(Path(results_dir) / r["dataset"] / f"{r['experiment']}.csv")
              for _, base, changed in pairs for r in (base, changed)}
    found = compare_predictions(tables, [(changed["experiment"], base["experiment"]) for _, base, changed in pairs])
    return found.assign(change=[change for change, _, _ in pairs])


def ablations_table(results, results_dir="results"):
    """The ablations as Markdown: accuracies without and with each change, and whether the difference is real."""
    pairs = ablation_pairs(results)
    if not pairs:
        raise DataError("no ablation among the results: run a row with one thing changed, and the row itself")
    found = compare_ablations(results_dir, pairs)
    rows = [[base["experiment"], change, *(mean_and_sd([s["validation"] for s in r["seeds"]]) for r in (base, changed)),
             *(format_accuracy(r["test"]) for r in (base, changed)),
             f"{f['difference']:+.1f}", f"{f['low']:+.1f} to {f['high']:+.1f}", p_word(f["p (Holm)"])]
            for (change, base, changed), (_, f) in zip(pairs, found.iterrows(), strict=True)]
    columns = ["experiment", "change", "validation %", "changed", "test %", "changed", "difference",
               "95 % interval", "p (Holm)"]
    return format_table(rows, columns) + "\n\n" + measured_on([r for _, *both in pairs for r in both])


def p_word(p):
    """A p-value as a table shows it.

    >>> p_word(0.0312), p_word(0.0001)
    ('0.031', '< 0.001')
    """
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def load_ladder(results_dir, dataset, experiment):
    """The results of `leakage.run_ladder`: rung to result, least leaky first."""
    there = {rung: read_result(Path(results_dir) / "ladder" / f"{dataset}_{rung}" / f"{experiment}.json")
             for rung in RUNGS}
    found = {rung: result for rung, result in there.items() if result}
    if not found:
        raise DataError(f"{results_dir}/ladder has no {experiment} on {dataset}: python leakage.py {experiment}")
    for rung, result in found.items():
        if "n_frames" not in result["config"]["model"]["args"]:
            raise DataError(f"{results_dir}/ladder/{dataset}_{rung}/{experiment}.json is of no network of {dataset}'s "
                            "chunks: delete it and run the experiment again")
    return found


def ladder_table(results):
    """The rungs as Markdown: test chunks, accuracy on validation and test, and the interval over artists.

    Parameters
    ----------
    results : dict of str to dict
        Rung to result.
    """
    rows = [[rung.replace("_", ", "), f"{r['test']['clips']:,}", mean_and_sd([s["validation"] for s in r["seeds"]]),
             format_accuracy(r["test"]), format_interval(r["test"]["interval"])] for rung, r in results.items()]
    rung, one = next(iter(results.items()))
    name, frames = one["dataset"].removesuffix(f"_{rung}"), one["config"]["model"]["args"]["n_frames"]
    seeds = span(sorted({r["test"]["seeds"] for r in results.values()}))
    return (format_table(rows, ["split", "test chunks", "validation %", "test %", "95 % interval"]) +
            f"\n\nMeasured on {TITLES.get(name, name)}: {one['experiment']} on chunks of {frames} frames; {seeds} "
            f"seed{'' if seeds == '1' else 's'}, epoch chosen on validation, interval over artists.")


def marked_tables(text, results_dir="results"):
    """A text with every marked table written anew from the results.

    Parameters
    ----------
    text : str
        With tables between ``<!-- table DATASET NAMES -->`` and ``<!-- end -->``; a name may hold ``*``. For ``table``
        these are rows of the study and baselines, for ``ablations`` the rows with one thing changed, and ``ladder``
        takes the name of one experiment.
    results_dir : path-like

    Returns
    -------
    str
    """
    def write(match):
        begin, kind, dataset, names, end = match.groups()
        if kind == "ladder":
            return f"{begin}\n{ladder_table(load_ladder(results_dir, dataset, names))}\n\n{end}"
        chosen = [r for r in load_results(Path(results_dir) / dataset)
                  if any(fnmatch(r["experiment"], name) for name in names.split())
                  and (kind == "ablations" or "ablates" not in EXPERIMENTS.get(r["experiment"], {}))]
        if not chosen:
            raise DataError(f"{results_dir}/{dataset} has no result that is named {names}: mend the table's first line")
        table = ablations_table(chosen, results_dir) if kind == "ablations" else results_table(chosen)
        return f"{begin}\n{table}\n\n{end}"

    return MARKED.sub(write, text)


def write_marked_tables(path, results_dir="results"):
    """Bring the marked tables of a file up to date."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} not found: name the file whose tables are to be written")
    try:
        text = marked_tables(path.read_text(encoding="utf-8"), results_dir).encode()
    except UnicodeError as error:
        raise DataError(f"{path}, or a result that it shows, is not UTF-8: save it as that") from error
    save_whole(path, lambda temporary: temporary.write_bytes(text))
