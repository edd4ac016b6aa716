"""Metrics agree with scikit-learn and SciPy; intervals and tests have the properties that they claim."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics

import evaluation as ev
from study.tables import format_table

ROOT = Path(__file__).resolve().parents[1]
GENRES = ["Electronic", "Folk", "Hip-Hop", "Rock"]


def fake(clips=200, classes=4, seeds=None, seed=0):
    """Labels, scores that lean towards them, and artists of four clips each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % classes
    scores = rng.random((seeds or 1, clips, classes))
    scores[:, np.arange(clips), labels] += 0.4
    scores /= scores.sum(-1, keepdims=True)
    return labels, scores if seeds else scores[0], np.arange(clips) // 4


def test_importing_it_loads_numpy_alone():
    code = ("import sys, evaluation; heavy = {'matplotlib', 'sklearn', 'scipy', 'pandas', 'torch'}; "
            "print(*heavy & set(sys.modules))")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


# ---- metrics

@given(st.integers(0, 10**6), st.integers(3, 8))
@settings(deadline=None, max_examples=30)
def test_multiclass_metrics_are_scikit_learns(seed, classes):
    labels, probabilities, artists = fake(120, classes, seed=seed)
    predictions = probabilities.argmax(1)
    summary = ev.summarise(labels, probabilities, artists, list(map(str, range(classes))))
    assert summary["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predictions), abs=1e-6)
    expected = metrics.roc_auc_score(labels, probabilities, multi_class="ovr", average=None)
    np.testing.assert_allclose(ev.genre_auc(labels, probabilities), expected)
    assert ev.macro_auc(labels, probabilities) == pytest.approx(expected.mean())


def test_a_genre_without_clips_has_no_auc_and_does_not_enter_the_mean():
    labels, probabilities, _ = fake(100, 4)
    seen = labels != 3
    areas = ev.genre_auc(labels[seen], probabilities[seen])
    assert np.isnan(areas).tolist() == [False, False, False, True]
    assert ev.macro_auc(labels[seen], probabilities[seen]) == pytest.approx(areas[:3].mean())
    assert np.isnan(ev.macro_auc([0, 0], [[.9, .1], [.5, .5]]))


def test_confusion_rows_are_true_genres():
    summary = ev.summarise([0, 0, 0], np.eye(3)[[1, 1, 2]], [0, 1, 2], GENRES[:3])
    assert summary["confusion"] == [[0, 2, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("call, message", [
    (lambda: ev.genre_auc([], np.empty((0, 3))), "do not fit"),
    (lambda: ev.genre_auc([0, 1], np.ones((3, 2))), r"\(3, 2\) do not fit labels of shape \(2,\)"),
    (lambda: ev.genre_auc([0, 2], np.ones((2, 2))), "labels must be integers from 0 to 1, got int64 from 0 to 2"),
    (lambda: ev.genre_auc([-1, 0], np.ones((2, 2))), "labels must be integers from 0 to 1, got int64 from -1"),
    (lambda: ev.genre_auc([0.0, 1.0], np.ones((2, 2))), "labels must be integers from 0 to 1, got float64"),
    (lambda: ev.genre_auc([0], [[np.nan, 1]]), "NaN: the network has diverged"),
    (lambda: ev.genre_auc([0, 1], np.ones((3, 2, 2))), "several seeds"),
    (lambda: ev.bootstrap_interval([]), "one per clip"),
    (lambda: ev.bootstrap_interval([0, 1], groups=[1]), "groups"),
    (lambda: ev.artist_flips([0, 1], [1]), "one per clip"),
    (lambda: ev.artist_flips([0, np.nan]), "no value NaN"),
    (lambda: ev.summarise([0, 1], np.eye(2), [0, 1], ["Rock"]), "1 genres for probabilities of 2 classes"),
])
def test_errors_say_what_is_wrong_in_a_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# ---- intervals

def clustered(rng, artists=60):
    """Correctness of 1 to 12 clips per artist; an artist's clips are alike. The true mean is 0.5."""
    sizes = rng.integers(1, 13, artists)
    artist = np.repeat(np.arange(artists), sizes)
    return rng.random(len(artist)) < rng.beta(.7, .7, artists)[artist], artist


def test_interval_over_artists_covers_the_truth_and_the_naive_one_does_not(monkeypatch):
    monkeypatch.setattr(ev, "RESAMPLES", 600)
    rng = np.random.default_rng(0)
    covered, naive, wider = 0, 0, 0
    for _ in range(200):
        correct, artist = clustered(rng)
        low, high = ev.bootstrap_interval(correct, artist)
        naive_low, naive_high = ev.bootstrap_interval(correct)
        covered += low <= 0.5 <= high
        naive += naive_low <= 0.5 <= naive_high
        wider += high - low > naive_high - naive_low
    assert 0.89 <= covered / 200 <= 0.99  # 95 %, a little less with 60 artists, ± 3 % over 200 trials
    assert naive / 200 < 0.75
    assert wider == 200


def test_interval_without_groups_is_near_the_normal_one():
    correct = np.arange(800) < 360
    half = 1.96 * np.sqrt(.45 * .55 / 800)
    assert ev.bootstrap_interval(correct) == pytest.approx((.45 - half, .45 + half), abs=0.003)


def test_interval_is_always_the_same_and_does_not_depend_on_the_order_of_clips():
    rng = np.random.default_rng(1)
    correct, artist = clustered(rng)
    first = ev.bootstrap_interval(correct, artist)
    assert ev.bootstrap_interval(correct, artist) == first
    order = rng.permutation(len(correct))
    assert ev.bootstrap_interval(correct[order], artist[order]) == pytest.approx(first, abs=1e-12)
    names = np.array([f"artist {a:03}" for a in artist])
    assert ev.bootstrap_interval(correct, names) == first


def test_resamples_are_whole_artists():
    low, high = ev.bootstrap_interval([1, 1, 1, 0], ["a", "a", "a", "b"])
    assert (low, high) == (0, 1)  # a alone or b alone, each in a quarter of the resamples
    assert np.isnan(ev.bootstrap_interval([1, 0, 1], ["a", "a", "a"])).all()


# ---- tests of difference

@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_flips_of_single_clips_are_mcnemars_binomial_test(clips):
    a, b = map(np.array, zip(*clips, strict=True))
    differences = a.astype(int) - b
    a_only, b_only = int((differences > 0).sum()), int((differences < 0).sum())
    exact = binomtest(a_only, a_only + b_only).pvalue if a_only + b_only else 1.0
    found = ev.artist_flips(differences)
    assert found == pytest.approx(exact) if a_only + b_only <= 14 else abs(found - exact) < 0.015
    assert ev.artist_flips(-differences) == found


def test_flips_go_by_artist():
    differences, artists = np.array([1, 1, 1, 0.5, 0.5, 1, 0, 0]), np.array(list("aaabbcdd"))
    # sums 3, 1, 1, 0: of the eight ways to flip three of them, two come to 5 or more, all up and all down
    assert ev.artist_flips(differences, artists) == ev.artist_flips(differences[::-1], artists[::-1]) == 0.25
    rng = np.random.default_rng(1)
    many, groups = rng.choice([-1, 0, 1, 1], 300), rng.integers(60, size=300)
    flipped = np.abs(np.bincount(groups, many) @ rng.choice([-1, 1], (60, 200_000)))
    assert ev.artist_flips(many, groups) == pytest.approx((flipped >= abs(many.sum())).mean(), abs=0.01)


def test_equal_models_are_seldom_called_different_though_artists_have_many_clips(monkeypatch):
    monkeypatch.setattr(ev, "FLIPS", 400)
    rng = np.random.default_rng(0)
    artists = np.repeat(np.arange(30), 10)
    by_artist, by_clip = [], []
    for _ in range(200):                            # an artist's clips all go one way, to either model alike
        differences = np.repeat(rng.choice([-1, 0, 1], 30), 10)
        by_artist.append(ev.artist_flips(differences, artists) <= 0.05)
        by_clip.append(ev.artist_flips(differences) <= 0.05)
    assert np.mean(by_artist) < 0.1 < 0.3 < np.mean(by_clip)


def test_models_that_agree_on_every_artist_do_not_differ():
    assert ev.artist_flips([1, -1, 0, 0], list("aabb")) == 1.0


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1 gives .02 .03 .06 .04, never below the one before
    np.testing.assert_allclose(ev.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert ev.holm([0.9, 0.8]).tolist() == [1, 1]
    assert ev.holm([0.02]).tolist() == [0.02]


def test_compare_pairs_the_clips():
    labels, a, artists = fake(seeds=3)
    _, b, _ = fake(seeds=2, seed=9)
    right = [(scores.argmax(-1) == labels).mean(0) for scores in (a, b)]
    result = ev.compare(*right, artists)
    assert result["difference"] == pytest.approx(right[0].mean() - right[1].mean(), abs=1e-6)
    assert result["interval"][0] < result["difference"] < result["interval"][1]
    assert result["p_value"] == round(ev.artist_flips(right[0] - right[1], artists), 6)
    same = ev.compare(right[0], right[0], artists)
    assert same["interval"] == [0, 0] and same["p_value"] == 1
    json.dumps(result)


# ---- summaries and tables

def test_summary_of_several_seeds():
    labels, probabilities, artists = fake(seeds=3)
    summary = ev.summarise(labels, probabilities, artists, GENRES)
    each = [metrics.accuracy_score(labels, p.argmax(1)) for p in probabilities]
    assert (summary["clips"], summary["artists"], summary["seeds"]) == (200, 50, 3)
    assert summary["accuracy"] == pytest.approx(np.mean(each), abs=1e-6)
    assert summary["accuracy_sd"] == pytest.approx(np.std(each, ddof=1), abs=1e-6)
    assert summary["accuracy_per_seed"] == pytest.approx(each, abs=1e-6)
    assert summary["macro_auc"] == pytest.approx(
        np.mean([metrics.roc_auc_score(labels, p, multi_class="ovr") for p in probabilities]), abs=1e-6)
    correct = (probabilities.argmax(-1) == labels).mean(0)
    assert summary["interval"] == pytest.approx(ev.bootstrap_interval(correct, artists), abs=1e-6)
    confusion = np.array(summary["confusion"])
    expected = [metrics.confusion_matrix(labels, p.argmax(1)) for p in probabilities]
    assert np.array_equal(confusion, np.sum(expected, 0))
    recall = confusion.diagonal() / confusion.sum(1)
    assert [summary["genres"][g]["accuracy"] for g in GENRES] == pytest.approx(recall, abs=1e-6)
    for figure, of in (("balanced_accuracy", metrics.balanced_accuracy_score),
                       ("macro_f1", partial(metrics.f1_score, average="macro"))):
        oracle = [of(labels, p.argmax(-1)) for p in probabilities]
        assert summary[figure] == pytest.approx(np.mean(oracle), abs=1e-6)
        assert summary[f"{figure}_sd"] == pytest.approx(np.std(oracle, ddof=1), abs=1e-6)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_summary_of_one_run_with_a_genre_missing_and_one_artist_is_still_json():
    summary = ev.summarise([0, 0, 1], np.eye(3)[[0, 1, 1]], ["x"] * 3, GENRES[:3])
    assert summary["accuracy_sd"] is None and summary["interval"] == [None, None]
    missing = {"clips": 0, "accuracy": None, "interval": [None, None], "auc": None}
    assert summary["genres"]["Hip-Hop"] == missing
    json.dumps(summary, allow_nan=False)
    assert ev.format_accuracy(summary) == "66.7" and ev.format_interval(summary["interval"]) == "–"


def test_summary_of_a_run_is_that_of_one_seed():
    labels, probabilities, artists = fake()
    one = ev.summarise(labels, probabilities, artists, GENRES)
    assert one == ev.summarise(labels, probabilities[None], artists, GENRES)
    assert ev.summarise(labels, probabilities, None, GENRES)["artists"] is None


def test_table_lines_up_and_is_markdown():
    rows = [["CNN | wide", "45.5 ± 0.4", None, 0.5], ["B", "**51.1**", "42.1 – 48.9", 12]]
    table = format_table(rows, ["network", "test", "interval", "p"])
    lines = table.split("\n")
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "|:------------|-----------:|------------:|----:|"
    assert r"CNN \| wide" in lines[2] and "| 45.5 ± 0.4 |           – | 0.5 |" in lines[2]
    assert format_table([], ["a", "b"]).count("\n") == 1
