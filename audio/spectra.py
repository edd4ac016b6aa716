"""The two transforms of a clip that all features are made of, and the filters that sum their bins into bands.

The numbers are librosa's. What librosa builds anew for each clip (the filters of the constant-Q transform, half of its
time) is built once per process.
"""

from functools import lru_cache

import numpy as np

SAMPLE_RATE = 22_050    # Hz, of everything but mel128
HOP_LENGTH = 1024       # samples between frames: 46 ms
N_FFT = 1024            # samples in a frame of the STFT
N_MELS, N_BINS, BINS_PER_OCTAVE = 128, 84, 12
LOWEST = "C1"           # 32.7 Hz, the first of the 84 semitones


@lru_cache(maxsize=2)
def cqt_kernels(n_bins=N_BINS, bins_per_octave=BINS_PER_OCTAVE, fmin=LOWEST):
    """Build the filters of the constant-Q transform, one matrix for each octave, highest first.

    librosa multiplies a sparse spectrum of the filters with the FFT of each frame. The product is
    linear in the samples, so the same filters are kept here as waveforms: one matrix product a frame.
    The scale factors of octave and filter length are folded in.

    Parameters
    ----------
    n_bins, bins_per_octave : int
    fmin : str
        Note of the lowest bin.

    Returns
    -------
    kernels : list of ndarray, shape (samples, 2 * bins)
        Real parts of an octave's filters, then their imaginary parts. The lowest octave may have fewer than the others.

    References
    ----------
    C. Schörkhuber, A. Klapuri, "Constant-Q transform toolbox for music processing", SMC 2010;
    ``librosa.vqt``.
    """
    import librosa

    freqs = librosa.cqt_frequencies(n_bins, fmin=librosa.note_to_hz(fmin), bins_per_octave=bins_per_octave)
    lengths, _ = librosa.filters.wavelet_lengths(freqs=freqs, sr=SAMPLE_RATE)
    kernels = []
    for octave, stop in enumerate(range(n_bins, 0, -bins_per_octave)):      # 0 is the highest
        rows = slice(max(stop - bins_per_octave, 0), stop)
        basis, own = librosa.filters.wavelet(freqs=freqs[rows], sr=SAMPLE_RATE / 2**octave)
        n = basis.shape[1]
        spectrum = np.fft.fft(basis * own[:, None] / n, axis=1)
        spectrum[:, n // 2 + 1:] = 0
        sparse = librosa.util.sparsify_rows(spectrum[:, : n // 2 + 1], quantile=0.01).toarray()
        waveform = np.fft.fft(sparse, n=n, axis=1) * np.sqrt(2**octave / lengths[rows, None])
        kernels.append(np.concatenate([waveform.real, waveform.imag]).T.copy())
    return kernels


def cqt(y, n_bins=N_BINS, bins_per_octave=BINS_PER_OCTAVE, fmin=LOWEST):
    """Constant-Q magnitude of a clip, as ``abs(librosa.cqt(y, sr=22050, hop_length=1024))``.

    Parameters
    ----------
    y : ndarray, shape (samples,), float32
        Mono, 22,050 Hz.
    n_bins, bins_per_octave : int
    fmin : str
        Note of the lowest bin.

    Returns
    -------
    C : ndarray, shape (bins, frames), float32
        Amplitude; frames = 1 + samples // 1024.

    Examples
    --------
    >>> a4 = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050).astype(np.float32)
    >>> C = cqt(a4)
    >>> C.shape, int(C[:, 10].argmax())            # 45 semitones above C1
    ((84, 22), 45)
    """
    import soxr

    n_frames, stop = 1 + len(y) // HOP_LENGTH, n_bins
    C = np.empty((n_bins, n_frames), dtype=np.float32)
    for octave, kernel in enumerate(cqt_kernels(n_bins, bins_per_octave, fmin)):
        n, hop, bins = len(kernel), HOP_LENGTH >> octave, kernel.shape[1] // 2
        padded = np.zeros(max((n_frames - 1) * hop + n, n // 2 + len(y)), dtype=np.float32)
        padded[n // 2 : n // 2 + len(y)] = y
        frames = np.lib.stride_tricks.sliding_window_view(padded, n)[: n_frames * hop : hop]
        response = (frames.astype(np.float64) @ kernel).T           # librosa is in double here too
        C[stop - bins : stop] = np.hypot(response[:bins], response[bins:])
        stop -= bins
        y = soxr.resample(y, 2, 1, quality="HQ")
        y /= np.sqrt(0.5)                                           # here, not in the kernels: librosa's rounding
    return C


def stft_power(y, n_fft=N_FFT):
    """Power spectrogram of a clip, as ``abs(librosa.stft(y, n_fft=n_fft, hop_length=1024)) ** 2``.

    Returns
    -------
    S : ndarray, shape (1 + n_fft // 2, frames), float32
    """
    from scipy.fft import rfft
    from scipy.signal import get_window

    n_frames = 1 + len(y) // HOP_LENGTH
    padded = np.zeros((n_frames - 1) * HOP_LENGTH + n_fft, dtype=np.float32)
    part = y[: len(padded) - n_fft // 2]
    padded[n_fft // 2 : n_fft // 2 + len(part)] = part
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::HOP_LENGTH]
    S, window = np.empty((n_fft // 2 + 1, n_frames), dtype=np.float32), get_window("hann", n_fft)
    for k in range(0, n_frames, 64):                                # a block stays in the processor's cache
        X = rfft(frames[k : k + 64] * window)
        S[:, k : k + 64] = (X.real**2 + X.imag**2).T
    return S


@lru_cache(maxsize=8)
def mel_filter(sample_rate, n_fft, n_mels=N_MELS, fmin=0.0, fmax=None):
    """Triangular filters on Slaney's mel scale, as ``librosa.filters.mel`` with the same arguments.

    Own, because importing librosa takes longer than classifying a song.

    Returns
    -------
    weights : ndarray, shape (n_mels, 1 + n_fft // 2), float32
    """
    step = np.log(6.4) / 27                             # mels are linear below 1 kHz, then logarithmic
    first, last = (hz / (200 / 3) if hz < 1000 else 15 + np.log(hz / 1000) / step
                   for hz in (fmin, fmax or sample_rate / 2))
    mels = np.linspace(first, last, n_mels + 2)
    edges = np.where(mels < 15, mels * (200 / 3), 1000 * np.exp(step * (mels - 15)))        # Hz
    low, centre, high = (edges[k : k + n_mels, None] for k in range(3))
    bins = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clip(0)
    return (triangles.astype(np.float32) * (2 / (high - low))).astype(np.float32)           # librosa rounds twice, too


@lru_cache(maxsize=2)
def semitone_filter(n_fft):
    """Semitone bands as sums over the bins of an STFT: the CQT's frequencies without its windows.

    Each band is a triangle of height 1 that ends at its neighbours' centres, or one bin from its own where semitones
    are closer than bins: there it interpolates between two bins.

    Returns
    -------
    weights : ndarray, shape (84, 1 + n_fft // 2), float32

    Examples
    --------
    >>> weights = semitone_filter(4096)
    >>> weights.shape, bool((weights.max(axis=1) > 0.5).all())
    ((84, 2049), True)
    """
    import librosa

    centres = librosa.midi_to_hz(librosa.note_to_midi(LOWEST) + np.arange(-1, N_BINS + 1))[:, None]
    step, bins = SAMPLE_RATE / n_fft, np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE)
    width = np.maximum(np.diff(centres, axis=0), step)              # on either side of a centre
    rise, fall = (bins - centres[1:-1]) / width[:-1], (centres[1:-1] - bins) / width[1:]
    return np.maximum(1 + np.minimum(rise, fall), 0).astype(np.float32)
