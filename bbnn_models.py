"""The bottom-up broadcast neural network of Liu et al. [1]_: every block receives the shallow features.

It takes ``(batch, bins, frames)`` and gives logits ``(batch, classes)``; a ValueError says which argument is invalid,
or that the input is too small. Pools are frequency × time.

References
----------
.. [1] C. Liu, L. Feng, G. Liu, H. Wang, S. Liu, "Bottom-up broadcast neural network for music genre
   classification", Multimedia Tools and Applications 2021, arXiv:1901.08928.
"""

import torch
from torch import nn

from cnn_models import dense_layers, pooled, require_size


def preactivated(n_in, n_out, kernel, bias):
    """BatchNorm → ReLU → Conv: the norm comes first, so that the broadcast maps are linear."""
    return nn.Sequential(nn.BatchNorm2d(n_in), nn.ReLU(), nn.Conv2d(n_in, n_out, kernel, padding="same", bias=bias))


class InceptionBlock(nn.Module):
    """Four branches of different scales, of `width` channels each, concatenated with the input."""

    def __init__(self, n_in, width, bias):
        super().__init__()
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), preactivated(n_in, width, 1, bias))
        self.three = nn.Sequential(preactivated(n_in, width, 1, bias), preactivated(width, width, 3, bias))
        self.five = nn.Sequential(preactivated(n_in, width, 1, bias), preactivated(width, width, 5, bias))
        self.one = preactivated(n_in, width, 1, bias)

    def forward(self, x):                                                     # (batch, n_in, bins, frames)
        views = self.pooled(x), self.three(x), self.five(x), self.one(x)      # four of (batch, width, …)
        return torch.cat([x, *views], dim=1)                                  # (batch, n_in + 4 width, …)


class BBNN(nn.Module):
    """Bottom-up broadcast neural network.

    A shallow convolution and a pool of 4 over time, three inception blocks, each input to all later ones, a transition
    and a global average.

    Parameters
    ----------
    n_bins, n_frames, n_classes : int
        Size of the input, 4 bins × 10 frames or more ("paper": 2 × 8), on which no weight depends; number of genres.
    variant : {"original", "paper"}
        "original" is the network of the original study: 16 channels before a transition to 32, a first
        convolution without padding, no convolution biases, Dropout 0.5 before the dense layer.
        "paper" is that of Liu et al.: 32 channels everywhere, "same" padding, biases, no dropout; it has
        their 185,642 trainable parameters at 10 classes. They fed it mel spectrograms in dB (128 bands,
        n_fft 2048, hop length 1024).

    Examples
    --------
    >>> BBNN(84, 640)(torch.zeros(2, 84, 640)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins=84, n_frames=640, n_classes=8, variant="original"):
        super().__init__()
        if variant not in ("original", "paper"):
            raise ValueError(f"variant must be original or paper, not {variant!r}")
        paper = variant == "paper"
        edge = 0 if paper else 2                           # removed by the first convolution
        require_size(n_bins, n_frames, n_classes, min_bins=2 + edge, min_frames=8 + edge)
        width, bias = (32, True) if paper else (16, False)
        first = nn.Conv2d(1, width, 3, padding="same" if paper else "valid", bias=bias)
        self.shallow = pooled(nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU()), (1, 4))
        self.broadcast = nn.Sequential(
            InceptionBlock(width, width, bias),            # 5 width
            InceptionBlock(5 * width, width, bias),        # 9 width
            InceptionBlock(9 * width, width, bias),        # 13 width: 208, "paper" 416
        )
        self.transition = nn.Sequential(
            preactivated(13 * width, 32, 1, bias), nn.AvgPool2d(2), nn.BatchNorm2d(32), nn.ReLU(),
        )
        dense = dense_layers(32, n_classes)
        self.classify = dense[1] if paper else dense       # without its dropout

    def forward(self, x):                                  # (batch, bins, frames), "original" at 84 × 640:
        x = self.shallow(x.unsqueeze(1))                   # (batch, 16, 82, 159)
        x = self.broadcast(x)                              # (batch, 208, 82, 159)
        x = self.transition(x)                             # (batch, 32, 41, 79)
        x = x.mean((2, 3))                                 # (batch, 32)
        return self.classify(x)                            # (batch, classes)
