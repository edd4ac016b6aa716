"""What moves a figure: seed, fold, artists, the choice of the epoch; and how many clips a comparison needs."""

from itertools import combinations
from statistics import NormalDist

import numpy as np
import pandas as pd

from study.predictions import COLUMNS, LEVEL
from study.tables import format_table, measured_on

POINTS, POWER = 2, 0.8      # the difference that is to be found, and the probability that it is significant


def clustered_error(values, artists):
    """Standard error of a mean over clips whose artists were drawn, each with all its clips [1]_.

    Parameters
    ----------
    values : array, shape (clips,)
    artists : array, shape (clips,)
        By clip; an artist for each clip gives the usual error of independent clips, but for its n - 1.

    Returns
    -------
    float

    References
    ----------
    .. [1] K.-Y. Liang, S. L. Zeger, "Longitudinal data analysis using generalized linear models", Biometrika 73(1),
       1986.

    Examples
    --------
    >>> clustered_error([1, 0, 1, 0], [1, 2, 3, 4]), clustered_error([1, 1, 0, 0], [1, 1, 2, 2])
    (0.25, 0.3535533905932738)
    """
    values = np.asarray(values, dtype=float)
    _, artist = np.unique(artists, return_inverse=True)
    return float(np.sqrt(np.square(np.bincount(artist, values - values.mean())).sum()) / len(values))


def variance_table(results, answers):
    """How far each of the choices behind a test accuracy moves it, in percentage points.

    Parameters
    ----------
    results : list of dict
        From `result_files.load_results`, of one collection.
    answers : dict of str to DataFrame
        From `predictions.load_answers`.

    Returns
    -------
    DataFrame, one row per cause: ``points``, root mean square over models, and their number, ``models``. Standard
        deviations, but for the last row, which is how much the best epoch on test flatters on average. Causes that
        the results do not show, such as folds where there are none, are left out.
    """
    seeds = [[s["test"] for s in r["seeds"]] for r in results if len(r["seeds"]) > 1]
    right = {name: table.iloc[:, 2].eq(table["genre"]) for name, table in answers.items()}      # of the first seed
    spreads = {
        "seed: the same network, trained again": [np.std(each, ddof=1) for each in seeds],
        "fold: another fifth of the artists is tested": [r["folds"]["test_sd"] for r in results if r.get("folds")],
        "test clips, if they were independent": [clustered_error(each, each.index) for each in right.values()],
        "test artists": [clustered_error(right[name], answers[name]["artist"]) for name in answers],
    }
    rows = {what: (100 * np.sqrt(np.mean(np.square(each))), len(each)) for what, each in spreads.items() if each}
    gains = [s["test_max"] - s["test"] for r in results for s in r["seeds"] if s["test_max"] is not None]
    if gains:
        models = sum(any(s["test_max"] is not None for s in r["seeds"]) for r in results)
        rows["bias: the epoch chosen on test instead of validation"] = 100 * np.mean(gains), models
    return pd.DataFrame(rows.values(), list(rows), columns=["points", "models"]).astype({"models": int})


def clips_needed(answers):
    """Test clips and artists that show a difference of `POINTS` between two models with probability `POWER`.

    Each pair of models gives the standard error of its difference on the clips that there are; it falls with the
    square root of their number. `variance_table` says why artists, not clips, are what is drawn.

    Parameters
    ----------
    answers : dict of str to DataFrame
        From `predictions.load_answers`, of the same clips.

    Returns
    -------
    DataFrame, one row per kind of comparison: ``clips`` and ``artists`` of the median pair, ``clips, most``, of the
        pair in twenty that needs more, and ``smallest difference``, in points, that the present clips can show
    """
    z = NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(POWER)
    one = next(iter(answers.values()))
    artists, share = one["artist"], one["artist"].nunique() / len(one)
    right = {name: table.loc[one.index].drop(columns=COLUMNS).eq(one["genre"], axis=0)
             for name, table in answers.items()}
    several = {name: each for name, each in right.items() if each.shape[1] > 1}
    first = {name: each.iloc[:, 0] for name, each in right.items()}
    errors = {
        "two networks on the same clips, a seed of each": [
            clustered_error(first[a] * 1.0 - first[b], artists) for a, b in combinations(first, 2)],
        "the same, means over seeds": [clustered_error(several[a].mean(axis=1) - several[b].mean(axis=1), artists)
                                       for a, b in combinations(several, 2)],
        "two networks, each on clips of its own": [
            np.hypot(clustered_error(first[a], artists), clustered_error(first[b], artists))
            for a, b in combinations(first, 2)],
    }
    rows = {}
    for what, each in errors.items():
        if each:
            median, most = np.quantile(each, [0.5, 0.95])
            clips = len(one) * np.square(100 * z / POINTS * np.array([median, most]))
            rows[what] = [round(clips[0]), round(clips[0] * share), round(clips[1]), 100 * z * median]
    return pd.DataFrame(rows.values(), list(rows), columns=["clips", "artists", "clips, most", "smallest difference"])


def variance_tables(results, answers):
    """Both tables as Markdown, for results of one collection with their answers."""
    moves, needed = variance_table(results, answers), clips_needed(answers)
    first = format_table([[what, f"{row.points:.1f}", f"{row.models:.0f}"] for what, row in moves.iterrows()],
                         ["what moves a test accuracy", "points", "models"])
    second = format_table([[what, *(f"{row[column]:,.0f}" for column in needed.columns[:3]),
                            f"{row['smallest difference']:.1f}"] for what, row in needed.iterrows()],
                          [f"to tell {POINTS} points apart", *needed.columns[:3], "smallest difference here"])
    return f"{first}\n\n{second}\n\n{measured_on(results)}"
