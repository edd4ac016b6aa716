"""Figures of a collection's metadata: genres, splits, artists, years and plays."""

import numpy as np

from fma import SPLITS, artists_of
from plots.style import PLAIN, RUNS, genre_colours, new_figure, new_rows, no_axis_line, shortened, styled


def effective_number(names):
    """Effective number of names, 1 / Σ share² (Hill 1973, order 2).

    As many equally frequent names have the same diversity; it is the reciprocal of the probability that two random
    draws have the same name.

    Examples
    --------
    >>> effective_number(["a", "b", "c", "d"]), round(effective_number(["a"] * 97 + ["b", "c", "d"]), 2)
    (4.0, 1.06)
    """
    _, counts = np.unique(list(names), return_counts=True)
    return float(counts.sum() ** 2 / (counts**2).sum())


@styled
def plot_splits(tracks):
    """Tracks and artists of each genre in the three splits, the shade from training (pale) to test (full).

    Parameters
    ----------
    tracks : DataFrame
        From `fma.load_tracks`.
    """
    from matplotlib.patches import Patch

    shades = dict(zip(SPLITS, (0.35, 0.65, 1), strict=True))
    genres = sorted(tracks["genre"].dropna().unique(), reverse=True)
    figure, panels = new_figure(7.6, 0.32 * len(genres) + 1.1, columns=2)
    grouped = tracks.assign(artist=artists_of(tracks)).groupby(["genre", "split"])["artist"]
    for axes, counts, what in zip(panels, (grouped.size(), grouped.nunique()), ("tracks", "artists"), strict=True):
        for row, (genre, colour) in enumerate(genre_colours(genres).items()):
            left = 0
            for split, shade in shades.items():
                axes.barh(row, counts.get((genre, split), 0), left=left, height=0.66, color=colour, alpha=shade)
                left += counts.get((genre, split), 0)
            axes.text(left, row, f" {left}", va="center", fontsize=9)
        axes.set_yticks(range(len(genres)), shortened(genres) if axes is panels[0] else [])
        axes.set_xlabel(f"number of {what}")
        axes.margins(x=0.12)
        no_axis_line(axes, "y")
    keys = [Patch(facecolor=PLAIN, alpha=shade, label=split) for split, shade in shades.items()]
    figure.legend(handles=keys, loc="outside upper center", ncols=3)
    return figure


@styled
def plot_artist_shares(tracks):
    """Shares of the artists in each genre's tracks, the most frequent first.

    Parameters
    ----------
    tracks : DataFrame
        From `fma.load_tracks`, all or those of one split.
    """
    tracks = tracks.assign(key=artists_of(tracks))
    names = tracks.drop_duplicates("key").set_index("key").get("artist", {})
    genres = sorted(tracks["genre"].dropna().unique())
    figure, axes, write = new_rows(shortened(genres), "share of the genre's tracks (%), a block for each artist", 7.6,
                                   0.38)
    axes.set_xlim(0, 100)
    for row, (genre, colour) in enumerate(genre_colours(genres).items()):
        keys = tracks.loc[tracks["genre"] == genre, "key"]
        shares = 100 * keys.value_counts(normalize=True)
        axes.barh(row, shares, left=shares.cumsum() - shares, height=0.7, color=colour, edgecolor="white",
                  linewidth=0.7)
        name = str(names.get(shares.index[0], ""))
        if 1.5 * len(name) + 1 < shares.iloc[0]:        # the name fits into the bar
            red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
            ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 150 else PLAIN
            axes.text(1, row, name, va="center", fontsize=8.5, color=ink)
        write(row, len(shares), 1.06)
        write(row, f"{effective_number(keys):.1f}", 1.19)
    write(-0.85, "artists")
    write(-0.85, "effective", 1.14)
    return figure


@styled
def plot_years_and_plays(tracks):
    """Number of tracks by year of release, and plays by genre.

    Parameters
    ----------
    tracks : DataFrame
        From `fma.load_tracks`, with the columns released and listens.
    """
    years = tracks["released"].astype(str).str.extract(r"^(\d{4})")[0].dropna().astype(int).value_counts()
    genres = sorted(tracks["genre"].dropna().unique(), reverse=True)
    figure, (left, right) = new_figure(7.6, 0.3 * len(genres) + 1.2, columns=2)
    left.bar(years.index, years, color=RUNS[0])
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set(xlabel="year of release", ylabel="number of tracks", xlim=(years.index.min() - 2, years.index.max() + 2))
    for row, (genre, colour) in enumerate(genre_colours(genres).items()):
        plays = tracks.loc[tracks["genre"] == genre, "listens"].dropna()
        if len(plays):
            low, middle, high = np.percentile(plays, [10, 50, 90]) + 1
            right.plot([low, high], [row, row], color=colour, linewidth=5, alpha=0.4, solid_capstyle="butt")
            right.plot(middle, row, "o", color=colour)
    right.set_yticks(range(len(genres)), shortened(genres))
    most = 10 ** np.ceil(np.log10(tracks["listens"].max() + 2))
    right.set(xscale="log", xlabel="plays + 1\n(median, bar: 80 % of the tracks)", xlim=(0.8, most),
              ylim=(-0.6, len(genres) - 0.4))
    no_axis_line(right, "y")
    return figure
