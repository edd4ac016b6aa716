"""One clip of a collection: its status, its features, and its rows of the growing cache.

Workers of any kind (of audio/workers.py, of Dask, or this process) are prepared by `start_worker` and given rows.
"""

import os
import sys
from pathlib import Path

import numpy as np

from audio.cache import PART, SEMITONES, USABLE, copy_name, kept_frames
from audio.embeddings import EMBEDDINGS, embed
from audio.filling import open_array, write_row
from audio.recurrence import RECURRENCE, recurrence
from audio.statistics import track_statistics
from audio.transforms import (
    FEATURES,
    SILENCE,
    STUDY_FEATURES,
    Undecodable,
    extract,
    length_status,
    read_audio,
    resample,
)


def open_clip(path, part=PART):
    """Status of a clip, and its waveform and sample rate if it can be used: (status, y, sample_rate)."""
    if not os.path.isfile(path):
        return "missing", None, None
    try:
        y, sample_rate = read_audio(path, part["seconds"], part["from"])
    except Undecodable:
        return "undecodable", None, None
    status = length_status(len(y) / sample_rate, part["seconds"])
    if status == "short":
        return "short", None, None
    if np.abs(y).max() < SILENCE:
        return "silent", None, None
    return status, np.resize(y, int(part["seconds"] * sample_rate)) if status == "padded" else y, sample_rate


def clip_features(path, names=STUDY_FEATURES, part=PART):
    """Status of a clip, and its features if it can be used.

    Parameters
    ----------
    path : path-like
    names : sequence of str
        Keys of `cache.ARRAYS`.
    part : dict
        Which part of the file is read: see `cache.PART`.

    Returns
    -------
    status : {"ok", "padded", "short", "silent", "undecodable", "missing"}
    features : dict of str to ndarray, shape (bins, frames)
        Cut to `cache.kept_frames`, in the units of `cache.ARRAYS`; statistics and embeddings have one frame.
    """
    status, y, sample_rate = open_clip(path, part)
    if status not in USABLE:
        return status, {}
    try:
        found = compute(y, sample_rate, names)
    except (MemoryError, OSError, ImportError):     # a problem of the machine, not of the clip
        raise
    except Exception as error:          # an unexpected error in one clip must not end the run
        say(f"{path} is undecodable: {type(error).__name__}: {' '.join(str(error).split())}")
        return "undecodable", {}
    return status, {name: x[:, : kept_frames(name, part)] for name, x in found.items()}


def say(line):
    """A line on stderr, above the progress bar if there is one."""
    from tqdm.auto import tqdm

    tqdm.write(line, file=sys.stderr)


def compute(y, sample_rate, names):
    """The arrays of one clip: features, statistics and embeddings as one frame, recurrence, and pitch-shifted copies.

    Parameters
    ----------
    y : ndarray, shape (samples,), float32
        Mono waveform.
    sample_rate : int
        In Hz.
    names : sequence of str
        Keys of `cache.ARRAYS`.

    Returns
    -------
    dict of str to ndarray, shape (bins, frames)
        All frames. A copy has as many as its feature: the pitch is shifted, the tempo kept.

    Examples
    --------
    >>> a4 = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050).astype(np.float32)
    >>> {name: int(x[:, 10].argmax()) for name, x in compute(a4, 22050, ["cqt", "cqt_pitch-2"]).items()}
    {'cqt': 45, 'cqt_pitch-2': 43}
    """
    found = extract(y, sample_rate, [name for name in names if name in FEATURES])
    if "statistics" in names:
        found["statistics"] = track_statistics(y, sample_rate)[:, None]
    if wanted := RECURRENCE.keys() & set(names):
        found |= {name: x for name, x in recurrence(y, sample_rate).items() if name in wanted}
    found |= {name: embed(y, sample_rate, name) for name in names if name in EMBEDDINGS}
    for semitones in SEMITONES:
        if wanted := [name for name in FEATURES if copy_name(name, semitones) in names]:
            import librosa

            shifted = librosa.effects.pitch_shift(y, sr=sample_rate, n_steps=semitones)
            shifted *= np.sqrt(np.square(y).mean() / max(np.square(shifted).mean(), 1e-20))     # loses 3 dB or so
            found |= {copy_name(name, semitones): x for name, x in extract(shifted, sample_rate, wanted).items()}
    return found


_worker = {}    # state of a worker process: paths, arrays, scale and offset, names


def start_worker(*setup):
    """Open the arrays, and limit linear algebra to one thread: the processes share the cores."""
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = "1"             # of what is loaded later, such as torch
    _worker["limits"] = threadpool_limits(1)
    open_worker(*setup)


def open_worker(paths, training, partial, infos):
    files = {name: open_array(partial, name) for name in infos}
    for_all = tuple(name for name, info in infos.items() if "pitch_shift" not in info)
    part = {key: next(iter(infos.values()))[key] for key in PART}
    _worker.update(path=lambda row: Path(paths[row]), files=files, infos=infos, part=part,
                   names=lambda row: tuple(infos) if training[row] else for_all)


def close_worker():
    """Close the arrays that this process has open: Windows renames no open file."""
    for file in _worker.pop("files", {}).values():
        file.close()


def process_row(row):
    """Compute one clip and write its rows; return its status."""
    status, values = clip_features(_worker["path"](row), _worker["names"](row), _worker["part"])
    write_values(row, values)
    return row, status


def write_values(row, values):
    """Store one clip's features; frames beyond those that are kept are dropped."""
    for name, x in values.items():
        info = _worker["infos"][name]
        x = x[:, : info["shape"][2]]
        x = (x - info["offset"]) / info["scale"] if (info["scale"], info["offset"]) != (1.0, 0.0) else x
        x = np.round(x) if info["dtype"] == "uint8" else x
        write_row(_worker["files"][name], row, info["shape"][0], x.astype(info["dtype"]).tobytes())


def decode_row(row):
    """Open one clip; return its row and status, and its waveform at the features' sample rate if it can be used."""
    status, y, sample_rate = open_clip(_worker["path"](row), _worker["part"])
    rate = next(iter(_worker["infos"].values()))["sample_rate"]
    return (row, status), resample(y, sample_rate, rate) if status in USABLE else status
