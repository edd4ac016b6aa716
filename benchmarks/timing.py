"""What the benchmarks share: calls timed in turns, processes watched, a collection laid out, the machine named."""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from features import cpu_count
from fma import DataError

ROOT = Path(__file__).resolve().parents[1]
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}


def interleave(calls, repeats):
    """Time calls in turns, A B A B ...: a machine whose speed drifts slows all of them alike.

    Parameters
    ----------
    calls : dict of str to callable
    repeats : int
        Turns. What a first call prepares (filters, compiled code) is left to the caller.

    Returns
    -------
    seconds : dict of str to ndarray, shape (repeats,)
    """
    seconds = {name: np.zeros(repeats) for name in calls}
    for turn in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name][turn] = time.perf_counter() - start
    return seconds


_call = None        # of a process of `in_turns`


def _prepare(prepare, args):
    """Prepare the call of this process, and make it once: that chooses kernels and allocates memory."""
    global _call
    _call = prepare(*args)
    _call()


def _time_call():
    start = time.perf_counter()
    _call()
    return time.perf_counter() - start


def in_turns(calls, seconds, least=2, most=10):
    """Time calls in turns, as `interleave` does, each in a process of its own and set up as its program would be.

    Parameters
    ----------
    calls : dict of str to (prepare, args)
        ``prepare(*args)`` gives the call; a first call is not counted.
    seconds : float
        How long to measure, about.
    least, most : int
        Turns.

    Returns
    -------
    seconds : dict of str to ndarray, shape (turns,)
    """
    found, pools = {name: [] for name in calls}, {}
    with ExitStack() as stack:
        for name, job in calls.items():         # one after the other: first calls would disturb each other
            pools[name] = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            pools[name].submit(_prepare, *job).result()
        end = time.perf_counter() + seconds
        while len(found[name]) < least or (len(found[name]) < most and time.perf_counter() < end):
            for which, pool in pools.items():
                found[which].append(pool.submit(_time_call).result())
    return {name: np.array(values) for name, values in found.items()}


def ratio(a, b):
    """Median over the turns of a / b, each turn's a with its own b.

    >>> ratio([2, 4, 60], [1, 2, 3])
    2.0
    """
    return float(np.median(np.asarray(a) / np.asarray(b)))


def watch(command, journal=None, skip=0):
    """Run a command in a fresh process, from the repository's root.

    Parameters
    ----------
    command : list of str
    journal : Path, optional
        A file to which the command adds a line for each thing done.
    skip : int
        How many of these count as its start.

    Returns
    -------
    seconds : float
        From beginning to end, imports included.
    peak : float
        Resident memory of the process at its most, in MiB; without Linux, also that of one that it started.
    rate : float
        Lines of the journal per second once the first `skip` were there; NaN without a journal.
    """
    if not hasattr(os, "wait4"):
        raise DataError("the memory of a command cannot be measured on Windows: run this benchmark on Linux or macOS")
    start, first, last = time.perf_counter(), None, (0, 0)  # seconds and lines of the journal, once past its start
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **ONE_THREAD},
                                   stdout=subprocess.DEVNULL, stderr=errors)
        pid, status_file, peak = 0, Path(f"/proc/{process.pid}/status"), 0
        while not pid:
            time.sleep(0.01)
            with suppress(OSError):         # its own mark: what getrusage says began with this process's memory
                held = re.search(r"VmHWM:\s+(\d+) kB", status_file.read_text())
                peak = max(peak, int(held[1]) / 2**10 if held else 0)
            with suppress(FileNotFoundError):       # not made yet, or taken away at the end
                lines = journal.read_bytes().count(b"\n") if journal else 0
                if lines >= max(skip, last[1] + 1):
                    last = time.perf_counter(), lines
                    first = first or last
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise DataError(f"{' '.join(command[:3])} failed: {errors.read().decode(errors='replace')[-500:].strip()}")
    rate = (last[1] - first[1]) / (last[0] - first[0]) if first and first < last else float("nan")
    return seconds, peak or usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), rate


def write_tracks(data_dir, n_tracks):
    """Write ``fma_metadata/tracks.csv`` for tracks 1, 2, ... of eight genres, all for training."""
    lines = [",set,set,track", ",split,subset,genre_top", "track_id,,,"]
    lines += [f"{k + 1},training,small,genre {k % 8}" for k in range(n_tracks)]
    path = Path(data_dir) / "fma_metadata" / "tracks.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")


def machine(*libraries):
    """The machine and versions in a line; with the load, because a busy machine measures something else."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":")[1].strip() if models else cpu
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    load = f" (load {os.getloadavg()[0]:.1f} at the start)" if hasattr(os, "getloadavg") else ""
    return (f"{cpu}, {cpu_count()} cores{load}; "
            f"Python {platform.python_version()}, {versions}")
