"""Augmentation of training clips, batch by batch, so that a network cannot memorise recordings.

Every function takes clips as a tensor ``(batch, bins, frames)`` in their unit and a generator, draws separately for
each clip, and does not modify its input. Augmentation is for training clips only; of these functions only
`evenly_spaced_chunks` is used in validation and test.

References
----------
.. [1] D. S. Park, W. Chan, Y. Zhang, C.-C. Chiu, B. Zoph, E. D. Cubuk, Q. V. Le, "SpecAugment: a simple data
   augmentation method for automatic speech recognition", Interspeech 2019, arXiv:1904.08779.
.. [2] H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, "mixup: beyond empirical risk minimization", ICLR 2018,
   arXiv:1710.09412.
.. [3] H. Nam, S.-H. Kim, Y.-H. Park, "FilterAugment: an acoustic environmental data augmentation method",
   ICASSP 2022, arXiv:2110.03282.
.. [4] F. Schmid, S. Masoudian, K. Koutini, G. Widmer, "Knowledge distillation from transformers for low-complexity
   acoustic scene classification", DCASE 2022: Freq-MixStyle, after K. Zhou, Y. Yang, Y. Qiao, T. Xiang, "Domain
   generalization with MixStyle", ICLR 2021, arXiv:2104.02008.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from fma import DataError


@dataclass
class Augmentation:
    """Augmentations of a training batch, in the order in which they are applied. By default all are off."""

    pitch_copies: bool = False      # each clip as it is, or one of its pitch-shifted copies in the cache, at random
    roll: bool = False              # each clip begins at a frame drawn at random, its beginning after its end
    chunk: int = 0                  # frames of a chunk of each clip, from a random place on; 0: the whole clip
    shift_bins: int = 0             # up or down by so many bins at most: semitones of a CQT
    equaliser_db: float = 0.0       # as by an equaliser whose bands are up or down by so many dB at most (if in dB)
    low_pass: float = 0.0           # share of the clips that lose all above a random bin, as dull recordings (if in dB)
    mix_style: float = 0.0          # half of the clips take on part of another's sound, by a Beta(mix_style, mix_style)
    mask_bins: int = 0              # SpecAugment: two masks, each of so many bins at most, and a quarter of all
    mask_frames: int = 0            # SpecAugment: two masks, each of so many frames at most, and a quarter of all
    mixup: float = 0.0              # clips and labels mixed in pairs, by shares from a Beta(mixup, mixup); 0: not

    def __post_init__(self):
        for name, value in vars(self).items():
            if name in AUGMENTATIONS and not value >= 0:
                raise DataError(f"{name} must be 0 or more, not {value}")
        if self.low_pass > 1:
            raise DataError(f"low_pass is a share of the clips, from 0 to 1, not {self.low_pass}")

    def is_on(self):
        """Whether any augmentation is on."""
        return any(getattr(self, name) for name in AUGMENTATIONS)


LOWEST = 0.4        # of all bins may be heard after a low-pass, at least: of 128 mel bands up to 22 kHz, 2 kHz
DYNAMIC_RANGE_DB = 80.0             # of mel128: no value of a clip is further below its maximum
AUGMENTATIONS = tuple(Augmentation.__dataclass_fields__)


def random_integers(low, high, x, generator):
    """An integer from low to high, both included, for each clip: Tensor (batch,)."""
    return torch.randint(low, high + 1, (len(x),), generator=generator, device=x.device)


def uniform(shape, generator):
    """Numbers from -1 to 1."""
    return 2 * torch.rand(shape, generator=generator, device=generator.device) - 1


def partners(x, alpha, generator):
    """Another clip of the batch for each, and the larger part of a whole divided by a Beta(alpha, alpha): two (batch,).

    The larger part, 0.5 to 1, is the clip's own.
    """
    parameter = torch.full((len(x),), float(alpha), device=x.device)
    a, b = (torch._standard_gamma(parameter, generator) for _ in range(2))
    share = a / (a + b).clamp(min=1e-30)
    other = torch.randperm(len(x), generator=generator, device=x.device)
    return other, torch.maximum(share, 1 - share)


# ---- time ------------------------------------------------------------------------------------------------------


def roll(x, generator):
    """Start each clip at a random frame; the part before it moves to the end."""
    return _frames_from(x, random_integers(0, x.shape[2] - 1, x, generator), x.shape[2])


def random_chunks(x, frames, generator):
    """A chunk of each clip, from a random frame on: Tensor (batch, bins, frames)."""
    _check_chunk(x, frames)
    return _frames_from(x, random_integers(0, x.shape[2] - frames, x, generator), frames)


def _frames_from(x, start, frames):
    places = (start[:, None] + torch.arange(frames, device=x.device)) % x.shape[2]
    return x.gather(2, places[:, None].expand(-1, x.shape[1], -1))


def evenly_spaced_chunks(x, frames):
    """The chunks that validation and test average over: the first begins where the clip does, the last ends with it.

    Parameters
    ----------
    x : Tensor, shape (batch, bins, frames of a clip)
    frames : int
        Of a chunk.

    Returns
    -------
    Tensor, shape (batch, chunks, bins, frames)
        As few chunks as cover every frame.

    Examples
    --------
    >>> evenly_spaced_chunks(torch.arange(10).reshape(1, 1, 10), 4)[0, :, 0].tolist()
    [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    """
    _check_chunk(x, frames)
    count = math.ceil(x.shape[2] / frames)
    starts = [round(k * (x.shape[2] - frames) / max(1, count - 1)) for k in range(count)]
    return torch.stack([x[..., start : start + frames] for start in starts], 1)


def _check_chunk(x, frames):
    if not 0 < frames <= x.shape[2]:
        raise DataError(f"a chunk of {frames} frames cannot be cut from clips of {x.shape[2]}")


# ---- frequency and level -------------------------------------------------------------------------------------


def shift_bins(x, most, generator):
    """Move each clip up or down by up to `most` bins; the outermost bin is repeated where nothing moves in.

    A bin of the CQT is a semitone, so this is a change of pitch. On a mel scale it is one only roughly.
    """
    steps = random_integers(-most, most, x, generator)
    places = (torch.arange(x.shape[1], device=x.device) - steps[:, None]).clamp(0, x.shape[1] - 1)
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))


def equalise(x, most, generator):
    """Raise and lower frequencies as an equaliser does, between five knobs of up to `most` dB each [3]_."""
    knobs = most * uniform((len(x), 1, 5), generator)
    curve = nn.functional.interpolate(knobs, x.shape[1], mode="linear", align_corners=True)
    return x + curve.transpose(1, 2)                        # (batch, bins, 1)


def low_pass(x, share, generator):
    """Silence what lies above a random bin in a share of the clips, 0 to 1, as a low sample rate or bit rate does."""
    bins = x.shape[1]
    last = random_integers(round(LOWEST * bins), bins - 1, x, generator)
    last = torch.where(uniform(len(x), generator) < 2 * share - 1, last, bins)
    heard = torch.arange(bins, device=x.device) <= last[:, None]
    silence = x.amax((1, 2), keepdim=True) - DYNAMIC_RANGE_DB
    return torch.where(heard[:, :, None], x, x.minimum(silence))        # nothing becomes louder


def mix_style(x, alpha, generator):
    """Freq-MixStyle: give half of the clips part of another's mean and deviation in each bin, as `partners` says [4]_.

    The level of each bin over time depends largely on recording and mastering; the course of the bin, which stays,
    depends on the music.
    """
    other, share = partners(x, alpha, generator)
    share = share[:, None, None]
    mixed = uniform((len(x), 1, 1), generator) < 0
    std, mean = torch.std_mean(x, 2, correction=0, keepdim=True)
    course = (x - mean) / std.clamp(min=1e-6)
    return torch.where(mixed, course * torch.lerp(std[other], std, share) + torch.lerp(mean[other], mean, share), x)


def mask(x, most, dim, generator, fill=0.0):
    """SpecAugment: hide two stretches of up to `most` bins (dim 1) or frames (dim 2) of each clip [1]_.

    Parameters
    ----------
    fill : float or Tensor, shape (bins, 1)
        What stands in the place of what is hidden: the mean, of each bin or of all.
    generator : torch.Generator, optional
        None: torch's own.
    """
    size, hidden = x.shape[dim], torch.zeros(len(x), x.shape[dim], dtype=torch.bool, device=x.device)
    places = torch.arange(size, device=x.device)
    for _ in range(2):
        width = random_integers(0, min(most, size), x, generator)
        start = (torch.rand(len(x), generator=generator, device=x.device) * (size - width + 1)).long()
        hidden |= (places >= start[:, None]) & (places < (start + width)[:, None])
    return torch.where(hidden.unsqueeze(3 - dim), fill, x)


def mixup(parts, targets, alpha, generator):
    """Mix each clip with another of the batch, and their labels in the same shares [2]_; returns both.

    Parameters
    ----------
    parts : list of Tensor, shape (batch, bins, frames)
        The features of the clips, one or several.
    targets : Tensor, shape (batch, classes)
        Probabilities.
    alpha : float
        Shares come from Beta(alpha, alpha); the larger one is the clip's own.
    """
    other, share = partners(targets, alpha, generator)
    parts = [torch.lerp(x[other], x, share[:, None, None]) for x in parts]
    return parts, torch.lerp(targets[other], targets, share[:, None])


# ---- all together -------------------------------------------------------------------------------------------------


def alter(x, settings, generator, fill, in_db):
    """Apply the augmentations of single clips to one feature; one of a single frame, an embedding, is left as it is."""
    if x.shape[2] == 1:
        return x
    if settings.roll:
        x = roll(x, generator)
    for change, amount in ((random_chunks, settings.chunk), (shift_bins, settings.shift_bins),
                           (equalise, in_db and settings.equaliser_db), (low_pass, in_db and settings.low_pass),
                           (mix_style, settings.mix_style)):
        if amount:
            x = change(x, amount, generator)
    for dim, most in ((1, settings.mask_bins), (2, settings.mask_frames)):
        if most:
            x = mask(x, min(most, x.shape[dim] // 4), dim, generator, fill)      # most of it stays visible
    return x


def augment(parts, targets, settings, generator, fills, in_db):
    """Augment a batch of training clips: each feature draws its own changes, then `mixup` mixes all in the same shares.

    Parameters
    ----------
    parts : list of Tensor, shape (batch, bins, frames)
        The features of the clips, one or several, in their unit, before normalisation.
    targets : Tensor, shape (batch, classes)
        Label probabilities.
    settings : Augmentation
        Its pitch-shifted copies are drawn before, by learning/pitch_copies.py.
    generator : torch.Generator
        On the device of the clips; the same one gives the same batch.
    fills : list of Tensor, shape (bins, 1)
        For each feature what masks put in.
    in_db : list of bool
        For each feature whether its values are decibels: equaliser and low pass are skipped for others.

    Returns
    -------
    parts : list of Tensor, shape (batch, bins, chunk or frames)
    targets : Tensor
    """
    parts = [alter(x, settings, generator, *how) for x, *how in zip(parts, fills, in_db, strict=True)]
    return mixup(parts, targets, settings.mixup, generator) if settings.mixup else (parts, targets)
