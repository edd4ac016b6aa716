"""What a clip repeats, and when: chroma of each moment beside that of up to 15 s earlier, as time and lag.

A line along time at a lag of 4 s is a passage that was heard 4 s before: a loop draws such lines at all multiples of
its length, a tune that only goes on draws none. Steps are of fixed length and not beats, so that a clip has as many
as any other, a lag is a time in all of them, tempo stays in the picture, and no beat need be found where there is none.
"""

import numpy as np

from audio.transforms import FEATURES, HOP_LENGTH, SAMPLE_RATE, extract

AVERAGED = 5            # frames of the chroma in a step
STEP = AVERAGED * HOP_LENGTH / SAMPLE_RATE      # 0.23 s
PATTERN = 4             # steps that are compared as one sequence, 0.93 s
LAGS = 64               # steps, 14.9 s
ALIKE = 0.5             # correlation above which a sequence is a repetition
NEAR = 5                # steps: at shorter lags sequences overlap, so that all that is held repeats
STRETCH = 9             # steps, 2.1 s, from which on a stretch is long
BANDS = {"to 1 s": [1, 4], "1 to 2 s": [5, 8], "2 to 4 s": [9, 17], "4 to 8 s": [18, 34], "8 to 15 s": [35, LAGS]}
COLUMNS = ("repeated", "covered", *(f"correlation at {band}" for band in BANDS), "peak lag", "peak prominence",
           "in long stretches", "stretch mean", "stretch longest", "stretch entropy")

_CHROMA = {key: value for key, value in FEATURES["chroma_cqt"].items() if key not in ("unit", "bins", "axis")} | {
    "chroma": "chroma_cqt", "frames_averaged": AVERAGED, "steps_compared": PATTERN, "lags": LAGS,
    "comparison": "cosine of the chroma of so many steps, less the clip's mean"}
# What <name>.json says of each beside shape, type and versions.
RECURRENCE = {
    "recurrence": {"unit": "correlation with what was heard a lag earlier; 0 where the clip had not begun",
                   "bins": LAGS, "axis": f"lag, 1 step of {AVERAGED} frames first", **_CHROMA},
    "recurrence_statistics": {
        "unit": "shares, correlations, seconds, nats", "bins": len(COLUMNS), "frames_kept": 1, "dtype": "float32",
        "axis": "statistic, named in columns", "columns": list(COLUMNS), **_CHROMA, "repetition_above": ALIKE,
        "repetition_lags_from": NEAR, "long_stretch_from": STRETCH, "bands": BANDS},
}  # fmt: skip


def recurrence(y, sample_rate):
    """Both arrays of `RECURRENCE` of one clip, from its waveform: dict of str to ndarray, shape (bins, frames)."""
    similarity = time_lag(extract(y, sample_rate, ["chroma_cqt"])["chroma_cqt"])
    return {"recurrence": similarity, "recurrence_statistics": lag_statistics(similarity)[:, None]}


def time_lag(chroma):
    """Self-similarity of a clip by lag and time [1]_.

    ``1 - librosa.segment.recurrence_matrix(x, mode="distance", metric="cosine", full=True)``, by
    ``librosa.segment.recurrence_to_lag`` the rows of negative lags, where `x` is `chroma` averaged over `AVERAGED`
    frames, less its mean, and stacked by ``librosa.feature.stack_memory`` with ``mode="edge"``.

    Parameters
    ----------
    chroma : ndarray, shape (12, frames)

    Returns
    -------
    similarity : ndarray, shape (64, frames // 5), float32
        In [-1, 1]: row l - 1 compares each step with l steps earlier, and is 0 before step l. 0 throughout for a
        clip whose chroma does not change.

    References
    ----------
    .. [1] M. Goto, "A chorus-section detecting method for musical audio signals", ICASSP 2003.

    Examples
    --------
    >>> a_second_of_each = np.repeat(np.eye(12), 20, axis=1)            # 4 steps a pitch class
    >>> twice = time_lag(np.tile(a_second_of_each, 2))
    >>> twice.shape, int(twice[:, -1].argmax()) + 1                     # it was last heard 48 steps ago
    ((64, 96), 48)
    """
    n = chroma.shape[1] // AVERAGED
    x = chroma[:, : n * AVERAGED].reshape(len(chroma), n, AVERAGED).mean(axis=2)
    x = x - x.mean(axis=1, keepdims=True)
    x = np.where(np.abs(x) > 1e-6, x, 0)            # what is left of a chroma that does not change is rounding
    padded = np.pad(x, ((0, 0), (PATTERN - 1, 0)), mode="edge")
    x = np.concatenate([padded[:, k : k + n] for k in range(PATTERN)])
    x /= np.maximum(np.linalg.norm(x, axis=0), 1e-9)
    similarity = np.zeros((LAGS, n), dtype=np.float32)
    for lag in range(1, min(LAGS + 1, n)):
        similarity[lag - 1, lag:] = (x[:, lag:] * x[:, :-lag]).sum(axis=0)
    return similarity


def stretches(repeats):
    """Lengths of the runs of True along each row: ndarray of int, and an array of `repeats`' shape with that of each.

    >>> lengths, each = stretches(np.array([[1, 1, 0, 1], [1, 0, 0, 0]], dtype=bool))
    >>> lengths.tolist(), each.tolist()
    ([2, 1, 1], [[2, 2, 0, 1], [1, 0, 0, 0]])
    """
    edges = np.diff(np.pad(repeats.astype(np.int8), ((0, 0), (1, 1))).ravel())      # rows are apart by two zeros
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    each = np.zeros(repeats.shape, dtype=int)
    each[repeats] = np.repeat(lengths, lengths)
    return lengths, each


def lag_statistics(similarity):
    """How much of a clip repeats, at which lags, and how long the repeated stretches are [1]_ [2]_.

    Parameters
    ----------
    similarity : ndarray, shape (64, steps)
        Of `time_lag`.

    Returns
    -------
    statistics : ndarray, shape (13,), float32
        In the order of `COLUMNS`; all finite. Of lags of a second or more: the share of pairs that repeat, of the clip
        that is in a long repeated stretch, of repeated pairs that are, and mean, longest (s) and entropy (nats) of the
        stretches' lengths. Of all lags: the mean correlation in five bands, and place (s) and prominence of the mean's
        highest peak; 0 where there is none.

    References
    ----------
    .. [1] C. L. Webber, J. P. Zbilut, "Dynamical assessment of physiological systems and states using recurrence plot
       strategies", Journal of Applied Physiology 76(2), 1994.
    .. [2] J. Serrà, X. Serra, R. G. Andrzejak, "Cross recurrence quantification for cover song identification", New
       Journal of Physics 11, 2009.
    """
    from scipy.signal import find_peaks

    n = similarity.shape[1]
    there = np.arange(n) >= np.arange(1, LAGS + 1)[:, None]             # what the clip has an earlier step for
    profile = similarity.sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    bands = [profile[first - 1 : last].mean() for first, last in BANDS.values()]
    peaks, found = find_peaks(profile, prominence=0)
    peak = found["prominences"].argmax() if len(peaks) else None
    repeats = similarity[NEAR - 1 :] > ALIKE
    lengths, each = stretches(repeats)
    counts = np.unique(lengths, return_counts=True)[1] / max(len(lengths), 1)
    return np.array([
        repeats.sum() / max(there[NEAR - 1 :].sum(), 1), (each >= STRETCH).any(axis=0).mean(), *bands,
        *((0, 0) if peak is None else ((peaks[peak] + 1) * STEP, found["prominences"][peak])),
        (each >= STRETCH).sum() / max(repeats.sum(), 1), *(np.array([lengths.mean(), lengths.max()]) * STEP
                                                            if len(lengths) else (0, 0)),
        -(counts * np.log(counts)).sum()], dtype=np.float32)  # fmt: skip
