"""What models said of each clip can be read again, and says which of them is better, artist by artist."""

import numpy as np
import pandas as pd
import pytest

from evaluation import compare
from fma import DataError
from study.predictions import compare_predictions, correctness, load_predictions, prediction_table

GENRES = np.array(["Folk", "Pop, \"indie\"", "NA"])


def run(seed, good=0.6, clips=60):
    """A run's test probabilities as `runs.load_probabilities` gives them: right on about a share of the clips."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % 3
    said = np.where(rng.random(clips) < good, labels, (labels + 1) % 3)
    return {"probabilities": np.eye(3)[said], "labels": labels, "tracks": np.arange(clips) * 7,
            "artists": (np.arange(clips) // 5).astype(str), "genres": GENRES}


@pytest.fixture
def table():
    return prediction_table([run(1), run(2)], [0, 5])


def test_predictions_survive_being_written(table, tmp_path):
    table.to_csv(tmp_path / "x.csv")
    again = load_predictions(tmp_path / "x.csv")
    pd.testing.assert_frame_equal(again, table.astype(str))     # a genre called NA is a genre
    assert list(again.columns) == ["artist", "genre", "seed0", "seed5"]


def test_correctness_is_the_share_of_seeds_that_were_right(table):
    right = [(r["probabilities"].argmax(1) == r["labels"]) for r in (run(1), run(2))]
    assert np.array_equal(correctness(table), np.mean(right, axis=0))


def test_models_are_compared_as_their_probabilities_are():
    a, b = [run(1, 0.9), run(2, 0.9)], [run(3, 0.5)]
    tables = {"a": prediction_table(a, [0, 1]), "b": prediction_table(b, [0]).sample(frac=1, random_state=0)}
    found = compare_predictions(tables).iloc[0]
    right = [np.mean([r["probabilities"].argmax(1) == r["labels"] for r in runs], axis=0) for runs in (a, b)]
    whole = compare(*right, a[0]["artists"])
    assert found["difference"] == pytest.approx(100 * whole["difference"])
    assert [found["low"], found["high"]] == pytest.approx([100 * end for end in whole["interval"]])
    assert found["p"] == found["p (Holm)"] == whole["p_value"] < 0.05 and found["difference"] > 0


def test_many_comparisons_are_corrected_for():
    tables = {name: prediction_table([run(k, good)], [0]) for k, (name, good) in
              enumerate([("a", 0.95), ("b", 0.5), ("c", 0.5)])}
    found = compare_predictions(tables)
    assert list(zip(found["a"], found["b"], strict=True)) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert (found["p (Holm)"] >= found["p"]).all() and found["p (Holm)"].min() >= 3 * found["p"].min() - 1e-12


@pytest.mark.parametrize("change", [lambda t: t.iloc[1:], lambda t: t.assign(genre=t["genre"].iloc[::-1].to_numpy())])
def test_other_clips_are_not_compared(table, change):
    with pytest.raises(DataError, match="^new was tested on other clips than old"):
        compare_predictions({"old": table, "new": change(table)})


@pytest.mark.parametrize("content", ["", "track_id,artist\n1,2\n", "track_id,artist,genre,seed0\n", "\x00\xff",
                                     "track_id,artist,genre,seed0\n7,a,Folk,Folk\n7,a,Folk,Rock\n",
                                     f"track_id,artist,genre,seed0\n{10**30},a,Folk,Folk\n"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    path = tmp_path / "x.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match="x.csv") as error:
        load_predictions(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="x.csv not found: run the experiment again"):
        load_predictions(tmp_path / "x.csv")
