"""Beyond the study: a small residual network beside statistics of the clip, and several features in one network.

Every network takes ``(batch, bins, frames)``, `Fusion` one for each feature, and gives logits ``(batch, classes)``. A
ValueError says that the input of a ResNet is too small, or what else it cannot take.

References
----------
.. [1] K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016,
   arXiv:1512.03385.
.. [2] G. Tzanetakis, P. Cook, "Musical genre classification of audio signals", IEEE Transactions on Speech and Audio
   Processing 10(5), 2002.
.. [3] D. S. Park, W. Chan, Y. Zhang, C.-C. Chiu, B. Zoph, E. D. Cubuk, Q. V. Le, "SpecAugment: a simple data
   augmentation method for automatic speech recognition", Interspeech 2019, arXiv:1904.08779.
"""

import math

import torch
from torch import nn

from cnn_models import require_size
from learning.augmentation import mask


def conv_norm(n_in, n_out, kernel, stride=1):
    """Conv → BatchNorm, padded so that only the stride reduces the map."""
    return nn.Sequential(nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False),
                         nn.BatchNorm2d(n_out))


class SpecMask(nn.Module):
    """SpecAugment as a layer [3]_: in training, mask two ranges of bins and two of frames of each clip.

    As a layer it can mask the input of one branch of a network only: statistics of a masked clip would be wrong.
    A range has at most a `share` (0 to 1) of all bins, or frames; its values are set to zero, the mean.
    """

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):                                           # (batch, bins, frames)
        for dim in (1, 2) if self.training and self.share else ():
            x = mask(x, round(self.share * x.shape[dim]), dim, None)
        return x


class StridedResidualBlock(nn.Module):
    """Two 3×3 convolutions beside the input, added, then ReLU [1]_; the first may halve bins and frames."""

    def __init__(self, n_in, n_out, stride=1):
        super().__init__()
        self.residual = nn.Sequential(conv_norm(n_in, n_out, 3, stride), nn.ReLU(), conv_norm(n_out, n_out, 3))
        same = stride == 1 and n_in == n_out
        self.shortcut = nn.Identity() if same else nn.Sequential(
            nn.AvgPool2d(stride, ceil_mode=True), conv_norm(n_in, n_out, 1))

    def forward(self, x):                                           # (batch, n_in, bins, frames)
        return torch.relu(self.residual(x) + self.shortcut(x))      # (batch, n_out, bins / stride, frames / stride)


class ResNet(nn.Module):
    """Residual blocks in four stages, each with half the resolution and twice the channels; then mean and maximum.

    No weight depends on the number of frames, so clips of any length can be classified.

    Parameters
    ----------
    n_bins, n_frames, n_classes : int
        Size of the input, 16 bins and 16 frames or more, and number of genres.
    width : int
        Channels of the first stage; the last has eight times as many.
    blocks : sequence of 4 int
        Number of residual blocks of each stage.
    dropout : float
        Dropout before the dense layer.
    masked : float, 0 to 1
        The share of `SpecMask`.

    Examples
    --------
    >>> ResNet(128, n_frames=128)(torch.zeros(2, 128, 128)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins, n_frames=640, n_classes=8, width=24, blocks=(1, 1, 1, 1), dropout=0.3, masked=0.125):
        super().__init__()
        require_size(n_bins, n_frames, n_classes, min_bins=16, min_frames=16)
        self.mask = SpecMask(masked)
        self.stem = nn.Sequential(conv_norm(1, width, 5, stride=2), nn.ReLU())
        stages, n_in = [], width
        for k, count in enumerate(blocks):
            n_out = width * 2**k
            for block in range(count):
                stages.append(StridedResidualBlock(n_in, n_out, stride=2 if k and not block else 1))
                n_in = n_out
        self.stages = nn.Sequential(*stages)
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * n_in, n_classes))

    def forward(self, x):                                           # (batch, bins, frames)
        x = self.stages(self.stem(self.mask(x).unsqueeze(1)))       # (batch, 8 width, bins / 16, frames / 16)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)          # (batch, 16 width)
        return self.classify(x)                                     # (batch, classes)


def cosine_transform(n_coefficients, n_bins):
    """The orthonormal discrete cosine transform, type II: Tensor, shape (coefficients, bins)."""
    transform = torch.empty(n_coefficients, n_bins)
    if transform.is_meta:           # only its size is wanted; arithmetic there would import torch's compiler, a second
        return transform
    k, bins = torch.arange(n_coefficients)[:, None], torch.arange(n_bins)
    transform = torch.cos(math.pi * k * (bins + 0.5) / n_bins) * math.sqrt(2 / n_bins)
    transform[0] /= math.sqrt(2)
    return transform


class ClipStatistics(nn.Module):
    """Statistics over a clip of each bin, and of each cepstral coefficient, without weights.

    These are mean, standard deviation, median, minimum, maximum, skewness, kurtosis and mean absolute change from
    frame to frame. Such statistics of MFCC are an old baseline of genre classification [2]_. Here the coefficients
    are computed from the normalised spectrum, the input of the network.

    Parameters
    ----------
    n_bins : int
    n_coefficients : int
        Coefficients of the discrete cosine transform (type II, orthonormal) of each frame; at most `n_bins`.
    least : float
        Added to each variance, so that nearly constant values have small skewness, kurtosis and gradients; pass less
        for values that are not normalised.
    """

    def __init__(self, n_bins, n_coefficients=40, least=1e-3):
        super().__init__()
        n_coefficients, self.least = min(n_coefficients, n_bins), least
        self.register_buffer("transform", cosine_transform(n_coefficients, n_bins), persistent=False)
        self.n_values = 8 * (n_bins + n_coefficients)

    def forward(self, x):                                           # (batch, bins, frames)
        with torch.autocast(x.device.type, enabled=False):          # moments need more than eight bits
            x = x.float()
            x = torch.cat([x, self.transform @ x], 1)               # (batch, bins + coefficients, frames)
            mean, change = x.mean(2), x.diff(dim=2).abs().mean(2)
            centred = x - mean[:, :, None]
            std = (centred.square().mean(2) + self.least).sqrt()
            z = centred / std[:, :, None]
            skewness, kurtosis = (z**3).mean(2), (z**4).mean(2)
            return torch.cat([mean, std, x.median(2).values, x.amin(2), x.amax(2), skewness.clamp(-10, 10),
                              kurtosis.clamp(0, 20), change], 1)    # (batch, 8 (bins + coefficients))


def summary(n_bins, n_frames):
    """`ClipStatistics`, or the only frame of an embedding as it is; and the number of values."""
    if n_frames == 1:
        return nn.Flatten(), n_bins
    statistics = ClipStatistics(n_bins)
    return statistics, statistics.n_values


def dense_layer(n_values, hidden):
    """One layer on statistics or an embedding, with batch norm and strong dropout."""
    return nn.Sequential(nn.BatchNorm1d(n_values, affine=False), nn.Dropout(0.2), nn.Linear(n_values, hidden),
                         nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.5))


class StatisticsResNet(nn.Module):
    """A `ResNet` parallel to a dense network on `ClipStatistics`: their logits are averaged.

    In training, one of the two is sometimes dropped, so that each learns to classify by itself.

    Parameters
    ----------
    n_bins, n_frames, n_classes, width, blocks, dropout, masked
        As for `ResNet`; with a width of 0 there is none.
    hidden : int
        Units of the dense layer.
    hide : float, 0 to 0.5
        Probability that either branch is dropped for a clip in training.

    Examples
    --------
    >>> StatisticsResNet(128, n_frames=128)(torch.zeros(2, 128, 128)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins, n_frames=640, n_classes=8, width=24, blocks=(1, 1, 1, 1), dropout=0.3, masked=0.125,
                 hidden=512, hide=0.25):
        super().__init__()
        require_size(n_bins, n_frames, n_classes)
        self.resnet = ResNet(n_bins, n_frames, n_classes, width, blocks, dropout, masked) if width else None
        self.statistics = ClipStatistics(n_bins)
        self.dense = nn.Sequential(dense_layer(self.statistics.n_values, hidden), nn.Linear(hidden, n_classes))
        self.hide = hide

    def forward(self, x):                                           # (batch, bins, frames)
        dense, share = self.dense(self.statistics(x)), 0.5
        if self.resnet is None:
            return dense
        if self.training:
            drawn = torch.rand(len(x), 1, device=x.device)
            share = 0.5 + 0.5 * (drawn < self.hide) - 0.5 * (drawn > 1 - self.hide)
        return share * self.resnet(x) + (1 - share) * dense         # (batch, classes)


class Encoder(nn.Module):
    """Encode a feature as a vector: a `ResNet` without its last layer, and a dense layer on `ClipStatistics`.

    Parameters
    ----------
    n_bins, n_frames : int
        Size of the feature; one with a single frame is an embedding, and gets a dense layer only.
    width : int
        Width of the ResNet, which adds 16 times as many values to the vector; 0 for statistics only.
    hidden : int
        Units of the dense layer.
    """

    def __init__(self, n_bins, n_frames, width, hidden):
        super().__init__()
        self.statistics, n_values = summary(n_bins, n_frames)
        self.resnet = None
        if n_frames > 1 and width:
            self.resnet = ResNet(n_bins, n_frames, 2, width)
            self.resnet.classify = nn.Identity()
        self.dense = dense_layer(n_values, hidden)
        self.n_values = hidden + (0 if self.resnet is None else 16 * width)

    def forward(self, x):                                       # (batch, bins, frames)
        dense = self.dense(self.statistics(x))                  # (batch, hidden)
        return dense if self.resnet is None else torch.cat([dense, self.resnet(x)], 1)


class Dense(nn.Module):
    """A dense network on an embedding of each clip.

    Parameters
    ----------
    n_bins, n_frames, n_classes : int
        Size of the input, which is flattened, and number of genres.
    hidden : int
        Units of the hidden layer.

    Examples
    --------
    >>> Dense(128, n_frames=1)(torch.zeros(2, 128, 1)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins, n_frames=1, n_classes=8, hidden=512):
        super().__init__()
        self.dense = dense_layer(n_bins * n_frames, hidden)
        self.classify = nn.Linear(hidden, n_classes)

    def forward(self, x):                                       # (batch, bins, frames)
        return self.classify(self.dense(x.flatten(1)))          # (batch, classes)


class Linear(nn.Module):
    """Logistic regression on an embedding of each clip, or on its `ClipStatistics`: fitted by classifier/linear.py.

    Parameters
    ----------
    n_bins, n_frames, n_classes : int
        Size of the input, where a single frame is an embedding, and number of genres.

    Examples
    --------
    >>> Linear(84, n_frames=640)(torch.zeros(2, 84, 640)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins, n_frames=1, n_classes=8):
        super().__init__()
        self.statistics, n_values = summary(n_bins, n_frames)
        self.scale = nn.BatchNorm1d(n_values, affine=False)
        self.classify = nn.Linear(n_values, n_classes)

    def forward(self, x):                                       # (batch, bins, frames)
        return self.classify(self.scale(self.statistics(x)))    # (batch, classes)


class Fusion(nn.Module):
    """One encoder for each feature; their vectors are concatenated and classified by one layer.

    In training, whole branches are dropped at random, so that the classifier does not rely on the easiest one only.

    Parameters
    ----------
    n_bins, n_frames : sequence of int
        Size of each feature, in the order of `dataset.JointDataset`.
    n_classes : int
        Number of genres.
    width, hidden : int
        Arguments of the encoders.
    hide : float
        Probability that a branch of a clip is dropped in training.

    Examples
    --------
    >>> Fusion((128, 20, 128), (128, 130, 1))([torch.zeros(2, 128, 128), torch.zeros(2, 20, 130),
    ...                                        torch.zeros(2, 128, 1)]).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins, n_frames, n_classes=8, width=16, hidden=512, hide=0.25):
        super().__init__()
        if len(n_bins) != len(n_frames) or len(n_bins) < 2:
            raise ValueError(f"a fusion needs two features or more, not {len(n_bins)} and {len(n_frames)} sizes")
        self.encoders = nn.ModuleList(Encoder(*size, width, hidden) for size in zip(n_bins, n_frames, strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm1d(encoder.n_values) for encoder in self.encoders)
        self.hide = nn.Dropout1d(hide)
        self.classify = nn.Linear(sum(encoder.n_values for encoder in self.encoders), n_classes)

    def forward(self, parts):                                   # for each feature (batch, bins, frames)
        vectors = [norm(encoder(x)) for encoder, norm, x in zip(self.encoders, self.norms, parts, strict=True)]
        shown = self.hide(torch.ones(len(vectors[0]), len(vectors), 1, device=vectors[0].device)).unbind(1)
        return self.classify(torch.cat([x * there for x, there in zip(vectors, shown, strict=True)], 1))
