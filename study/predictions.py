"""What every model said of every test clip, beside its result: ``results/<dataset>/<experiment>.csv``.

    track_id,artist,genre,seed0,seed1
    181,23,Hip-Hop,Hip-Hop,Electronic

So models can be told apart clip by clip without training one of them again, and yours can be tested against them.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import compare, holm
from fma import DataError

COLUMNS = ["artist", "genre"]


def prediction_table(tests, seeds):
    """What the runs of one experiment said.

    Parameters
    ----------
    tests : list of dict
        As `runs.load_probabilities` gives them, of the same clips.
    seeds : sequence of int
        Seed of each.

    Returns
    -------
    DataFrame, indexed by track_id: artist, genre, and for each seed the genre that it gave the highest probability
    """
    one = tests[0]
    genres = np.asarray(one["genres"])
    said = {f"seed{seed}": genres[test["probabilities"].argmax(1)] for seed, test in zip(seeds, tests, strict=True)}
    index = pd.Index(one["tracks"], name="track_id")
    return pd.DataFrame({"artist": one["artists"], "genre": genres[one["labels"]], **said}, index=index)


def load_predictions(path):
    """Read the predictions of one result; a DataError if the file is missing or damaged."""
    path = Path(path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False).astype({"track_id": int}).set_index("track_id")
    except FileNotFoundError as error:
        raise DataError(f"{path} not found: run the experiment again, it is written beside its result") from error
    except (ValueError, KeyError, OverflowError, OSError) as error:
        raise DataError(f"{path} is not a table of predictions: delete it and run the experiment again") from error
    if list(table.columns[:2]) != COLUMNS or len(table.columns) < 3 or not len(table):
        raise DataError(f"{path} has other columns than {', '.join(COLUMNS)} and a seed: run the experiment again")
    if table.index.has_duplicates:
        raise DataError(f"{path} names a track twice: delete it and run the experiment again")
    return table


def correctness(table):
    """Share of the seeds that were right about each clip.

    Returns
    -------
    ndarray, shape (clips,), 0 to 1
    """
    said = table.drop(columns=COLUMNS)
    return said.eq(table["genre"], axis=0).mean(axis=1).to_numpy()


def compare_predictions(tables, pairs=None):
    """Test pairs of models on the same test clips, and correct for their number.

    Parameters
    ----------
    tables : dict of str to DataFrame
        Name of a model to its `prediction_table`; their order of the clips may differ.
    pairs : list of (str, str), optional
        All by default.

    Returns
    -------
    DataFrame, a row per pair: ``a`` and ``b``, ``difference`` of mean accuracy (a minus b, in points), ``low`` and
        ``high``, its 95 % interval over artists, ``p`` of a test that exchanges the two artist by artist
        (`evaluation.artist_flips`), and ``p (Holm)``, corrected for the number of pairs.
    """
    pairs = list(combinations(tables, 2)) if pairs is None else list(pairs)
    if not pairs:
        raise DataError("there are no two models to compare")
    right, first = {}, next(iter(tables))
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        table, one = tables[name], tables[first]
        if set(table.index) != set(one.index) or not table["genre"].equals(one.loc[table.index, "genre"]):
            raise DataError(f"{name} was tested on other clips than {first}: train it on the same data")
        right[name] = correctness(table.loc[one.index])
    found = [compare(right[a], right[b], tables[first]["artist"]) for a, b in pairs]
    low, high = 100 * np.array([f["interval"] for f in found], dtype=float).T       # None, with one artist, is NaN
    return pd.DataFrame({
        "a": [a for a, _ in pairs], "b": [b for _, b in pairs],
        "difference": [100 * f["difference"] for f in found], "low": low, "high": high,
        "p": [f["p_value"] for f in found], "p (Holm)": holm([f["p_value"] for f in found]),
    })
