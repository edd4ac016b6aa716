"""The splits that are compared are what they are called, and their figures are kept."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from study import random_splits

ROOT = Path(__file__).resolve().parents[2]


class Clips:
    """60 clips of 20 artists, who have three each; the genre is the artist's, and one column betrays the artist."""

    name = "clips"
    artists = np.repeat(np.arange(20), 3)
    labels = np.random.default_rng(0).integers(0, 4, 20)[artists]
    values = artists[:, None] + np.random.default_rng(1).normal(0, 0.05, (60, 1))
    rows = dict(zip(("training", "validation", "test"), np.split(np.arange(60), (36, 48)), strict=True))


def test_random_splits_are_as_large_and_keep_artists_apart_only_where_they_say_so():
    dealt = list(random_splits.random_splits(Clips))
    assert [way for way, *_ in dealt] == ["official split"] + 5 * ["artists at random"] + 5 * ["clips at random"]
    for way, training, test in dealt:
        assert (len(training), len(test)) == (36, 12)
        assert not set(training) & set(test)
        shared = set(Clips.artists[training]) & set(Clips.artists[test])
        assert bool(shared) == (way == "clips at random")


def test_artists_on_both_sides_raise_the_accuracy_of_who_knows_artists_only():
    found = random_splits.accuracies_by_split(Clips).groupby("split").mean()
    assert found.loc["clips at random", "RandomForest"] > found.loc["artists at random", "RandomForest"] + 0.15
    assert found.loc["clips at random", "artist in training"] > 0.8
    assert found.loc["artists at random", "artist in training"] == 0


@pytest.mark.parametrize("name", ["SVC", "RandomForest", "LDA"])
def test_notebook_shows_the_figures_in_results(name):
    kept = pd.read_csv(ROOT / "results" / "fma_small" / "random_splits.csv")
    shown = (ROOT / "notebooks" / "base_models.ipynb").read_text(encoding="utf-8")
    for way, mean in kept.groupby("split")[name].mean().items():
        assert f"{100 * mean:.1f}" in shown, f"{way}: render base_models again"
