"""Metrics, intervals and tests of difference, in NumPy alone.

``labels`` are genre indices, one per clip. ``probabilities`` have one column per genre; any score will do
(logits, an SVM's decision function) as the highest is the prediction and only the order enters an AUC.

The interval beside a figure says how far it would move with other artists: artists are resampled, each with all
its clips, because clips of one artist resemble one another. The standard deviation over seeds is another matter: how
far it moves when the same network is trained again.
"""

import numpy as np


def _check(labels, probabilities):
    """Both as arrays, scores as (seeds, clips, classes); a ValueError in one line if they do not fit."""
    labels, scores = np.asarray(labels), np.asarray(probabilities, dtype=float)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"labels must be one integer per clip, at least one: got shape {labels.shape}")
    if scores.ndim not in (2, 3) or scores.shape[-2] != len(labels) or scores.size == 0:
        raise ValueError(f"probabilities of shape {scores.shape} do not fit {len(labels)} labels: "
                         "expected (clips, classes) or (seeds, clips, classes)")
    if np.isnan(scores).any():
        raise ValueError(f"probabilities hold {np.isnan(scores).sum()} NaN: the network has diverged")
    _check_indices(labels, scores.shape[-1], "labels")
    return labels, scores.reshape(-1, *scores.shape[-2:])


def _check_indices(values, n_classes, name):
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {values.dtype}")
    if values.min() < 0 or values.max() >= n_classes:
        raise ValueError(f"{name} go from {values.min()} to {values.max()}, outside 0 to {n_classes - 1}")


def _check_single(scores):
    if len(scores) > 1:
        raise ValueError("one run at a time here, got several seeds: pass probabilities[k], or use summarise")
    return scores[0]


def accuracy(labels, probabilities):
    """Share of clips whose highest-scoring genre is the true one.

    Parameters
    ----------
    labels : array of int, (clips,)
    probabilities : array, (clips, classes) or (seeds, clips, classes)
        With seeds, the mean over them. Of equal scores the first class wins.

    Returns
    -------
    float, 0 to 1

    Examples
    --------
    >>> accuracy([0, 1, 1, 1], [[.9, .1], [.8, .2], [.3, .7], [.4, .6]])
    0.75
    """
    labels, scores = _check(labels, probabilities)
    return float((scores.argmax(-1) == labels).mean())


def confusion_matrix(labels, predictions, n_classes):
    """Count clips by true genre (row) and predicted genre (column).

    Parameters
    ----------
    labels, predictions : array of int, (clips,), in 0 .. n_classes - 1
    n_classes : int

    Returns
    -------
    array of int, (n_classes, n_classes)

    Examples
    --------
    >>> confusion_matrix([0, 0, 1], [0, 1, 1], n_classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape or labels.size == 0:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} must be one per clip")
    _check_indices(labels, n_classes, "labels")
    _check_indices(predictions, n_classes, "predictions")
    counts = np.bincount(labels.astype(int) * n_classes + predictions, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def balanced_accuracy(confusion):
    """Mean over genres of the share of their clips that are recognised (recall): every genre counts alike [1]_.

    Parameters
    ----------
    confusion : array of int, (classes, classes)
        From `confusion_matrix`. A genre without clips is left out.

    References
    ----------
    .. [1] K. H. Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010.

    Examples
    --------
    >>> balanced_accuracy([[9, 1], [1, 1]])
    0.7
    """
    counts = np.asarray(confusion)
    there = counts.sum(1) > 0
    return float((counts.diagonal()[there] / counts.sum(1)[there]).mean())


def macro_f1(confusion):
    """Mean over genres of F1, the harmonic mean of recall and precision; parameters as for `balanced_accuracy`.

    >>> macro_f1([[2, 0], [1, 1]])
    0.7333333333333334
    """
    counts = np.asarray(confusion)
    there = counts.sum(1) > 0
    return float((2 * counts.diagonal() / (counts.sum(0) + counts.sum(1)).clip(1))[there].mean())


def largest_share(genres):
    """Share of the clips that are of the largest genre, which is what always naming it would get: chance.

    >>> largest_share({"Folk": {"clips": 30}, "Rock": {"clips": 10}})
    0.75
    """
    clips = [genre["clips"] for genre in genres.values()]
    return max(clips) / sum(clips)


def _check_binary(is_positive, scores):
    is_positive, scores = np.asarray(is_positive), np.asarray(scores, dtype=float)
    if is_positive.ndim != 1 or is_positive.shape != scores.shape or scores.size == 0:
        raise ValueError(f"is_positive {is_positive.shape} and scores {scores.shape} must be one per clip")
    if np.isnan(scores).any() or not np.isin(is_positive, (0, 1)).all():
        raise ValueError("is_positive must be true or false for each clip, and no score NaN")
    return is_positive.astype(bool), scores


def roc_curve(is_positive, scores):
    """Points of the receiver operating characteristic, one per distinct score [1]_.

    Parameters
    ----------
    is_positive : array of bool, (clips,)
    scores : array, (clips,), higher = more likely positive

    Returns
    -------
    false_positive_rate, true_positive_rate, thresholds : array, (points,)
        From (0, 0) at threshold inf to (1, 1). A rate is NaN where there is no clip to divide by.

    References
    ----------
    .. [1] T. Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27(8), 2006.

    Examples
    --------
    >>> false_alarms, hits, thresholds = roc_curve([True, False, True], [.9, .5, .4])
    >>> false_alarms.tolist(), hits.tolist()
    ([0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0])
    """
    is_positive, scores = _check_binary(is_positive, scores)
    order = np.argsort(-scores, kind="stable")
    is_positive, scores = is_positive[order], scores[order]
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # clips that tie move as one
    hits = np.cumsum(is_positive)[last]
    false_alarms = last + 1 - hits
    with np.errstate(invalid="ignore"):
        rates = [np.append(0, counts) / counts[-1] for counts in (false_alarms, hits)]
    return *rates, np.append(np.inf, scores[last])


def roc_auc(is_positive, scores):
    """Area under the ROC curve: how often a positive clip outscores a negative one, a tie counting half [1]_.

    Parameters
    ----------
    is_positive : array of bool, (clips,)
    scores : array, (clips,), higher = more likely positive

    Returns
    -------
    float, 0 to 1; 0.5 is chance, NaN if all clips or none are positive

    References
    ----------
    .. [1] J. A. Hanley and B. J. McNeil, "The meaning and use of the area under a receiver operating
       characteristic (ROC) curve", Radiology 143(1), 1982.

    Examples
    --------
    >>> roc_auc([True, False, True, False], [.9, .5, .5, .1])
    0.875
    """
    is_positive, scores = _check_binary(is_positive, scores)
    n_positive = int(is_positive.sum())
    n_negative = len(scores) - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]  # from 1; tied scores share their mean rank
    wins = ranks[is_positive].sum() - n_positive * (n_positive + 1) / 2
    return float(wins / (n_positive * n_negative))


def genre_auc(labels, probabilities):
    """Area under the ROC curve of each genre against all others.

    Parameters
    ----------
    labels : array of int, (clips,)
    probabilities : array, (clips, classes)

    Returns
    -------
    array, (classes,), NaN for a genre without clips

    Examples
    --------
    >>> genre_auc([0, 1, 1], [[.9, .1], [.8, .2], [.3, .7]]).tolist()
    [1.0, 1.0]
    """
    labels, scores = _check(labels, probabilities)
    return np.array([roc_auc(labels == k, column) for k, column in enumerate(_check_single(scores).T)])


def macro_auc(labels, probabilities):
    """Mean of `genre_auc` over the genres that have clips; NaN if fewer than two have.

    One genre against the rest, each genre counting the same. Hand and Till's M [1]_ averages over pairs of
    genres instead, and is another number.

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


def bootstrap_interval(values, groups=None, level=0.95, n_resamples=10_000, seed=0):
    """Percentile bootstrap interval of a mean over clips, resampling whole groups [1]_, [2]_.

    Parameters
    ----------
    values : array, (clips,)
        Correctness of each clip (0 or 1, or its mean over seeds), or the difference of two models' there.
    groups : array, (clips,), optional
        Artist of each clip: artists are drawn with replacement, each with all its clips. By default clips are
        drawn, which is too narrow where an artist has several.
    level : float, 0 to 1
        Share of such intervals that should hold the true mean; fewer do with less than about 30 groups.
    n_resamples : int
    seed : int

    Returns
    -------
    low, high : float
        NaN with a single group, which says nothing about how groups vary.

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
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0 or np.isnan(values).any():
        raise ValueError(f"values must be one number per clip, none NaN: got shape {values.shape}")
    if not 0 < level < 1 or n_resamples < 1:
        raise ValueError(f"level {level} must lie between 0 and 1, n_resamples {n_resamples} above 0")
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    if groups.shape != values.shape:
        raise ValueError(f"groups {groups.shape} and values {values.shape} must be one per clip")
    _, group = np.unique(groups, return_inverse=True)
    totals, sizes = np.bincount(group, values), np.bincount(group).astype(float)
    if len(sizes) == 1:
        return float("nan"), float("nan")
    rng, means = np.random.default_rng(seed), np.empty(n_resamples)
    step = max(1, 2**18 // len(sizes))  # resamples at once: a few MiB, whatever the number of clips
    for start in range(0, n_resamples, step):
        part = means[start:start + step]
        drawn = rng.integers(len(sizes), size=(len(part), len(sizes)))
        part[:] = totals[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def artist_flips(differences, groups=None, n_flips=20_000, seed=0):
    """Two-sided test that two models are right equally often on the same clips, by swapping them artist by artist [1]_.

    If the models were equally good, exchanging their answers to all clips of one artist would be as likely as
    not. So the sign of each artist's sum is flipped at random, and the p-value is the share of such flips whose
    total is as large as the one that was found. Without groups, and with single answers, this is McNemar's test [2]_,
    which takes clips of one artist to be independent.

    Parameters
    ----------
    differences : array, (clips,)
        Correctness of model a minus that of model b: each 0 or 1, or a mean over seeds.
    groups : array, (clips,), optional
        Artist of each clip; by default each clip stands by itself.
    n_flips : int
        Random flips; all there are where these are fewer than 2 ** 14.
    seed : int

    Returns
    -------
    p_value : float
        1 / (n_flips + 1) at least, if not exact.

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
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or values.size == 0 or np.isnan(values).any():
        raise ValueError(f"differences must be one number per clip, none NaN: got shape {values.shape}")
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    if groups.shape != values.shape:
        raise ValueError(f"groups {groups.shape} and differences {values.shape} must be one per clip")
    totals = np.bincount(np.unique(groups, return_inverse=True)[1], values)
    totals = totals[np.abs(totals) > 1e-9]          # an artist on whom the models are equal flips into itself
    found, count = abs(totals.sum()) - 1e-9, len(totals)
    if count <= 14:
        flips = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float((np.abs((1 - 2 * flips) @ totals) >= found).mean())
    rng, as_large = np.random.default_rng(seed), 0
    step = max(1, 2**20 // count)
    for start in range(0, n_flips, step):
        flips = rng.integers(2, size=(min(step, n_flips - start), count), dtype=np.int8)
        as_large += int((np.abs((1.0 - 2 * flips) @ totals) >= found).sum())
    return (as_large + 1) / (n_flips + 1)


def holm(p_values):
    """Adjust p-values for testing several hypotheses at once, by Holm's step-down method [1]_.

    Call those differences real whose adjusted p-value is at most 0.05: then the chance of calling even one
    real that is not is at most 5 %.

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
    if p_values.ndim != 1 or p_values.size == 0 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError("p_values must be numbers from 0 to 1, at least one")
    order = np.argsort(p_values)
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    result = np.empty_like(p_values)
    result[order] = np.minimum(adjusted, 1)
    return result


def compare(labels, probabilities_a, probabilities_b, artists=None):
    """Is model a better than model b on the same clips? Give `holm` the p-values of several comparisons.

    Parameters
    ----------
    labels : array of int, (clips,)
    probabilities_a, probabilities_b : array, (clips, classes) or (seeds, clips, classes)
        Numbers of seeds may differ.
    artists : array, (clips,), optional

    Returns
    -------
    dict
        ``difference`` of mean accuracy, a minus b, its 95 % bootstrap ``interval`` over artists, and the
        ``p_value`` of `artist_flips`: all three of correctness averaged over each model's seeds.

    Examples
    --------
    >>> a, b = np.eye(2)[[0, 1, 1, 0, 1, 0]], np.eye(2)[[0, 0, 0, 1, 1, 0]]
    >>> result = compare([0, 1, 1, 0, 0, 0], a, b)
    >>> result["difference"], result["p_value"]
    (0.5, 0.25)
    """
    right = []
    for probabilities in (probabilities_a, probabilities_b):
        labels, scores = _check(labels, probabilities)
        right.append((scores.argmax(-1) == labels).mean(0))
    return compare_correctness(*right, artists)


def compare_correctness(right_a, right_b, artists=None):
    """As `compare`, of the share of seeds, 0 to 1, that were right about each clip: arrays (clips,)."""
    difference = np.asarray(right_a) - np.asarray(right_b)
    return {"difference": _plain(difference.mean()), "interval": _plain(bootstrap_interval(difference, artists)),
            "p_value": _plain(artist_flips(difference, artists))}


def _plain(value):
    """Python numbers for JSON: six decimals, so that a file does not change with the machine; NaN is None."""
    if np.ndim(value):
        return [_plain(v) for v in value]
    return None if np.isnan(value) else round(float(value), 6)


def _spread(values):
    """Standard deviation over seeds, which one seed does not have."""
    return _plain(np.std(values, ddof=1)) if len(values) > 1 else None


def summarise(labels, probabilities, artists, genres):
    """All figures of one model on one set of clips, ready for JSON.

    Parameters
    ----------
    labels : array of int, (clips,)
    probabilities : array, (clips, classes) or (seeds, clips, classes)
    artists : array, (clips,), or None
        Artist of each clip; None if they are unknown: intervals are then over clips.
    genres : list of str, (classes,)

    Returns
    -------
    dict
        ``clips``, ``artists``, ``seeds``: how many; ``accuracy``, ``macro_auc``, ``balanced_accuracy`` and
        ``macro_f1``: means over seeds; ``accuracy_sd`` and so on: standard deviations over seeds, None with one;
        ``accuracy_per_seed``, ``macro_auc_per_seed``; ``interval``: 95 % interval of ``accuracy`` over
        artists; ``genres``: for each its ``clips``, ``accuracy`` (recall), ``interval`` and ``auc``;
        ``confusion``: counts summed over seeds, rows true. What cannot be computed is None.

    Examples
    --------
    >>> clips = np.eye(2)[[0, 1, 1, 1]]
    >>> summary = summarise([0, 0, 1, 1], clips, artists=[7, 8, 9, 9], genres=["Folk", "Rock"])
    >>> summary["accuracy"], summary["artists"], summary["confusion"]
    (0.75, 3, [[1, 1], [0, 2]])
    >>> summary["genres"]["Folk"]
    {'clips': 2, 'accuracy': 0.5, 'interval': [0.0, 1.0], 'auc': 0.75}
    """
    labels, scores = _check(labels, probabilities)
    known, genres = artists is not None, list(genres)
    artists = np.asarray(artists) if known else np.arange(len(labels))
    if len(genres) != scores.shape[-1]:
        raise ValueError(f"{len(genres)} genres for probabilities of {scores.shape[-1]} classes")
    if artists.shape != labels.shape:
        raise ValueError(f"artists {artists.shape} and labels {labels.shape} must be one per clip")
    predictions = scores.argmax(-1)  # (seeds, clips)
    right = predictions == labels
    areas = np.array([genre_auc(labels, s) for s in scores])  # (seeds, classes)
    macro = [macro_auc(labels, s) for s in scores]
    confusions = [confusion_matrix(labels, p, len(genres)) for p in predictions]
    balanced, f1 = ([figure(confusion) for confusion in confusions] for figure in (balanced_accuracy, macro_f1))
    per_genre = {}
    for k, genre in enumerate(genres):
        own, recall, interval = labels == k, float("nan"), (float("nan"),) * 2
        if own.any():
            recall = right[:, own].mean()
            interval = bootstrap_interval(right[:, own].mean(0), artists[own])
        per_genre[genre] = {"clips": int(own.sum()), "accuracy": _plain(recall), "interval": _plain(interval),
                            "auc": _plain(areas[:, k].mean())}
    return {
        "clips": len(labels), "artists": len(np.unique(artists)) if known else None, "seeds": len(scores),
        "accuracy": _plain(right.mean()), "accuracy_sd": _spread(right.mean(1)),
        "interval": _plain(bootstrap_interval(right.mean(0), artists)),
        "macro_auc": _plain(np.mean(macro)), "macro_auc_sd": _spread(macro),
        "balanced_accuracy": _plain(np.mean(balanced)), "balanced_accuracy_sd": _spread(balanced),
        "macro_f1": _plain(np.mean(f1)), "macro_f1_sd": _spread(f1),
        "accuracy_per_seed": _plain(right.mean(1)), "macro_auc_per_seed": _plain(macro),
        "genres": per_genre,
        "confusion": sum(confusions).tolist(),
    }


def format_accuracy(summary):
    """Mean accuracy and its standard deviation over seeds, in per cent.

    >>> format_accuracy({"accuracy": 0.4553, "accuracy_sd": 0.0041})
    '45.5 ± 0.4'
    >>> format_accuracy({"accuracy": 0.4553, "accuracy_sd": None})
    '45.5'
    """
    mean, spread = summary["accuracy"], summary.get("accuracy_sd")
    return f"{100 * mean:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def format_interval(interval):
    """An interval in per cent, a dash if there is none.

    >>> format_interval([0.421, 0.489])
    '42.1 – 48.9'
    """
    if interval is None or any(end is None or np.isnan(end) for end in interval):
        return "–"
    return f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}"




