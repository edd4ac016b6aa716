"""Convolutional recurrent networks: a recurrent layer after the convolutions, or parallel to them.

Both take ``(batch, bins, frames)`` and give logits ``(batch, classes)``; a ValueError says which argument is invalid,
or that the input is too small. Pools are frequency × time.

References
----------
.. [1] K. Choi, G. Fazekas, M. Sandler, K. Cho, "Convolutional recurrent neural networks for music
   classification", ICASSP 2017, arXiv:1609.04243.
.. [2] L. Feng, S. Liu, J. Yao, "Music genre classification with paralleling recurrent convolutional
   neural network", 2017, arXiv:1712.08370.
"""

import torch
from torch import nn

from cnn_models import SquareCNN, dense_layers, require_size, square_heights, square_layers

HIDDEN = 128                                        # values per direction of the recurrent layer
RNNS = {"lstm": nn.LSTM, "gru": nn.GRU}


def recurrent_layer(rnn, n_in, bidirectional):
    """One LSTM or GRU layer over ``(batch, steps, n_in)``, and the number of values in its last output."""
    if rnn not in RNNS:
        raise ValueError(f"rnn must be one of {', '.join(RNNS)}, not {rnn!r}")
    layer = RNNS[rnn](n_in, HIDDEN, batch_first=True, bidirectional=bidirectional)
    return layer, HIDDEN * (2 if bidirectional else 1)


def last_output(layer, x):
    """Output of each direction after it has read the whole sequence, its final hidden state, concatenated."""
    _, state = layer(x)                                           # x: (batch, steps, values)
    hidden = state[0] if isinstance(layer, nn.LSTM) else state    # (directions, batch, 128)
    return hidden.transpose(0, 1).flatten(1)                      # (batch, 128 directions)


class SequentialCRNN(nn.Module):
    """SquareCNN's convolutions with smaller pools over time, then a recurrent layer over the steps left [1]_.

    The pools are 2, 2, 2, 4 frames wide, so 32 frames make a step (640 frames: 20 steps), and 2, 2, 3 bins
    high (2, 2, 2 below 24 bins). The last one is as high as the bins left, so that a step has 256 values;
    at 84 bins it is the original study's, which covers 4 of the 7 bins left.

    Parameters
    ----------
    n_bins, n_frames, n_classes : int
        Size of the input, 8 bins and 32 frames or more, and number of genres.
    rnn : {"lstm", "gru"}
        Kind of the recurrent layer, with 128 hidden values.
    bidirectional : bool
        Read the steps in both directions.
    dropouts : int, optional
        As in `FrequencyCNN`.

    Examples
    --------
    >>> SequentialCRNN(128, rnn="gru")(torch.zeros(2, 128, 640)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins=84, n_frames=640, n_classes=8, rnn="lstm", bidirectional=False, dropouts=None):
        super().__init__()
        require_size(n_bins, n_frames, n_classes, min_bins=8, min_frames=32)
        heights, bins = square_heights(n_bins)
        if n_bins == 84:
            bins = 4                                # of 7, as in the original study
        self.convolve = square_layers(n_bins, [(height, 2) for height in heights] + [(bins, 4)])
        self.recur, n_values = recurrent_layer(rnn, 256, bidirectional)
        self.classify = dense_layers(n_values, 128, 32, n_classes, dropouts=dropouts)

    def forward(self, x):                           # (batch, bins, frames)
        x = self.convolve(x.unsqueeze(1))           # (batch, 256, 1, frames / 32)
        x = x.squeeze(2).transpose(1, 2)            # (batch, steps, 256)
        x = last_output(self.recur, x)              # (batch, 128), or 256 if bidirectional
        return self.classify(x)                     # (batch, classes)


class ParallelCRNN(nn.Module):
    """SquareCNN parallel to a recurrent layer that reads the input, averaged over every 20 frames [2]_.

    Parameters
    ----------
    n_bins, n_frames, n_classes : int
        Size of the input, 8 bins and 64 frames or more, and number of genres.
    rnn, bidirectional
        As in `SequentialCRNN`.
    last_pool, dropouts
        As in `SquareCNN`.

    Notes
    -----
    The original study's network has 37,288 more weights, as many as SquareCNN's dense layers (256 → 128 → 32 → 8).
    They do not affect its output, and are left out here.

    Examples
    --------
    >>> ParallelCRNN(84, bidirectional=True)(torch.zeros(2, 84, 640)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_bins=84, n_frames=640, n_classes=8, rnn="lstm", bidirectional=False, last_pool=None,
                 dropouts=None):
        super().__init__()
        self.convolve = SquareCNN(n_bins, n_frames, n_classes, last_pool).convolve
        self.average = nn.AvgPool1d(20)
        self.recur, n_values = recurrent_layer(rnn, n_bins, bidirectional)
        self.classify = dense_layers(256 + n_values, 256, 32, n_classes, dropouts=dropouts)

    def forward(self, x):                                       # (batch, bins, frames)
        local = self.convolve(x.unsqueeze(1)).flatten(1)        # (batch, 256)
        steps = self.average(x).transpose(1, 2)                 # (batch, frames / 20, bins)
        course = last_output(self.recur, steps)                 # (batch, 128), or 256 if bidirectional
        return self.classify(torch.cat([local, course], 1))     # (batch, classes)
