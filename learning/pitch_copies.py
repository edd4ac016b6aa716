"""Pitch-shifted copies of the training clips, made by features.py: their names, and batches drawn from them.

    features/cqt.npy            the clips as they are
    features/cqt_pitch+1.npy    the training clips a semitone up; rows of validation and test are zeros

A copy is computed from the waveform, with the pitch shifted and the tempo kept. `augmentation.shift_bins` only shifts
the bins of the spectrogram.
"""

from copy import copy

from audio.cache import SEMITONES, copy_name, open_feature
from fma import DataError


def pitch_shifts(dataset):
    """Semitones by which a clip can be shifted, rising: those of which the cache has copies, of each feature.

    The copies are opened on first use. A DataError says that there is none, or that one is damaged, of another shape or
    without a training clip.
    """
    common, parts = set(SEMITONES), dataset.parts
    for part in parts:
        if part.copies is None:
            part.copies = _open_copies(part)
        common &= set(part.copies)
    if not common:
        missing = next((part for part in parts if not part.copies), None)
        what = (f"{missing.features_dir / missing.feature}_pitch*.npy not found" if missing else
                f"the pitch-shifted copies of {dataset.feature} have no shift in common")
        raise DataError(f"{what}: pitch_copies needs python features.py --data-dir {parts[0].features_dir.parent} "
                        f"--features {' '.join(part.feature for part in parts)} --pitch-shift -2 -1 1 2")
    return sorted(common)


def clips_or_copies(dataset, rows, generator):
    """Values of training clips, each as it is or as one of its copies, all with the same chance.

    Parameters
    ----------
    rows : Tensor, shape (batch,)
        Of training clips: others have no copies.
    generator : torch.Generator

    Returns
    -------
    x : Tensor, shape (batch, bins, frames), or list of them
        As ``dataset.raw`` gives them, in the feature's unit. A clip is shifted alike in all features.
    """
    import torch

    choices = [0, *pitch_shifts(dataset)]
    drawn = torch.randint(len(choices), (len(rows),), generator=generator, device=generator.device)
    values = []
    for part in dataset.parts:
        x = torch.empty(len(rows), *part.shape, device=part.device)
        for k, semitones in enumerate(choices):
            chosen = drawn == k
            x[chosen] = (part.copies[semitones] if semitones else part).raw(rows[chosen])
        values.append(x)
    return values if len(values) > 1 else values[0]


def _open_copies(part):
    """Data sets that differ from this one in the array, by semitones. They are held in memory where it is."""
    there = [k for k in SEMITONES if (part.features_dir / f"{copy_name(part.feature, k)}.npy").is_file()]
    found = {}
    for semitones in there:
        name, twin = copy_name(part.feature, semitones), copy(part)
        twin.array, twin.info = open_feature(part.features_dir, name, len(part.tracks))
        remedy = f"delete {part.features_dir / name}.* and run features.py --pitch-shift again"
        if twin.array.shape[1:] != part.shape:
            raise DataError(f"{part.features_dir / name}.npy has clips of {twin.array.shape[1:]}, {part.feature} of "
                            f"{tuple(part.shape)}: {remedy}")
        for row in part.rows["training"]:           # a clip that was not in training when the copies were made
            if not twin.array[row].any() and part.array[row].any():
                raise DataError(f"{part.features_dir / name}.npy has nothing of training track "
                                f"{part.tracks.index[row]}, as if made for other splits: {remedy}")
        twin.prepare(name, None if part.is_held() else False, 1 + len(there))
        found[semitones] = twin
    return found
