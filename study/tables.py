"""Results as Markdown tables, for notebooks, the terminal and the pages."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import format_accuracy, format_interval, largest_share
from fma import DataError
from study.predictions import compare_predictions, load_predictions
from study.result_files import read_result
from study.rows import CNNS, EXPERIMENTS, TITLES

STUDY_FEATURES = {"chroma_cqt": "Chroma CQT", "chroma_cens": "Chroma CENS", "chroma_stft": "Chroma STFT",
                  "mel_stft": "Mel STFT", "cqt": "CQT"}      # in the order of the study's table
RUNGS = ("official", "official_augmented", "track", "chunk", "augmented")       # of study/leakage.py, least leaky first


def results_table(results, seconds=False):
    """Results as a Markdown table, with a sentence on how they were measured.

    Parameters
    ----------
    results : list of dict
        As `result_files.load_results` gives them.
    seconds : bool
        Show the time of a run, which is only comparable where all ran on the same, otherwise idle machine.
    """
    tests, seeds = [r["test"] for r in results], [r["seeds"] for r in results]
    notes, columns = [measured_on(results)], {
        "experiment": [r["experiment"] for r in results],
        "network": [r["config"]["model"]["class"] for r in results],
        "feature": [r["config"]["feature"] + (f" ({n})" if (n := _columns(r["config"])) else "") for r in results]}
    if any(r["parameters"] for r in results):                                   # baselines have none
        columns["parameters"] = [r["parameters"] and f"{r['parameters']:,}" for r in results]
    columns["validation %"] = [_over(each, "validation") for each in seeds]
    columns["test %"] = list(map(format_accuracy, tests))
    columns["95 % interval"] = [format_interval(test["interval"]) for test in tests]
    columns["macro AUC"] = [None if (auc := test["macro_auc"]) is None else f"{auc:.3f}" for test in tests]
    if seconds:
        columns["seconds"] = list(map(_seconds, seeds))
    protocols = [f"{r['folds']['count']} folds" if r.get("folds") else "one split" for r in results]
    if len(set(protocols)) > 1:
        columns["protocol"] = protocols
    if any(map(_is_unbalanced, tests)):
        columns["balanced %"] = [_percent(test, "balanced_accuracy") for test in tests]
        columns["macro F1 %"] = [_percent(test, "macro_f1") for test in tests]
        share, classes = largest_share(tests[0]["genres"]), len(tests[0]["genres"])
        notes.append(f"Genres differ in size: chance is {100 * share:.1f} %, the largest one's share of the clips, and "
                     f"{100 / classes:.1f} % of balanced accuracy (mean recall over genres).")
    if there := [r["experiment"] for r in results if r.get("runs")]:
        notes.append(f"Read from finished runs: {'; '.join(there)}.")
    # The study's own data: beside its figures, and what its protocol, which chooses on test, gives for our runs.
    fma = results[0]["dataset"].startswith("fma_")
    best = [_over(each, "test_max") for each in seeds if fma]
    reported = [reported_by_study(r) for r in results if fma]
    if any(best):
        columns["test_max %"] = best
        notes.append(f"test_max{' and the original’s reported figures' * any(reported)}: best test accuracy over saved "
                     "epochs, not comparable.")
    if any(reported):
        columns["reported %"] = reported
        if any(figure and r["experiment"].startswith("baseline_") for figure, r in zip(reported, results, strict=True)):
            notes.append("The original's baselines: all 518 statistics, a random split with artists on both sides.")
    table = format_table(zip(*columns.values(), strict=True), list(columns))
    return f"{table}\n\n{' '.join(notes)}{leak_note(results)}"


def reported_by_study(result):
    """The accuracy in per cent that the original study reports for an experiment; None if it does not."""
    return result["reported"] if "reported" in result else EXPERIMENTS.get(result["experiment"], {}).get("reported")


def _is_unbalanced(test):
    """Whether the largest genre has more than 1.5 times the clips of the smallest."""
    clips = [genre["clips"] for genre in test["genres"].values()]
    return max(clips) > 1.5 * min(clips)


def _percent(test, figure):
    """Mean and standard deviation of a metric over seeds; None if it was not recorded."""
    if test.get(figure) is None:
        return None
    return format_accuracy({"accuracy": test[figure], "accuracy_sd": test.get(f"{figure}_sd")})


def _over(seeds, what):
    """Mean and standard deviation over seeds, in per cent; None if a seed lacks it."""
    values = [seed[what] for seed in seeds]
    if None in values:
        return None
    return format_accuracy({"accuracy": np.mean(values),
                            "accuracy_sd": np.std(values, ddof=1) if len(values) > 1 else None})


def _seconds(seeds):
    """Mean time of a seed; None if one has none: ensembles are not trained."""
    values = [seed["seconds"] for seed in seeds]
    if None in values:
        return None
    return f"{np.mean(values):.0f}" if np.mean(values) >= 1 else f"{np.mean(values):.2f}"


def _columns(config):
    """How many statistics a classifier reads; None for a network."""
    return config["feature_parameters"].get("columns")


def leak_note(results):
    """A paragraph that warns of artists in both training and test, if there are any."""
    most = max(r.get("leaks", 0) for r in results)
    return f"\n\nwarning: {most} artists are in training and in test" if most else ""


def study_table(results):
    """The study's own table as Markdown: features by networks, each accuracy beside the one that the study reports.

    Parameters
    ----------
    results : list of dict
        Of one data set; what is not among them is a dash.
    """
    there = {r["experiment"]: r for r in results}
    rows, shown = [], []
    for feature, title in STUDY_FEATURES.items():
        rows.append([title])
        for name in (f"{feature}_{short}" for short in CNNS):
            shown += [there[name]] if name in there else []
            ours = format_accuracy(there[name]["test"]) if name in there else None
            rows[-1] += [ours, EXPERIMENTS[name]["reported"]]
    if not shown:
        raise DataError("none of the study's CNNs is among the results: python experiments.py run cqt_square")
    columns = ["test accuracy %", *(cell for model in CNNS.values() for cell in (model, "study"))]
    measured = re.sub(", interval over [^.]+", "", measured_on(shown))
    chance = f"{100 * largest_share(shown[0]['test']['genres']):.1f} %"
    return (f"{format_table(rows, columns)}\n\n{measured} Chance is {chance}. The study: FMA-small (chance 12.5 %), "
            f"the best test accuracy over saved epochs.{leak_note(shown)}")


def measured_on(results):
    """The sentence below a table: data, protocol, clips, artists, seeds."""
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
    """Title of the data in a table, with the official split unless all results are cross-validated."""
    title = TITLES.get(results[0]["dataset"], results[0]["dataset"])
    return title.removesuffix(", official split") if all(r.get("folds") for r in results) else title


def span(values):
    """The range of sorted numbers: ``3``, or ``1 to 3``."""
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def ablation_pairs(results):
    """Ablations among the results: for each the name of the change, the unchanged result and the changed one."""
    there = {r["experiment"]: r for r in results}
    bases = {name: EXPERIMENTS.get(name, {}).get("ablates") for name in there}
    return [(name[len(base) + 1:], there[base], there[name]) for name, base in bases.items() if base in there]


def compare_ablations(results_dir, pairs):
    """Test every change: the columns of `predictions.compare_predictions`, changed minus unchanged, and the change."""
    tables = {r["experiment"]: load_predictions(Path(results_dir) / r["dataset"] / f"{r['experiment']}.csv")
              for _, base, changed in pairs for r in (base, changed)}
    found = compare_predictions(tables, [(changed["experiment"], base["experiment"]) for _, base, changed in pairs])
    return found.assign(change=[change for change, _, _ in pairs])


def ablations_table(results, results_dir="results"):
    """Ablations as Markdown: accuracies without and with each change, and the significance of the difference."""
    pairs = ablation_pairs(results)
    if not pairs:
        raise DataError("no ablation among the results: run an experiment, and the same with one thing changed")
    found = compare_ablations(results_dir, pairs)
    rows = [[base["experiment"], change, *(_over(r["seeds"], "validation") for r in (base, changed)),
             *(format_accuracy(r["test"]) for r in (base, changed)),
             f"{f['difference']:+.1f}", f"{f['low']:+.1f} to {f['high']:+.1f}", p_word(f["p (Holm)"])]
            for (change, base, changed), (_, f) in zip(pairs, found.iterrows(), strict=True)]
    columns = ["experiment", "change", "validation %", "changed", "test %", "changed", "difference",
               "95 % interval", "p (Holm)"]
    both = [r for _, *pair in pairs for r in pair]
    return f"{format_table(rows, columns)}\n\n{measured_on(both)}{leak_note(both)}"


def families_table(results):
    """Accuracies of classifiers by the columns that they were given, all or one family of features, as Markdown.

    Parameters
    ----------
    results : list of dict
        Of one data set; those of classifiers on track statistics are used. The column and the row with the highest
        mean stand first.
    """
    shown = [r for r in results if r["experiment"].startswith("baseline_") and r["config"]["feature"] == "statistics"]
    if not shown:
        raise DataError("there is no classifier on track statistics among the results: python baselines.py")
    kinds = [r["config"]["model"]["class"] for r in shown]
    given = [r["experiment"].removeprefix(f"baseline_{kind}").lstrip("_") or f"all {_columns(r['config'])}"
             for kind, r in zip(kinds, shown, strict=True)]
    table = pd.Series([100 * r["test"]["accuracy"] for r in shown], [kinds, given]).unstack()
    table = table.loc[table.mean(axis=1).sort_values(ascending=False).index,
                      table.mean().sort_values(ascending=False).index]
    table.loc["mean"] = table.mean()
    rows = [[kind, *(None if np.isnan(x) else f"{x:.1f}" for x in row)] for kind, row in table.iterrows()]
    return f"{format_table(rows, ['test accuracy %', *table])}\n\n{measured_on(shown)}{leak_note(shown)}"


def p_word(p):
    """A p-value as text for a table.

    >>> p_word(0.0312), p_word(0.0001)
    ('0.031', '< 0.001')
    """
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def load_ladder(results_dir, dataset, experiment):
    """The results of `leakage.run_ladder`: rung to result, least leaky first."""
    folder = Path(results_dir) / "ladder"
    found = {rung: result for rung in RUNGS if (result := read_result(folder / f"{dataset}_{rung}/{experiment}.json"))}
    if not found:
        raise DataError(f"{results_dir}/ladder has no {experiment} on {dataset}: python -m study.leakage {experiment}")
    return found


def ladder_table(results):
    """The rungs as Markdown: test chunks, accuracy on validation and test, interval over artists.

    Parameters
    ----------
    results : dict of str to dict
        Rung to result.
    """
    rows = [[rung.replace("_", ", "), f"{r['test']['clips']:,}", _over(r["seeds"], "validation"),
             format_accuracy(r["test"]), format_interval(r["test"]["interval"])] for rung, r in results.items()]
    rung, one = next(iter(results.items()))
    name, frames = one["dataset"].removesuffix(f"_{rung}"), one["config"]["model"]["args"].get("n_frames", "unknown")
    seeds = span(sorted({r["test"]["seeds"] for r in results.values()}))
    return (format_table(rows, ["split", "test chunks", "validation %", "test %", "95 % interval"]) +
            f"\n\nMeasured on {TITLES.get(name, name)}: {one['experiment']} on chunks of {frames} frames; {seeds} "
            f"seed{'' if seeds == '1' else 's'}, epoch chosen on validation, interval over artists.")


def plain_cell(value):
    """Text of a cell, with Markdown and HTML escaped: names of genres and folders may contain either.

    >>> plain_cell("Rock | <b>Roll</b>"), plain_cell("< 0.001")
    ('Rock \\\\| &lt;b>Roll&lt;/b>', '< 0.001')
    """
    text = re.sub(r"([|\[])", r"\\\1", " ".join(str(value).split()))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def format_table(rows, columns):
    """A Markdown table whose columns also line up in a terminal; numeric columns are right-aligned.

    Parameters
    ----------
    rows : list of sequences
        One cell per column; None is written as a dash.
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
    cells = [["–" if cell is None else plain_cell(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    figures = [len(cells) > 1 and all(cell == "–" or cell.lstrip("*+-−–<> ")[:1].isdigit() for cell in column[1:])
               for column in zip(*cells, strict=True)]

    def line(row):
        padded = (cell.rjust(w) if right else cell.ljust(w)
                  for cell, w, right in zip(row, widths, figures, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|".join("-" * (w + 1) + ":" if right else ":" + "-" * (w + 1)
                    for w, right in zip(widths, figures, strict=True))
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])
