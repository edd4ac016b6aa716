"""Worker processes for decoding: a file that crashes or hangs its decoder costs itself, not the run.

pebble's pool replaces a process that dies and ends one that exceeds its time limit. Added here: such a row is tried
once more when the others are done, only a few rows are in flight, no worker outlives its parent, and none imports the
script that started it, which may have no main guard.
"""

import ctypes
import os
import platform
import signal
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import parent_process, spawn
from multiprocessing.context import SpawnContext, SpawnProcess

from fma import DataError

HOPELESS = 20       # rows that failed while none was done: the machine or the setup is at fault, not the files


def in_processes(rows, work, workers, limit, start, setup=()):
    """Do something with each row, in processes that may crash or hang.

    A row that ended its process is tried once more, alone, when all others are done: another row may have taken the
    memory, or the machine was busy.

    Parameters
    ----------
    rows : sequence
    work : callable
        Is given a row. What it returns or raises is sent back, so it must be picklable. It is found by its module's
        name, which is not ``__main__``.
    workers : int
        Processes.
    limit : float
        Seconds that a row may take.
    start : callable
        Called once in each process, with `setup`.
    setup : tuple

    Yields
    ------
    row, result, reason
        In the order in which they are finished. A row that ended its process twice has no result (None) but a reason,
        in words; all others have no reason.

    Raises
    ------
    DataError
        If processes die before they get a row, or of each of the first rows. What `start` or `work` raises is raised
        here.
    """
    failed, any_done = [], False
    for row, result, reason in _share_out(rows, workers, limit, (work, start, setup)):
        if not reason:
            any_done = True
            yield row, result, None
            continue
        failed.append(row)
        if len(failed) >= HOPELESS and not any_done:
            raise DataError(f"the first {len(failed)} clips all ended their process, the last one because it {reason}: "
                            "run with --workers 1 to see the error")
    yield from _share_out(failed, 1, limit, (work, start, setup))


def _share_out(rows, workers, limit, job):
    """Yield (row, result, reason), each row tried once."""
    from pebble import ProcessExpired, ProcessPool

    rows, pending = iter(rows), {}
    with ProcessPool(workers, initializer=_begin, initargs=job, context=_Context()) as pool:
        try:
            while True:
                for row in islice(rows, 2 * workers - len(pending)):    # few: results wait in memory for the consumer
                    pending[pool.schedule(_run, (row,), timeout=limit)] = row
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    row = pending.pop(future)
                    try:
                        result, reason = future.result(), None
                    except TimeoutError as error:
                        if isinstance(error.errno, int):         # of a file system, not pebble's
                            raise
                        result, reason = None, f"took longer than {limit:.0f} s"
                    except ProcessExpired as error:
                        result, reason = None, f"killed its process ({_cause(error.exitcode)})"
                    yield row, result, reason
        except BrokenProcessPool as error:
            raise DataError("a worker process was killed (out of memory?): run the same command again, or with "
                            "--workers 1, which starts none") from error
        finally:
            pool.stop()


class _Process(SpawnProcess):
    """A process that does not import the main module. (SpawnProcess would run a script without a main guard again.)"""

    _starting = threading.Lock()

    @staticmethod
    def _Popen(process):
        with _Process._starting:
            original = spawn.get_preparation_data
            spawn.get_preparation_data = lambda name: {
                key: value for key, value in original(name).items() if not key.startswith("init_main")}
            try:
                return SpawnProcess._Popen(process)
            finally:
                spawn.get_preparation_data = original


class _Context(SpawnContext):
    Process = _Process


def _cause(code):
    """Why a process ended, from its exit code."""
    if code >= 0:
        return f"exit status {code}"
    if -code not in set(signal.Signals):        # real-time signals have no name
        return f"signal {-code}"
    return signal.Signals(-code).name + (": out of memory?" if code == -signal.SIGKILL else "")


_worker = {}        # what a process keeps: its function, or the error that kept it from starting


def _begin(work, start, setup):
    hush_libraries()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        start(*setup)
        _worker["work"] = work
    except Exception as error:          # raised by the first row: pebble would only log it
        _worker["error"] = error


def _run(row):
    if "error" in _worker:
        raise _worker["error"]
    return _worker["work"](row)


def hush_libraries():
    """Keep stdout and stderr to Python: decoders print a line there for each oddity of a file, thousands in all."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        setattr(sys, name, os.fdopen(os.dup(number), "w", 1, stream.encoding, errors="backslashreplace"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _end_with_parent():
    """End a worker whose parent was killed and could not stop it."""
    parent_process().join()
    os._exit(1)


def set_malloc(**parameters):
    """Set parameters of glibc's malloc, as mallopt(3) names them in capitals; does nothing on other systems."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc, numbers = ctypes.CDLL(None), {"trim_threshold": -1, "mmap_threshold": -3, "mmap_max": -4}
        for name, value in parameters.items():
            libc.mallopt(numbers[name], value)
