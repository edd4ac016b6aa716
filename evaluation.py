"""Metrics, intervals and tests of difference.

``labels`` are genre indices, one per clip. ``probabilities`` have one column per genre; any score works (logits, an
SVM's decision function): the highest is the prediction, and an AUC uses only their order.

The interval beside an accuracy shows how much it would vary with other artists: artists are resampled with all
their clips, because clips of one artist resemble each other. The standard deviation over seeds shows how much it
varies when the same network is trained again.
"""

import numpy as np

RESAMPLES = 10_000      # of the artists, for an interval
FLIPS = 20_000          # of the signs, for a p-value


def _check(labels, probabilities):
    """Both as arrays, scores as (seeds, clips, classes); a one-line ValueError if they do not fit."""
    labels, scores = np.asarray(labels), np.asarray(probabilities, dtype=float)
    if labels.ndim != 1 or scores.ndim not in (2, 3) or scores.shape[-2] != len(labels) or scores.size == 0:
        raise ValueError(f"probabilities of shape {scores.shape} do not fit labels of shape {labels.shape}: "
                         "expected (clips, classes) or (seeds, clips, classes), and one label per clip")
    if np.isnan(scores).any():
        raise ValueError(f"probabilities contain {np.isnan(scores).sum()} NaN: the network has diverged")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= scores.shape[-1]:
        raise ValueError(f"labels must be integers from 0 to {scores.shape[-1] - 1}, "
                         f"got {labels.dtype} from {labels.min()} to {labels.max()}")
    return labels, scores.reshape(-1, *scores.shape[-2:])


def genre_auc(labels, probabilities):
    """Area under the ROC curve of each genre against all others [1]_.

    Parameters
    ----------
    labels : array of int, (clips,)
    probabilities : array, (clips, classes)
        Of one run.

    Returns
    -------
    array, (classes,)
        0 to 1: how often a clip of the genre outscores one of another genre, a tie counting half. NaN for a genre
        without clips, or with all of them.

    References
    ----------
    .. [1] J. A. Hanley and B. J. McNeil, "The meaning and use of the area under a receiver operating
       characteristic (ROC) curve", Radiology 143(1), 1982.

    Examples
    --------
    >>> genre_auc([0, 1, 1], [[.9, .1], [.8, .2], [.3, .7]]).tolist()
    [1.0, 1.0]
    """
    from sklearn.metrics import roc_auc_score

    labels, scores = _check(labels, probabilities)
    if len(scores) > 1:
        raise ValueError("expected one run, got several seeds: pass probabilities[k], or use summarise")
    return np.array([roc_auc_score(labels == k, column) if 0 < (labels == k).sum() < len(labels) else float("nan")
                     for k, column in enumerate(scores[0].T)])


def macro_auc(labels, probabilities):
    """Mean of `genre_auc` over the genres that have clips; NaN if fewer than two have.

    Each genre counts the same. Hand and Till's M [1]_, an average over pairs of genres, is a different number.

    References
    ----------
    .. [1] D. J. Hand and R. J. Till, "A simple generalisation of the area under the ROC curve for multiple
       class classification problems", Machine Learning 45(2), 2001.

    Examples
    --------
    >>> macro_auc([0, 1, 1], [[.9, .1], [.8, .2], [.3, .7]])
    1.0
    """
    areas = genre_auc(labels, probabilities)
    return float(areas[~np.isnan(areas)].mean()) if not np.isnan(areas).all() else float("nan")


def largest_share(genres):
    """Share of the largest genre among the clips, the accuracy of always predicting it: chance.

    >>> largest_share({"Folk": {"clips": 30}, "Rock": {"clips": 10}})
    0.75
    """
    clips = [genre["clips"] for genre in genres.values()]
    return max(clips) / sum(clips)


def _group_totals(values, groups):
    """Sum of the values in each group, and its number of clips; without groups, each clip is its own."""
    values = np.asarray(values, dtype=float)
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    if values.ndim != 1 or groups.shape != values.shape or values.size == 0 or np.isnan(values).any():
        raise ValueError(f"values {values.shape} and groups {groups.shape} must be one per clip, no value NaN")
    _, group = np.unique(groups, return_inverse=True)
    return np.bincount(group, values), np.bincount(group).astype(float)


def bootstrap_interval(values, groups=None):
    """95 % percentile bootstrap interval of a mean over clips, resampling whole groups [1]_, [2]_.

    Parameters
    ----------
    values : array, (clips,)
        Correctness of each clip (0 or 1, or its mean over seeds), or the difference of two models' correctness.
    groups : array, (clips,), optional
        Artist of each clip: artists are drawn with replacement, each with all its clips. By default clips are
        drawn, which gives too narrow an interval where an artist has several.

    Returns
    -------
    low, high : float
        With fewer than about 30 groups, less than 95 % of such intervals contain the true mean. NaN with a single
        group.

    References
    ----------
    .. [1] B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    .. [2] A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.

    Examples
    --------
    >>> correct = np.repeat([1, 0, 1, 1, 0, 1], 10)
    >>> low, high = bootstrap_interval(correct)
    >>> f"{low:.2f} {high:.2f}"
    '0.55 0.78'
    >>> low, high = bootstrap_interval(correct, groups=np.repeat(list("abcdef"), 10))
    >>> f"{low:.2f} {high:.2f}"
    '0.33 1.00'
    """
    totals, sizes = _group_totals(values, groups)
    if len(sizes) == 1:
        return float("nan"), float("nan")
    rng, means = np.random.default_rng(0), np.empty(RESAMPLES)
    step = max(1, 2**18 // len(sizes))  # resamples at once: a few MiB, whatever the number of clips
    for start in range(0, RESAMPLES, step):
        part = means[start:start + step]
        drawn = rng.integers(len(sizes), size=(len(part), len(sizes)))
        part[:] = totals[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def artist_flips(differences, groups=None):
    """Two-sided permutation test of whether two models are right equally often on the same clips [1]_.

    If the models are equally good, exchanging their answers to all clips of one artist changes nothing on average.
    So the sign of each artist's sum is flipped at random, and the p-value is the share of flips whose total is at
    least as large as the observed one. With 14 groups or fewer, all possible flips are counted instead. Without groups,
    and with one run of each, this is McNemar's test [2]_, which takes clips of one artist to be independent.

    Parameters
    ----------
    differences : array, (clips,)
        Correctness of model a minus that of model b: each 0 or 1, or a mean over seeds.
    groups : array, (clips,), optional
        Artist of each clip; by default each clip is its own group.

    Returns
    -------
    p_value : float
        At least 1 / (FLIPS + 1) where flips are random.

    References
    ----------
    .. [1] P. Good, "Permutation, Parametric and Bootstrap Tests of Hypotheses", 2005, chapter 3.
    .. [2] Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
       percentages", Psychometrika 12(2), 1947.

    Examples
    --------
    >>> artist_flips([1, 1, 1, 1, 1, 1, -1, 0])
    0.125
    >>> artist_flips([1, 1, 1, 1, 1, 1, -1, 0], groups=list("aabbccdd"))
    0.25
    """
    totals, _ = _group_totals(differences, groups)
    totals = totals[np.abs(totals) > 1e-9]          # flipping a sum of zero changes nothing
    found, count = abs(totals.sum()) - 1e-9, len(totals)
    if count <= 14:
        flips = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float((np.abs((1 - 2 * flips) @ totals) >= found).mean())
    rng, as_large = np.random.default_rng(0), 0
    step = max(1, 2**20 // count)
    for start in range(0, FLIPS, step):
        flips = rng.integers(2, size=(min(step, FLIPS - start), count), dtype=np.int8)
        as_large += int((np.abs((1.0 - 2 * flips) @ totals) >= found).sum())
    return (as_large + 1) / (FLIPS + 1)


def holm(p_values):
    """Adjust p-values for several tests at once, by Holm's step-down method [1]_.

    If the differences with an adjusted p-value of at most 0.05 are called significant, the probability of even one
    false positive is at most 5 %.

    Parameters
    ----------
    p_values : array, (tests,), 0 to 1

    Returns
    -------
    array, (tests,), in the order given

    References
    ----------
    .. [1] S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
       Statistics 6(2), 1979.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    result = np.empty_like(p_values)
    result[order] = np.minimum(adjusted, 1)
    return result


def compare(right_a, right_b, artists=None):
    """Compare two models on the same clips. Give `holm` the p-values of several comparisons.

    Parameters
    ----------
    right_a, right_b : array, (clips,)
        Share of each model's seeds that were right about each clip, 0 to 1.
    artists : array, (clips,), optional

    Returns
    -------
    dict
        ``difference`` of mean accuracy, a minus b, its 95 % bootstrap ``interval`` over artists, and the
        ``p_value`` of `artist_flips`.

    Examples
    --------
    >>> compare([1, 1, 1, 1], [0, 1, 0, 0])["difference"]
    0.75
    """
    difference = np.asarray(right_a) - np.asarray(right_b)
    return {"difference": _plain(difference.mean()), "interval": _plain(bootstrap_interval(difference, artists)),
            "p_value": _plain(artist_flips(difference, artists))}


def _plain(value):
    """Python numbers for JSON, rounded to six decimals so that files do not depend on the machine; NaN is None."""
    if np.ndim(value):
        return [_plain(v) for v in value]
    return None if np.isnan(value) else round(float(value), 6)


def _spread(values):
    """Standard deviation over seeds; None with one seed."""
    return _plain(np.std(values, ddof=1)) if len(values) > 1 else None


def _genre(right, groups, auc):
    """Figures of one genre's clips, None where it has none."""
    recall, interval = np.nan, [np.nan, np.nan]
    if right.size:
        recall, interval = right.mean(), bootstrap_interval(right.mean(0), groups)
    return {"clips": right.shape[1], "accuracy": _plain(recall), "interval": _plain(interval), "auc": _plain(auc)}


def summarise(labels, probabilities, artists, genres):
    """All metrics of one model on one set of clips, ready for JSON.

    Parameters
    ----------
    labels : array of int, (clips,)
    probabilities : array, (clips, classes) or (seeds, clips, classes)
    artists : array, (clips,), or None
        None if they are unknown: intervals are then over clips.
    genres : list of str, (classes,)

    Returns
    -------
    dict
        ``clips``, ``artists``, ``seeds``: their numbers; ``accuracy``, ``macro_auc``, ``balanced_accuracy`` (mean
        recall over genres) and ``macro_f1``: means over seeds; with ``_sd``: standard deviations, None with one seed;
        ``accuracy_per_seed``, ``macro_auc_per_seed``; ``interval``: 95 % interval of ``accuracy`` over
        artists; ``genres``: ``clips``, ``accuracy`` (recall), ``interval`` and ``auc`` of each;
        ``confusion``: counts summed over seeds, one row per true genre. None where there is no value.

    Examples
    --------
    >>> clips = np.eye(2)[[0, 1, 1, 1]]
    >>> summary = summarise([0, 0, 1, 1], clips, artists=[7, 8, 9, 9], genres=["Folk", "Rock"])
    >>> summary["accuracy"], summary["artists"], summary["confusion"]
    (0.75, 3, [[1, 1], [0, 2]])
    >>> summary["genres"]["Folk"]
    {'clips': 2, 'accuracy': 0.5, 'interval': [0.0, 1.0], 'auc': 0.75}
    """
    from sklearn.metrics import confusion_matrix, f1_score, recall_score

    labels, scores = _check(labels, probabilities)
    groups = np.arange(len(labels)) if artists is None else np.asarray(artists)
    if len(genres) != scores.shape[-1]:
        raise ValueError(f"{len(genres)} genres for probabilities of {scores.shape[-1]} classes")
    predictions = scores.argmax(-1)  # (seeds, clips)
    right = predictions == labels
    areas = np.array([genre_auc(labels, s) for s in scores])  # (seeds, classes)
    macro = [macro_auc(labels, s) for s in scores]
    present = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}     # of genres that have clips
    balanced, f1 = ([metric(labels, p, **present) for p in predictions] for metric in (recall_score, f1_score))
    return {
        "clips": len(labels), "artists": None if artists is None else len(np.unique(groups)), "seeds": len(scores),
        "accuracy": _plain(right.mean()), "accuracy_sd": _spread(right.mean(1)),
        "interval": _plain(bootstrap_interval(right.mean(0), groups)),
        "macro_auc": _plain(np.mean(macro)), "macro_auc_sd": _spread(macro),
        "balanced_accuracy": _plain(np.mean(balanced)), "balanced_accuracy_sd": _spread(balanced),
        "macro_f1": _plain(np.mean(f1)), "macro_f1_sd": _spread(f1),
        "accuracy_per_seed": _plain(right.mean(1)), "macro_auc_per_seed": _plain(macro),
        "genres": {genre: _genre(right[:, labels == k], groups[labels == k], areas[:, k].mean())
                   for k, genre in enumerate(genres)},
        "confusion": sum(confusion_matrix(labels, p, labels=range(len(genres))) for p in predictions).tolist(),
    }


def format_accuracy(summary):
    """Mean accuracy and standard deviation over seeds, in per cent.

    >>> format_accuracy({"accuracy": 0.4553, "accuracy_sd": 0.0041})
    '45.5 ± 0.4'
    >>> format_accuracy({"accuracy": 0.4553, "accuracy_sd": None})
    '45.5'
    """
    mean, spread = summary["accuracy"], summary.get("accuracy_sd")
    return f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def format_interval(interval):
    """An interval in per cent; a dash for None.

    >>> format_interval([0.421, 0.489])
    '42.1 – 48.9'
    """
    if interval is None or any(end is None or np.isnan(end) for end in interval):
        return "–"
    return f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}"
