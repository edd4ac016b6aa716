"""The feature cache: every clip of a collection, as arrays that a network can be trained on.

    python features.py --data-dir data/demo
    python features.py --data-dir data/demo --statistics        # for the classifiers of baselines.py
    python features.py --data-dir data/demo --features cqt --pitch-shift -1 1   # and cqt_pitch-1, cqt_pitch+1

Clips are shared out over processes, which write each its own rows of one array per feature. Killed at
any moment, the same command goes on where it stopped and ends in the same bytes: arrays grow in
``features/.partial`` and get their names when all rows are there (cache.py).
"""

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import pandas as pd

from cache import find_present, finish, lock, make_plan, read_journal, write_row
from datasets import STATUSES, load_index
from fma import SUBSETS, DataError, audio_path, find_data, load_tracks, progress_bar, run_command, some
from pitch_copies import SEMITONES, copy_name
from track_statistics import track_statistics
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

BATCH = 512     # clips handed to the processes at a time: memory does not grow with the collection


# ---------------------------------------------------------------- one clip


def clip_features(path, names=STUDY_FEATURES):
    """Status of a clip, and its features if the status is ok.

    Parameters
    ----------
    path : path-like
    names : sequence of str
        Keys of `cache.ARRAYS`.

    Returns
    -------
    status : {"ok", "short", "silent", "undecodable", "missing"}
    features : dict of str to ndarray, shape (bins, frames)
        Cut to `N_FRAMES`, in the units of `cache.ARRAYS`; statistics have one frame.
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
    """The arrays of one clip: features, its statistics as a single frame, and features of the clip shifted in pitch.

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
        All frames there are. A copy has as many as its feature: the shift is one of pitch, not of time.

    Examples
    --------
    >>> a4 = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050).astype(np.float32)
    >>> {name: int(x[:, 10].argmax()) for name, x in compute(a4, 22050, ["cqt", "cqt_pitch-2"]).items()}
    {'cqt': 45, 'cqt_pitch-2': 43}
    """
    found = extract(y, sample_rate, [name for name in names if name in FEATURES])
    if "statistics" in names:
        found["statistics"] = track_statistics(y, sample_rate)[:, None]
    for semitones in SEMITONES:
        if wanted := [name for name in FEATURES if copy_name(name, semitones) in names]:
            import librosa

            shifted = librosa.effects.pitch_shift(y, sr=sample_rate, n_steps=semitones)
            shifted *= np.sqrt(np.square(y).mean() / max(np.square(shifted).mean(), 1e-20))     # loses 3 dB or so
            found |= {copy_name(name, semitones): x for name, x in extract(shifted, sample_rate, wanted).items()}
    return found


_worker = {}    # what a worker process keeps between clips: paths, arrays, scale and offset, names


def _start_worker(*setup):
    """Open the arrays, and keep to one thread: the processes share the cores."""
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker["limits"] = threadpool_limits(1)
    _open_worker(*setup)


def _end_with_parent():
    """A killed parent cannot stop its workers: they would wait for clips for ever."""
    parent_process().join()
    os._exit(1)


def _open_worker(data_dir, subset, ids, training, partial, infos):
    files = {name: open(partial / f"{name}.npy", "r+b", buffering=0) for name in infos}
    for_all = tuple(name for name, info in infos.items() if "pitch_shift" not in info)
    _worker.update(path=lambda row: audio_path(data_dir, ids[row], subset), files=files, infos=infos,
                   names=lambda row: tuple(infos) if training[row] else for_all)


def _process(row):
    """Compute one clip and write its rows; return its status."""
    status, values = clip_features(_worker["path"](row), _worker["names"](row))
    for name, x in values.items():
        info = _worker["infos"][name]
        x = (x - info["offset"]) / info["scale"] if (info["scale"], info["offset"]) != (1.0, 0.0) else x
        x = np.round(x) if info["dtype"] == "uint8" else x
        write_row(_worker["files"][name], row, info["shape"][0], x.astype(info["dtype"]).tobytes())
    return row, status


# ---------------------------------------------------------------- the whole collection


def cpu_count():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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
        Keys of `cache.ARRAYS`: the features, "statistics", and copies of features shifted in pitch, such as
        "cqt_pitch+1", which are made of the training clips alone.
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
    ids, training = tracks.index.to_numpy(), (tracks["split"] == "training").to_numpy()
    features_dir = Path(features_dir or Path(data_dir) / "features")
    known = load_index(features_dir) if (features_dir / "index.csv").is_file() else None
    if known is not None and not np.array_equal(known["track_id"], ids):
        raise DataError(f"{features_dir}/index.csv lists other tracks than tracks.csv: pass --features-dir")
    if known is not None and len(find_present(features_dir, names, len(ids))) == len(names):
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
        infos = make_plan(features_dir, names, ids)
        if not infos and known is None:
            raise DataError(f"{features_dir}/index.csv is missing: delete {features_dir} and run again")
        journal = partial / "progress.csv"
        status = read_journal(journal, len(ids)) if infos else dict(enumerate(known["status"]))
        if known is not None:       # clips that gave nothing before are not tried again
            status |= {row: s for row, s in enumerate(known["status"]) if s != "ok"}
        todo = [row for row in range(len(ids)) if row not in status]
        _compute(todo, status, known, journal, workers, progress, (data_dir, subset, ids, training, partial, infos))
        index = pd.DataFrame({"track_id": ids, "status": [status[row] for row in range(len(ids))]})
        finish(features_dir, infos, index)
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


def main(argv=None):
    parser = argparse.ArgumentParser(description="Compute the features of every clip; goes on where it was stopped.")
    parser.add_argument("--data-dir", help="in FMA's layout (default: $DATA_DIR, data, or the demo corpus)")
    parser.add_argument("--features", nargs="+", choices=FEATURES, metavar="NAME",
                        help=f"which of {', '.join(FEATURES)} (default: all but mel128)")
    parser.add_argument("--statistics", action="store_true",
                        help="FMA's 518 track statistics, for baselines.py: these alone, or beside --features")
    parser.add_argument("--pitch-shift", nargs="+", type=int, choices=SEMITONES, default=[], metavar="SEMITONES",
                        help="also copies of the features with the training clips shifted by so much, for "
                             "training.py --pitch-copies true: -12 to 12, say -2 -1 1 2")
    parser.add_argument("--subset", default="small", choices=SUBSETS)
    parser.add_argument("--features-dir", help="where the cache goes (default: features in the data folder)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")
    if len(set(args.pitch_shift)) < len(args.pitch_shift):
        parser.error("--pitch-shift names a shift twice")
    if args.pitch_shift and args.statistics and not args.features:
        parser.error("--pitch-shift makes copies of features, not of statistics: name the features with --features")
    data_dir, start = find_data(args.data_dir), time.perf_counter()
    wanted = args.features or ([] if args.statistics else STUDY_FEATURES)
    names = [name for name in FEATURES if name in wanted]
    copies = [copy_name(name, semitones) for name in names for semitones in sorted(args.pitch_shift)]
    names += ["statistics"] * args.statistics + copies
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
