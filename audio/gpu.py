"""The six features of audio/transforms.py for batches of clips, in PyTorch for a GPU.

The input is decoded waveforms at 22,050 Hz, the values are those of `transforms.extract`, so librosa's. All sums are in
float64: a bin may be 120 dB below its neighbour, too low for float32, and for TF32, which torch may use instead on a
GPU. Decoding takes far longer even so (benchmarks/gpu.py).
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import pad

from audio.spectra import BINS_PER_OCTAVE, HOP_LENGTH, N_BINS, N_FFT, N_MELS, SAMPLE_RATE, cqt_kernels
from audio.transforms import CLIP_SECONDS, FEATURES, FLOOR_DB, N_MFCC, STUDY_FEATURES
from fma import DataError

REACH = 194             # samples on each side of soxr's HQ filter for halving a rate; its taps beyond are 0 (1e-8)
BLOCK = 64              # samples per matrix product with that filter: more wastes computation, fewer memory
BATCH = 32              # clips computed at a time: 40 MB of GPU memory each
SMOOTHING = 41          # frames of chroma_cens, with a zero on either side
TINY = torch.finfo(torch.float32).tiny      # below it librosa does not normalise a frame


def open_gpu():
    """The GPU that computes features; a DataError if there is none."""
    if not torch.cuda.is_available():
        raise DataError("--device cuda cannot be used: PyTorch finds no GPU here, leave it out")
    return torch.device("cuda", torch.cuda.current_device())


# ---------------------------------------------------------------- what is built once


@lru_cache(maxsize=1)
def halving_filter():
    """Impulse response of ``soxr.resample(y, 2, 1, quality="HQ")``, measured: it is linear phase, so symmetric.

    Returns
    -------
    taps : ndarray, shape (2 * REACH + 1,), float64
        Sample j of the result is the sum over k of ``taps[REACH + k] * y[2 * j - k]``.
    """
    import soxr

    taps, centre = np.zeros(2 * REACH + 1), 4096
    for start in (centre, centre + 1):              # an impulse meets every other tap
        impulse = np.zeros(2 * centre)
        impulse[start] = 1
        k = np.arange(-REACH, REACH + 1)
        k = k[(start + k) % 2 == 0]
        taps[REACH + k] = soxr.resample(impulse, 2, 1, quality="HQ")[(start + k) // 2]
    return (taps + taps[::-1]) / 2                  # halves soxr's rounding


@lru_cache(maxsize=4)
def constants(device):
    """Filters, windows and matrices by name, in float64, on a device."""
    import librosa
    from scipy.fft import dct
    from scipy.signal import get_window

    halve = np.zeros((2 * BLOCK + 2 * REACH - 1, BLOCK))
    for j in range(BLOCK):
        halve[2 * j : 2 * j + 2 * REACH + 1, j] = halving_filter()
    edges = np.linspace(-0.5, 0.5, 101)             # of the histogram in librosa.pitch_tuning
    smooth = get_window("hann", SMOOTHING + 2, fftbins=False)
    arrays = {
        "halve": halve,
        "kernels": np.stack(cqt_kernels()),                                             # (7, 256, 24)
        "fold": librosa.feature.chroma_cqt(C=np.eye(N_BINS, dtype=np.float32), norm=None),  # (12, 84)
        "smooth": smooth / smooth.sum(),
        "window": get_window("hann", N_FFT),
        "mel": librosa.filters.mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=N_MELS),         # (128, 513)
        "dct": dct(np.eye(N_MELS), axis=0, norm="ortho")[:N_MFCC],                      # (20, 128)
        "edges": edges,
        "chroma": np.stack([librosa.filters.chroma(sr=SAMPLE_RATE, n_fft=N_FFT, tuning=tuning)
                            for tuning in edges[:-1]]),                                 # (100, 12, 513)
    }
    return {name: torch.tensor(array, dtype=torch.float64, device=device) for name, array in arrays.items()}


# ---------------------------------------------------------------- transforms


def _own(lengths, size):
    """Mask of the samples or frames of each clip: (clips, size), True for the first `lengths`."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def halve(y, lengths):
    """Halve the sample rate, as ``soxr.resample(y, 2, 1, quality="HQ")`` does of each clip.

    Parameters
    ----------
    y : Tensor, shape (clips, samples), float64
        Zero past each clip's end.
    lengths : Tensor, shape (clips,), int64
        Samples of each clip.

    Returns
    -------
    y : Tensor, shape (clips, (samples + 1) // 2)
    lengths : Tensor, shape (clips,)
    """
    size, lengths = (y.shape[1] + 1) // 2, (lengths + 1) // 2
    blocks = -(-size // BLOCK)
    padded = pad(y, (REACH, 2 * BLOCK * blocks + REACH - y.shape[1]))
    frames = padded.unfold(1, 2 * BLOCK + 2 * REACH - 1, 2 * BLOCK)                     # (clips, blocks, samples)
    y = (frames @ constants(y.device)["halve"]).flatten(1)[:, :size]
    return torch.where(_own(lengths, size), y, 0), lengths                              # soxr ends with the clip


def cqt(y, lengths):
    """Constant-Q magnitude of a batch, as `spectra.cqt` of each clip.

    Parameters
    ----------
    y : Tensor, shape (clips, samples), float32
        Mono, 22,050 Hz, zero past each clip's end.
    lengths : Tensor, shape (clips,), int64

    Returns
    -------
    C : Tensor, shape (clips, 84, frames), float64
        Amplitude; frames = 1 + samples // 1024.
    """
    n_frames, octaves, y = 1 + y.shape[1] // HOP_LENGTH, [], y.double()
    for octave, kernel in enumerate(constants(y.device)["kernels"]):
        if octave:
            y, lengths = halve(y, lengths)
            y = y / math.sqrt(0.5)
        n, hop = len(kernel), HOP_LENGTH >> octave
        padded = pad(y, (n // 2, max((n_frames - 1) * hop + n - n // 2 - y.shape[1], 0)))
        frames = padded.unfold(1, n, hop)[:, :n_frames]
        response = frames @ kernel                                                      # (clips, frames, 24)
        octaves.append(torch.hypot(response[..., :BINS_PER_OCTAVE], response[..., BINS_PER_OCTAVE:]))
    return torch.cat(octaves[::-1], dim=2).transpose(1, 2)


def stft_power(y):
    """Power spectrogram of a batch, as `spectra.stft_power` of each clip.

    Parameters
    ----------
    y : Tensor, shape (clips, samples), float32
        Mono, 22,050 Hz, zero past each clip's end.

    Returns
    -------
    S : Tensor, shape (clips, 513, frames), float64
    """
    n_frames = 1 + y.shape[1] // HOP_LENGTH
    padded = pad(y, (N_FFT // 2, N_FFT))[:, : n_frames * N_FFT]                         # hop = n_fft: no overlap
    X = torch.fft.rfft(padded.unflatten(1, (n_frames, N_FFT)) * constants(y.device)["window"])
    return (X.real**2 + X.imag**2).transpose(1, 2)


def estimate_tuning(S, counts):
    """Deviation from A440, as `transforms.estimate_tuning` of each clip.

    Parameters
    ----------
    S : Tensor, shape (clips, 513, frames)
        Power spectrogram.
    counts : Tensor, shape (clips,), int64
        Frames that are a clip's own.

    Returns
    -------
    tuning : Tensor, shape (clips,), int64
        Steps of a hundredth of a semitone above -0.5: 50 is in tune.
    """
    first, last = math.ceil(150 * N_FFT / SAMPLE_RATE), math.ceil(4000 * N_FFT / SAMPLE_RATE)
    S = S.float()                                       # as there: it decides which of two equals is a peak
    here, below, above = S[:, first:last], S[:, first - 1 : last - 1], S[:, first + 1 : last + 1]
    peak = (here > below) & (here >= above) & (here > 0.1 * S.amax(dim=1, keepdim=True))
    peak &= _own(counts, S.shape[2])[:, None]
    slope, curve = (above - below) / 2, above + below - 2 * here
    shift = torch.where(slope.abs() < curve.abs(), -slope / torch.where(curve == 0, 1, curve), 0)
    height = torch.where(peak, here + 0.5 * slope * shift, torch.nan).flatten(1)
    median = -torch.nanmedian(-height, dim=1, keepdim=True).values                      # of an even number the upper
    chosen = height >= median                                                           # never of NaN
    bins = torch.arange(first, last, device=S.device)[:, None]
    octaves = torch.log2((bins + shift.double()) * (SAMPLE_RATE / N_FFT) / (440 / 16))
    residual = torch.remainder(12 * octaves, 1.0).flatten(1)
    residual = torch.where(residual >= 0.5, residual - 1, residual)
    step = torch.bucketize(residual, constants(S.device)["edges"], right=True).sub(1).clamp(0, 99)
    histogram = torch.zeros(len(S), 100, dtype=torch.int64, device=S.device).scatter_add_(1, step, chosen.long())
    lowest_first = 100 * histogram - torch.arange(100, device=S.device)                 # of equal counts, as NumPy
    return torch.where(chosen.any(dim=1), lowest_first.argmax(dim=1), 50)


def normalise(x, norm):
    """Divide each frame (dimension 1) by its norm, as ``librosa.util.normalize``: a frame of zeros stays."""
    size = torch.linalg.vector_norm(x, ord=norm, dim=1, keepdim=True)
    return x / torch.where(size < TINY, 1, size)


def cens(chroma, counts):
    """Chroma energy normalised statistics, as ``librosa.feature.chroma_cens``.

    Parameters
    ----------
    chroma : Tensor, shape (clips, 12, frames)
        Not normalised.
    counts : Tensor, shape (clips,), int64
        Frames that are a clip's own.

    Returns
    -------
    Tensor, shape (clips, 12, frames)

    References
    ----------
    M. Müller, S. Ewert, "Chroma toolbox: MATLAB implementations for extracting variants of chroma-based audio
    features", ISMIR 2011.
    """
    share = normalise(chroma, 1)
    steps = sum((share > step).double() for step in (0.4, 0.2, 0.1, 0.05)) / 4
    steps = torch.where(_own(counts, chroma.shape[2])[:, None], steps, 0)               # librosa sees zeros there
    window = constants(chroma.device)["smooth"]
    return normalise(pad(steps, [len(window) // 2] * 2).unfold(2, len(window), 1) @ window, 2)


# ---------------------------------------------------------------- features


def extract_batch(y, names=STUDY_FEATURES, lengths=None):
    """Compute features of many clips at a time, on the device that holds them.

    The values of `transforms.extract` within 0.05 dB (cqt and mel_stft), 0.05 (mfcc) and 1e-3 (chroma), except where
    rounding decides:

    - bins of the CQT 90 dB and more below the clip's loudest, where soxr's own rounding shows: some 0.5 dB
    - chroma_cqt and chroma_cens of frames 60 dB and more below the clip's loudest
    - chroma_cens in the 20 frames around one where a share lies on a step of its quantisation (within 1e-5): 0.05
    - chroma_stft of a clip in which two tunings are equally frequent

    Parameters
    ----------
    y : Tensor, shape (clips, samples), float32
        Mono, 22,050 Hz.
    names : sequence of str
        Of `transforms.STUDY_FEATURES`; mel128 is made at the file's own sample rate, by `transforms.mel128`.
    lengths : sequence of int, optional
        Samples of each clip if they differ; the rest of `y` is ignored.

    Returns
    -------
    features : dict of str to Tensor, shape (clips, bins, frames), float32
        frames = 1 + samples // 1024; zero past a clip's own.

    Examples
    --------
    >>> noise = torch.randn(2, 661_500) / 10
    >>> {name: tuple(x.shape) for name, x in extract_batch(noise, ["cqt", "mfcc"]).items()}
    {'cqt': (2, 84, 646), 'mfcc': (2, 20, 646)}
    """
    if unknown := set(names) - set(STUDY_FEATURES):
        raise ValueError(f"not made in batches: {', '.join(sorted(unknown))}")
    lengths = torch.full(y.shape[:1], y.shape[1]) if lengths is None else torch.as_tensor(lengths)
    lengths = lengths.to(y.device)
    y = torch.where(_own(lengths, y.shape[1]), y, 0)
    counts, fixed, names, found = 1 + lengths // HOP_LENGTH, constants(y.device), set(names), {}
    with torch.inference_mode():
        if names & {"cqt", "chroma_cqt", "chroma_cens"}:
            C = cqt(y, lengths)
            found["cqt"] = 20 * torch.log10(C.clamp(min=10 ** (FLOOR_DB / 20)))
            chroma = fixed["fold"] @ C
            if "chroma_cqt" in names:
                found["chroma_cqt"] = normalise(chroma, math.inf)
            if "chroma_cens" in names:
                found["chroma_cens"] = cens(chroma, counts)
        if names & {"chroma_stft", "mel_stft", "mfcc"}:
            S = stft_power(y)
            found["mel_stft"] = 10 * torch.log10((fixed["mel"] @ S).clamp(min=10 ** (FLOOR_DB / 10)))
            if "mfcc" in names:
                found["mfcc"] = fixed["dct"] @ found["mel_stft"]
            if "chroma_stft" in names:
                found["chroma_stft"] = normalise(fixed["chroma"][estimate_tuning(S, counts)] @ S, math.inf)
        own = _own(counts, 1 + y.shape[1] // HOP_LENGTH)[:, None]
        return {name: torch.where(own, found[name], 0).float() for name in FEATURES if name in names}


def extract_stream(clips, device, names=STUDY_FEATURES, size=BATCH, seconds=CLIP_SECONDS):
    """Features of a stream of clips: while the device computes a batch, the next is read.

    Parameters
    ----------
    clips : iterable of (key, ndarray of shape (samples,), float32, or str)
        Mono, 22,050 Hz, of `seconds` at most; a word stands for a clip that cannot be used.
    device : torch.device
    names : sequence of str
        Of `transforms.STUDY_FEATURES`.
    size : int
        Clips in a batch, fewer where clips are longer than 30 s.
    seconds : float

    Yields
    ------
    key : as given, clips in the same order
    features : dict of str to ndarray, shape (bins, frames), float32
        frames = 1 + samples // 1024. The word, for a clip that cannot be used.

    Raises
    ------
    DataError
        If the device has too little memory.
    """
    gpu = device.type == "cuda"                     # copies from pinned memory run beside Python
    size = max(1, int(size * min(1, CLIP_SECONDS / seconds)))
    staging = [torch.zeros(size, math.ceil(seconds * SAMPLE_RATE), pin_memory=gpu) for _ in range(2)]
    clips, before = iter(clips), None
    while True:
        keys, lengths = [], []
        for key, y in clips:
            if isinstance(y, str):
                yield key, y
                continue
            staging[0][len(keys), : len(y)] = torch.from_numpy(y)
            keys.append(key)
            lengths.append(len(y))
            if len(keys) == size:
                break
        rows = list(_unstack(*before)) if before else []        # waits until the device has read that buffer
        found = _compute(staging[0][: len(keys)], device, names, lengths) if keys else None
        yield from rows                             # the caller writes them while the device computes
        if not keys:
            return
        staging.reverse()
        before = keys, lengths, found


def _compute(y, device, names, lengths):
    try:
        return extract_batch(y.to(device, non_blocking=True), names, lengths)
    except torch.cuda.OutOfMemoryError as error:
        raise DataError(f"the memory of {device} is too small for {len(y)} clips at a time, or used by another "
                        "program: end that, or run without --device") from error


def _unstack(keys, lengths, found):
    arrays = {name: x.cpu().numpy() for name, x in found.items()}
    for k, (key, n) in enumerate(zip(keys, lengths, strict=True)):
        yield key, {name: x[k, :, : 1 + n // HOP_LENGTH] for name, x in arrays.items()}
