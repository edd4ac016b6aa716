"""What moves a figure, against the bootstrap, textbook formulas and constructed answers."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from evaluation import bootstrap_interval
from study.marked_tables import marked_tables
from study.variance import clips_needed, clustered_error, variance_table


def answered(right, artists=None):
    """A prediction table; right: (clips, seeds)."""
    said = {f"seed{k}": np.where(column, "Jazz", "Rap") for k, column in enumerate(np.asarray(right).T)}
    artists = np.arange(len(right)) if artists is None else artists
    return pd.DataFrame({"artist": artists, "genre": "Jazz", **said})


def test_the_error_of_a_mean_over_artists_is_the_bootstraps():
    rng = np.random.default_rng(0)
    artists = rng.integers(200, size=600)
    right = rng.random(200)[artists] > rng.random(600)          # artists differ in how easy they are
    low, high = bootstrap_interval(right, artists)
    assert clustered_error(right, artists) == pytest.approx((high - low) / 3.92, rel=0.05)
    assert clustered_error(right, artists) > 1.2 * clustered_error(right, np.arange(600))


def test_the_clips_needed_are_those_of_the_formula_for_independent_answers():
    rng = np.random.default_rng(0)
    answers = {name: answered(rng.random((20_000, 1)) < 0.5) for name in "abcd"}
    table = clips_needed(answers)
    assert list(table.index) == ["two networks on the same clips, a seed of each",
                                 "two networks, each on clips of its own"]
    assert table["clips"].to_numpy() == pytest.approx(0.5 * (2.8016 / 0.02) ** 2, rel=0.02)
    assert (table["artists"] == table["clips"]).all()


def test_networks_that_agree_need_fewer_clips():
    base = np.random.default_rng(0).random((2000, 1)) < 0.5
    other = base.copy()
    other[:100] ^= True                                         # they differ on one clip in twenty
    same, apart = clips_needed({"a": answered(base), "b": answered(other)})["clips"]
    assert same < apart / 8


def test_what_moves_a_figure_is_read_from_results_and_answers():
    seeds = [{"seed": 0, "test": 0.5, "test_max": 0.56}, {"seed": 1, "test": 0.54, "test_max": 0.58}]
    results = [{"seeds": seeds, "folds": {"test_sd": 0.03}}, {"seeds": [{"seed": 0, "test": 0.4, "test_max": None}]}]
    table = variance_table(results, {"a": answered([[1], [1], [0], [0]], list("xxyy"))})
    assert table["points"].to_numpy() == pytest.approx([100 * np.std([0.5, 0.54], ddof=1), 3, 25, 35.355, 5], abs=1e-3)
    assert table["models"].tolist() == [1, 1, 1, 1, 1]
    assert list(variance_table([], {}).index) == []


def test_the_page_has_both_tables_of_the_real_results():
    text = marked_tables("<!-- variance allmusic -->\n<!-- end -->", ROOT / "results")
    assert "| test artists " in text and "| two networks, each on clips of its own " in text
    assert "AllMusic-492; 5 folds by artist" in text
