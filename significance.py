"""How sure a difference is: bootstrap intervals, a test by artists, Holm's correction, in NumPy alone.

An interval says how far a figure would move with other clips, so clips are resampled. Clips of one artist
resemble one another, so artists are resampled, each with all its clips.
"""

import numpy as np


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
