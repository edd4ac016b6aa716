"""The feature cache: every clip of a collection, as arrays that a network can be trained on.

    python features.py --data-dir data/demo
    python features.py --data-dir data/songs --seconds 10 --from middle     # ten seconds of each, 213 frames
    python features.py --device cuda                            # processes decode, a GPU computes: equal up to rounding
    python features.py --data-dir data/demo --statistics        # for the classifiers of baselines.py
    python features.py --data-dir data/demo --features musicnn  # a pretrained network's: audio/embeddings.py
    python features.py --data-dir data/demo --features recurrence recurrence_statistics     # what a clip repeats
    python features.py --data-dir data/demo --features cqt --pitch-shift -1 1   # and cqt_pitch-1, cqt_pitch+1

Processes share the clips, and each writes its own rows of one array per feature. If the command is killed at any
moment, running it again continues and gives the same bytes: arrays grow in ``features/.partial`` and are moved when
all rows are there (audio/filling.py).
"""

import argparse
import os
import shutil
import sys
import time
from functools import partial as bind
from pathlib import Path

import numpy as np

from audio.audit import no_audio, report
from audio.cache import ARRAYS, PART, SEMITONES, copy_name, find_known, find_part, load_index
from audio.clips import close_worker, compute, decode_row, open_worker, process_row, say, start_worker, write_values
from audio.cluster import WAIT, connect
from audio.embeddings import EMBEDDINGS, embed
from audio.filling import clear_finished, empty_row, finish, lock, make_plan, read_status
from audio.recurrence import RECURRENCE
from audio.shards import compile_for_all, own_compiled, parse_shard, plan_shard
from audio.transforms import FEATURES, SAMPLE_RATE, STUDY_FEATURES
from audio.workers import in_processes
from fma import DataError, add_data_options, audio_paths, find_data, load_tracks, progress_bar, run_command

LIMIT = 60      # seconds that a clip of 30 s may take, or 10 for each array if that is more; it takes 0.1
NAMED = (*FEATURES, *RECURRENCE, *EMBEDDINGS)   # what --features takes
SECONDS = 1, 3600       # of a clip: below, there are too few frames for statistics, above, too much memory is needed


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
    paths, _, partial, infos = setup
    limit = max(LIMIT, 10 * len(infos)) * max(1, next(iter(infos.values()))["seconds"] / PART["seconds"])
    if client:
        compile_for_all(partial, lambda: _compile(tuple(infos)))
        own_compiled(partial)
        versions = next(iter(infos.values()))["versions"]
        folders = [Path(os.path.commonpath(map(os.path.dirname, paths))), partial]
        done = client(rows, work, limit, start_worker, setup, versions, folders)
    else:
        if workers > 1:
            _compile(tuple(infos))
        done = in_processes(rows, work, workers, limit, start_worker, setup)
    for row, found, reason in done:
        if reason:
            empty_row(partial, infos, row)          # it may have died while writing
            say(f"{paths[row]} is undecodable: it {reason}, twice")
        yield found or (row, "undecodable")


def _results_on(device, rows, workers, setup):
    """The same on a GPU: processes decode, and this one computes features in batches."""
    from audio.gpu import extract_stream

    open_worker(*setup)
    infos = setup[-1]
    decoded, (name, info) = _results(rows, workers, setup, decode_row), next(iter(infos.items()))
    if name in EMBEDDINGS:
        stream = ((key, y if isinstance(y, str) else {name: embed(y, info["sample_rate"], name, device)})
                  for key, y in decoded)
    else:
        stream = extract_stream(decoded, device, infos, seconds=info["seconds"])
    for key, found in stream:
        row, status = key if isinstance(key, tuple) else (key, found)       # its process died
        if not isinstance(found, str):
            write_values(row, found)
        yield row, status


def choose_part(features_dir, seconds=None, start=None):
    """Which part of each file to read, as `cache.PART`: what is asked for, else that of the cache, else the first 30 s.

    A DataError if a number is out of range, or the cache was made of another part.
    """
    there, asked = find_part(features_dir), {"seconds": seconds, "from": start}
    part = PART | (there or {}) | {key: x for key, x in asked.items() if x is not None}
    part = {key: int(x) if not isinstance(x, str) and x == x // 1 else x for key, x in part.items()}
    if not SECONDS[0] <= part["seconds"] <= SECONDS[1]:
        raise DataError(f"--seconds {part['seconds']} is out of range: choose {SECONDS[0]} to {SECONDS[1]}")
    if part["from"] not in ("start", "middle") and (isinstance(part["from"], str) or not 0 <= part["from"] < 1e6):
        raise DataError(f"--from {part['from']} is unknown: choose start, middle, or seconds from the beginning")
    part["from"] = part["from"] or "start"          # of second 0
    if there and part != there:
        raise DataError(f"{features_dir} was made with --seconds {there['seconds']} --from {there['from']}: ask for "
                        "the same, delete it, or pass --features-dir")
    return part


def fill_cache(data_dir, names=STUDY_FEATURES, subset="small", features_dir=None, workers=None, progress=True,
               device=None, scheduler=None, shard=None, seconds=None, start=None, wait_for_workers=WAIT):
    """Compute features of every clip of a collection; those that the cache already has are kept.

    Parameters
    ----------
    data_dir : path-like
    names : sequence of str
        Keys of `cache.ARRAYS`: the features, "statistics", embeddings, and copies of features shifted in pitch, such as
        "cqt_pitch+1", which are made of the training clips alone. An array of one's own in the cache is used.
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
    seconds, start : optional
        Length of a clip and where in its file it begins, see `transforms.read_audio`; by default as `choose_part`.
    wait_for_workers : float
        Seconds to wait for a worker of the scheduler when there is none, at the start or later.

    Returns
    -------
    index : DataFrame with columns track_id and status
        None if clips are left to other shards.

    Raises
    ------
    DataError
        If there is no audio, the cache is of other tracks or parameters, in use, or the disk is full.
    """
    features_dir = Path(features_dir or Path(data_dir) / "features")
    if not (names := _what_to_make(names, features_dir, device)):
        return load_index(features_dir)
    tracks, part = load_tracks(data_dir, subset), choose_part(features_dir, seconds, start)
    known, complete = find_known(features_dir, names, tracks.index.to_numpy(), part)
    if complete:
        return known                # a finished cache is only read: neither audio nor a folder to write in is needed
    paths = [str(path.absolute()) for path in audio_paths(data_dir, tracks, subset).values()]
    if not any(map(os.path.isfile, paths)):
        raise DataError(no_audio(data_dir, subset, paths[0], len(paths), features_dir))
    return _Run(features_dir, names, part, tracks, paths, workers, progress, device).fill(shard, scheduler,
                                                                                         wait_for_workers)


def _what_to_make(names, features_dir, device):
    """The names of which arrays are to be computed; the others are of arrays of one's own."""
    others = [name for name in names if name not in STUDY_FEATURES]
    if device is not None and others and not (len(names) == 1 and others[0] in EMBEDDINGS):
        raise DataError(f"{', '.join(others)}: not made on a GPU beside others, run a second time for embeddings, one "
                        "at a time, and without --device for the rest")
    if absent := [name for name in names if name not in ARRAYS and not (features_dir / f"{name}.npy").is_file()]:
        raise DataError(f"{features_dir}/{absent[0]}.npy not found, and features.py cannot make it: write it, or "
                        f"choose from {', '.join(FEATURES)}")
    return [name for name in names if name in ARRAYS]


class _Run:
    """What a call of `fill_cache` computes, and with what."""

    def __init__(self, features_dir, names, part, tracks, paths, workers, progress, device):
        self.ids, self.workers, self.progress, self.device = tracks.index.to_numpy(), workers, progress, device
        self.features_dir, self.partial = features_dir, (features_dir / ".partial").absolute()
        self.setup = paths, (tracks["split"] == "training").to_numpy(), self.partial
        self.find_known = bind(find_known, features_dir, names, self.ids, part)
        self.plan = bind(make_plan, features_dir, names, self.ids, device, part)
        self.compile = bind(_compile, names)

    def fill(self, shard, scheduler, wait):
        """Compute what is left; return the index, None if clips are left to other shards."""
        if shard:
            with lock(self.partial, shared=True), lock(self.partial, "lock-{}of{}".format(*shard)):
                if not self.fill_shard(*shard):     # other shards compute at the same time
                    return None
        with connect(scheduler, wait) as client, lock(self.partial, wait=bool(shard)):
            return self.fill_all(client)

    def fill_shard(self, number, count):
        """Compute the clips of a shard; return whether those of all shards are done."""
        known, complete = self.find_known()
        if complete:
            return True
        infos = plan_shard(self.partial, count, self.plan, self.compile)
        rows = range(len(self.ids))[number - 1 :: count]
        self.compute(rows, f"progress-{number}of{count}.csv", infos, known)
        return len(read_status(self.partial, known, len(self.ids))) == len(self.ids)

    def fill_all(self, client):
        """Compute all clips that are left, give the arrays their names, and return the index."""
        import pandas as pd

        clear_finished(self.partial)
        known, complete = self.find_known()             # another process may just have ended
        if complete:
            if not (self.partial / "plan.json").exists():
                shutil.rmtree(self.partial)
            return known
        infos = self.plan()
        if client:
            (self.partial / "shared").write_text("any")
        self.compute(range(len(self.ids)), "progress.csv", infos, known, client)
        status = read_status(self.partial, known, len(self.ids))
        index = pd.DataFrame({"track_id": self.ids, "status": [status[row] for row in range(len(self.ids))]})
        close_worker()
        finish(self.features_dir, infos, index)
        return index

    def compute(self, rows, journal, infos, known, client=None):
        """Process the clips that no journal has yet, and add each to this one when its rows are written."""
        status = read_status(self.partial, known, len(self.ids))
        todo = [row for row in rows if row not in status]
        if not todo:
            return
        workers = 0 if self.workers == 1 else min(self.workers or cpu_count(), -(-len(todo) // 8))  # a start: seconds
        setup = *self.setup, infos
        results = (_results_on(self.device, todo, workers, setup) if self.device else
                   _results(todo, workers, setup, client=client))
        bar = progress_bar(total=len(status) + len(todo), initial=len(status), unit="track", desc="features",
                           show=self.progress)
        with open(self.partial / journal, "a", encoding="utf-8") as file, bar:
            if file.tell():
                file.write("\n")        # a run that was killed may have left its last line incomplete
            for row, found in results:
                if known is not None and found != known["status"][row]:
                    raise DataError(f"track {self.ids[row]} is {found}, but index.csv says {known['status'][row]}: "
                                    "the cache was made from other audio, pass --features-dir")
                file.write(f"{row},{found}\n")
                file.flush()
                bar.update()


def _place(text):
    """What --from says: a word or seconds."""
    try:
        return text if text in ("start", "middle") else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither start, middle nor a number of seconds") from error


def parse_arguments(argv):
    """The command line, and as `names` the arrays that it asks for."""
    parser = argparse.ArgumentParser(description="Compute the features of every clip; an interrupted run continues.")
    add_data_options(parser)
    parser.add_argument("--features", nargs="+", choices=NAMED, metavar="NAME",
                        help=f"which of {', '.join(NAMED)} (default: the study's six, up to mfcc)")
    parser.add_argument("--seconds", type=float, metavar="S",
                        help="length of a clip; one that is up to a tenth shorter is padded with its own repetition "
                             "(default: 30, or what the cache was made with)")
    parser.add_argument("--from", dest="start", type=_place, metavar="WHERE",
                        help="which part of a longer file: start, middle, or what follows after so many seconds "
                             "(default: start, or what the cache was made with)")
    parser.add_argument("--statistics", action="store_true",
                        help="FMA's 518 track statistics, for baselines.py: these alone, or beside --features")
    parser.add_argument("--pitch-shift", nargs="+", type=int, choices=SEMITONES, default=[], metavar="SEMITONES",
                        help="also copies of the features with the training clips shifted by so much, for "
                             "training.py --pitch-copies true: -12 to 12, say -2 -1 1 2")
    parser.add_argument("--features-dir", help="where the cache goes (default: features in the data folder)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core); 1: none but this one, which "
                                                    "a clip that crashes its decoder would end")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                        help="what computes the features: cuda is a GPU, which processes then decode for; the "
                             "study's six only, or one embedding (default: %(default)s)")
    parser.add_argument("--scheduler", metavar="TCP://HOST:PORT",
                        help="a Dask scheduler whose workers compute them, on machines that see the data folder: "
                             "docs/scale.md says how")
    parser.add_argument("--wait-for-workers", type=int, default=WAIT, metavar="SECONDS",
                        help="how long to wait when the scheduler has no worker, at the start or later (default: "
                             "%(default)s)")
    parser.add_argument("--shard", metavar="I/N", type=parse_shard,
                        help="compute every Nth clip: one process for 1/N, another for 2/N, ..., on such machines")
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")
    if args.wait_for_workers < 0:
        parser.error("--wait-for-workers must be at least 0")
    if args.pitch_shift and (args.statistics and not args.features or set(args.features or ()) - set(FEATURES)):
        parser.error("--pitch-shift makes copies of features, not of statistics, recurrence or embeddings: name the "
                     "features with --features")
    if args.scheduler == "":        # of a variable that was not set
        parser.error("--scheduler needs a value: tcp://host:8786")
    if args.scheduler and (args.shard or args.device != "cpu" or args.workers):
        parser.error("--scheduler goes without --shard, --device and --workers: its workers compute on their cores")
    wanted = args.features or ([] if args.statistics else STUDY_FEATURES)
    names = [name for name in NAMED if name in wanted]
    copies = [copy_name(name, semitones) for name in names for semitones in sorted(set(args.pitch_shift))]
    args.names = names + ["statistics"] * args.statistics + copies
    return args


def main(argv=None):
    args, device = parse_arguments(argv), None
    if args.device != "cpu":
        from audio.gpu import open_gpu

        device = open_gpu()
    data_dir, start = find_data(args.data_dir), time.perf_counter()
    features_dir = Path(args.features_dir or data_dir / "features")
    new = not (features_dir / "index.csv").is_file()
    index = fill_cache(data_dir, args.names, args.subset, features_dir, args.workers, device=device,
                       scheduler=args.scheduler, shard=args.shard, seconds=args.seconds, start=args.start,
                       wait_for_workers=args.wait_for_workers)
    if index is None:
        shard, count = args.shard
        print(f"{features_dir}: shard {shard}/{count} is done, others are not; the last one to end gives the arrays "
              "their names, or features.py without --shard")
        return
    report(index, data_dir, features_dir, args.subset, time.perf_counter() - start, new)


if __name__ == "__main__":
    import features  # by its name: what Dask's workers are given is looked up there

    sys.exit(run_command(features.main, resumes=True))
