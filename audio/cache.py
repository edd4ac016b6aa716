"""What a feature cache holds, and how it is read. (audio/filling.py is how it is filled.)

    features/index.csv      track_id,status: line i is row i of every array
    features/<name>.npy     (tracks, bins, frames)
    features/<name>.json    unit, parameters, versions
"""

import importlib.metadata
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from audio.embeddings import EMBEDDINGS, describe_encoder
from audio.recurrence import RECURRENCE
from audio.statistics import STATISTICS
from audio.transforms import CLIP_SECONDS, FEATURES, count_frames
from fma import DataError, some

USABLE = ("ok", "padded")       # padded: up to a tenth too short, and repeated from its beginning to full length
STATUSES = (*USABLE, "short", "silent", "undecodable", "missing")
PART = {"seconds": CLIP_SECONDS, "from": "start"}       # of each file that is read: see transforms.read_audio
SEMITONES = (*range(-12, 0), *range(1, 13))     # by which a cache can hold copies


def copy_name(feature, semitones):
    """Name of the array that holds copies of a feature's clips: ``cqt_pitch+1``."""
    return f"{feature}_pitch{semitones:+d}"


# All that a cache can hold. Copies are in the feature's own units, so that they train as it does.
ARRAYS = {**FEATURES, "statistics": STATISTICS, **RECURRENCE, **EMBEDDINGS} | {
    copy_name(name, semitones): {**given, "feature": name, "pitch_shift": semitones,
                                 "pitch_shifter": "librosa.effects.pitch_shift at the file's sample rate, level kept",
                                 "zeros": "rows of validation and test, and of clips that are not ok"}
    for name, given in FEATURES.items() for semitones in SEMITONES
}


def kept_frames(name, part=PART):
    """Frames of each clip in an array: of mel128, statistics and embeddings always as many."""
    given = ARRAYS[name]
    return given.get("frames_kept", count_frames(part["seconds"]) // given.get("frames_averaged", 1))


def describe(name, n_tracks, device=None, part=PART):
    """What ``<name>.json`` says of an array: its layout, unit, every parameter, and library versions.

    Values that audio/gpu.py computes on a `device` are those of audio/transforms.py up to rounding: said, too, so that
    a run does not begin on one and end on the other. A finished cache is as good as another.
    """
    used = {"librosa", "numpy", "scipy", "soundfile", "soxr"} | ({"torch"} if device is not None else set())
    array, module = ARRAYS[name], "gpu"
    if name in EMBEDDINGS:
        array, module = array | describe_encoder(name), "embeddings"
        used |= {"torch"} if name == "musicnn" else {"torch", "transformers"}
    given = {k: v for k, v in array.items() if k not in ("bins", "axis", "frames_kept")}
    if "frames" in given and part != PART:
        given["frames"] = given["frames"].replace("the first 30 s", "the part that is read")
    return {
        "feature": name,
        "shape": [n_tracks, array["bins"], kept_frames(name, part)],
        "dtype": "float16",
        "axes": ["track", array["axis"], "frame"],
        "scale": 1.0,
        "offset": 0.0,
        **part,
        **given,
        "rows": "features/index.csv",
        "value": "stored * scale + offset",
        **({} if device is None else {"computed_by": f"audio/{module}.py on {device.type}"}),
        "versions": {lib: importlib.metadata.version(lib) for lib in sorted(used)},
    }


def load_index(features_dir):
    """Read ``index.csv``: line i is row i of every array.

    Returns
    -------
    index : DataFrame with columns track_id and status
    """
    import pandas as pd

    path = Path(features_dir) / "index.csv"
    if not path.is_file():
        raise DataError(f"{path} not found: make it first, python features.py --data-dir {path.parent.parent}")
    try:
        index = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a table: delete {path.parent} and run features.py again") from error
    if (list(index.columns) != ["track_id", "status"] or not index["status"].isin(STATUSES).all()
            or not pd.api.types.is_integer_dtype(index["track_id"])):
        raise DataError(f"{path} is not an index of track_id,status: delete {path.parent} and run features.py again")
    if not index["track_id"].is_unique:
        twice = index["track_id"][index["track_id"].duplicated()].iloc[0]
        raise DataError(f"{path} names track {twice} twice: delete {path.parent} and run features.py again")
    return index


def open_feature(features_dir, name, n_tracks):
    """Memory-map one array of the cache.

    Returns
    -------
    array : memmap, shape (tracks, bins, frames)
    info : dict
        The JSON beside it.
    """
    path = Path(features_dir) / f"{name}.npy"
    remedy = f"delete {path.with_suffix('.*')} and run features.py again"
    if not path.is_file():
        have = sorted(p.stem for p in path.parent.glob("*.npy"))
        raise DataError(f"{path} not found: run features.py --features {name}, if that can make it "
                        f"(there are: {some(have, 9) or 'none'})")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        factors = [np.asarray(info[key], dtype=float) for key in ("scale", "offset")]
        usable = array.dtype.kind in "fiu" and array.dtype.itemsize <= 8 and array.dtype.isnative    # as torch needs
        if not usable or not all(np.isfinite(factor).all() for factor in factors):
            raise ValueError("values, scale or offset are not numbers that torch can use")
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} not found: {remedy}") from error
    except Exception as error:      # NumPy has a dozen kinds for a header that is not one
        reason = "no .npy array of numbers" if "pickle" in str(error) else " ".join(str(error).split())
        raise DataError(f"{path} or its .json is damaged ({reason}): {remedy}") from error
    if array.ndim != 3 or len(array) != n_tracks:
        raise DataError(f"{path} has shape {array.shape}, index.csv lists {n_tracks} tracks: {remedy}")
    if not {factor.size for factor in factors} <= {1, array.shape[1]}:
        raise DataError(f"{path} has {array.shape[1]} bins, the scale or offset in its .json another number: {remedy}")
    return array, info


def save_whole(path, write):
    """Replace a file atomically: `write` gets a temporary path, which then becomes the file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")       # two processes may write the same file
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:                        # torch's errors of writing are RuntimeErrors
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DataError(f"{path} cannot be written ({reason}): free some space, or choose another folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def save_text(path, text):
    """Replace a text file atomically, in UTF-8."""
    save_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path, remedy):
    """Read a JSON object; the error for a damaged one names what to delete."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete {remedy} and run the same command again") from error


def find_part(features_dir):
    """Which part of each file a cache was made of, as `PART`; None if no JSON says so (empty, or from elsewhere)."""
    for path in sorted(features_dir.glob("*.json")):
        if not path.with_suffix(".npy").is_file():
            continue
        there = read_json(path, path.with_suffix(".*"))
        part = {key: there.get(key) for key in PART}
        if isinstance(part["seconds"], int | float) and isinstance(part["from"], int | float | str):
            return part
    return None


def find_present(features_dir, names, n_tracks, part=PART):
    """The features that the cache already has; an error if it has them with other parameters."""
    found = []
    for name in names:
        path = features_dir / f"{name}.json"
        if not (path.is_file() and path.with_suffix(".npy").is_file()):
            continue
        there, here = PART | read_json(path, path.with_suffix(".*")), describe(name, n_tracks, None, part)
        for key in here:
            if key in there and there[key] != here[key] and key != "versions":
                made = f"{key} {there[key]!s:.50}, this run needs {here[key]!s:.50}"     # statistics name 518 columns
                raise DataError(f"{path} was made with {made}: delete {path.with_suffix('.*')} or pass --features-dir")
        found.append(name)
    return found


def find_known(features_dir, names, ids, part=PART):
    """The index of a cache, None if it has none; and whether all the features are there."""
    if not (features_dir / "index.csv").is_file():
        return None, False
    known = load_index(features_dir)
    if not np.array_equal(known["track_id"], ids):
        raise DataError(f"{features_dir}/index.csv lists other tracks than tracks.csv: delete {features_dir} or pass "
                        "--features-dir")
    return known, len(find_present(features_dir, names, len(ids), part)) == len(names)
