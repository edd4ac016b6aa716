"""The predictions of every model for every test clip, beside its result: ``results/<dataset>/<experiment>.csv``.

    track_id,artist,genre,seed0,seed1
    181,23,Hip-Hop,Hip-Hop,Electronic

With them models are compared clip by clip without training them again, and new models are tested against them.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation import compare, holm
from fma import DataError
from learning.runs import load_probabilities

COLUMNS = ["artist", "genre"]
LEVEL = 0.05    # a difference is significant below this p-value after Holm's correction


def prediction_table(tests, seeds):
    """Predictions of the runs of one experiment.

    Parameters
    ----------
    tests : list of dict
        As `runs.load_probabilities` gives them, of the same clips.
    seeds : sequence of int
        Seed of each.

    Returns
    -------
    DataFrame, indexed by track_id: artist, genre, and for each seed the genre of highest probability
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
        if list(table.columns[:2]) != COLUMNS or len(table.columns) < 3 or not len(table) or table.index.has_duplicates:
            raise ValueError("other columns than artist, genre and seeds, or a track twice")
    except FileNotFoundError as error:
        raise DataError(f"{path} not found: run the experiment again, which writes it") from error
    except (ValueError, KeyError, OverflowError, OSError) as error:
        raise DataError(f"{path} is not a table of predictions: delete it and run the experiment again") from error
    return table


def correctness(table):
    """Share of the seeds that were right about each clip.

    Returns
    -------
    ndarray, shape (clips,), 0 to 1
    """
    said = table.drop(columns=COLUMNS)
    return said.eq(table["genre"], axis=0).mean(axis=1).to_numpy()


def load_answers(results, results_dir="results"):
    """The predictions of models for each test clip, where they were saved beside the result or are in its runs.

    Parameters
    ----------
    results : list of dict
        As `result_files.load_results` gives them.
    results_dir : path-like

    Returns
    -------
    dict of str to DataFrame
        Experiment to its `prediction_table`; results without predictions are left out.
    """
    found = {}
    for r in results:
        if r.get("runs"):
            seeds = [seed["seed"] for seed in r["seeds"]]
            found[r["experiment"]] = prediction_table(list(map(load_probabilities, r["runs"])), seeds)
            continue
        path = Path(results_dir) / r["dataset"] / f"{r['experiment']}.csv"
        if path.is_file():
            table = found[r["experiment"]] = load_predictions(path)
            if len(table) != r["test"]["clips"] or abs(correctness(table).mean() - r["test"]["accuracy"]) > 1e-4:
                raise DataError(f"{path} does not belong to the result beside it: run the experiment again")
    return found


def right_by_clip(tables):
    """Share of each model's seeds that were right about each test clip.

    Parameters
    ----------
    tables : dict of str to DataFrame
        Name of a model to its `prediction_table`; the order of their clips may differ.

    Returns
    -------
    DataFrame, one row per clip, one column per model, 0 to 1; indexed by track_id, artist and genre

    Raises
    ------
    DataError
        If the models were tested on different clips.
    """
    if not tables:
        return pd.DataFrame(index=pd.MultiIndex.from_arrays([[]] * 3, names=["track_id", *COLUMNS]))
    first, one = next(iter(tables.items()))
    for name, table in tables.items():
        if set(table.index) != set(one.index) or not table["genre"].equals(one.loc[table.index, "genre"]):
            raise DataError(f"{name} was tested on other clips than {first}: train it on the same data")
    return pd.DataFrame({name: correctness(table.loc[one.index]) for name, table in tables.items()},
                        index=one.set_index(COLUMNS, append=True).index)


def compare_columns(right, weights):
    """Test weighted sums of accuracies against zero, and correct for their number.

    Parameters
    ----------
    right : DataFrame
        From `right_by_clip`.
    weights : list of dict of str to float
        For each test the weight of each model: ``{"a": 1, "b": -1}`` is a minus b.

    Returns
    -------
    DataFrame, one row per test: ``difference`` in points, its 95 % interval over artists (``low``, ``high``), ``p`` of
        the test that exchanges answers artist by artist (`evaluation.artist_flips`), and ``p (Holm)``
    """
    artists, zero = right.index.get_level_values("artist"), np.zeros(len(right))
    found = [compare(right[list(each)] @ pd.Series(each), zero, artists) for each in weights]
    table = pd.DataFrame([[100 * f["difference"], *(100 * np.array(f["interval"], dtype=float)), f["p_value"]]
                          for f in found], columns=["difference", "low", "high", "p"])
    return table.assign(**{"p (Holm)": holm(table["p"])})


def compare_predictions(tables, pairs=None):
    """Test pairs of models on the same test clips, and correct for their number.

    Parameters
    ----------
    tables : dict of str to DataFrame
        Name of a model to its `prediction_table`; the order of their clips may differ.
    pairs : list of (str, str), optional
        All by default.

    Returns
    -------
    DataFrame, one row per pair: ``a`` and ``b``, and the columns of `compare_columns` for a minus b
    """
    pairs = list(combinations(tables, 2)) if pairs is None else list(pairs)
    if not pairs:
        raise DataError("a comparison needs two models")
    right = right_by_clip({name: tables[name] for name in dict.fromkeys(name for pair in pairs for name in pair)})
    found = compare_columns(right, [{a: 1, b: -1} for a, b in pairs])
    return pd.concat([pd.DataFrame(pairs, columns=["a", "b"]), found], axis=1)
