"""The feature cache: every clip of a collection, as arrays that a network can be trained on.

    python features.py --data-dir data/demo
    python features.py --device cuda                            # processes decode, a GPU computes: equal up to rounding
    python features.py --data-dir data/demo --statistics        # for the classifiers of baselines.py
    python features.py --data-dir data/demo --features cqt --pitch-shift -1 1   # and cqt_pitch-1, cqt_pitch+1

Processes share the clips, and each writes its own rows of one array per feature. If the command is killed at any
moment, running it again continues and gives the same bytes: arrays grow in ``features/.partial`` and are moved when
all rows are there (audio/cache.py).
"""

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from functools import partial as bind
from pathlib import Path

import numpy as np

from audio.cache import (
    SEMITONES,
    STATUSES,
    InUse,
    clear_finished,
    copy_name,
    empty_row,
    find_known,
    finish,
    lock,
    make_plan,
    read_status,
)
from audio.clips import compute, decode_row, open_worker, process_row, say, start_worker, write_values
from audio.cluster import compile_for_all, connect, hold_shard, on_workers, parse_shard, plan_shard
from audio.transforms import FEATURES, N_FRAMES, SAMPLE_RATE, STUDY_FEATURES
from audio.workers import in_processes
from fma import SUBSETS, DataError, audio_path, find_data, load_tracks, progress_bar, run_command, some

LIMIT = 60      # seconds that a clip may take, or 10 for each array if that is more; it normally takes 0.1


# ---------------------------------------------------------------- the whole collection


def cpu_count():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _compile(names):
    """Let numba compile parts of librosa, which it stores on disk, before workers start: several that do so at once
    damage each other's files, and loading those crashes."""
    compute(np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32), SAMPLE_RATE, names)


def _results(rows, workers, setup, work=process_row, client=None):
    """Process the rows in so many processes, or (0) in this one, or on a client's Dask workers; yield (row, status) in
    any order."""
    if not workers and not client:
        from threadpoolctl import threadpool_limits

        open_worker(*setup)
        with threadpool_limits(1):
            yield from map(work, rows)
        return
    data_dir, subset, ids, _, partial, infos = setup
    limit = max(LIMIT, 10 * len(infos))
    if client:
        compile_for_all(partial, lambda: _compile(tuple(infos)))
        versions = next(iter(infos.values()))["versions"]
        done = on_workers(client, rows, work, limit, start_worker, setup, versions,
                          [Path(data_dir) / f"fma_{subset}", partial])
    else:
        if workers > 1:
            _compile(tuple(infos))
        done = in_processes(rows, work, workers, limit, start_worker, setup)
    for row, found, reason in done:
        if reason:
            empty_row(partial, infos, row)          # it may have died while writing
            say(f"{audio_path(data_dir, ids[row], subset)} is undecodable: it {reason}, twice")
        yield found or (row, "undecodable")


def _results_on(device, rows, workers, setup):
    """The same on a GPU: processes decode, and this one computes features in batches."""
    from audio.gpu import extract_stream

    open_worker(*setup)
    for row, found in extract_stream(_results(rows, workers, setup, decode_row), device, setup[-1]):
        if not isinstance(found, str):
            write_values(row, {name: x[:, :N_FRAMES] for name, x in found.items()})
            found = "ok"
        yield row, found


def fill_cache(data_dir, names=STUDY_FEATURES, subset="small", features_dir=None, workers=None, progress=True,
               device=None, scheduler=None, shard=None):
    """Compute features of every clip of a collection; those that the cache already has are kept.

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
        Processes; one per core by default. 1 is this process, which a clip that crashes its decoder would end.
    progress : bool
        Show a progress bar.
    device : torch.device, optional
        Where audio/gpu.py computes what the processes decode; by default they compute it themselves.
    scheduler : str, optional
        Address of a Dask scheduler, whose workers compute it in place of processes.
    shard : (int, int), optional
        Which part of how many to compute: (1, 4) is every fourth clip. Whoever ends last gives the arrays their names.

    Returns
    -------
    index : DataFrame with columns track_id and status
        None if clips are left to other shards.

    Raises
    ------
    DataError
        If there is no audio, the cache is of other tracks or parameters, in use, or the disk is full.
    """
    if device is not None and (others := [name for name in names if name not in STUDY_FEATURES]):
        raise DataError(f"{', '.join(others)}: not made on a GPU, run a second time without --device for these")
    tracks = load_tracks(data_dir, subset)
    ids, training = tracks.index.to_numpy(), (tracks["split"] == "training").to_numpy()
    features_dir = Path(features_dir or Path(data_dir) / "features")
    known, complete = find_known(features_dir, names, ids)
    if complete:
        return known                # a finished cache is only read: neither audio nor a folder to write in is needed
    audio = Path(data_dir) / f"fma_{subset}"
    if not audio.is_dir() or not len(ids):
        raise DataError(f"{audio} not found or without tracks: run ./download_data.sh {subset} {data_dir}")
    partial = features_dir / ".partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{partial} cannot be made ({error.strerror}): name another with --features-dir") from error
    run = names, (Path(data_dir).absolute(), subset, ids, training, partial.absolute()), workers, progress, device
    if shard:
        with hold_shard(partial, shard):
            _fill(*run, shard=shard)
    try:
        with connect(scheduler) as client, lock(partial):
            return _fill(*run, client=client, join=bool(shard))
    except InUse:
        if shard:
            return None             # the last shard to end will come to the end of this
        raise


def _fill(names, setup, workers, progress, device, client=None, shard=None, join=False):
    """Compute what is left, of a `shard` its clips, to `join` the shards nothing; return the index if that is all."""
    import pandas as pd

    ids, partial = setup[2], setup[4]
    if not shard:
        clear_finished(partial)
    known, complete = find_known(partial.parent, names, ids)        # another process may just have ended
    if complete:
        if not shard and not (partial / "plan.json").exists():
            shutil.rmtree(partial)
        return known
    plan, rows, journal = bind(make_plan, partial.parent, names, ids, device), range(len(ids)), "progress.csv"
    if shard:
        rows, journal = rows[shard[0] - 1 :: shard[1]], "progress-{}of{}.csv".format(*shard)
    infos = plan_shard(partial, shard, plan, bind(_compile, names)) if shard else plan()
    if not infos and known is None:
        raise DataError(f"{partial.parent}/index.csv is missing: delete {partial.parent} and run again")
    if client:
        (partial / "shared").write_text("any")
    status = read_status(partial, known, infos, len(ids), partial / journal if shard else None)
    todo = [] if join else [row for row in rows if row not in status]
    _compute(todo, status, known, partial / journal, workers, progress, (*setup, infos), device, client)
    if shard or len(status) < len(ids):
        return None
    index = pd.DataFrame({"track_id": ids, "status": [status[row] for row in range(len(ids))]})
    finish(partial.parent, infos, index)
    return index


def _compute(todo, status, known, journal, workers, progress, setup, device, client):
    """Process the remaining clips, and add each to the journal when its rows are written."""
    if not todo:
        return
    workers = 0 if workers == 1 else min(workers or cpu_count(), -(-len(todo) // 8))    # each takes seconds to start
    bar = progress_bar(total=len(status) + len(todo), initial=len(status), unit="track", desc="features", show=progress)
    with open(journal, "a", encoding="utf-8") as file, bar:
        for row, found in (_results_on(device, todo, workers, setup) if device else
                           _results(todo, workers, setup, client=client)):
            if known is not None and found != known["status"][row]:
                raise DataError(f"track {setup[2][row]} is {found}, but index.csv says {known['status'][row]}: "
                                "the cache was made from other audio, pass --features-dir")
            file.write(f"{row},{found}\n")
            file.flush()
            status[row] = found
            bar.update()


def main(argv=None):
    parser = argparse.ArgumentParser(description="Compute the features of every clip; an interrupted run continues.")
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
    parser.add_argument("--workers", type=int, help="processes (default: one per core); 1: none but this one, which "
                                                    "a clip that crashes its decoder would end")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                        help="what computes the features: cuda is a GPU, which processes then decode for; all but "
                             "mel128, statistics and shifted copies (default: %(default)s)")
    parser.add_argument("--scheduler", metavar="TCP://HOST:PORT",
                        help="a Dask scheduler whose workers compute them, on machines that see the data folder: "
                             "docs/scale.md says how")
    parser.add_argument("--shard", metavar="I/N",
                        help="compute every Nth clip: one process for 1/N, another for 2/N, ..., on such machines")
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")
    if len(set(args.pitch_shift)) < len(args.pitch_shift):
        parser.error("--pitch-shift names a shift twice")
    if args.pitch_shift and args.statistics and not args.features:
        parser.error("--pitch-shift makes copies of features, not of statistics: name the features with --features")
    if "" in (args.scheduler, args.shard):          # of a variable that was not set
        parser.error("--scheduler and --shard need a value: tcp://host:8786, 2/16")
    if args.scheduler and (args.shard or args.device != "cpu" or args.workers):
        parser.error("--scheduler goes without --shard, --device and --workers: its workers compute on their cores")
    shard = parse_shard(args.shard) if args.shard else None
    device = None
    if args.device != "cpu":
        from audio.gpu import open_gpu

        device = open_gpu()
    data_dir, start = find_data(args.data_dir), time.perf_counter()
    wanted = args.features or ([] if args.statistics else STUDY_FEATURES)
    names = [name for name in FEATURES if name in wanted]
    copies = [copy_name(name, semitones) for name in names for semitones in sorted(args.pitch_shift)]
    names += ["statistics"] * args.statistics + copies
    index = fill_cache(data_dir, names, args.subset, args.features_dir, args.workers, device=device,
                       scheduler=args.scheduler, shard=shard)
    if index is None:
        print(f"{args.features_dir or data_dir / 'features'}: shard {args.shard} is done, others are not; the last one "
              "to end gives the arrays their names, or features.py without --shard")
        return
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
    import features  # by its name: what Dask's workers are given is looked up there

    sys.exit(run_command(features.main))
