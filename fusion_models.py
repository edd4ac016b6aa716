"""Several features of a clip in one network: an encoder for each, side by side, and one classifier for all."""

import torch
from torch import nn

from cnn_models import dense_layers
from resnet_models import ResNet


class Encoder(nn.Module):
    """One feature of a clip as a vector: a `ResNet` without its last layer, or for a single frame a dense layer.

    Parameters
    ----------
    n_bins, n_frames : int
        Size of the feature; one frame is an embedding or other statistics of the clip.
    width : int
        Of the ResNet; the vector has 16 values for each.
    """

    def __init__(self, n_bins, n_frames, width):
        super().__init__()
        self.n_values = 16 * width
        if n_frames == 1:
            self.encode = nn.Sequential(nn.Flatten(), nn.Linear(n_bins, self.n_values), nn.ReLU())
        else:
            self.encode = ResNet(n_bins, n_frames, 2, width)
            self.encode.classify = nn.Identity()

    def forward(self, x):                       # (batch, bins, frames)
        return self.encode(x)                   # (batch, 16 width)


class Fusion(nn.Module):
    """Parallel branches: each feature through an encoder of its own, the vectors side by side, then dense layers.

    In training, a whole branch is hidden now and then, so that the classifier does not lean on the easiest alone.

    Parameters
    ----------
    n_bins, n_frames : sequence of int
        Size of each feature, in the order in which a batch has them; see `datasets.JointDataset`.
    n_classes : int
        Number of genres.
    width : int
        Of the encoders.
    hide : float
        Chance that a branch of a clip is hidden in training.

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

    def __init__(self, n_bins, n_frames, n_classes=8, width=16, hide=0.2):
        super().__init__()
        if len(n_bins) != len(n_frames) or len(n_bins) < 2:
            raise ValueError(f"a fusion needs two features or more, not {len(n_bins)} and {len(n_frames)} sizes")
        self.encoders = nn.ModuleList(Encoder(*size, width) for size in zip(n_bins, n_frames, strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm1d(encoder.n_values) for encoder in self.encoders)
        self.hide = nn.Dropout1d(hide)
        self.classify = dense_layers(sum(encoder.n_values for encoder in self.encoders), 128, n_classes)

    def forward(self, parts):                   # for each feature (batch, bins, frames)
        vectors = [norm(encoder(x)) for encoder, norm, x in zip(self.encoders, self.norms, parts, strict=True)]
        x = self.hide(torch.stack(vectors, 1))  # (batch, features, 16 width)
        return self.classify(x.flatten(1))      # (batch, classes)
