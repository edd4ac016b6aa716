"""Explanations of a prediction: which cells of the spectrogram influenced it, and how they sound.

Integrated gradients [1]_ and Grad-CAM [2]_, both from captum [3]_, assign relevance to each cell (band, frame) of a
spectrogram; a mask over the short-time Fourier transform makes relevant cells audible.

References
----------
.. [1] M. Sundararajan, A. Taly, Q. Yan, "Axiomatic attribution for deep networks", ICML 2017, arXiv:1703.01365.
.. [2] R. R. Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization",
   ICCV 2017, arXiv:1610.02391.
.. [3] N. Kokhlikyan et al., "Captum: a unified and generic model interpretability library for PyTorch", 2020,
   arXiv:2009.07896.
"""

import numpy as np
import torch

from fma import DataError

N_FFT, HOP_LENGTH = 2048, 512       # of mel128's short-time Fourier transform


def integrated_gradients(logits, x, classes, steps=64):
    """How much each cell adds to a class's logit, on the path from the mean of the training clips to the clip [1]_.

    Completeness: the relevances of a clip sum to its logit minus that of the baseline, up to the error of a sum
    over ``steps`` points instead of an integral.

    Parameters
    ----------
    logits : callable
        From normalised clips, Tensor (batch, bins, frames), to logits, Tensor (batch, classes): a network in
        evaluation mode, or ``Classifier.logits``.
    x : Tensor, shape (batch, bins, frames)
        Normalised clips. The baseline, the training mean, is zero everywhere.
    classes : int, or sequence of int, one for each clip
    steps : int
        Points on the straight line from the baseline to the clip.

    Returns
    -------
    relevance : Tensor, shape (batch, bins, frames)
        In logits: positive for the class, negative against it.

    Examples
    --------
    >>> x = torch.tensor([[[1.0, 2.0]]])                    # a clip of one bin, two frames
    >>> integrated_gradients(lambda x: x.flatten(1) ** 2, x, classes=1)
    tensor([[[0., 4.]]])
    """
    from captum.attr import IntegratedGradients

    found = IntegratedGradients(logits).attribute(x, target=_each(x, classes), n_steps=steps, method="riemann_middle",
                                                  internal_batch_size=max(64, len(x)))      # spectrograms at a time
    return found.detach().to(x.dtype)


def grad_cam(network, x, classes):
    """Where the last convolutional map shows a class [2]_, enlarged to the size of the input.

    Each channel of the map is weighted by its mean gradient; negative values are set to zero. A cell of the map of
    `ResNet` covers 16 × 16 cells of the input and has a receptive field of about a hundred: this shows a region, not
    a note. For a `StatisticsResNet` it explains the convolutions only; integrated gradients explain all of it.

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
        From 0 to 1, the maximum of each clip; all 0 where nothing speaks for the class.

    Raises
    ------
    DataError
        If the network has no stages of residual blocks.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    stages = getattr(getattr(network, "resnet", network), "stages", None)
    if stages is None:
        raise DataError(f"Grad-CAM needs the stages of a ResNet, and {type(network).__name__} has none: "
                        "use weights of a ResNet, or integrated gradients, which work with any network")
    x = x.clone().requires_grad_()
    seen = LayerGradCam(network, stages).attribute(x, _each(x, classes), relu_attributions=True)
    seen = LayerAttribution.interpolate(seen.detach(), tuple(x.shape[1:]), "bilinear")[:, 0]
    return seen / seen.amax((1, 2), keepdim=True).clamp(min=1e-12)


def _each(x, classes):
    """Class of each clip: Tensor, shape (batch,)."""
    return torch.as_tensor(classes).expand(len(x))


def smoothed(relevance):
    """Relevance averaged over neighbouring cells, so that adjacent positive and negative values cancel.

    Parameters
    ----------
    relevance : Tensor or ndarray, shape (..., bins, frames)

    Returns
    -------
    ndarray, shape (..., bins, frames)
    """
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.asarray(relevance, dtype=np.float64), sigma=1, truncate=3, axes=(-2, -1))


def relevant_regions(relevance, share=0.1):
    """The cells of highest relevance, as a mask that can be made audible, or removed.

    Parameters
    ----------
    relevance : Tensor or ndarray, shape (..., bins, frames)
        Only positive values are chosen.
    share : float, 0 to 1
        Share of each clip's cells.

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
    """Probability of a class after some cells are set to the mean of the training clips.

    Parameters
    ----------
    classifier : classifier.Classifier
    x : Tensor, shape (batch, bins, frames)
        Normalised clips.
    classes : int, or sequence of int, one for each clip
    mask : ndarray, shape (batch, bins, frames)
        1 removes a cell, 0 keeps it.

    Returns
    -------
    ndarray, shape (batch,)
        Calibrated probabilities.
    """
    with torch.inference_mode():
        logits = classifier.logits(x * (1 - torch.as_tensor(mask, dtype=x.dtype)))
    return (logits / classifier.temperature).softmax(1)[torch.arange(len(x)), _each(x, classes)].numpy()


# ---- from the spectrogram back to audio ----------------------------------------------------------------------------


def stft_mask(mask, n_frames, sample_rate):
    """Convert a mask over mel128 to one over the short-time Fourier transform that mel128 is computed from.

    Values are interpolated linearly between the centres of the mel bands, and between the 128 frames; beyond the
    outermost ones they are constant.

    Parameters
    ----------
    mask : array, shape (128, 128)
        By mel band, lowest first, and frame of mel128.
    n_frames : int
        Frames of the transform.
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
    """Matrix (points, centres) of linear interpolation: from values at the centres to values at the points."""
    return np.stack([np.interp(points, centres, one) for one in np.eye(len(centres))], axis=1)


def masked_audio(y, sample_rate, mask):
    """A clip with all sound removed where a mask is 0: its transform times the mask, with the original phase.

    Parameters
    ----------
    y : ndarray, shape (samples,), float32
        Mono, the clip that mel128 was computed from.
    sample_rate : float, Hz
    mask : array, shape (128, 128)
        By mel band and frame of mel128: 1 keeps, 0 silences.

    Returns
    -------
    ndarray, shape (samples,), float32

    Examples
    --------
    >>> y = np.sin(np.arange(22050) / 10).astype(np.float32)
    >>> bool(np.abs(masked_audio(y, 22050, np.ones((128, 128))) - y).max() < 1e-4)
    True
    """
    import librosa

    spectrum = librosa.stft(np.asarray(y, dtype=np.float32), n_fft=N_FFT, hop_length=HOP_LENGTH)
    spectrum *= stft_mask(mask, spectrum.shape[1], sample_rate)
    return librosa.istft(spectrum, n_fft=N_FFT, hop_length=HOP_LENGTH, length=len(y))
