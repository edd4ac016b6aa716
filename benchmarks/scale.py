"""Features on many cores: what a track costs, what a Dask scheduler and a disk bear, and what follows for FMA.

    python benchmarks/scale.py --data-dir data

Times of tracks and of the scheduler are those of the processor, which a busy machine lengthens little; rates of the
disk are of the clock. docs/scale.md has the tables and says what is measured in them and what is concluded.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))    # for the modules of the repository

import features  # noqa: E402
from audio import cache, cluster, filling  # noqa: E402
from audio.audit import quiet_decoders  # noqa: E402
from audio.transforms import STUDY_FEATURES, read_audio  # noqa: E402
from benchmarks.extraction import describe, find_clips, lay_out  # noqa: E402
from benchmarks.timing import ONE_THREAD, ROOT, machine  # noqa: E402
from fma import DataError, audio_path, find_data, run_command  # noqa: E402
from study.tables import format_table

SUBSETS = {"small": (8000, 7.2), "medium": (25_000, 22), "large": (106_574, 93), "full": (106_574, 879)}   # tracks, GiB
CORES = (1, 16, 256)
CLIPS, REPEATS = 10, 5              # files to measure on, turns of each
WORKERS = (16, 64, 256)             # simulated, of Dask
BATCHES = (8, 16, 64)               # clips in a task, beside cluster.BATCH, for the most workers
ROUNDS = 8                          # tasks for each worker
LONG = 9            # clips in a row: four and a half minutes, as FMA's full tracks last on average


# ---------------------------------------------------------------- a track


def measure(call, paths):
    """Processor seconds of a call, and MB that it reads from files: the median over files of the least over turns."""
    seconds, read = np.zeros((REPEATS, len(paths))), np.zeros(len(paths))
    for turn in range(REPEATS):
        for k, path in enumerate(paths):
            before, start = bytes_read(), time.process_time()
            call(path)
            seconds[turn, k], read[k] = time.process_time() - start, bytes_read() - before
    return float(np.median(seconds.min(axis=0))), float(np.median(read)) / 1e6


def bytes_read():
    """Bytes that this process has read so far, from disk or memory; 0 where the system does not say."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split()[1]) if counts.is_file() else 0


def lengthen(clips, folder):
    """The same music as full tracks: each mp3 as often as makes four and a half minutes."""
    for k, path in enumerate(clips):
        (folder / f"{k}.mp3").write_bytes(path.read_bytes() * LONG)
    return sorted(folder.glob("*.mp3"))


def prepare(folder, clips, n_tracks):
    """A collection of links with the arrays of an unfinished run; what `features` needs to process its rows."""
    lay_out(folder, clips, n_tracks)
    ids, partial = np.arange(1, n_tracks + 1), Path(folder) / "features" / ".partial"
    paths = [audio_path(folder, track) for track in ids]
    partial.mkdir(parents=True)
    (partial / "shared").touch()        # written through, as where machines share it
    return paths, np.ones(n_tracks, bool), partial, filling.make_plan(partial.parent, STUDY_FEATURES, ids)


def time_tracks(clips):
    """Rows of the first table; and processor seconds of a track, MB that it reads of a clip and of a full track."""
    from threadpoolctl import threadpool_limits

    rows, found = [], {}
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1), quiet_decoders():
        for name, paths in (("clip of 30 s", clips), ("full track", lengthen(clips, Path(folder)))):
            with tempfile.TemporaryDirectory() as data_dir:
                features.open_worker(*prepare(data_dir, paths, len(paths)))
                features.process_row(0)        # filters are built
                decoding, read = measure(read_audio, paths)
                whole, _ = measure(features.process_row, range(len(paths)))
            size = np.median([path.stat().st_size for path in paths]) / 1e6
            rows.append((name, f"{size:.2f}", f"{read:.2f}", f"{1000 * decoding:.0f}", f"{1000 * whole:.0f}"))
            found[name] = whole, read
    return rows, found


# ---------------------------------------------------------------- a scheduler


SLEEPERS = """
import asyncio, sys, time
import dask
from audio import cluster
from distributed import Worker

dask.config.set({"distributed.worker.profile.enabled": False, "distributed.worker.memory.target": False,
                 "distributed.worker.memory.spill": False, "distributed.worker.memory.pause": False,
                 "distributed.worker.memory.terminate": False})

def sleep(name, rows):
    time.sleep(sum(rows))
    return rows

cluster.run_task = sleep

async def main():
    workers = await asyncio.gather(*(Worker(sys.argv[1], nthreads=1) for _ in range(int(sys.argv[2]))))
    await asyncio.gather(*(worker.finished() for worker in workers))

asyncio.run(main())
"""


def time_scheduler(n_workers, tasks):
    """Hand out tasks that sleep, as cluster.py hands out clips, to workers that are threads of one process.

    Parameters
    ----------
    n_workers : int
    tasks : list of lists of float
        Seconds that each row of a task sleeps.

    Returns
    -------
    wall : float
        Seconds from the first task to the last.
    cpu : dict of str to float
        Processor seconds of scheduler, client and workers.
    """
    import psutil
    from distributed import Client

    with tempfile.TemporaryDirectory() as folder:
        listening = Path(folder) / "scheduler.json"
        quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL,
                 "env": {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}}
        scheduler = subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1",
                                      "--port", "0", "--no-dashboard", "--scheduler-file", listening], **quiet)
        try:
            while not listening.is_file():
                if scheduler.poll() is not None:
                    raise DataError("dask scheduler does not start: pip install -r requirements-cluster.txt")
                time.sleep(0.1)
            with Client(scheduler_file=str(listening)) as client:
                workers = subprocess.Popen([sys.executable, "-c", SLEEPERS, client.scheduler.address, str(n_workers)],
                                           **quiet)
                client.wait_for_workers(n_workers, timeout=120)
                others = {"scheduler": scheduler.pid, "workers": workers.pid}

                def used():
                    times = {who: psutil.Process(pid).cpu_times() for who, pid in others.items()}
                    return {who: t.user + t.system for who, t in times.items()} | {"client": time.process_time()}

                before, start = used(), time.perf_counter()
                for _ in cluster._share_out(client, "sleep", tasks):
                    pass
                wall, after = time.perf_counter() - start, used()
        finally:
            for process in (locals().get("workers"), scheduler):
                if process:
                    process.kill()
                    process.wait()
    return wall, {who: after[who] - before[who] for who in after}


def time_schedulers(clip_seconds):
    """Rows of the second table: `WORKERS` with `cluster.BATCH`, the last of them with `BATCHES`, too.

    Returns
    -------
    rows : list of tuples
    efficiency : dict of int to float
        Share of their time that so many workers were at work.
    bearable : float
        Tasks/s at which scheduler or client would be busy all the time, for the last number of workers.
    """
    rows, efficiency = [], {}
    for n_workers, batch in [(n, cluster.BATCH) for n in WORKERS] + [(WORKERS[-1], batch) for batch in BATCHES]:
        n, task = ROUNDS * n_workers, clip_seconds * batch
        wall, cpu = time_scheduler(n_workers, [[clip_seconds] * batch] * n)
        at_work, most = n * task / (n_workers * wall), n / max(cpu["scheduler"], cpu["client"])
        rows.append((n_workers, batch, f"{task:.2f}", n, f"{n / wall:.0f}", f"{100 * at_work:.0f} %",
                     *(f"{1000 * cpu[who] / n:.2f}" for who in ("scheduler", "client", "workers")), f"{most:.0f}",
                     f"{most * task:.0f}"))
        if batch == cluster.BATCH:
            efficiency[n_workers], bearable = at_work, most
    return rows, efficiency, bearable


# ---------------------------------------------------------------- a disk


def write_rows(setup, first, step, count):
    """Write random rows of all features for every step-th track; in a process of its own."""
    *_, partial, infos = setup
    rng, files = np.random.default_rng(first), {name: filling.open_array(partial, name) for name in infos}
    data = {name: rng.bytes(row_bytes(info)) for name, info in infos.items()}
    for row in range(first, first + step * count, step):
        for name, info in infos.items():
            filling.write_row(files[name], row, info["shape"][0], data[name])


def row_bytes(info):
    return int(np.prod(info["shape"][1:])) * np.dtype(info["dtype"]).itemsize


def time_disk(where, clips, numbers, tracks):
    """Rows of the third table: MB/s that so many processes write, interleaved, into the arrays of one collection."""
    rows, context = [], get_context("fork")
    for n in numbers:
        found = [n]
        for through in (True, False):
            with tempfile.TemporaryDirectory(dir=where) as folder:
                setup = prepare(folder, clips, tracks)
                if not through:
                    (setup[2] / "shared").unlink()
                os.sync()
                start = time.perf_counter()
                processes = [context.Process(target=write_rows, args=(setup, k, n, tracks // n)) for k in range(n)]
                for process in processes:
                    process.start()
                for process in processes:
                    process.join()
                seconds = time.perf_counter() - start
                found.append(f"{sum(map(row_bytes, setup[-1].values())) * tracks / seconds / 1e6:.0f}")
        rows.append(found)
    return rows


# ---------------------------------------------------------------- what follows


def estimate(found, efficiency, per_track):
    """Rows of the last table: hours of each subset on so many cores, and what they ask of the file system."""
    rows = []
    for subset, (tracks, gib) in SUBSETS.items():
        seconds, read = found["full track" if subset == "full" else "clip of 30 s"]
        times = [tracks * seconds / cores / efficiency.get(cores, 1) for cores in CORES]
        rows.append((subset, f"{tracks:,}", f"{gib:g}", f"{tracks * per_track / 2**30:.1f}",
                     *(f"{s / 3600:.1f} h" if s >= 3600 else f"{s / 60:.1f} min" if s >= 60 else f"{s:.0f} s"
                       for s in times),
                     f"{CORES[-1] * read / seconds:.0f}", f"{CORES[-1] * per_track / 1e6 / seconds:.0f}"))
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description="Measure what bounds features on many cores; prints tables.")
    parser.add_argument("--data-dir", help="in FMA's layout (default: $DATA_DIR, data, or the demo corpus)")
    args = parser.parse_args(argv)
    data_dir = find_data(args.data_dir)
    clips = find_clips(data_dir, CLIPS)
    print(machine("librosa", "numpy", "distributed"), f"\n{describe(clips)}\n", flush=True)
    rows, found = time_tracks(clips)
    print(format_table(rows, ["one core", "MB", "MB read", "decoding, ms", "with six features, written, ms"]), "\n")
    sizes = {name: row_bytes(cache.describe(name, 1)) for name in STUDY_FEATURES}
    per_track = sum(sizes.values())
    print(format_table([(name, f"{size:,}") for name, size in [*sizes.items(), ("six features", per_track)]],
                       ["feature", "bytes a track"]), "\n", flush=True)
    clip_seconds = found["clip of 30 s"][0]
    rows, efficiency, bearable = time_schedulers(clip_seconds)
    print(format_table(rows, ["workers", "clips a task", "s a task", "tasks", "tasks/s", "of their time at work",
                              "scheduler, ms a task", "client, ms", "all workers, ms", "tasks/s at most",
                              "cores at most"]), "\n")
    print(f"Tasks of {cluster.BATCH} clips: scheduler or client are busy all the time at {bearable:.0f} tasks/s, "
          f"that is with {bearable * cluster.BATCH * clip_seconds:.0f} cores.\n", flush=True)
    rows = time_disk(data_dir, clips, (1, 2, 4, 8), 400)
    print(format_table(rows, ["processes", "MB/s, written through", "MB/s, as one machine writes"]), "\n")
    print(format_table(estimate(found, efficiency, per_track),
                       ["subset", "tracks", "audio, GiB", "cache, GiB", *(f"{n} core{'s' * (n > 1)}" for n in CORES),
                        f"read, MB/s by {CORES[-1]}", "written, MB/s"]))


if __name__ == "__main__":
    sys.exit(run_command(main))
