"""One clip: from a file to the six features of the study and mel128.

A clip is decoded once; one constant-Q transform (CQT) and one short-time Fourier transform (STFT) are
made of it, and every feature is derived from these two. The values are librosa's. The CQT's filters, which librosa
builds for each clip in half of its time, are built once per process.
"""

import os
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

SAMPLE_RATE = 22_050    # Hz, of everything but mel128
HOP_LENGTH = 1024       # samples between frames: 46 ms
N_FFT = 1024            # samples in a frame of the STFT
N_FRAMES = 640          # kept of each clip: 29.7 s; a clip with fewer is "short"
CLIP_SECONDS = 30       # read of each file: FMA's clips are no longer, its full tracks are
FLOOR_DB = -100.0       # nothing is quieter than this in a feature stored in dB
SILENCE = 1e-4          # a clip that never exceeds this amplitude (-80 dB) is "silent"
LOUDEST = 1e6           # amplitude: 16-bit numbers stored as floats are below, larger ones overflow when squared
RATES = 1000, 768_000   # Hz: no recording has other sample rates, but damaged headers do
CHANNELS = 32           # no recording has more, but damaged headers do
N_MELS, N_MFCC, N_BINS, BINS_PER_OCTAVE = 128, 20, 84, 12

_STUDY = {"sample_rate": SAMPLE_RATE, "mono": "mean of channels", "resampler": "soxr HQ", "hop_length": HOP_LENGTH}
_CQT = {**_STUDY, "n_bins": N_BINS, "bins_per_octave": BINS_PER_OCTAVE, "fmin": "C1"}
_STFT = {**_STUDY, "n_fft": N_FFT, "window": "hann, centred"}

# What <name>.json says of each feature beside shape, type and versions.
FEATURES = {
    "cqt": {"unit": "dB (amplitude, reference 1)", "power": 1.0, "floor": FLOOR_DB, "bins": N_BINS,
            "axis": "semitone, C1 first", **_CQT},
    "chroma_cqt": {"unit": "relative to the strongest pitch class", "bins": 12, "axis": "pitch class, C first", **_CQT},
    "chroma_cens": {"unit": "CENS, unit length", "bins": 12, "axis": "pitch class, C first", "smoothing": 41, **_CQT},
    "chroma_stft": {"unit": "relative to the strongest pitch class", "bins": 12, "axis": "pitch class, C first",
                    "tuning": "estimated per clip", **_STFT},
    "mel_stft": {"unit": "dB (power, reference 1)", "power": 2.0, "floor": FLOOR_DB, "bins": N_MELS,
                 "axis": "mel band, lowest first", "n_mels": N_MELS, **_STFT},
    "mfcc": {"unit": "MFCC (orthonormal DCT-II of mel_stft in dB)", "bins": N_MFCC, "dtype": "float32",
             "axis": "coefficient, 0 first", "n_mfcc": N_MFCC, "n_mels": N_MELS, **_STFT},
    "mel128": {"unit": "dB relative to the clip maximum", "power": 2.0, "bins": N_MELS, "frames_kept": 128,
               "dtype": "uint8", "scale": 80 / 255, "offset": -80.0, "axis": "mel band, lowest first",
               "sample_rate": "native (mostly 44100)", "mono": "mean of channels", "n_fft": 2048,
               "hop_length": 512, "n_mels": N_MELS, "window": "hann, centred", "top_db": 80.0,
               "frames": "n STFT frames of the first 30 s, sampled at floor((j + 0.5) / 128 * n) for j = 0..127"},
}  # fmt: skip
STUDY_FEATURES = tuple(name for name in FEATURES if name != "mel128")


class Undecodable(Exception):
    """The file holds no audio that libsndfile can read."""


# ---------------------------------------------------------------- one clip


@contextmanager
def open_audio(path):
    """Open an audio file; any error, on opening it or while it is read, is raised as `Undecodable`.

    Only regular files are opened: a pipe would block, a device has no end.
    """
    import soundfile

    if not os.path.isfile(path):
        raise Undecodable("not a file")
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:        # the name may not be UTF-8
            if not RATES[0] <= file.samplerate <= RATES[1]:
                raise Undecodable(f"a sample rate of {file.samplerate} Hz")
            if file.channels > CHANNELS:
                raise Undecodable(f"{file.channels} channels")
            yield file
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:    # TypeError: it is called x.raw
        raise Undecodable("not audio that libsndfile can read, or damaged") from error


def read_mono(file, frames):
    """Read the next `frames` samples, fewer at the end, of a file from `open_audio`: the mean of its channels.

    `Undecodable` if a sample is not a number, or too large for audio.
    """
    samples = file.read(frames, dtype="float32", always_2d=True)
    with np.errstate(invalid="ignore", over="ignore"):                      # such samples are rejected below
        y = samples @ np.full(file.channels, 1 / file.channels, dtype=np.float32)       # 25 times faster than mean
    if len(y) and not (y.min() >= -LOUDEST and y.max() <= LOUDEST):         # neither is true of NaN
        raise Undecodable("samples that are not numbers, or too large to be sound")
    return y


def read_audio(path, seconds=CLIP_SECONDS):
    """Decode the beginning of an audio file to mono.

    Parameters
    ----------
    path : path-like
        Any format that libsndfile reads: mp3, flac, ogg, wav, ...
    seconds : float
        How much to read at most.

    Returns
    -------
    y : ndarray, shape (samples,), float32
        Mean of the channels, full scale = 1.
    sample_rate : int
        The file's own, in Hz.

    Raises
    ------
    Undecodable
        If the file cannot be read as audio, holds no samples or implausible ones, has a sample rate outside `RATES`
        or more than `CHANNELS`.
    """
    try:
        with open_audio(path) as file:
            sample_rate = file.samplerate
            y = read_mono(file, int(seconds * sample_rate))
    except Undecodable as error:
        raise Undecodable(f"{path}: {error}") from error.__cause__
    if not len(y):
        raise Undecodable(f"{path}: no samples")
    return y, sample_rate


def resample(y, sample_rate, target=SAMPLE_RATE):
    """Change the sample rate of a mono waveform with soxr's HQ recipe, as ``librosa.load`` does."""
    if sample_rate == target:
        return y
    import soxr

    return soxr.resample(y, sample_rate, target, quality="HQ")


@lru_cache(maxsize=1)
def cqt_kernels():
    """Build the filters of the constant-Q transform, one matrix for each octave, highest first.

    librosa multiplies a sparse spectrum of the filters with the FFT of each frame. The product is
    linear in the samples, so the same filters are kept here as waveforms: one matrix product a frame.
    The scale factors of octave and filter length are folded in.

    Returns
    -------
    kernels : list of ndarray, shape (samples, 24)
        Real parts of an octave's 12 filters, then their imaginary parts.

    References
    ----------
    C. Schörkhuber, A. Klapuri, "Constant-Q transform toolbox for music processing", SMC 2010;
    ``librosa.vqt``.
    """
    import librosa

    freqs = librosa.cqt_frequencies(N_BINS, fmin=librosa.note_to_hz("C1"), bins_per_octave=BINS_PER_OCTAVE)
    lengths, _ = librosa.filters.wavelet_lengths(freqs=freqs, sr=SAMPLE_RATE)
    kernels = []
    for octave in range(N_BINS // BINS_PER_OCTAVE):                 # 0 is the highest
        stop = N_BINS - octave * BINS_PER_OCTAVE
        rows = slice(stop - BINS_PER_OCTAVE, stop)
        basis, own = librosa.filters.wavelet(freqs=freqs[rows], sr=SAMPLE_RATE / 2**octave)
        n = basis.shape[1]
        spectrum = np.fft.fft(basis * own[:, None] / n, axis=1)
        spectrum[:, n // 2 + 1:] = 0
        sparse = librosa.util.sparsify_rows(spectrum[:, : n // 2 + 1], quantile=0.01).toarray()
        waveform = np.fft.fft(sparse, n=n, axis=1) * np.sqrt(2**octave / lengths[rows, None])
        kernels.append(np.concatenate([waveform.real, waveform.imag]).T.copy())
    return kernels


def cqt(y):
    """Constant-Q magnitude of a clip, as ``abs(librosa.cqt(y, sr=22050, hop_length=1024))``.

    Parameters
    ----------
    y : ndarray, shape (samples,), float32
        Mono, 22,050 Hz.

    Returns
    -------
    C : ndarray, shape (84, frames), float32
        Amplitude; frames = 1 + samples // 1024.

    Examples
    --------
    >>> a4 = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050).astype(np.float32)
    >>> C = cqt(a4)
    >>> C.shape, int(C[:, 10].argmax())            # 45 semitones above C1
    ((84, 22), 45)
    """
    import soxr

    n_frames = 1 + len(y) // HOP_LENGTH
    C = np.empty((N_BINS, n_frames), dtype=np.float32)
    for octave, kernel in enumerate(cqt_kernels()):
        n, hop = len(kernel), HOP_LENGTH >> octave
        padded = np.zeros(max((n_frames - 1) * hop + n, n // 2 + len(y)), dtype=np.float32)
        padded[n // 2 : n // 2 + len(y)] = y
        frames = np.lib.stride_tricks.sliding_window_view(padded, n)[: n_frames * hop : hop]
        response = (frames.astype(np.float64) @ kernel).T           # (24, frames); librosa is in double here too
        stop = N_BINS - octave * BINS_PER_OCTAVE
        C[stop - BINS_PER_OCTAVE : stop] = np.hypot(response[:12], response[12:])
        y = soxr.resample(y, 2, 1, quality="HQ")
        y /= np.sqrt(0.5)                                           # here, not in the kernels: librosa's rounding
    return C


def stft_power(y):
    """Power spectrogram of a clip, as ``abs(librosa.stft(y, n_fft=1024, hop_length=1024)) ** 2``.

    Returns
    -------
    S : ndarray, shape (513, frames), float32
    """
    from scipy.fft import rfft
    from scipy.signal import get_window

    n_frames = 1 + len(y) // HOP_LENGTH
    padded = np.zeros(n_frames * N_FFT, dtype=np.float32)           # hop = n_fft: frames do not overlap
    part = y[: len(padded) - N_FFT // 2]
    padded[N_FFT // 2 : N_FFT // 2 + len(part)] = part
    frames, window = padded.reshape(n_frames, N_FFT), get_window("hann", N_FFT)
    S = np.empty((N_FFT // 2 + 1, n_frames), dtype=np.float32)
    for k in range(0, n_frames, 64):                                # a block stays in the processor's cache
        X = rfft(frames[k : k + 64] * window)
        S[:, k : k + 64] = (X.real**2 + X.imag**2).T
    return S


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


@lru_cache(maxsize=8)
def mel_filters(sample_rate, n_fft):
    """Triangular filters on Slaney's mel scale, as ``librosa.filters.mel(sr=sample_rate, n_fft=n_fft)``.

    Own, because importing librosa takes longer than classifying a song.

    Returns
    -------
    filters : ndarray, shape (128, n_fft // 2 + 1), float32
    """
    half, step = sample_rate / 2, np.log(6.4) / 27              # mels are linear below 1 kHz, then logarithmic
    top = half * 3 / 200 if half < 1000 else 15 + np.log(half / 1000) / step
    mels = np.linspace(0, top, N_MELS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))      # Hz
    low, centre, high = (edges[k : k + N_MELS, None] for k in range(3))
    bins = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clip(0)
    return (triangles.astype(np.float32) * (2 / (high - low))).astype(np.float32)       # librosa rounds twice, too


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
    filters = mel_filters(sample_rate, n_fft)

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
        found["cqt"] = 20 * np.log10(np.maximum(C, 10 ** (FLOOR_DB / 20)))
        if "chroma_cqt" in names:
            found["chroma_cqt"] = librosa.feature.chroma_cqt(C=C)
        if "chroma_cens" in names:
            found["chroma_cens"] = librosa.feature.chroma_cens(C=C)
    if names & {"chroma_stft", "mel_stft", "mfcc"}:
        S = stft_power(y)
        mel = 10 * np.log10(np.maximum(mel_filters(SAMPLE_RATE, N_FFT) @ S, 10 ** (FLOOR_DB / 10)))
        found["mel_stft"] = mel
        if "mfcc" in names:
            found["mfcc"] = librosa.feature.mfcc(S=mel, n_mfcc=N_MFCC)
        if "chroma_stft" in names:
            found["chroma_stft"] = librosa.util.normalize(_chroma_filter(estimate_tuning(S)) @ S, norm=np.inf, axis=0)
    return {name: found[name] for name in FEATURES if name in names}
