"""Figures of the whole study: all models side by side, significant differences, difficult genres."""

from itertools import product

import numpy as np

from evaluation import format_interval, largest_share
from plots.runs import draw_matrix
from plots.style import FAINT, PLAIN, REPORTED, RUNS, TRAINING, VALIDATION, new_figure, new_rows, shortened, styled
from study.predictions import LEVEL
from study.tables import reported_by_study

FAMILIES = dict(zip(("convolutions", "with ResNet or DenseNet blocks", "with a recurrent layer", "broadcast (BBNN)",
                     "classifiers on statistics"), (RUNS[0], RUNS[2], RUNS[1], RUNS[3], RUNS[7]), strict=True))
OPEN = {"color": PLAIN, "marker": "D", "markerfacecolor": "none", "markersize": 5, "linestyle": ""}


def family(result):
    """The one of `FAMILIES` that a result's model belongs to."""
    model, (plain, blocks, recurrent, broadcast, classifier) = result["config"]["model"], FAMILIES
    if result["seeds"][0]["epoch"] is None:
        return classifier
    if set(model["args"].get("blocks", ["basic"])) != {"basic"}:
        return blocks
    return recurrent if "CRNN" in model["class"] else broadcast if model["class"] == "BBNN" else plain


def short_names(results):
    """Experiment to its name without "baseline", and without the feature where all have the same."""
    features = {r["config"]["feature"] for r in results if r["seeds"][0]["epoch"] is not None}
    feature = f"{features.pop()}_" if len(features) == 1 else ""
    return {r["experiment"]: r["experiment"].removeprefix("baseline_").removeprefix(feature) for r in results}


def by_accuracy(results):
    """Results with the highest test accuracy first, an order for display only."""
    if not results:
        raise ValueError("no results to plot")
    return sorted(results, key=lambda r: -r["test"]["accuracy"])


@styled
def plot_forest(results):
    """Test accuracy of each model with its 95 % interval over artists, in the colour of its family.

    Parameters
    ----------
    results : list of dict
        As `result_files.load_results` gives them, of one data set. On FMA, the accuracies reported by the original
        study are open diamonds.
    """
    order = by_accuracy(results)
    figure, axes, write = new_rows(short_names(order).values(), "test accuracy (%), with its 95 % interval")
    for row, r in enumerate(order):
        test, colour = r["test"], FAMILIES[family(r)]
        if None not in test["interval"]:
            axes.plot(100 * np.array(test["interval"]), [row, row], color=colour, linewidth=1.4)
        axes.plot(100 * test["accuracy"], row, "o", color=colour, markersize=5)
        write(row, f"{100 * test['accuracy']:.1f}   {format_interval(test['interval'])}")
        if reported_by_study(r) is not None and r["dataset"].startswith("fma_"):
            axes.plot(reported_by_study(r), row, **OPEN)
    keys = [axes.plot([], [], "o-", color=colour, markersize=5, label=name)[0]
            for name, colour in FAMILIES.items() if name in map(family, order)]
    if any(line.get_marker() == "D" for line in axes.lines):
        keys += axes.plot([], [], **OPEN, label="reported by the original")
    chance = 100 * largest_share(test["genres"])
    keys.append(axes.axvline(chance, color=PLAIN, linestyle=":", linewidth=1, label="chance"))
    figure.legend(handles=keys, loc="outside upper center", ncols=3)
    return figure


@styled
def plot_pairs(results, found):
    """Lead of the model of a column over that of a row in points, framed where it is significant.

    Parameters
    ----------
    results : list of dict
        Results of the compared models.
    found : DataFrame
        All their pairs, from `predictions.compare_predictions`.
    """
    names = short_names(by_accuracy(results))
    place, size = {name: k for k, name in enumerate(names)}, len(names)
    figure, axes = new_figure(0.42 * size + 2.4, 0.3 * size + 1.9)
    points = np.full((size, size), np.nan)
    for a, b, difference, p in zip(found["a"], found["b"], found["difference"], found["p (Holm)"], strict=True):
        column, row = sorted((place[a], place[b]))
        points[row, column] = difference if place[a] == column else -difference
        axes.text(column, row, f"{points[row, column]:.1f}", ha="center", va="center", fontsize=7.5, color=PLAIN,
                  bbox={"facecolor": "none", "edgecolor": REPORTED, "pad": 2.5} if p < LEVEL else None)
    draw_matrix(axes, points, names.values(), names.values(), vmax=max(1, 1.6 * np.nanmax(points)))
    axes.set(xlim=(-0.5, size - 1.5), ylim=(size - 0.5, 0.5))
    axes.set_title("points by which the column leads the row; framed: significant", fontsize=9, loc="left")
    return figure


@styled
def plot_differences(names, found, xlabel):
    """Differences of accuracy with their 95 % intervals over artists, filled and starred where significant.

    Parameters
    ----------
    names : sequence of str
    found : DataFrame
        A row for each name, from `predictions.compare_predictions` or `comparisons.contrasts`.
    xlabel : str
    """
    figure, axes, write = new_rows(names, xlabel)
    axes.axvline(0, color=PLAIN, linestyle=":", linewidth=1)
    for row, d in enumerate(found.to_dict("records")):
        significant = d["p (Holm)"] < LEVEL
        axes.plot([d["low"], d["high"]], [row, row], color=VALIDATION, linewidth=1.2, zorder=1)
        axes.plot(d["difference"], row, "o", color=VALIDATION, markerfacecolor=None if significant else "white")
        difference = round(d["difference"], 1) + 0              # never -0.0
        write(row, f"{difference:+.1f}   {d['low']:+.1f} to {d['high']:+.1f}{' *' if significant else ''}")
    return figure


@styled
def plot_protocols(results):
    """Accuracy by protocol: validation and test of the chosen epoch, and the best test accuracy, where it is known."""
    order = by_accuracy([r for r in results if r["seeds"][0]["test_max"] is not None])
    figure, axes, _ = new_rows(short_names(order).values(), "accuracy (%)")
    look = {"test": {"color": VALIDATION, "marker": "o", "label": "test, epoch chosen on validation"},
            "test_max": OPEN | {"color": REPORTED, "label": "best on test of the saved epochs"},
            "validation": {"color": TRAINING, "marker": "|", "markeredgewidth": 2, "label": "validation"}}
    values = {what: [100 * np.mean([s[what] for s in r["seeds"]]) for r in order] for what in look}
    ends = np.sort(list(values.values()), axis=0)
    axes.hlines(range(len(order)), ends[0], ends[-1], color=FAINT, linewidth=0.8, zorder=1)
    for what, style in look.items():
        axes.plot(values[what], range(len(order)), **{"linestyle": "", "markersize": 6} | style)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@styled
def plot_recall(results):
    """Recall of each genre by each model in per cent: hardest genre first, best model on top."""
    order = by_accuracy(results)
    genres = list(order[0]["test"]["genres"])
    recall = 100 * np.array([[r["test"]["genres"][g]["accuracy"] for g in genres] for r in order], dtype=float)
    hardest = np.argsort(recall.mean(0))
    shown = np.vstack([recall.mean(0), recall])[:, hardest]
    figure, axes = new_figure(0.72 * len(genres) + 2.4, 0.235 * len(shown) + 1.4)
    for (row, column), value in np.ndenumerate(shown):
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                  color="white" if value > 65 else PLAIN, weight="normal" if row else "bold")
    axes.axhline(0.5, color="white", linewidth=4)       # separates the mean from the models
    draw_matrix(axes, shown, np.array(shortened(genres))[hardest], ["mean of all", *short_names(order).values()], 100)
    return figure


@styled
def plot_cost(results, costs, xlabel):
    """Test accuracy against the cost of a model (experiment to number), on a logarithmic axis."""
    order, names = by_accuracy(results), short_names(results)
    figure, axes = new_figure(8.2, 6.4)
    axes.set(xscale="log", xlabel=xlabel, ylabel="test accuracy (%)")
    points = [(costs[r["experiment"]], 100 * r["test"]["accuracy"]) for r in order]
    for point, r in zip(points, order, strict=True):
        axes.plot(*point, "o", color=FAMILIES[family(r)], markersize=6)
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.margins(0.16, 0.1)
    figure.draw_without_rendering()         # the axes do not move from here on
    taken, edges = [(x - 7, y - 7, x + 7, y + 7) for x, y in axes.transData.transform(points)], axes.bbox.extents
    for point, r, (left, low, *_) in zip(points, order, taken[:len(points)], strict=True):
        wide = 6.9 * len(names[r["experiment"]])        # pixels
        for far, angle in product(range(14, 200, 7), np.radians([0, 180, 45, -45, 135, -135, 90, -90])):
            x, y = far * np.cos(angle), far * np.sin(angle)     # offset of the nearer end from the point
            box = (left + 7 + x - wide * (x < -1), low + y - 1, left + 7 + x + wide * (x >= -1), low + y + 15)
            if edges[0] < box[0] and box[2] < edges[2] and all(
                    box[2] < b[0] or box[0] > b[2] or box[3] < b[1] or box[1] > b[3] for b in taken):
                break
        taken.append(box)
        axes.annotate(names[r["experiment"]], point, (x, y), textcoords="offset pixels", fontsize=8, va="center",
                      ha="right" if x < -1 else "left", in_layout=False,
                      arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8} if far > 14 else None)
    return figure
