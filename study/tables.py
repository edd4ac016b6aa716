"""Results as tables and figures: Markdown for notebooks, for the terminal and for the README.

In the README a table stands between two comments, of which the first says what it holds,

    <!-- table fma_small mel128_* baseline_* -->
    <!-- end -->

and ``python experiments.py table --readme README.md`` writes it anew from ``results/``. Instead of ``table``, the rows
of the study, there is ``ablations fma_small mel128_*``, those with one thing changed, and ``ladder fma_small
mel128_square``, splits that leak.
"""

import re
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from evaluation import format_accuracy, format_interval, largest_share
from fma import DataError
from learning.folds import leak_warning
from learning.runs import save_whole
from study.predictions import compare_predictions, load_predictions
from study.result_files import load_results, read_result
from study.rows import EXPERIMENTS, TITLES

MARKED = re.compile(r"(<!-- (table|ablations|ladder) (\S+) (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)








RUNGS = ("official", "official_augmented", "track", "chunk", "augmented")       # of study/leakage.py, least leaky first


def results_table(results, seconds=False):
    """The table of some results, as Markdown, with a line that says on what it was measured.

    Parameters
    ----------
    results : list of dict
        As `result_files.summarise_runs` gives them.
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
    folds = [r["folds"]["count"] if r.get("folds") else None for r in results]
    more = [("protocol", ["one split" if n is None else f"{n} folds" for n in folds])] if len(set(folds)) > 1 else []
    if any(map(is_unbalanced, results)):
        more += [("balanced %", list(map(_balanced, results))),
                 ("macro F1 %", [_percent(r["test"], "macro_f1") for r in results])]
        share, classes = largest_share(results[0]["test"]["genres"]), len(results[0]["test"]["genres"])
        notes.append(f"Genres differ in size: chance is {100 * share:.1f} %, the largest one's share of the clips, and "
                     f"{100 / classes:.1f} % of balanced accuracy (mean recall over genres).")
    columns, rows = _beside(columns, rows, more)
    if results[0]["dataset"].startswith("fma_"):        # beside our protocol the original's, which chooses on test
        best = [[s["test_max"] for s in r["seeds"]] for r in results]
        best = [None if None in values else mean_and_sd(values) for values in best]
        reported = [_reported(r) for r in results]
        more = [(column, cells) for column, cells in (("test_max %", best), ("reported %", reported)) if any(cells)]
        columns, rows = _beside(columns, rows, more)
        said = ["test_max"] * any(best) + ["the original’s reported figures"] * (any(best) and any(reported))
        if said:
            notes.append(f"{' and '.join(said)}: best test accuracy over saved epochs, not comparable.")
        if any(figure and r["experiment"].startswith("baseline_") for figure, r in zip(reported, results, strict=True)):
            notes.append("The original's baselines: all 518 statistics, a random split with artists on both sides.")
    return f"{format_table(rows, columns)}\n\n{' '.join([measured_on(results), *notes])}{leak_note(results)}"


def _beside(columns, rows, more):
    """A table with more columns, each a name and its cells."""
    return [*columns, *(name for name, _ in more)], [
        [*row, *cells] for row, cells in zip(rows, zip(*(cells for _, cells in more), strict=True) if more else
                                             [()] * len(rows), strict=True)]


def is_unbalanced(result, most=1.5):
    """Whether the largest genre has more than `most` times the test clips of the smallest."""
    clips = [genre["clips"] for genre in result["test"]["genres"].values()]
    return max(clips) > most * min(clips)


def _balanced(result):
    """Balanced accuracy; of results from before it was noted, from the recall of each genre."""
    recalls = [g["accuracy"] for g in result["test"]["genres"].values() if g["accuracy"] is not None]
    return _percent({"balanced_accuracy": float(np.mean(recalls))} | result["test"], "balanced_accuracy")


def _percent(test, figure):
    """Mean and standard deviation of a figure over seeds; None where it was not noted."""
    if test.get(figure) is None:
        return None
    return format_accuracy({"accuracy": test[figure], "accuracy_sd": test.get(f"{figure}_sd")})


def leak_note(results):
    """A paragraph that calls out artists on both sides, if there are any."""
    most = max(r.get("leaks", 0) for r in results)
    return f"\n\n{leak_warning(most)}" if most else ""


def measured_on(results):
    """The sentence under a table: data, protocol, clips, artists, seeds."""
    known = sorted({r["test"]["artists"] for r in results} - {None})
    clips, seeds = (span(sorted({r["test"][what] for r in results})) for what in ("clips", "seeds"))
    title, trained = title_of(results), any(r["seeds"][0]["epoch"] is not None for r in results)
    fitted = any(r["experiment"].startswith("ensemble_") for r in results)
    folded = sorted({r["folds"]["count"] for r in results if r.get("folds")})
    every = all(r.get("folds") for r in results)
    return (f"Measured on {title}; {f'{span(folded)} folds by artist; ' if folded else ''}{clips} test clips"
            f"{f' of {span(known)} artists' if known else ''}, {'each tested once, ' if every else ''}{seeds} "
            f"seed{'' if seeds == '1' else 's'}, {'epoch chosen on validation, ' if trained else ''}"
            f"{'weights of ensembles fitted on validation, ' if fitted else ''}"
            f"interval over {'artists' if known else 'clips, artists unknown'}.")


def title_of(results):
    """What a table calls the data of its results; a split, if that was used."""
    title = TITLES.get(results[0]["dataset"], results[0]["dataset"])
    return title.removesuffix(", official split") if all(r.get("folds") for r in results) else title


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
    both = [r for _, *pair in pairs for r in pair]
    return f"{format_table(rows, columns)}\n\n{measured_on(both)}{leak_note(both)}"


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
        raise DataError(f"{results_dir}/ladder has no {experiment} on {dataset}: python -m study.leakage {experiment}")
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


def plain_cell(value):
    """What a cell shows, as text: names of genres and folders may hold what Markdown or HTML would act upon.

    >>> plain_cell("Rock | <b>Roll</b>"), plain_cell("< 0.001")
    ('Rock \\\\| &lt;b>Roll&lt;/b>', '< 0.001')
    """
    text = re.sub(r"([|\[])", r"\\\1", " ".join(str(value).split()))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def format_table(rows, columns):
    """A Markdown table whose columns line up in a terminal too; columns of figures are set to the right.

    Parameters
    ----------
    rows : list of sequences
        One cell per column; numbers are written as they are, None as a dash.
    columns : list of str

    Returns
    -------
    str, without a newline at the end

    Examples
    --------
    >>> print(format_table([["BBNN", "51.1 ± 0.1"], ["FrequencyCNN", None]], ["network", "test"]))
    | network      |       test |
    |:-------------|-----------:|
    | BBNN         | 51.1 ± 0.1 |
    | FrequencyCNN |          – |
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns: {list(row)}")
    cells = [["–" if cell is None else plain_cell(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    figures = [bool(rows) and all(cell == "–" or cell.lstrip("*+-−–<> ")[:1].isdigit() for cell in column[1:])
               for column in zip(*cells, strict=True)]

    def line(row):
        padded = (cell.rjust(w) if right else cell.ljust(w)
                  for cell, w, right in zip(row, widths, figures, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|".join("-" * (w + 1) + ":" if right else ":" + "-" * (w + 1)
                    for w, right in zip(widths, figures, strict=True))
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])
