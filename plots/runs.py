"""Figures of single runs: learning curves, ROC curves, confusion matrices, accuracies.

Each function returns a Matplotlib figure. As the last line of a notebook cell it displays itself, once; save it
with ``figure.savefig("images/roc.png")``. pyplot is not involved, so figures do not pile up and the reader's settings
stay as they are.
"""

import textwrap

import numpy as np

from evaluation import format_interval, genre_auc, macro_auc
from plots.style import (
    DASHES,
    PLAIN,
    RUNS,
    TRAINING,
    VALIDATION,
    beyond,
    genre_colours,
    new_figure,
    new_rows,
    shortened,
    styled,
)


@styled
def plot_history(histories, names=None, selected=None):
    """Loss and accuracy by epoch, training against validation.

    Parameters
    ----------
    histories : list of dict, or a list of such lists
        One run, or several. One dict per epoch: ``epoch``, ``train_loss``, ``train_accuracy``,
        ``validation_loss``, ``validation_accuracy``; accuracies 0 to 1, losses in nats.
    names : list of str, optional
        Names of the runs, one colour each. By default the runs are seeds of one model and share their colours.
    selected : list of int, optional
        Epoch chosen in each run; by default the first with the best validation accuracy.
    """
    from matplotlib.lines import Line2D

    runs = [histories] if isinstance(histories[0], dict) else histories
    figure, panels = new_figure(8.2, 3.4, columns=2)
    for k, run in enumerate(runs):
        epochs = [row["epoch"] for row in run]
        best = selected[k] if selected else max(run, key=lambda row: row["validation_accuracy"])["epoch"]
        for axes, quantity, factor in zip(panels, ("loss", "accuracy"), (1, 100), strict=True):
            for part, style in (("train", "--"), ("validation", "-")):
                colour = RUNS[k % 8] if names else TRAINING if part == "train" else VALIDATION
                values = factor * np.array([row[f"{part}_{quantity}"] for row in run], dtype=float)
                axes.plot(epochs, values, style, color=colour, linewidth=1.2)
                if part == "validation" and best in epochs:
                    axes.plot(best, values[epochs.index(best)], "o", color=colour, markersize=7,
                              markeredgecolor="white", zorder=3)
    for axes, label in zip(panels, ("cross entropy (nats)", "accuracy (%)"), strict=True):
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylim(bottom=0)
    plain = [PLAIN, PLAIN] if names else [TRAINING, VALIDATION]
    keys = [Line2D([], [], linestyle="--", color=plain[0], label="training"),
            Line2D([], [], color=plain[1], label="validation"),
            Line2D([], [], linestyle="", marker="o", color=plain[1], label="epoch chosen on validation")]
    keys += [Line2D([], [], linewidth=4, color=RUNS[k % 8], label=n) for k, n in enumerate(names or [])]
    figure.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), 5))
    return figure


@styled
def plot_roc(labels, probabilities, genres):
    """ROC curve of each genre against all others, the largest area first.

    Parameters
    ----------
    labels : array of int, (clips,)
    probabilities : array, (clips, classes)
        Of one run.
    genres : list of str, (classes,)
        A genre without clips is left out.
    """
    figure, axes = new_figure(6.6 + beyond(genres), 4.6)
    _draw_roc(axes, labels, probabilities, genres)
    return figure


def _draw_roc(axes, labels, probabilities, genres):
    areas, short = genre_auc(labels, probabilities), shortened(genres)
    _draw_curves(axes, labels, probabilities, {k: f"{areas[k]:.2f}  {short[k]}" for k in np.argsort(-areas)}, genres,
                 chance="0.50  chance")
    axes.set(xlabel="clips of other genres taken for it (%)", ylabel="clips of the genre found (%)",
             xlim=(-1, 101), ylim=(-1, 101), anchor="W")
    axes.legend(title=f"area under the curve\n(mean {macro_auc(labels, probabilities):.3f})",
                loc="center left", bbox_to_anchor=(1.02, 0.5))


def _draw_curves(axes, labels, probabilities, names, genres, chance=None):
    """A ROC curve for each of the names (genre index to entry of the legend), and the diagonal."""
    from sklearn.metrics import roc_curve

    labels, scores, colours = np.asarray(labels), np.asarray(probabilities), genre_colours(genres)
    for rank, (k, name) in enumerate(names.items()):
        if (labels == k).any() and not (labels == k).all():
            false_alarms, hits, _ = roc_curve(labels == k, scores[:, k])
            axes.plot(100 * false_alarms, 100 * hits, color=colours[genres[k]], linestyle=DASHES[rank % 3], label=name)
    axes.plot([0, 100], [0, 100], ":", color=PLAIN, linewidth=1, label=chance)
    axes.set_aspect("equal")


@styled
def plot_confusion(confusion, genres):
    """Confusion matrix: per cent of each true genre, with counts below.

    Parameters
    ----------
    confusion : array of int, (classes, classes)
        Rows are true genres, columns predicted ones.
    genres : list of str, (classes,)
    """
    more = beyond(genres)
    figure, axes = new_figure(max(4.0, 0.62 * len(genres) + 2.2) + more, max(3.2, 0.52 * len(genres) + 1.4) + more)
    _draw_confusion(axes, confusion, genres)
    return figure


def _draw_confusion(axes, confusion, genres):
    counts = np.asarray(confusion)
    sizes = counts.sum(1)
    percent = 100 * counts / np.maximum(sizes, 1)[:, None]
    short = shortened(genres)
    draw_matrix(axes, percent, short, [f"{g} ({n})" for g, n in zip(short, sizes, strict=True)], 100)
    for row, column in zip(*counts.nonzero(), strict=True):  # an empty cell is easier to see than a 0
        ink = "white" if percent[row, column] > 65 else PLAIN
        axes.text(column, row, f"{percent[row, column]:.0f}", ha="center", va="bottom", color=ink)
        axes.text(column, row + 0.08, str(counts[row, column]), ha="center", va="top", color=ink, size=7.5)
    axes.set(xlabel="predicted\n(per cent of the true genre,\nnumber below)", ylabel="true (number of predictions)")


def draw_matrix(axes, values, columns, rows, vmax):
    """Draw a matrix in shades of blue from 0 to `vmax`, with the names of its columns and rows."""
    axes.imshow(values, cmap="Blues", vmin=0, vmax=vmax, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    axes.spines[:].set_visible(False)


@styled
def plot_roc_and_confusion(labels, probabilities, genres):
    """ROC curves and confusion matrix of one run, side by side; parameters as for `plot_roc`."""
    from sklearn.metrics import confusion_matrix

    figure, (left, right) = new_figure(12.6, max(4.6, 0.52 * len(genres) + 1.4), columns=2)
    _draw_roc(left, labels, probabilities, genres)
    _draw_confusion(right, confusion_matrix(labels, np.argmax(probabilities, 1), labels=range(len(genres))), genres)
    return figure


@styled
def plot_intervals(names, means, intervals, chance):
    """Accuracies of several models with their intervals, one row each, the first on top.

    Parameters
    ----------
    names : list of str
    means : list of float, 0 to 1
    intervals : list of (low, high) or None, 0 to 1
    chance : float, 0 to 1
        Drawn as a line.
    """
    figure, axes, write = new_rows(names, "accuracy (%)", 7.6, 0.36)
    for row, (mean, interval) in enumerate(zip(means, intervals, strict=True)):
        ends = "" if format_interval(interval) == "–" else format_interval(interval)
        low, high = interval if ends else (mean, mean)
        axes.plot(100 * np.array([low, mean, high]), [row] * 3, "o-", color=VALIDATION, markevery=[1],
                  label=None if row else "measured, 95 % interval")
        write(row, f"{100 * mean:.1f}")
        write(row, ends, 1.1)
    axes.axvline(100 * chance, color=PLAIN, linestyle=":", linewidth=1, label="chance")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@styled
def plot_genre_accuracy(summary, chance):
    """Recall of each genre, with its interval.

    Parameters
    ----------
    summary : dict
        From `evaluation.summarise`.
    chance : float, 0 to 1
    """
    rows = {genre: row for genre, row in summary["genres"].items() if row["clips"]}
    colours = genre_colours(rows)
    names = [f"{genre} ({row['clips']})" for genre, row in zip(shortened(rows), rows.values(), strict=True)]
    figure, axes, write = new_rows(names, "clips recognised (%), line: 95 % interval", 7.0, 0.4)
    axes.set_xlim(0, 100)
    for place, (genre, row) in enumerate(rows.items()):
        axes.barh(place, 100 * row["accuracy"], height=0.62, color=colours[genre])
        if None not in row["interval"]:
            axes.plot(100 * np.array(row["interval"]), [place, place], color=PLAIN, linewidth=1.2)
        write(place, f"{100 * row['accuracy']:.1f}")
    axes.axvline(100 * chance, color=PLAIN, linestyle=":", linewidth=1)
    axes.text(100 * chance, -0.6, " chance", fontsize=9, va="bottom")
    return figure


@styled
def plot_embedding(points, labels, genres):
    """Clips as points in a plane, coloured by genre, from a t-SNE or PCA of features.

    Parameters
    ----------
    points : array, (clips, 2)
    labels : array of int, (clips,)
    genres : list of str
    """
    points, labels = np.asarray(points), np.asarray(labels)
    figure, axes = new_figure(7.0, 4.8)
    order = np.random.default_rng(0).permutation(len(labels))  # else the last genre covers the others
    colours = np.array(list(genre_colours(genres).values()))
    size = np.clip(8000 / max(1, len(labels)), 3, 20)
    axes.scatter(*points[order].T, s=size, c=colours[labels[order]], linewidths=0)
    for genre, colour in zip(shortened(genres), colours, strict=True):
        axes.scatter([], [], color=colour, label=genre)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return figure


@styled
def plot_panels(labels, scores, genres, kind="roc"):
    """ROC curves or confusion matrices of several models, one small panel each.

    Parameters
    ----------
    labels : array of int, (clips,)
    scores : dict of str to array, (clips, classes)
        Name of a model to its probabilities, or other scores, of one run.
    genres : list of str, (classes,)
    kind : {"roc", "confusion"}
        ROC curves with their mean area, or the confusion matrix with its accuracy: the darker a cell, the more clips
        of the true genre (row) were classified as the predicted one (column).
    """
    from sklearn.metrics import confusion_matrix

    columns, short = min(4, len(scores)), shortened(genres)
    rows = -(-len(scores) // columns)
    figure, panels = new_figure(7.6, 1.75 * rows + 0.8, columns, rows)
    panels = np.atleast_1d(panels).ravel()
    for axes, (name, values) in zip(panels, scores.items(), strict=False):
        if kind == "roc":
            _draw_curves(axes, labels, values, dict(enumerate(short)), genres)
            axes.set(xlim=(-2, 102), ylim=(-2, 102), xticks=(0, 50, 100), yticks=(0, 50, 100))
            title = f"{macro_auc(labels, values):.3f}"
        else:
            counts = confusion_matrix(labels, np.asarray(values).argmax(1), labels=range(len(genres)))
            axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            title = f"{100 * np.trace(counts) / counts.sum():.1f} %"
        axes.set_title(f"{name}  {title}", fontsize=8.5)
        axes.grid(kind == "roc")
    for axes in panels[len(scores):]:
        axes.set_visible(False)
    if kind == "roc":
        for k, axes in enumerate(panels):
            axes.tick_params(labelleft=k % columns == 0)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center",
                      ncols=min(4 if max(map(len, short)) < 15 else 2, len(genres)), handlelength=3)
        figure.supxlabel("clips of other genres taken for it (%)", fontsize=9)
        figure.supylabel("clips of the genre found (%)", fontsize=9)
    else:
        figure.supxlabel(textwrap.fill("predicted, from left: " + ", ".join(short), 100), fontsize=9)
        figure.supylabel("true, the same from above", fontsize=9)
    return figure
