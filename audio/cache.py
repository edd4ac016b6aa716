"""The files of a feature cache while it is filled: the plan, the journal, and the arrays.

    features/.partial/plan.json         the arrays to compute, with the content of their JSON
    features/.partial/progress.csv      the journal: a line for each clip whose rows are written
    features/.partial/<name>.npy        the arrays in full size, zero where nothing is written yet
    features/.partial/shared            exists if several machines write them (audio/cluster.py)

At the end the arrays are moved to ``features/``.
"""

import errno
import importlib.metadata
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from audio.embeddings import EMBEDDINGS, describe_encoder, libraries
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
ARRAYS = {**FEATURES, "statistics": STATISTICS, **EMBEDDINGS} | {
    copy_name(name, semitones): {**given, "feature": name, "pitch_shift": semitones,
                                 "pitch_shifter": "librosa.effects.pitch_shift at the file's sample rate, level kept",
                                 "zeros": "rows of validation and test, and of clips that are not ok"}
    for name, given in FEATURES.items() for semitones in SEMITONES
}


def kept_frames(name, part=PART):
    """Frames of each clip in an array: of mel128, statistics and embeddings always as many."""
    return ARRAYS[name].get("frames_kept", count_frames(part["seconds"]))


def describe(name, n_tracks, device=None, part=PART):
    """What ``<name>.json`` says of an array: its layout, unit, every parameter, and library versions.

    Values that audio/gpu.py computes on a `device` are those of audio/transforms.py up to rounding: said, too, so that
    a run does not begin on one and end on the other. A finished cache is as good as another.
    """
    used = {"librosa", "numpy", "scipy", "soundfile", "soxr"} | ({"torch"} if device is not None else set())
    array, module = ARRAYS[name], "gpu"
    if name in EMBEDDINGS:
        array, used, module = array | describe_encoder(name), {*used, *libraries(name)}, "embeddings"
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


class InUse(DataError):
    """Another process fills the cache."""


@contextmanager
def lock(folder, name="lock", shared=False, wait=False):
    """Keep a second process from filling the same cache; the lock ends with the process that holds it.

    Windows has no such locks: one process works there without, several that share a cache are rejected.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    name : str
        Of the file that is locked; it is opened for reading and writing, and given to the block.
    shared : bool
        Keep out only those that want it for themselves.
    wait : bool
        Wait until it is free, where else `InUse` is raised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError as error:
        if shared or wait:
            raise DataError(f"{folder} cannot be locked on this system: --shard needs Linux or macOS") from error
        yield None                  # no file either: Windows deletes no folder that holds an open one
        return
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise InUse(f"{folder} is being filled by another process: wait for it, or stop it") from error
            except OSError as error:
                raise DataError(f"{folder} cannot be locked ({error.strerror}): its file system must be mounted with "
                                "locks, or name another folder with --features-dir") from error
            try:
                there = os.path.samestat(os.fstat(file.fileno()), os.stat(folder / name))
            except FileNotFoundError:
                there = False
            if there:           # else the process that held the lock has deleted this file meanwhile
                yield file
                return


def _write(path, text):
    """Replace a small file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _read_json(path, remedy):
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
        there = _read_json(path, path.with_suffix(".*"))
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
        there, here = PART | _read_json(path, path.with_suffix(".*")), describe(name, n_tracks, None, part)
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


def _allocate(path, info):
    """Create an array of zeros on disk and reserve its space where the system can: a full disk is noticed here."""
    np.lib.format.open_memmap(path, "w+", info["dtype"], tuple(info["shape"]))
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def make_plan(features_dir, names, ids, device=None, part=PART):
    """The arrays to compute, allocated on disk: a new plan, or that of an interrupted run."""
    partial = features_dir / ".partial"
    plan_file = partial / "plan.json"
    wanted = {"names": list(names), "ids": [len(ids), int(np.sum(ids)), int(ids[0]), int(ids[-1])]}
    if plan_file.is_file():
        plan = _read_json(plan_file, partial)
        try:
            same = {k: plan[k] for k in wanted} == wanted and all(
                info == describe(name, len(ids), device, part) for name, info in plan["infos"].items())
            what = f"{', '.join(plan['names'])} on {plan['ids'][0]} tracks"
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(f"{plan_file} is damaged: delete {partial} and run the same command again") from error
        if not same:
            raise DataError(f"{partial} holds an unfinished run for {what}, with other settings, versions or --device: "
                            "finish that one or delete the folder")
        return plan["infos"]
    for journal in partial.glob("progress*.csv"):           # of a run that was killed while it deleted them
        journal.unlink()
    present = find_present(features_dir, names, len(ids), part)
    infos = {name: describe(name, len(ids), device, part) for name in names if name not in present}
    try:
        for name, info in infos.items():
            _allocate(partial / f"{name}.npy", info)
    except OSError as error:
        shutil.rmtree(partial)
        size = sum(np.dtype(i["dtype"]).itemsize * np.prod(i["shape"]) for i in infos.values()) / 1e9
        raise DataError(f"{features_dir}: the arrays take {size:.1f} GB, the disk has "
                        f"{shutil.disk_usage(features_dir).free / 1e9:.1f} GB free") from error
    _write(plan_file, json.dumps({**wanted, "infos": infos}))
    return infos


def read_journal(progress_file, n_tracks, repair=True):
    """Status of each clip that an earlier run finished, from its journal; an incomplete last line is ignored.

    It is also removed, so that the next line can be appended, unless `repair` is false: another process may be writing.
    """
    done = {}
    if progress_file.is_file():
        text = progress_file.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        if whole != text and repair:
            _write(progress_file, whole)
        for line in whole.splitlines():
            row, _, status = line.partition(",")
            if row.isdecimal() and len(row) < 12 and int(row) < n_tracks and status in STATUSES:    # else it is redone
                done[int(row)] = status
    return done


def read_status(partial, known, infos, n_tracks, own=None):
    """Status of each finished clip, from the journals of all processes and from an earlier index.

    Other processes may be writing all journals but one's `own`.
    """
    if not infos:
        return dict(enumerate(known["status"]))
    status = {}
    for journal in sorted(partial.glob("progress*.csv")):
        status |= read_journal(journal, n_tracks, repair=own in (None, journal))
    if known is not None:           # clips that failed before are not tried again
        status |= {row: s for row, s in enumerate(known["status"]) if s not in USABLE}
    return status


def open_array(partial, name):
    """Open a growing array to write rows into it.

    If machines share it, each write is synchronous and of the row's bytes only: NFS would otherwise write whole pages,
    and overwrite another machine's row with old content.
    """
    flags = os.O_DSYNC if (partial / "shared").exists() else 0
    return open(partial / f"{name}.npy", "r+b", buffering=0, opener=lambda path, mode: os.open(path, mode | flags))


def write_row(file, row, n_rows, data):
    """Write a row into the .npy file, in place: a memory map would keep every row written in memory."""
    start = os.fstat(file.fileno()).st_size - (n_rows - row) * len(data)
    if hasattr(os, "pwrite"):
        written = os.pwrite(file.fileno(), data, start)
    else:                           # Windows
        file.seek(start)
        written = file.write(data)
    if written < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)


def empty_row(partial, infos, row):
    """Write zeros into a row of every array."""
    for name, info in infos.items():
        size = int(np.prod(info["shape"][1:])) * np.dtype(info["dtype"]).itemsize
        with open_array(partial, name) as file:
            write_row(file, row, info["shape"][0], bytes(size))


def clear_finished(partial):
    """Delete the plan of a run that was killed after its arrays had been moved."""
    if (partial.parent / "index.csv").is_file() and not any(partial.glob("*.npy")):
        for name in ("shared", "plan.json"):
            (partial / name).unlink(missing_ok=True)


def finish(features_dir, infos, index):
    """Move the arrays to the cache, the index last, which marks it as complete, and delete the partial files."""
    for name, info in infos.items():
        partial = features_dir / ".partial" / f"{name}.npy"
        if partial.is_file():           # else an earlier run was interrupted here
            _write(features_dir / f"{name}.json", json.dumps(info, indent=1))
            os.replace(partial, features_dir / f"{name}.npy")
    if infos:
        _write(features_dir / "index.csv", index.to_csv(index=False, lineterminator="\n"))
    for name in ("shared", "plan.json"):        # first: without them the rest is not a run
        (features_dir / ".partial" / name).unlink(missing_ok=True)
    shutil.rmtree(features_dir / ".partial")
