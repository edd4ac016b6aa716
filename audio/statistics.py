"""One clip as a row of FMA's features.csv: seven moments over time of each of eleven features.

FMA's procedure, call for call, with the librosa that is installed. The published file was made with that of 2017,
which defined ``rmse`` and padded the ends of a clip otherwise: do not mix its rows with these in one training.
"""

import numpy as np

from audio.transforms import BINS_PER_OCTAVE, N_BINS, N_MFCC, SAMPLE_RATE, resample

N_FFT = 2048            # samples in a frame
HOP_LENGTH = 512        # samples between frames: 12 ms at 44.1 kHz
RATES = 11_025, 48_000  # Hz: below, there is no room for the highest note, above, some mel bands hold no STFT bin;
USUAL_RATE = 44_100     # such a clip is resampled to what most of FMA has
SIZES = {"chroma_cens": 12, "chroma_cqt": 12, "chroma_stft": 12, "mfcc": N_MFCC, "rmse": 1, "spectral_bandwidth": 1,
         "spectral_centroid": 1, "spectral_contrast": 7, "spectral_rolloff": 1, "tonnetz": 6, "zcr": 1}
MOMENTS = ("kurtosis", "max", "mean", "median", "min", "skew", "std")
COLUMNS = tuple((feature, moment, f"{number:02d}") for feature, size in SIZES.items() for moment in MOMENTS
                for number in range(1, size + 1))      # in the order of FMA's file

# What statistics.json says beside shape, type and versions.
STATISTICS = {
    "unit": "that of each feature; kurtosis and skew have none", "bins": len(COLUMNS), "frames_kept": 1,
    "dtype": "float32", "axis": "statistic, named in columns", "columns": [".".join(column) for column in COLUMNS],
    "sample_rate": f"native; outside {RATES[0]} to {RATES[1]}: {USUAL_RATE}", "mono": "mean of channels",
    "n_fft": N_FFT, "hop_length": HOP_LENGTH, "window": "hann, centred", "n_bins": N_BINS,
    "bins_per_octave": BINS_PER_OCTAVE, "tuning": "estimated per clip", "n_mfcc": N_MFCC, "kurtosis": "normal = 0",
    "rate_22050_assumed_in": "chroma_stft, spectral_bandwidth, spectral_centroid, spectral_contrast, spectral_rolloff",
    "of_constant_rows": "skew 0, kurtosis -3",
}  # fmt: skip


def _tuning(S, sample_rate):
    """As ``librosa.estimate_tuning(S=S, sr=sample_rate)``, but 0 without a warning for a spectrum without peaks."""
    import librosa

    pitch, height = librosa.piptrack(S=S, sr=sample_rate)
    found = pitch > 0
    return librosa.pitch_tuning(pitch[found & (height >= np.median(height[found]))]) if found.any() else 0.0


def courses(y, sample_rate):
    """The eleven features of a clip, frame by frame.

    FMA's calls name the sample rate for the CQT and the mel bands alone. For the others librosa then assumes
    22,050 Hz, so that at 44.1 kHz a centroid of 2000 Hz reads 1000. It is kept: columns mean what FMA's mean.

    Parameters
    ----------
    y : ndarray, shape (samples,), float32
        Mono, some seconds.
    sample_rate : int
        The file's own, in Hz.

    Returns
    -------
    features : dict of str to ndarray, shape (rows, frames)
        In the order of `SIZES`.
    """
    import librosa

    if not RATES[0] <= sample_rate <= RATES[1]:
        y, sample_rate = resample(y, sample_rate, USUAL_RATE), USUAL_RATE
    S = np.abs(librosa.stft(y, n_fft=N_FFT, hop_length=HOP_LENGTH))
    C = np.abs(librosa.cqt(y, sr=sample_rate, hop_length=HOP_LENGTH, n_bins=N_BINS, bins_per_octave=BINS_PER_OCTAVE,
                           tuning=_tuning(S, sample_rate)))
    cens = librosa.feature.chroma_cens(C=C)
    centroid = librosa.feature.spectral_centroid(S=S)
    mel = librosa.feature.melspectrogram(S=S**2, sr=sample_rate)
    return {
        "chroma_cens": cens,
        "chroma_cqt": librosa.feature.chroma_cqt(C=C),
        "chroma_stft": librosa.feature.chroma_stft(S=S**2, tuning=_tuning(S**2, SAMPLE_RATE)),
        "mfcc": librosa.feature.mfcc(S=librosa.power_to_db(mel), n_mfcc=N_MFCC),
        "rmse": librosa.feature.rms(S=S, frame_length=N_FFT),
        "spectral_bandwidth": librosa.feature.spectral_bandwidth(S=S, centroid=centroid),
        "spectral_centroid": centroid,
        "spectral_contrast": librosa.feature.spectral_contrast(S=S, n_bands=6),
        "spectral_rolloff": librosa.feature.spectral_rolloff(S=S),
        "tonnetz": librosa.feature.tonnetz(chroma=cens),
        "zcr": librosa.feature.zero_crossing_rate(y, frame_length=N_FFT, hop_length=HOP_LENGTH),
    }


def moments(x):
    """Seven moments of each row.

    Parameters
    ----------
    x : ndarray, shape (rows, frames)

    Returns
    -------
    moments : dict of str to ndarray, shape (rows,), float64
        In the order of `MOMENTS`. A row that does not move has no skew and no kurtosis; it gets 0 and -3, as
        from SciPy when FMA was made, and not the NaN of today's.

    Examples
    --------
    >>> {name: round(float(value[0]), 2) for name, value in moments(np.array([[0, 0, 0, 4]])).items()}
    {'kurtosis': -0.67, 'max': 4.0, 'mean': 1.0, 'median': 0.0, 'min': 0.0, 'skew': 1.15, 'std': 1.73}
    """
    from scipy import stats

    x = np.asarray(x, dtype=np.float64)
    low, high = x.min(axis=1), x.max(axis=1)
    moves = high - low > 4 * np.finfo(np.float32).eps * np.maximum(-low, high)      # by more than rounding
    skew, kurtosis = np.zeros(len(x)), np.full(len(x), -3.0)
    if moves.any():
        skew[moves], kurtosis[moves] = stats.skew(x[moves], axis=1), stats.kurtosis(x[moves], axis=1)
    return {"kurtosis": kurtosis, "max": high, "mean": x.mean(axis=1), "median": np.median(x, axis=1), "min": low,
            "skew": skew, "std": x.std(axis=1)}


def track_statistics(y, sample_rate):
    """FMA's 518 statistics of one clip [1]_.

    Parameters
    ----------
    y : ndarray, shape (samples,), float32
        Mono, some seconds.
    sample_rate : int
        The file's own, in Hz.

    Returns
    -------
    statistics : ndarray, shape (518,), float32
        In the order of `COLUMNS`; all finite.

    References
    ----------
    .. [1] M. Defferrard, K. Benzi, P. Vandergheynst, X. Bresson, "FMA: A Dataset for Music Analysis", ISMIR 2017.

    Examples
    --------
    >>> a4 = np.sin(2 * np.pi * 440 * np.arange(3 * 22050) / 22050).astype(np.float32)
    >>> found = dict(zip(COLUMNS, track_statistics(a4, 22050)))
    >>> len(found), round(float(found["spectral_centroid", "median", "01"]))
    (518, 440)
    """
    return np.concatenate([value for x in courses(y, sample_rate).values()
                           for value in moments(x).values()]).astype(np.float32)
