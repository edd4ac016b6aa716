"""One clip: from a file to the six features of the study, mel128, and variants that change one parameter.

A clip is decoded once; one constant-Q transform (CQT) and one short-time Fourier transform (STFT) are
made of it (audio/spectra.py), and every feature of the study is derived from these two. The values are librosa's.
"""

from functools import lru_cache

import numpy as np

from audio.decoding import Undecodable, open_audio
from audio.spectra import (
    BINS_PER_OCTAVE,
    HOP_LENGTH,
    LOWEST,
    N_BINS,
    N_FFT,
    N_MELS,
    SAMPLE_RATE,
    cqt,
    mel_filter,
    semitone_filter,
    stft_power,
)

CLIP_SECONDS = 30       # read of each file by default: FMA's clips are no longer, its full tracks are
N_FRAMES = 640          # kept of them, 29.7 s; of other lengths as many in proportion
LEAST = 0.9             # of a clip's length: one that is a little shorter is padded, with less it is "short"
FLOOR_DB = -100.0       # nothing is quieter than this in a feature stored in dB
SILENCE = 1e-4          # a clip that never exceeds this amplitude (-80 dB) is "silent"
N_MFCC = 20

_STUDY = {"sample_rate": SAMPLE_RATE, "mono": "mean of channels", "resampler": "soxr HQ", "hop_length": HOP_LENGTH}
_CQT = {**_STUDY, "n_bins": N_BINS, "bins_per_octave": BINS_PER_OCTAVE, "fmin": LOWEST}
_STFT = {**_STUDY, "n_fft": N_FFT, "window": "hann, centred"}
_DB_CQT = {"unit": "dB (amplitude, reference 1)", "power": 1.0, "floor": FLOOR_DB}
_DB_MEL = {"unit": "dB (power, reference 1)", "power": 2.0, "floor": FLOOR_DB, "bins": N_MELS,
           "axis": "mel band, lowest first", "n_mels": N_MELS, **_STFT}
_NARROW = {"bins": N_BINS, "n_mels": N_BINS, "fmin": 32.703, "fmax": 3951.066}     # Hz: C1 to B7, the range of the CQT

# What <name>.json says of each feature beside shape, type and versions.
FEATURES = {
    "cqt": {**_DB_CQT, "bins": N_BINS, "axis": "semitone, C1 first", **_CQT},
    "chroma_cqt": {"unit": "relative to the strongest pitch class", "bins": 12, "axis": "pitch class, C first", **_CQT},
    "chroma_cens": {"unit": "CENS, unit length", "bins": 12, "axis": "pitch class, C first", "smoothing": 41, **_CQT},
    "chroma_stft": {"unit": "relative to the strongest pitch class", "bins": 12, "axis": "pitch class, C first",
                    "tuning": "estimated per clip", **_STFT},
    "mel_stft": _DB_MEL,
    "mfcc": {"unit": "MFCC (orthonormal DCT-II of mel_stft in dB)", "bins": N_MFCC, "dtype": "float32",
             "axis": "coefficient, 0 first", "n_mfcc": N_MFCC, "n_mels": N_MELS, **_STFT},
    "mel128": {"unit": "dB relative to the clip maximum", "power": 2.0, "bins": N_MELS, "frames_kept": 128,
               "dtype": "uint8", "scale": 80 / 255, "offset": -80.0, "axis": "mel band, lowest first",
               "sample_rate": "native (mostly 44100)", "mono": "mean of channels", "n_fft": 2048,
               "hop_length": 512, "n_mels": N_MELS, "window": "hann, centred", "top_db": 80.0,
               "frames": "n STFT frames of the first 30 s, sampled at floor((j + 0.5) / 128 * n) for j = 0..127"},
}  # fmt: skip
STUDY_FEATURES = ("cqt", "chroma_cqt", "chroma_cens", "chroma_stft", "mel_stft", "mfcc")     # computed by default

# The way from mel_stft to cqt in single steps: range and bands, resolution, the spacing of frequencies. cqt128 goes the
# other way: as many bins as mel has bands, from A#0 (29 Hz) to 10.3 kHz, the widest that librosa allows below Nyquist.
VARIANTS = {
    "mel84": _DB_MEL | _NARROW,
    "mel_fine": _DB_MEL | {"n_fft": 4096},
    "mel84_fine": _DB_MEL | _NARROW | {"n_fft": 4096},
    "logstft84": {k: v for k, v in _DB_MEL.items() if k != "n_mels"} | {
        "n_fft": 4096, "bins": N_BINS, "axis": "semitone, C1 first", "fmin": LOWEST,
        "bands": "triangles between neighbouring semitones, one bin of the STFT wide or more"},
    "cqt128": {**_DB_CQT, **_CQT, "bins": 128, "n_bins": 128, "bins_per_octave": 15, "fmin": "A#0",
               "axis": "fifteenth of an octave, A#0 first"},
}  # fmt: skip
FEATURES |= VARIANTS


def count_frames(seconds):
    """Frames that are kept of a clip of so many seconds, a little fewer than there are.

    >>> count_frames(30), count_frames(27), count_frames(10)
    (640, 576, 213)
    """
    return int(seconds * N_FRAMES / CLIP_SECONDS)


def length_status(duration, seconds):
    """What a clip is for features of so many seconds: "ok", "padded" (at least `LEAST` of them are there) or "short".

    >>> [length_status(duration, 30) for duration in (29.97, 29, 27, 26.9)]
    ['ok', 'padded', 'padded', 'short']
    """
    enough = (count_frames(seconds) - 1) * HOP_LENGTH / SAMPLE_RATE
    return "ok" if duration >= enough else "padded" if duration >= LEAST * seconds else "short"


# ---------------------------------------------------------------- one clip


def read_audio(path, seconds=CLIP_SECONDS, start="start"):
    """Decode a part of an audio file to mono.

    Parameters
    ----------
    path : path-like
        Any format that libsndfile reads: mp3, flac, ogg, wav, ...; with PyAV also m4a, aac, wma, ...
    seconds : float
        How much to read at most.
    start : "start", "middle" or float
        Which part: the first, the middle (all of a file that is shorter), or what follows after so many seconds,
        which is nothing in a file that ends before.

    Returns
    -------
    y : ndarray, shape (samples,), float32
        Mean of the channels, full scale = 1.
    sample_rate : int
        The file's own, in Hz.

    Raises
    ------
    Undecodable
        If the file cannot be read as audio, holds no samples or implausible ones, has a sample rate outside
        `decoding.RATES` or more than `decoding.CHANNELS`.
    """
    try:
        with open_audio(path) as file:
            sample_rate, size = file.sample_rate, int(seconds * file.sample_rate)
            skipped = 0
            if start != "start":
                last = file.frames
                skipped = max(last - size, 0) // 2 if start == "middle" else min(int(start * sample_rate), last)
            if skipped:
                file.seek(skipped)
            y = file.read(size)
    except Undecodable as error:
        raise Undecodable(f"{path}: {error}") from error.__cause__
    if not len(y) and not skipped:
        raise Undecodable(f"{path}: no samples")
    return y, sample_rate


def resample(y, sample_rate, target=SAMPLE_RATE):
    """Change the sample rate of a mono waveform with soxr's HQ recipe, as ``librosa.load`` does."""
    if sample_rate == target:
        return y
    import soxr

    return soxr.resample(y, sample_rate, target, quality="HQ")


def estimate_tuning(S):
    """Deviation from A440 in fractions of a semitone, as ``librosa.estimate_tuning(S=S)``.

    librosa interpolates around every bin; peaks between 150 and 4000 Hz are a fiftieth of them.

    Parameters
    ----------
    S : ndarray, shape (513, frames)
        Spectrogram.

    Returns
    -------
    tuning : float
        In [-0.5, 0.5).
    """
    import librosa

    first, last = int(np.ceil(150 * N_FFT / SAMPLE_RATE)), int(np.ceil(4000 * N_FFT / SAMPLE_RATE))
    here, below, above = S[first:last], S[first - 1 : last - 1], S[first + 1 : last + 1]
    peaks = np.nonzero((here > below) & (here >= above) & (here > 0.1 * S.max(axis=0)))
    here, below, above = here[peaks], below[peaks], above[peaks]
    slope, curve = (above - below) / 2, above + below - 2 * here
    shift = np.where(np.abs(slope) < np.abs(curve), -slope / np.where(curve == 0, 1, curve), 0)
    height = here + 0.5 * slope * shift
    if not len(height):
        return 0.0
    pitch = (peaks[0] + first + shift) * SAMPLE_RATE / N_FFT
    return float(librosa.pitch_tuning(pitch[height >= np.median(height)], bins_per_octave=12))


@lru_cache(maxsize=128)
def _chroma_filter(tuning):
    import librosa

    return librosa.filters.chroma(sr=SAMPLE_RATE, n_fft=N_FFT, tuning=tuning)


def mel128(y, sample_rate):
    """128 mel frames spread evenly over a clip at its own sample rate, in dB below its maximum.

    The maximum may be in any frame, kept or not. A mel band holds at most the largest weight of a filter times the
    power of the frame, which by Parseval's theorem is its energy times n_fft / 2. So only frames whose energy allows
    a new maximum are transformed, loudest first: one in seven or so.

    Parameters
    ----------
    y : ndarray, shape (samples,), float32
        Mono.
    sample_rate : int
        In Hz; the highest band ends at half of it.

    Returns
    -------
    M : ndarray, shape (128, 128), float32
        dB in [-80, 0].
    """
    n_fft, hop, n_frames = 2048, 512, 1 + len(y) // 512
    padded = np.zeros((n_frames - 1) * hop + n_fft, dtype=np.float32)
    padded[n_fft // 2 : n_fft // 2 + len(y)] = y
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)       # Hann
    filters = mel_filter(sample_rate, n_fft)

    def mel(rows):
        return filters @ (np.abs(np.fft.rfft(frames[rows] * window).astype(np.complex64)) ** 2).T

    M = mel(((np.arange(128) + 0.5) / 128 * n_frames).astype(int))
    loudest = max(M.max(), 1e-10)
    quarters = padded.reshape(-1, hop) ** 2 @ (window**2).reshape(4, hop).T.astype(np.float32)  # of a frame's energy
    energy = sum(quarters[k : k + n_frames, k] for k in range(4))
    bound = 1.001 * filters.max() * n_fft / 2 * energy                      # 0.001 for rounding
    for rows in np.array_split(np.argsort(-bound), 1 + n_frames // 64):
        rows = rows[bound[rows] > loudest]
        if not len(rows):
            break
        loudest = max(loudest, mel(rows).max())
    return (10 * np.log10(np.maximum(M, 1e-10)) - 10 * np.log10(loudest)).clip(-80, 0)


def _decibels(x, power=2.0):
    return 20 / power * np.log10(np.maximum(x, 10 ** (FLOOR_DB * power / 20)))


def variant(y, name):
    """One of `VARIANTS` of a clip at 22,050 Hz: ndarray, shape (bins, frames), dB."""
    given = FEATURES[name]
    if "bins_per_octave" in given:
        return _decibels(cqt(y, given["n_bins"], given["bins_per_octave"], given["fmin"]), 1.0)
    n_fft = given["n_fft"]
    bands = (mel_filter(SAMPLE_RATE, n_fft, given["n_mels"], given.get("fmin", 0.0), given.get("fmax"))
             if "n_mels" in given else semitone_filter(n_fft))
    return _decibels(bands @ stft_power(y, n_fft))


def extract(y, sample_rate, names=STUDY_FEATURES):
    """Compute features of one clip.

    Parameters
    ----------
    y : ndarray, shape (samples,), float32
        Mono waveform.
    sample_rate : int
        In Hz.
    names : sequence of str
        Keys of `FEATURES`.

    Returns
    -------
    features : dict of str to ndarray, shape (bins, frames)
        In the units of `FEATURES`, all frames; mel128 has 128.

    Examples
    --------
    >>> noise = np.random.default_rng(0).normal(0, 0.1, 661_500).astype(np.float32)
    >>> {name: x.shape for name, x in extract(noise, 22050, ["cqt", "mfcc"]).items()}
    {'cqt': (84, 646), 'mfcc': (20, 646)}
    """
    found = {"mel128": mel128(y, sample_rate)} if "mel128" in names else {}
    names = set(names)
    if names == {"mel128"}:
        return found                    # what is imported below takes longer than this
    import librosa

    y = resample(y, sample_rate)
    if names & {"cqt", "chroma_cqt", "chroma_cens"}:
        C = cqt(y)
        found["cqt"] = _decibels(C, 1.0)
        if "chroma_cqt" in names:
            found["chroma_cqt"] = librosa.feature.chroma_cqt(C=C)
        if "chroma_cens" in names:
            found["chroma_cens"] = librosa.feature.chroma_cens(C=C)
    if names & {"chroma_stft", "mel_stft", "mfcc"}:
        S = stft_power(y)
        mel = found["mel_stft"] = _decibels(mel_filter(SAMPLE_RATE, N_FFT) @ S)
        if "mfcc" in names:
            found["mfcc"] = librosa.feature.mfcc(S=mel, n_mfcc=N_MFCC)
        if "chroma_stft" in names:
            found["chroma_stft"] = librosa.util.normalize(_chroma_filter(estimate_tuning(S)) @ S, norm=np.inf, axis=0)
    found |= {name: variant(y, name) for name in VARIANTS if name in names}
    return {name: found[name] for name in FEATURES if name in names}
