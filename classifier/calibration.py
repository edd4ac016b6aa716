"""Whether a probability means what it says: temperature scaling, and the error that is left."""

import numpy as np

BINS = 10           # of confidence, equally wide, from 0 to 1
DRAWS = 200         # of labels, for the error that is left by chance


def fit_temperature(log_probabilities, labels):
    """Temperature scaling: the divisor of the logits with which their softmax is calibrated [1]_.

    Parameters
    ----------
    log_probabilities : ndarray, shape (clips, classes)
        Logits, or logarithms of probabilities, of clips that were not trained on.
    labels : ndarray of int, shape (clips,)

    Returns
    -------
    float
        Above 1 for an overconfident network; between 0.05 and 20.

    References
    ----------
    .. [1] C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
       arXiv:1706.04599.

    Examples
    --------
    >>> sure = np.log([[0.98, 0.02], [0.98, 0.02], [0.02, 0.98], [0.98, 0.02]])
    >>> round(fit_temperature(sure, [0, 0, 1, 1]), 2)      # right in three of four: 0.75, not 0.98
    3.54
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    scores, labels = np.asarray(log_probabilities, dtype=float), np.asarray(labels)

    def loss(log_temperature):
        return -log_softmax(scores / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def calibration_error(probabilities, labels):
    """Expected calibration error [1]_: mean gap between confidence and accuracy, over `BINS` of confidence.

    Parameters
    ----------
    probabilities : ndarray, shape (clips, classes)
    labels : ndarray of int, shape (clips,)

    Returns
    -------
    float, 0 to 1

    References
    ----------
    .. [1] M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
       binning", AAAI 2015.

    Examples
    --------
    >>> calibration_error([[0.9, 0.1], [0.9, 0.1]], [0, 1])
    0.4
    """
    probabilities, labels = np.asarray(probabilities, dtype=float), np.asarray(labels)
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = np.abs(np.bincount(place, sure, BINS) - np.bincount(place, right, BINS))
    return round(float(gaps.sum() / len(labels)), 12)


def least_error(probabilities):
    """What `calibration_error` finds on average where every probability is true: it is not 0 with few clips.

    Parameters
    ----------
    probabilities : ndarray, shape (clips, classes)

    Returns
    -------
    float, 0 to 1

    Examples
    --------
    >>> few, many = np.full((50, 2), [0.8, 0.2]), np.full((5000, 2), [0.8, 0.2])
    >>> least_error(few) > 0.03 > 0.01 > least_error(many)
    True
    """
    shares, rng = np.cumsum(np.asarray(probabilities, dtype=float), axis=1), np.random.default_rng(0)
    drawn = (rng.random((DRAWS, len(shares), 1)) > shares[:, :-1]).sum(2)
    return float(np.mean([calibration_error(probabilities, labels) for labels in drawn]))


def log_probabilities(said):
    """Logarithms of the probabilities in what `runs.load_probabilities` gives: a softmax of them is the same again."""
    return np.log(said["probabilities"].astype(float).clip(1e-12))
