"""Convolutional networks over frequency, over time, and over both, after Choi et al. [1]_.

Every network takes ``(batch, bins, frames)`` and gives logits ``(batch, classes)``; a ValueError says which argument is
invalid, or that the input is too small. Kernels and pools are frequency × time. Three pools of 4 leave ``frames // 64``
frames; the last pool reduces them to one.

References
----------
.. [1] K. Choi, G. Fazekas, M. Sandler, K. Cho, "Convolutional recurrent neural networks for music
   classification", ICASSP 2017, arXiv:1609.04243.
.. [2] K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016,
   arXiv:1512.03385.
.. [3] G. Huang, Z. Liu, L. van der Maaten, K. Weinberger, "Densely connected convolutional networks",
   CVPR 2017, arXiv:1608.06993.
.. [4] W. Bian, J. Wang, B. Zhuang, J. Yang, S. Wang, J. Xiao, "Audio-based music classification with DenseNet
   and data augmentation", PRICAI 2019, arXiv:1906.11620.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import nn

# ---- building blocks, shared with crnn_models and bbnn_models ----------------------------------------------


def conv_block(n_in, n_out, kernel, padding="same", kind=nn.Conv2d):
    """Conv → BatchNorm → ReLU: the basic block. The norm makes a bias of the convolution redundant."""
    return nn.Sequential(kind(n_in, n_out, kernel, padding=padding, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


def pooled(block, pool):
    """A block and its max pool. ReLU and max pool commute, so ReLU comes last, on fewer values."""
    if isinstance(block, nn.Sequential) and isinstance(block[-1], nn.ReLU):
        return nn.Sequential(*block[:-1], nn.MaxPool2d(pool), nn.ReLU())
    return nn.Sequential(block, nn.MaxPool2d(pool))


class ResidualBlock(nn.Module):
    """Two convolutions beside a 1×1 convolution of the input, added, then ReLU [2]_, in the map's size."""

    def __init__(self, n_in, n_out, kernel):
        super().__init__()
        self.residual = nn.Sequential(
            conv_block(n_in, n_out, kernel),
            nn.Conv2d(n_out, n_out, kernel, padding="same", bias=False),
            nn.BatchNorm2d(n_out),
        )
        self.shortcut = nn.Conv2d(n_in, n_out, 1, bias=False)    # no bias: the norm beside it has one

    def forward(self, x):                                        # (batch, n_in, bins, frames)
        return torch.relu(self.residual(x) + self.shortcut(x))   # (batch, n_out, bins, frames)


class JoinedConv2d(nn.Conv2d):
    """A convolution of several maps as if concatenated: the sum of one convolution for each, without a copy."""

    def forward(self, maps):                            # each (batch, some of the channels, bins, frames)
        weights = self.weight.split([x.shape[1] for x in maps], dim=1)
        first, *others = (self._conv_forward(x, weight, None) for x, weight in zip(maps, weights, strict=True))
        return sum(others, start=first)


class DenseBlock(nn.Module):
    """Two basic blocks, each on all previous maps, and a 1×1 block that compresses them [3]_, in the map's size."""

    def __init__(self, n_in, n_out, kernel):
        super().__init__()
        both = n_in + n_out
        self.first = conv_block(n_in, n_out, kernel)
        self.second = conv_block(both, both, kernel, kind=JoinedConv2d)
        self.compress = conv_block(2 * both, n_out, 1, kind=JoinedConv2d)

    def forward(self, x):                               # (batch, n_in, bins, frames)
        first = self.first(x)                           # (batch, n_out, bins, frames)
        second = self.second((x, first))                # (batch, n_in + n_out, bins, frames)
        return self.compress((x, first, second))        # (batch, n_out, bins, frames)


BLOCKS = {"basic": conv_block, "resnet": ResidualBlock, "densenet": DenseBlock}


def dense_layers(*widths, dropouts=None):
    """Fully connected layers: Dropout 0.5 before the first `dropouts` of them (None: all), ReLU after all but the last.

    >>> len(dense_layers(256, 32, 8)), len(dense_layers(256, 32, 8, dropouts=1))    # only one Dropout
    (5, 4)
    """
    layers = []
    for k, (n_in, n_out) in enumerate(pairwise(widths)):
        layers += [nn.Dropout(0.5)] * (dropouts is None or k < dropouts) + [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def require_size(n_bins, n_frames, n_classes, min_bins=1, min_frames=1):
    """Raise a ValueError if pooling would leave nothing of the input, or there is nothing to choose from."""
    if n_classes < 2:
        raise ValueError(f"n_classes must be at least 2, not {n_classes}")
    if n_bins < min_bins or n_frames < min_frames:
        raise ValueError(f"input of {n_bins} bins x {n_frames} frames is too small: "
                         f"this network needs at least {min_bins} x {min_frames}")


def last_pool_width(n_frames, last_pool=None):
    """Frames under the last pool of a CNN, which reduces ``n_frames // 64`` frames to one.

    >>> last_pool_width(640), last_pool_width(640, last_pool=6)
    (10, 6)
    """
    left = n_frames // 64
    if last_pool is None:
        return left
    if not left // 2 < last_pool <= left:    # fewer leave two or more, more leave none
        raise ValueError(f"last_pool={last_pool} does not reduce the {left} left of {n_frames} frames to one: "
                         f"choose {left // 2 + 1} to {left}, or None to pool all")
    return last_pool


# ---- networks ----------------------------------------------------------------------------------------------


class FrequencyCNN(nn.Module):
    """Convolve and pool over time only: the bins are separate until the dense layers.

    The dense layers are bins·32 → 512 → 128 → 32 → classes, or bins·32 → 256 → 32 → classes where bins·32 is
    512 or less (up to 16 bins, so every chroma feature).

    Parameters
    ----------
    n_bins, n_frames, n_classes : int
        Size of the input, 1 bin and 64 frames or more, and number of genres.
    blocks : sequence of 4 str
        Kind of each convolution: "basic", "resnet" [2]_ or "densenet" [3]_ [4]_.
    last_pool : int, optional
        Frames under the last max pool; by default all that are left. The original study's 6 ignores the
        last four of ten frames at 640 frames.
    dropouts : int, optional
        Number of dense layers, from the first, with a dropout of 0.5 before them; by default all.

    Examples
    --------
    >>> FrequencyCNN(84, blocks=("basic", "resnet", "basic", "basic"))(torch.zeros(2, 84, 640)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins, n_frames=640, n_classes=8, blocks=("basic",) * 4, last_pool=None, dropouts=None):
        super().__init__()
        require_size(n_bins, n_frames, n_classes, min_bins=1, min_frames=64)
        if len(blocks) != 4 or not set(blocks) <= set(BLOCKS):
            raise ValueError(f"blocks must be four of {', '.join(BLOCKS)}, not {blocks!r}")
        block1, block2, block3, block4 = (BLOCKS[name] for name in blocks)
        self.convolve = nn.Sequential(
            pooled(block1(1, 16, (1, 5)), (1, 4)),      # 16 × bins × frames / 4
            pooled(block2(16, 16, (1, 5)), (1, 4)),     # 16 × bins × frames / 16
            pooled(block3(16, 32, (1, 5)), (1, 4)),     # 32 × bins × frames / 64
            pooled(block4(32, 32, (1, 5)), (1, last_pool_width(n_frames, last_pool))),
        )
        values = 32 * n_bins
        hidden = (512, 128, 32) if values > 512 else (256, 32)
        self.classify = dense_layers(values, *hidden, n_classes, dropouts=dropouts)

    def forward(self, x):                    # (batch, bins, frames)
        x = x.unsqueeze(3).movedim(3, 1)     # (batch, 1, bins, frames), laid out channels last as what it is joined to
        x = self.convolve(x).flatten(1)      # (batch, 32 bins)
        return self.classify(x)              # (batch, classes)


class TemporalCNN(nn.Module):
    """Convolve over time only, after one convolution that spans all frequency bins.

    Parameters
    ----------
    n_bins, n_frames, n_classes, last_pool, dropouts
        As in `FrequencyCNN`.

    Examples
    --------
    >>> TemporalCNN(12, n_classes=4)(torch.zeros(2, 12, 640)).shape
    torch.Size([2, 4])
    """

    def __init__(self, n_bins, n_frames=640, n_classes=8, last_pool=None, dropouts=None):
        super().__init__()
        require_size(n_bins, n_frames, n_classes, min_bins=1, min_frames=64)
        self.spectral = pooled(conv_block(1, 64, (n_bins, 5), padding=(0, 2)), (1, 4))    # "valid" in frequency
        self.temporal = nn.Sequential(
            pooled(conv_block(64, 128, (1, 5)), (1, 4)),     # 128 × 1 × frames / 16
            pooled(conv_block(128, 256, (1, 5)), (1, 4)),    # 256 × 1 × frames / 64
            pooled(conv_block(256, 512, (1, 5)), (1, last_pool_width(n_frames, last_pool))),
        )
        self.classify = dense_layers(512, 256, 32, n_classes, dropouts=dropouts)

    def forward(self, x):                    # (batch, bins, frames)
        x = self.spectral(x.unsqueeze(1))    # (batch, 64, 1, frames / 4)
        x = self.temporal(x).flatten(1)      # (batch, 512)
        return self.classify(x)              # (batch, classes)


def square_heights(n_bins):
    """Heights of the first three pools of SquareCNN, and the number of bins that they leave: one or more.

    >>> square_heights(12), square_heights(84), square_heights(128)
    (((2, 2, 2), 1), ((2, 2, 3), 7), ((2, 2, 3), 10))
    """
    third = 3 if n_bins >= 24 else 2
    return (2, 2, third), n_bins // 2 // 2 // third


def square_layers(n_bins, pools):
    """Four 3×3 convolutions, 8 to 256 channels, each with its max pool; 1×5 where one bin is left."""
    layers, n_in = [], 1
    for n_out, pool in zip((8, 32, 128, 256), pools, strict=True):
        layers.append(pooled(conv_block(n_in, n_out, (3, 3) if n_bins > 1 else (1, 5)), pool))
        n_in, n_bins = n_out, n_bins // pool[0]
    return nn.Sequential(*layers)


class SquareCNN(nn.Module):
    """Convolve over frequency and time together, until one value is left per channel.

    The pools are 2, 2, 3 bins high (2, 2, 2 below 24 bins), the last one as high as the bins left: 1 at 12 bins, 7
    at 84, 10 at 128.

    Parameters
    ----------
    n_bins, n_frames : int
        Size of the input: 8 bins, 64 frames or more.
    n_classes, last_pool, dropouts
        As in `FrequencyCNN`. If last_pool is given, the last pool covers 60 % of the bins left, rounded up, as
        in the original: 5 of 7 at 84 bins, 6 of 10 at 128. By default it covers all.

    Examples
    --------
    >>> SquareCNN(128, n_frames=128)(torch.zeros(2, 128, 128)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins, n_frames=640, n_classes=8, last_pool=None, dropouts=None):
        super().__init__()
        require_size(n_bins, n_frames, n_classes, min_bins=8, min_frames=64)
        heights, bins = square_heights(n_bins)
        if last_pool is not None:
            bins = (6 * bins + 9) // 10                   # 1 of 1, 5 of 7, 6 of 10
        pools = [(height, 4) for height in heights] + [(bins, last_pool_width(n_frames, last_pool))]
        self.convolve = square_layers(n_bins, pools)
        self.classify = dense_layers(256, 128, 32, n_classes, dropouts=dropouts)

    def forward(self, x):                    # (batch, bins, frames)
        x = self.convolve(x.unsqueeze(1))    # (batch, 256, 1, 1)
        x = x.flatten(1)                     # (batch, 256)
        return self.classify(x)              # (batch, classes)


# ---- for the notebooks -------------------------------------------------------------------------------------


def layer_table(model, n_bins, n_frames):
    """Layers of a model, in the order in which a clip passes through them.

    Parameters
    ----------
    model : nn.Module
        Any network that takes ``(batch, bins, frames)``.
    n_bins, n_frames : int
        Size of the clip to pass through.

    Returns
    -------
    list of tuple
        Name, kind, kernel (or None), output shape without the batch, parameters; one row per layer.

    Examples
    --------
    >>> layer_table(TemporalCNN(84), 84, 640)[0]
    ('spectral.0', 'Conv2d', (84, 5), (64, 1, 640), 26880)
    """
    rows, hooks, training = [], [], model.training

    def note(name, layer, _, output):
        output = output[0] if isinstance(output, tuple) else output    # recurrent layers also return their state
        kernel = getattr(layer, "kernel_size", None)
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        weights = sum(p.numel() for p in layer.parameters())
        kind = "Conv2d" if isinstance(layer, nn.Conv2d) else type(layer).__name__
        rows.append((name, kind, kernel, tuple(output.shape[1:]), weights))

    for name, layer in model.named_modules():
        if not list(layer.children()):
            hooks.append(layer.register_forward_hook(partial(note, name)))
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, n_bins, n_frames, device=next(model.parameters()).device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return rows
