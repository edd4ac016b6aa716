"""Several features of a clip in one network: parallel encoders, and one classifier; and the least of networks."""

import torch
from torch import nn

from resnet_models import ClipStatistics, ResNet, dense_layer


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
        self.resnet, self.statistics = None, nn.Flatten()
        if n_frames > 1:
            self.statistics = ClipStatistics(n_bins)
        if n_frames > 1 and width:
            self.resnet = ResNet(n_bins, n_frames, 2, width)
            self.resnet.classify = nn.Identity()
        self.dense = dense_layer(self.statistics.n_values if n_frames > 1 else n_bins, hidden)
        self.n_values = hidden + (0 if self.resnet is None else 16 * width)

    def forward(self, x):                                       # (batch, bins, frames)
        dense = self.dense(self.statistics(x))                  # (batch, hidden)
        return dense if self.resnet is None else torch.cat([dense, self.resnet(x)], 1)


class Dense(nn.Module):
    """A dense network on an embedding of each clip.

    Parameters
    ----------
    n_bins, n_frames : int
        Size of the input, which is flattened.
    n_classes : int
        Number of genres.
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
    n_bins, n_frames : int
        Size of the input; one with a single frame is an embedding.
    n_classes : int

    Examples
    --------
    >>> Linear(84, n_frames=640)(torch.zeros(2, 84, 640)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins, n_frames=1, n_classes=8):
        super().__init__()
        self.statistics = ClipStatistics(n_bins) if n_frames > 1 else nn.Flatten()
        n_values = self.statistics.n_values if n_frames > 1 else n_bins
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

    Raises
    ------
    ValueError
        If there are fewer than two features, or one is too small.

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
