"""The feature cache: every clip of a collection, as arrays that a network can be trained on.

    python features.py --data-dir data/demo
    python features.py --data-dir data/demo --statistics        # for the classifiers of baselines.py

Clips are shared out over processes, which write each its own rows of one array per feature. Killed at
any moment, the same command goes on where it stopped and ends in the same bytes: arrays grow in
``features/.partial`` and get their names when all rows are there.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import pandas as pd

from datasets import STATUSES, load_index
from fma import SUBSETS, DataError, audio_path, find_data, load_tracks, progress_bar, run_command, some
from track_statistics import STATISTICS, track_statistics
from transforms import (
    FEATURES,
    HOP_LENGTH,
    N_FRAMES,
    SAMPLE_RATE,
    SILENCE,
    STUDY_FEATURES,
    Undecodable,
    extract,
    read_audio,
)

ARRAYS = {**FEATURES, "statistics": STATISTICS}     # all that a cache can hold
BATCH = 512     # clips handed to the processes at a time: memory does not grow with the collection


def describe(name, n_tracks):
    """What ``<name>.json`` says of an array: its layout, unit, every parameter, and library versions."""
    given = {k: v for k, v in ARRAYS[name].items() if k not in ("bins", "axis", "frames_kept")}
    return {
        "feature": name,
        "shape": [n_tracks, ARRAYS[name]["bins"], ARRAYS[name].get("frames_kept", N_FRAMES)],
        "dtype": "float16",
        "axes": ["track", ARRAYS[name]["axis"], "frame"],
        "scale": 1.0,
        "offset": 0.0,
        **given,
        "rows": "features/index.csv",
        "value": "stored * scale + offset",
        "versions": {lib: importlib.metadata.version(lib)
                     for lib in ("librosa", "numpy", "scipy", "soundfile", "soxr")},
    }


# ---------------------------------------------------------------- one clip


def clip_features(path, names=STUDY_FEATURES):
    """Status of a clip, and its features if the status is ok.

    Parameters
    ----------
    path : path-like
    names : sequence of str
        Keys of `ARRAYS`.

    Returns
    -------
    status : {"ok", "short", "silent", "undecodable", "missing"}
    features : dict of str to ndarray, shape (bins, frames)
        Cut to `N_FRAMES`, in the units of `ARRAYS`; statistics have one frame.
    """
    if not os.path.isfile(path):
        return "missing", {}
    try:
        y, sample_rate = read_audio(path)
    except Undecodable:
        return "undecodable", {}
    if len(y) * SAMPLE_RATE / sample_rate < (N_FRAMES - 1) * HOP_LENGTH:
        return "short", {}
    if np.abs(y).max() < SILENCE:
        return "silent", {}
    return "ok", {name: x[:, :N_FRAMES] for name, x in compute(y, sample_rate, names).items()}


def compute(y, sample_rate, names):
    """The arrays of one clip: `transforms.extract`, and its statistics as a single frame."""
    found = extract(y, sample_rate, [name for name in names if name in FEATURES])
    return found | ({"statistics": track_statistics(y, sample_rate)[:, None]} if "statistics" in names else {})


_worker = {}    # what a worker process keeps between clips: paths, arrays, scale and offset


def _start_worker(data_dir, subset, ids, partial, infos):
    """Open the arrays, and keep to one thread: the processes share the cores."""
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker["limits"] = threadpool_limits(1)
    _open_worker(data_dir, subset, ids, partial, infos)


def _end_with_parent():
    """A killed parent cannot stop its workers: they would wait for clips for ever."""
    parent_process().join()
    os._exit(1)


def _open_worker(data_dir, subset, ids, partial, infos):
    files = {name: open(partial / f"{name}.npy", "r+b", buffering=0) for name in infos}
    _worker.update(path=lambda row: audio_path(data_dir, ids[row], subset), files=files, infos=infos)


def _process(row):
    """Compute one clip and write its rows; return its status."""
    status, values = clip_features(_worker["path"](row), tuple(_worker["infos"]))
    for name, x in values.items():
        info = _worker["infos"][name]
        x = (x - info["offset"]) / info["scale"] if (info["scale"], info["offset"]) != (1.0, 0.0) else x
        x = np.round(x) if info["dtype"] == "uint8" else x
        _write_row(_worker["files"][name], row, info["shape"][0], x.astype(info["dtype"]).tobytes())
    return row, status


def _write_row(file, row, n_rows, data):
    """Write a row into the .npy file, in place: a memory map would hold on to every row written."""
    end = os.fstat(file.fileno()).st_size
    os.pwrite(file.fileno(), data, end - (n_rows - row) * len(data))


# ---------------------------------------------------------------- the whole collection


def cpu_count():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextmanager
def lock(folder):
    """Keep a second process from filling the same cache; the lock ends with the process that holds it."""
    import fcntl

    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder} is being filled by another process: wait for it, or stop it") from error
        yield


def _write(path, text):
    """Write a small file so that it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _read_json(path, remedy):
    """Read an object that this module or another wrote; the error says what to do if it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete {remedy} and run the same command again") from error


def _present(features_dir, names, n_tracks):
    """Those of the features that the cache has already; an error if it has them with other parameters."""
    found = []
    for name in names:
        path = features_dir / f"{name}.json"
        if not (path.is_file() and path.with_suffix(".npy").is_file()):
            continue
        there, here = _read_json(path, path.with_suffix(".*")), describe(name, n_tracks)
        for key in here:
            if key in there and there[key] != here[key] and key != "versions":
                made = f"{key} {there[key]}, this run needs {here[key]}"
                if len(made) > 120:         # two lists of 518 columns, say
                    made = f"other {key} than this run needs"
                raise DataError(f"{path} was made with {made}: delete {path.with_suffix('.*')} or pass --features-dir")
        found.append(name)
    return found


def _allocate(path, info):
    """Make an array of zeros on disk, its space taken where the system can: a full disk is met here."""
    np.lib.format.open_memmap(path, "w+", info["dtype"], tuple(info["shape"]))
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _plan(features_dir, names, ids):
    """The arrays to compute, allocated on disk: a new plan, or that of the run that was cut off."""
    partial = features_dir / ".partial"
    plan_file = partial / "plan.json"
    wanted = {"names": list(names), "ids": [len(ids), int(np.sum(ids)), int(ids[0]), int(ids[-1])]}
    if plan_file.is_file():
        plan = _read_json(plan_file, partial)
        if {k: plan[k] for k in wanted} != wanted or any(
            info != describe(name, len(ids)) for name, info in plan["infos"].items()
        ):
            raise DataError(f"{partial} holds an unfinished run for {', '.join(plan['names'])} on {plan['ids'][0]} "
                            "tracks, with other settings or versions: finish that one or delete the folder")
        return plan["infos"]
    (partial / "progress.csv").unlink(missing_ok=True)      # of a run that was killed while it cleared up
    present = _present(features_dir, names, len(ids))
    infos = {name: describe(name, len(ids)) for name in names if name not in present}
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


def _done(progress_file, n_tracks):
    """Status of each clip that an earlier run finished, from its journal; a torn last line does not count."""
    done = {}
    if progress_file.is_file():
        text = progress_file.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            _write(progress_file, whole)
        for line in whole.splitlines():
            row, _, status = line.partition(",")
            if row.isdecimal() and int(row) < n_tracks and status in STATUSES:     # else its clip is done again
                done[int(row)] = status
    return done


def _results(rows, workers, setup):
    """Process the rows, in this process or several, and yield (row, status) as they are finished."""
    if workers == 1:
        from threadpoolctl import threadpool_limits

        _open_worker(*setup)
        with threadpool_limits(1):
            yield from map(_process, rows)
        return
    # numba compiles parts of librosa on first use and keeps them on disk; workers that do so at once spoil each
    # other's files, and what loads them crashes. So it is done here, before there are workers.
    compute(np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32), SAMPLE_RATE,
            (*STUDY_FEATURES, *setup[-1]))
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, setup) as pool:
        try:
            for start in range(0, len(rows), BATCH):
                yield from pool.map(_process, rows[start : start + BATCH], chunksize=4)
        except BrokenProcessPool as error:
            raise DataError("a worker process died (out of memory?): run the same command again, it goes on; "
                            "with --workers 1 the progress bar stops at the clip that does it") from error
        finally:
            pool.shutdown(cancel_futures=True)


def fill_cache(data_dir, names=STUDY_FEATURES, subset="small", features_dir=None, workers=None, progress=True):
    """Compute features of every clip of a collection; what the cache has already is kept.

    Parameters
    ----------
    data_dir : path-like
    names : sequence of str
        Keys of `ARRAYS`: the features, and "statistics".
    subset : str
    features_dir : path-like, optional
        ``<data_dir>/features`` by default.
    workers : int, optional
        Processes; one per core by default.
    progress : bool
        Show a progress bar.

    Returns
    -------
    index : DataFrame with columns track_id and status

    Raises
    ------
    DataError
        If there is no audio, the cache is of other tracks or parameters, in use, or the disk is full.
    """
    tracks = load_tracks(data_dir, subset)
    ids = tracks.index.to_numpy()
    features_dir = Path(features_dir or Path(data_dir) / "features")
    known = load_index(features_dir) if (features_dir / "index.csv").is_file() else None
    if known is not None and not np.array_equal(known["track_id"], ids):
        raise DataError(f"{features_dir}/index.csv lists other tracks than tracks.csv: pass --features-dir")
    if known is not None and len(_present(features_dir, names, len(ids))) == len(names):
        return known                # a finished cache is only read: neither audio nor a folder to write in is needed
    audio = Path(data_dir) / f"fma_{subset}"
    if not audio.is_dir() or not len(ids):
        raise DataError(f"{audio} not found or without tracks: run ./download_data.sh {subset} {data_dir}")
    partial = features_dir / ".partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{partial} cannot be made ({error.strerror}): name another with --features-dir") from error
    with lock(partial):
        infos = _plan(features_dir, names, ids)
        if not infos and known is None:
            raise DataError(f"{features_dir}/index.csv is missing: delete {features_dir} and run again")
        journal = partial / "progress.csv"
        status = _done(journal, len(ids)) if infos else dict(enumerate(known["status"]))
        if known is not None:       # clips that gave nothing before are not tried again
            status |= {row: s for row, s in enumerate(known["status"]) if s != "ok"}
        todo = [row for row in range(len(ids)) if row not in status]
        _compute(todo, status, known, journal, workers, progress, (data_dir, subset, ids, partial, infos))
        index = pd.DataFrame({"track_id": ids, "status": [status[row] for row in range(len(ids))]})
        _finish(features_dir, infos, index)
        (partial / "plan.json").unlink(missing_ok=True)     # first: without it the rest is rubbish, not a run
        shutil.rmtree(partial)
    return index


def _compute(todo, status, known, journal, workers, progress, setup):
    """Process the clips that are left, and note each in the journal when its rows are written."""
    if not todo:
        return
    workers = min(workers or cpu_count(), -(-len(todo) // 8))    # a process takes seconds to start
    bar = progress_bar(total=len(status) + len(todo), initial=len(status), unit="track", desc="features", show=progress)
    with open(journal, "a", encoding="utf-8") as file, bar:
        for row, found in _results(todo, workers, setup):
            if known is not None and found != known["status"][row]:
                raise DataError(f"track {setup[2][row]} is {found}, but index.csv says {known['status'][row]}: "
                                "the cache was made from other audio, pass --features-dir")
            file.write(f"{row},{found}\n")
            file.flush()
            status[row] = found
            bar.update()


def _finish(features_dir, infos, index):
    """Give the arrays their names, the index last: with it the cache is complete."""
    for name, info in infos.items():
        partial = features_dir / ".partial" / f"{name}.npy"
        if partial.is_file():           # else an earlier run was cut off just here
            _write(features_dir / f"{name}.json", json.dumps(info, indent=1))
            os.replace(partial, features_dir / f"{name}.npy")
    if infos:
        _write(features_dir / "index.csv", index.to_csv(index=False, lineterminator="\n"))


def main(argv=None):
    parser = argparse.ArgumentParser(description="Compute the features of every clip; goes on where it was stopped.")
    parser.add_argument("--data-dir", help="in FMA's layout (default: $DATA_DIR, data, or the demo corpus)")
    parser.add_argument("--features", nargs="+", choices=FEATURES, metavar="NAME",
                        help=f"which of {', '.join(FEATURES)} (default: all but mel128)")
    parser.add_argument("--statistics", action="store_true",
                        help="FMA's 518 track statistics, for baselines.py: these alone, or beside --features")
    parser.add_argument("--subset", default="small", choices=SUBSETS)
    parser.add_argument("--features-dir", help="where the cache goes (default: features in the data folder)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")
    data_dir, start = find_data(args.data_dir), time.perf_counter()
    wanted = args.features or ([] if args.statistics else STUDY_FEATURES)
    names = [name for name in FEATURES if name in wanted] + ["statistics"] * args.statistics
    index = fill_cache(data_dir, names, args.subset, args.features_dir, args.workers)
    counts = Counter(index["status"])
    print(f"{args.features_dir or data_dir / 'features'}: {len(index)} tracks, "
          + ", ".join(f"{counts[s]} {s}" for s in STATUSES if counts[s]) + f" ({time.perf_counter() - start:.1f} s)")
    for s in STATUSES[1:]:
        if counts[s]:
            print(f"  {s}: {some(index['track_id'][index['status'] == s], 10)}")
    missing = index["track_id"][index["status"] == "missing"]
    late = [track for track in missing if audio_path(data_dir, track, args.subset).is_file()]
    if late:
        print(f"  {len(late)} tracks were missing but have come since: delete the cache and run again to use them")
    if not counts["ok"]:
        raise DataError(f"no clip of {data_dir} could be used: a clip must be audio, not silent, and last 29.7 s")


if __name__ == "__main__":
    sys.exit(run_command(main))
