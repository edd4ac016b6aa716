"""The files of a feature cache while it is filled: the lock, the plan, the journal, and the arrays.

    features/.partial/plan.json         the arrays to compute, with the content of their JSON
    features/.partial/progress.csv      the journal: a line for each clip whose rows are written
    features/.partial/<name>.npy        the arrays in full size, zero where nothing is written yet
    features/.partial/shared            exists if several machines write them (audio/cluster.py)

At the end the arrays are moved to ``features/``.
"""

import errno
import json
import os
import shutil
from contextlib import contextmanager

import numpy as np

from audio.cache import PART, STATUSES, USABLE, describe, find_present, read_json, save_text
from fma import DataError


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
        Wait until it is free, where else a DataError is raised.
    """
    _make_folder(folder)
    try:
        import fcntl
    except ImportError as error:
        if shared or wait:
            raise DataError(f"{folder} cannot be locked on this system: --shard needs Linux or macOS") from error
        yield None                  # no file either: Windows deletes no folder that holds an open one
        return
    while True:
        _make_folder(folder)
        with open(folder / name, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise DataError(f"{folder} is being filled by another process: wait for it, or stop it") from error
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


def _make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror}): name another with --features-dir") from error


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
        plan = read_json(plan_file, partial)
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
    if not infos:
        raise DataError(f"{features_dir}/index.csv is missing: delete {features_dir} and run again")
    try:
        for name, info in infos.items():
            _allocate(partial / f"{name}.npy", info)
    except OSError as error:
        shutil.rmtree(partial)
        size = sum(np.dtype(i["dtype"]).itemsize * np.prod(i["shape"]) for i in infos.values()) / 1e9
        raise DataError(f"{features_dir}: the arrays take {size:.1f} GB, the disk has "
                        f"{shutil.disk_usage(features_dir).free / 1e9:.1f} GB free") from error
    save_text(plan_file, json.dumps({**wanted, "infos": infos}))
    return infos


def read_journal(progress_file, n_tracks):
    """Status of each clip in a journal; a line that is damaged or incomplete is ignored, and its clip done again."""
    done = {}
    for line in progress_file.read_text(encoding="utf-8", errors="replace").splitlines():
        row, _, status = line.partition(",")
        if row.isdecimal() and len(row) < 12 and int(row) < n_tracks and status in STATUSES:
            done[int(row)] = status
    return done


def read_status(partial, known, n_tracks):
    """Status of each finished clip, from the journals of all processes and from an earlier index."""
    status = {}
    for journal in sorted(partial.glob("progress*.csv")):
        status |= read_journal(journal, n_tracks)
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
    file.seek(os.fstat(file.fileno()).st_size - (n_rows - row) * len(data))
    if file.write(data) < len(data):
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
            save_text(features_dir / f"{name}.json", json.dumps(info, indent=1))
            os.replace(partial, features_dir / f"{name}.npy")
    if infos:
        save_text(features_dir / "index.csv", index.to_csv(index=False, lineterminator="\n"))
    for name in ("shared", "plan.json"):        # first: without them the rest is not a run
        (features_dir / ".partial" / name).unlink(missing_ok=True)
    shutil.rmtree(features_dir / ".partial")
