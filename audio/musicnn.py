"""musicnn [1]_, a network that has learned 50 tags (genres, moods, instruments) from some 200,000 songs.

Its weights are in the wheel of the package musicnn (ISC licence, Universitat Pompeu Fabra 2019), as a TensorFlow
checkpoint: ``pip install --no-deps musicnn``. Nothing of that package is run, and TensorFlow is not needed.

.. [1] J. Pons, X. Serra, "musicnn: pre-trained convolutional neural networks for music audio tagging", ISMIR 2019,
   late-breaking demo (1909.06654). The network: J. Pons et al., "End-to-end learning for music audio tagging at
   scale", ISMIR 2018.
"""

import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

from audio.spectra import mel_filter
from fma import DataError

SAMPLE_RATE, N_FFT, HOP_LENGTH, N_MELS = 16_000, 512, 256, 96
N_FRAMES = 187                                  # of a window: 3 s
SAMPLES = (N_FRAMES - 1) * HOP_LENGTH + N_FFT   # that these frames are made of
MAGIC = bytes.fromhex("57fb808b247547db")       # the last bytes of a checkpoint's index
N_TAGS = 50                                     # what it has learned: rock, pop, alternative, ...


# ---------------------------------------------------------------- a checkpoint of TensorFlow


def _varint(stream):
    """Read an integer in groups of seven bits, lowest first; all but the last have the eighth bit set."""
    value, shift, byte = 0, 0, 128
    while byte > 127:
        byte = stream.read(1)[0]
        value, shift = value | (byte & 127) << shift, shift + 7
    return value


def _entries(index, handle):
    """Keys and values of a block of the index; of a key only what differs from the one before is stored."""
    offset, size = _varint(handle), _varint(handle)
    block, key = index[offset : offset + size], b""
    if index[offset + size]:
        raise ValueError("compressed")
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")       # then follow offsets of whole keys, for searches
    stream = io.BytesIO(block)
    while stream.tell() < end:
        shared, rest, length = _varint(stream), _varint(stream), _varint(stream)
        key = key[:shared] + stream.read(rest)
        yield key.decode(), stream.read(length)


def _fields(message):
    """Numbers and values of a protobuf message: integers, and bytes of what is nested."""
    stream = io.BytesIO(message)
    while stream.tell() < len(message):
        number, kind = divmod(_varint(stream), 8)
        size = None if kind == 0 else _varint(stream) if kind == 2 else {1: 8, 5: 4}[kind]
        yield number, _varint(stream) if size is None else stream.read(size)


def read_checkpoint(folder):
    """Read the arrays of a TensorFlow checkpoint with an empty prefix and one data file.

    The index is a table as LevelDB writes it: blocks of sorted keys, a block with the places of these, and a footer
    with the place of that. A value is a protobuf message: type (1), shape (2), file (3), offset (4) and size (5).

    Parameters
    ----------
    folder : path-like
        With ``.index`` and ``.data-00000-of-00001``.

    Returns
    -------
    arrays : dict of str to ndarray, float32
        By the names of their variables. Those of other types are left out.

    Raises
    ------
    DataError
        If a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        index, data = (folder / ".index").read_bytes(), (folder / ".data-00000-of-00001").read_bytes()
        footer, arrays = io.BytesIO(index[-48:]), {}
        if index[-8:] != MAGIC:
            raise ValueError("no table")
        _varint(footer), _varint(footer)            # the place of a block that is empty; the next is of the index's
        for _, handle in _entries(index, footer):
            for name, message in _entries(index, io.BytesIO(handle)):
                entry = dict(_fields(message))
                if name and entry[1] == 1:          # float32; the entry without a name describes the whole
                    shape = [dict(_fields(size)).get(1, 0) for _, size in _fields(entry.get(2, b""))]
                    arrays[name] = np.frombuffer(data, "<f4", math.prod(shape), entry.get(4, 0)).reshape(shape)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} not found: install musicnn again, pip install --no-deps musicnn") from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder} holds no TensorFlow checkpoint, or a damaged one: install musicnn again, "
                        "pip install --no-deps --force-reinstall musicnn") from error
    return arrays


# ---------------------------------------------------------------- the network


def _layer(convolution):
    norm = nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm1d
    return nn.Sequential(convolution, nn.ReLU(), norm(convolution.out_channels, eps=1e-3))


class Musicnn(nn.Module):
    """The network, from windows of sound to tags, with random weights.

    Its first filters are shaped like what they are to hear: wide ones for timbre, long ones for rhythm.

    Examples
    --------
    >>> [tuple(x.shape) for x in Musicnn().eval()(torch.zeros(2, SAMPLES))]
    [(2, 200), (2, 50)]
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("filters", torch.from_numpy(mel_filter(SAMPLE_RATE, N_FFT, N_MELS)), persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.normalise = nn.BatchNorm2d(1, eps=1e-3)
        self.timbral = nn.ModuleList(_layer(nn.Conv2d(1, 204, (7, bands), padding=(3, 0))) for bands in (38, 67))
        self.temporal = nn.ModuleList(nn.Sequential(nn.ZeroPad2d((0, 0, (n - 1) // 2, n // 2)),
                                                    *_layer(nn.Conv2d(1, 51, (n, 1)))) for n in (128, 64, 32))
        self.middle = nn.ModuleList(_layer(nn.Conv1d(n, 64, 7, padding=3)) for n in (2 * 204 + 3 * 51, 64, 64))
        n_pooled = 2 * (2 * 204 + 3 * 51 + 3 * 64)
        self.pooled = nn.BatchNorm1d(n_pooled, eps=1e-3)
        self.penultimate = nn.Sequential(nn.Linear(n_pooled, 200), nn.ReLU(), nn.BatchNorm1d(200, eps=1e-3))
        self.tags = nn.Linear(200, N_TAGS)

    def log_mel(self, y):
        """Log-mel spectrograms of sound at 16 kHz: (batch, samples) to (batch, frames, 96), frames not padded.

        Those of librosa, in single precision. (The package rounds to half precision, in which loud bass is infinite.)
        """
        S = torch.stft(y, N_FFT, HOP_LENGTH, window=self.window, center=False, return_complex=True).abs().square()
        return torch.log10(1 + 10_000 * (self.filters @ S)).transpose(1, 2)

    def forward(self, y):                                           # (batch, samples)
        x = self.normalise(self.log_mel(y).unsqueeze(1))            # (batch, 1, frames, 96)
        x = torch.cat([layer(x).amax(3) for layer in (*self.timbral, *self.temporal)], 1)   # (batch, 561, frames)
        found = [x, self.middle[0](x)]
        for layer in self.middle[1:]:
            found.append(found[-1] + layer(found[-1]))
        x = torch.cat(found, 1)                                     # (batch, 753, frames)
        x = torch.stack([x.amax(2), x.mean(2)], 2).flatten(1)       # (batch, 1506), alternating
        x = self.penultimate(self.pooled(x))                        # (batch, 200)
        return x, self.tags(x).sigmoid()                            # and (batch, 50)


def load_musicnn(folder):
    """The network with the weights of a checkpoint, for use.

    TensorFlow numbers layers of a kind in the order in which they were made, which is that of `Musicnn`.
    """
    arrays, network, counts = read_checkpoint(folder), Musicnn(), Counter()
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            kind, names = "dense" if isinstance(module, nn.Linear) else "conv2d", ("kernel", "bias")
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            kind, names = "batch_normalization", ("gamma", "beta", "moving_mean", "moving_variance")
        else:
            continue
        layer = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
        targets = (module.weight, module.bias) if len(names) == 2 else (
            module.weight, module.bias, module.running_mean, module.running_var)
        for name, target in zip(names, targets, strict=True):
            value = arrays.get(f"{layer}/{name}", np.zeros(0)).T            # (out, in, bands, frames) of a convolution
            if value.size != target.numel() or target.ndim == 4 and value.ndim != 4:
                raise DataError(f"{folder} is of another network, its {layer}/{name} does not fit: use MSD_musicnn")
            value = value.swapaxes(2, 3) if target.ndim == 4 else value
            target.data.copy_(torch.tensor(value).reshape(target.shape))
    return network.eval()
