"""How sure a difference is: bootstrap intervals, McNemar's test, Holm's correction, in NumPy alone.

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


def mcnemar(correct_a, correct_b):
    """Exact two-sided McNemar test that two models are right equally often on the same clips [1]_.

    Only clips that one model has right and the other wrong count: each is a fair coin if they are equal.
    The test takes clips to be independent; where artists have many, see also the interval `compare` gives.

    Parameters
    ----------
    correct_a, correct_b : array of bool, (clips,)

    Returns
    -------
    dict
        ``a_only``, ``b_only``: clips that only one has right; ``p_value``: 0 to 1.

    References
    ----------
    .. [1] Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
       percentages", Psychometrika 12(2), 1947.

    Examples
    --------
    >>> mcnemar([1, 1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 1, 1])
    {'a_only': 6, 'b_only': 1, 'p_value': 0.125}
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"correct_a {a.shape} and correct_b {b.shape} must be one value per clip")
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("correct_a and correct_b must be true or false for each clip, not means over seeds")
    a_only, b_only = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    n, term, tail = a_only + b_only, 1, 1
    for k in range(min(a_only, b_only)):  # in whole numbers: exact, and no overflow
        term = term * (n - k) // (k + 1)
        tail += term
    return {"a_only": a_only, "b_only": b_only, "p_value": min(1.0, 2 * tail / 2**n)}


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
