"""Figures of predictions: probabilities by genre, over time, and calibration."""

import numpy as np

from plots.style import FAINT, PLAIN, VALIDATION, genre_colours, new_figure, new_rows, shortened, styled


@styled
def plot_probabilities(probabilities, title=None):
    """Probability of each genre, as bars.

    Parameters
    ----------
    probabilities : dict of str to float, 0 to 1
        As in `classifier.songs.answer`.
    title : str, optional
    """
    genres, colours = list(probabilities), genre_colours(probabilities)
    figure, axes, _ = new_rows(shortened(genres), "probability (%)", 7.0, 0.3)
    for place, genre in enumerate(genres):
        axes.barh(place, 100 * probabilities[genre], height=0.62, color=colours[genre])
        axes.text(100 * probabilities[genre] + 1, place, f"{100 * probabilities[genre]:.0f}", va="center", fontsize=9)
    axes.set(xlim=(0, 100), title="" if title is None else shortened([title], 60)[0])
    return figure


@styled
def plot_course(course, seconds, marks=()):
    """Probabilities over time, as stacked bars, one for each window.

    Parameters
    ----------
    course : list of dict
        As in `classifier.songs.answer`: ``start`` in seconds, ``probabilities`` by genre.
    seconds : float
        Duration of the track.
    marks : sequence of (float, str), optional
        Time in seconds and name of each mark, drawn above.
    """
    figure, axes = new_figure(7.6, 3.0)
    starts = [part["start"] for part in course]
    genres = list(course[0]["probabilities"])
    shares = 100 * np.array([list(part["probabilities"].values()) for part in course])
    tops = shares.cumsum(1)
    widths = np.diff([*starts, seconds])
    for k, (genre, colour) in enumerate(zip(shortened(genres), genre_colours(genres).values(), strict=True)):
        axes.bar(starts, shares[:, k], widths, bottom=tops[:, k] - shares[:, k], align="edge", color=colour,
                 edgecolor="white", linewidth=0.6, label=genre)
    for start, name in marks:
        axes.axvline(start, color=PLAIN, linewidth=1)
        text = "\n ".join(shortened([line], 14)[0] for line in name.splitlines())
        axes.text(start, 101, f" {text}", fontsize=8, va="bottom")
    axes.set(xlabel="time (s)", ylabel="probability (%)", xlim=(0, seconds), ylim=(0, 100))
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1, 0.5))     # in the order of the bars
    return figure


@styled
def plot_calibration(probabilities, labels):
    """Reliability diagram: accuracy against predicted probability; a calibrated network is on the diagonal.

    Parameters
    ----------
    probabilities : array, (clips, classes)
    labels : array of int, (clips,)
        Clips are counted in ten bins of equal width, from 0 to 1; the number in each is drawn below.
    """
    bins = 10
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    some = counts > 0
    means = [100 * np.bincount(place, v, bins)[some] / counts[some] for v in (sure, right)]
    figure, (upper, lower) = new_figure(5.4, 4.6, rows=2)
    upper.plot([0, 100], [0, 100], ":", color=PLAIN, linewidth=1, label="perfect calibration")
    upper.plot(*means, "o-", color=VALIDATION, label="clips by probability")
    upper.set(ylabel="accuracy (%)", ylim=(0, 100))
    upper.legend(loc="upper left")
    lower.bar(100 * (np.arange(bins) + 0.5) / bins, counts, 88 / bins, color=FAINT)
    lower.set(xlabel="probability of the likeliest genre (%)", ylabel="clips", xlim=(0, 100))
    return figure
