"""Why a network says what it says of a clip: which cells of the spectrogram moved it, and how they sound.

Integrated gradients [1]_ and Grad-CAM [2]_ give relevance to each cell (band, frame) of a spectrogram; a mask over the
short-time Fourier transform makes the relevant ones audible.

References
----------
.. [1] M. Sundararajan, A. Taly, Q. Yan, "Axiomatic attribution for deep networks", ICML 2017, arXiv:1703.01365.
.. [2] R. R. Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization",
   ICCV 2017, arXiv:1610.02391.
"""

import numpy as np
import torch

from fma import DataError

N_FFT, HOP_LENGTH = 2048, 512       # of mel128's short-time Fourier transform
BATCH = 64                          # spectrograms that go through the network at a time


def integrated_gradients(logits, x, classes, steps=64):
    """How much each cell adds to a class's logit, on the way from the mean of the training clips to the clip [1]_.

    Completeness: the relevances of a clip sum to its logit less that of the baseline, but for the error of a sum
    over ``steps`` points in place of an integral.

    Parameters
    ----------
    logits : callable
        From normalised clips, Tensor (batch, bins, frames), to logits, Tensor (batch, classes): a network in
        evaluation mode, or ``Classifier.logits``.
    x : Tensor, shape (batch, bins, frames)
        Normalised clips: the baseline, the training mean, is zero everywhere.
    classes : int, or sequence of int, one for each clip
    steps : int
        Points on the straight line from the baseline to the clip.

    Returns
    -------
    relevance : Tensor, shape (batch, bins, frames)
        In logits: above zero for the class, below against it.

    Raises
    ------
    DataError
        If x is no batch of spectrograms, or there is not a class for each clip.

    Examples
    --------
    >>> x = torch.tensor([[[1.0, 2.0]]])                    # a clip of one bin, two frames
    >>> integrated_gradients(lambda x: x.flatten(1) ** 2, x, classes=1)
    tensor([[[0., 4.]]])
    """
    classes = _one_class_each(x, classes)
    shares = ((torch.arange(steps, device=x.device) + 0.5) / steps).to(x.dtype)         # the middle of each step
    return torch.stack([clip * _mean_gradient(logits, clip, k, shares) for clip, k in zip(x, classes, strict=True)])


def _mean_gradient(logits, clip, k, shares):
    total = torch.zeros_like(clip)
    for part in shares.split(BATCH):
        points = (part.view(-1, 1, 1) * clip).requires_grad_()                          # (part, bins, frames)
        total += torch.autograd.grad(logits(points)[:, k].sum(), points)[0].sum(0)
    return total / len(shares)


def grad_cam(network, x, classes):
    """Where in the last convolutional map a class is seen [2]_, enlarged to the size of the input.

    Each channel of the map counts as much as its mean gradient; what is against the class is cut off. A cell of the
    map of `ResNet` stands for 16 × 16 of the input, and saw about a hundred: this shows a region, not a note. Of a
    `StatisticsResNet` it explains the convolutions alone; integrated gradients explain all of it.

    Parameters
    ----------
    network : resnet_models.ResNet or resnet_models.StatisticsResNet
        In evaluation mode.
    x : Tensor, shape (batch, bins, frames)
        Normalised clips.
    classes : int, or sequence of int, one for each clip

    Returns
    -------
    relevance : Tensor, shape (batch, bins, frames)
        From 0 to 1, the greatest of each clip; all 0 where nothing is for the class.

    Raises
    ------
    DataError
        If the network has no stages of residual blocks, or x and classes do not fit, as for `integrated_gradients`.
    """
    stages = getattr(getattr(network, "resnet", network), "stages", None)
    if stages is None:
        raise DataError(f"Grad-CAM reads the last map of ResNet's stages, {type(network).__name__} has none: "
                        "use weights of a ResNet, or integrated gradients, which take any network")
    classes, maps = _one_class_each(x, classes), []
    hook = stages.register_forward_hook(lambda module, inputs, output: maps.append(output))
    try:
        logits = network(x.detach().requires_grad_())
    finally:
        hook.remove()
    chosen = logits.gather(1, classes.view(-1, 1)).sum()
    weights = torch.autograd.grad(chosen, maps[0])[0].mean((2, 3), keepdim=True)        # (batch, channels, 1, 1)
    seen = (weights * maps[0].detach()).sum(1, keepdim=True).relu()                     # (batch, 1, bins / 16, ...)
    seen = torch.nn.functional.interpolate(seen, x.shape[1:], mode="bilinear")[:, 0]    # (batch, bins, frames)
    return seen / seen.amax((1, 2), keepdim=True).clamp(min=1e-12)


def _one_class_each(x, classes):
    """Class of each clip: Tensor, shape (batch,), int64."""
    if x.ndim != 3:
        raise DataError(f"clips to explain have shape (batch, bins, frames), not {tuple(x.shape)}: x[None] for one")
    classes = torch.as_tensor(classes, device=x.device).reshape(-1)
    if len(classes) not in (1, len(x)):
        raise DataError(f"{len(classes)} classes for {len(x)} clips: give one, or one for each")
    return classes.expand(len(x))


def smoothed(relevance, blur=1.0):
    """Relevance as a mean over neighbouring cells: neighbours for and against a class, side by side, cancel.

    Parameters
    ----------
    relevance : Tensor or ndarray, shape (..., bins, frames)
    blur : float
        Standard deviation of the Gaussian weights, in cells.

    Returns
    -------
    ndarray, shape (..., bins, frames)
    """
    from scipy.ndimage import gaussian_filter

    relevance = np.asarray(relevance, dtype=np.float64)
    return gaussian_filter(relevance, (0,) * (relevance.ndim - 2) + (blur, blur), truncate=3)


def relevant_regions(relevance, share=0.1):
    """The cells that speak most for a class: a mask that can be heard, or taken out.

    Parameters
    ----------
    relevance : Tensor or ndarray, shape (..., bins, frames)
        Only what is above zero is chosen.
    share : float, 0 to 1
        Of each clip's cells.

    Returns
    -------
    mask : ndarray, shape (..., bins, frames), float32
        1 for the chosen cells, else 0.

    Examples
    --------
    >>> relevant_regions(np.array([[0.0, 3.0, -9.0, 1.0]]), share=0.5)
    array([[0., 1., 0., 1.]], dtype=float32)
    """
    relevance = np.asarray(relevance)
    flat = relevance.reshape(*relevance.shape[:-2], -1)
    count = max(1, round(share * flat.shape[-1]))
    least = np.sort(flat, axis=-1)[..., -count].reshape(*relevance.shape[:-2], 1, 1)
    return ((relevance >= least) & (relevance > 0)).astype(np.float32)


def probabilities_without(classifier, x, classes, mask):
    """What is left of a class's probability once cells are set to the mean of the training clips.

    Parameters
    ----------
    classifier : classifier.Classifier
    x : Tensor, shape (batch, bins, frames)
        Normalised clips.
    classes : int, or sequence of int, one for each clip
    mask : ndarray, shape (batch, bins, frames)
        1 takes a cell out, 0 leaves it.

    Returns
    -------
    ndarray, shape (batch,)
        Calibrated probabilities.
    """
    classes = _one_class_each(x, classes)
    with torch.inference_mode():
        logits = classifier.logits(x * (1 - torch.as_tensor(mask, dtype=x.dtype)))
    return (logits / classifier.temperature).softmax(1).gather(1, classes.view(-1, 1))[:, 0].numpy()


# ---- from the spectrogram back to sound ----------------------------------------------------------------------------


def stft_mask(mask, n_frames, sample_rate):
    """A mask over mel128 as one over the short-time Fourier transform that it was made of.

    A frequency between the centres of two mel bands gets its share of both, as the bands' triangles have it; a frame
    between two of the 128 likewise. Beyond the outermost centres the mask goes on as it ends.

    Parameters
    ----------
    mask : array, shape (128, 128)
        By mel band, lowest first, and frame of mel128.
    n_frames : int
        Of the transform.
    sample_rate : float, Hz

    Returns
    -------
    ndarray, shape (1025, n_frames)
    """
    import librosa

    n_bands, n_kept = np.shape(mask)
    centres = librosa.mel_frequencies(n_bands + 2, fmax=sample_rate / 2)[1:-1]
    kept = np.floor((np.arange(n_kept) + 0.5) / n_kept * n_frames)          # as transforms.mel128 picks them
    by_frequency = _interpolation(librosa.fft_frequencies(sr=sample_rate, n_fft=N_FFT), centres)
    return by_frequency @ np.asarray(mask, dtype=np.float64) @ _interpolation(np.arange(n_frames), kept).T


def _interpolation(points, centres):
    """Matrix (points, centres) that takes values at the centres to values at the points, linearly between them."""
    return np.stack([np.interp(points, centres, one) for one in np.eye(len(centres))], axis=1)


def masked_audio(y, sample_rate, mask):
    """What a clip sounds like where a mask lets it through: its transform times the mask, with its own phase.

    Parameters
    ----------
    y : ndarray, shape (samples,), float32
        Mono, the clip that mel128 was made of.
    sample_rate : float, Hz
        Its own.
    mask : array, shape (128, 128)
        By mel band and frame of mel128: 1 lets through, 0 silences.

    Returns
    -------
    ndarray, shape (samples,), float32

    Raises
    ------
    DataError
        If the mask is not a plane, or the clip has fewer samples than one window.

    Examples
    --------
    >>> y = np.sin(np.arange(22050) / 10).astype(np.float32)
    >>> bool(np.abs(masked_audio(y, 22050, np.ones((128, 128))) - y).max() < 1e-4)
    True
    """
    import librosa

    if np.ndim(mask) != 2 or len(y) < N_FFT:
        raise DataError(f"a mask of shape {np.shape(mask)} cannot be heard on {len(y)} samples: it takes "
                        f"(bands, frames) and {N_FFT} samples or more")
    spectrum = librosa.stft(np.asarray(y, dtype=np.float32), n_fft=N_FFT, hop_length=HOP_LENGTH)
    spectrum *= stft_mask(mask, spectrum.shape[1], sample_rate)
    return librosa.istft(spectrum, n_fft=N_FFT, hop_length=HOP_LENGTH, length=len(y))
