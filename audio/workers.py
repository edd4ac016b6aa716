"""Processes that may die: a row of work that crashes its process, or holds it up, costs itself and not the run.

A decoder that meets a hostile file can crash, eat all memory or never come back. Here each process is given one row
at a time, over a pipe of its own, so that it is known what it died of and for how long it has been at it.
"""

import math
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait

from fma import DataError

HOPELESS = 20       # rows that died while none was done: it is not the rows


def in_processes(rows, work, workers, limit, start, setup=()):
    """Do something with each row, in several processes that may die of it.

    A row whose process died, or took too long, is tried once more when all others are done and the machine is
    quiet: it may have died of another's memory, or been slow because the machine was.

    Parameters
    ----------
    rows : sequence
        Of what can be a key of a dict, and is not None.
    work : callable
        Is given a row. What it returns or raises is sent back, so it must be picklable.
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
        In the order in which they are finished. A row that no process survived has no result (None) but a reason, in
        words; all others have no reason.

    Raises
    ------
    DataError
        If processes die before they have begun, or of each of the first rows. What `work` raises is raised here.
    """
    suspects = yield from _share_out(rows, workers, limit, (work, start, setup), HOPELESS)
    culprits = yield from _share_out(list(suspects), 1, limit, (work, start, setup), math.inf)
    for row, reason in culprits.items():
        yield row, None, reason


def _share_out(rows, workers, limit, job, most):
    """Yield what is done, and return the rest, a dict of row to the reason; an error if so many die before any is."""
    todo, died, any_done, ended = deque(rows), {}, False, []
    busy = {}                           # pipe to (process, row, when it must be done)
    try:
        while todo or busy:
            while len(busy) < min(workers, len(busy) + len(todo)):
                pipe, process = _begin(job)
                busy[pipe] = process, None, math.inf
            soonest = min(until for _, _, until in busy.values())
            for pipe in wait(list(busy), None if soonest == math.inf else max(0, soonest - time.monotonic())):
                process, row, _ = busy.pop(pipe)
                try:
                    result, error = pipe.recv()
                except (EOFError, OSError):
                    died |= _cause(process, row)
                    continue
                if error:
                    process.kill()
                    raise error
                following = todo.popleft() if todo else None
                _send(pipe, following)      # now, so that the process has something to do meanwhile
                if following is not None:
                    busy[pipe] = process, following, time.monotonic() + limit
                else:
                    ended.append(process)
                if row is not None:         # else it has said that it is ready
                    any_done = True
                    yield row, result, None
            for pipe, (process, row, until) in list(busy.items()):
                if until < time.monotonic() and not pipe.poll():
                    del busy[pipe]
                    process.kill()
                    process.join(5)         # so that it writes nothing more
                    died[row] = f"took longer than {limit:.0f} s"
            if len(died) >= most and not any_done:
                raise DataError(f"the first {len(died)} clips all ended their process, the last one because it "
                                f"{list(died.values())[-1]}: something else is wrong; with --workers 1 it shows itself")
        for process in ended:
            process.join(5)             # Windows renames no file that another process has open
        return died
    finally:
        for process, _, _ in busy.values():
            process.kill()


def _begin(job):
    """Start a process, and return the pipe to it."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, *job), daemon=True)
    process.start()
    there.close()                           # so that its end is the end of the pipe
    return here, process


def _send(pipe, row):
    try:
        pipe.send(row)
    except OSError:                         # it has just died, which is noticed when it is waited for
        pass


def _cause(process, row):
    """Why a process died, as a dict of its row to the reason."""
    process.join()
    code = process.exitcode
    how = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
    how += {"SIGKILL": ": out of memory?", "SIGALRM": ": took too long"}.get(how, "")       # not all systems have them
    if row is None:
        raise DataError(f"a worker process died before its first clip ({how}): run the same command again, it goes on; "
                        "with --workers 1 there are none")
    return {row: f"killed its process ({how})"}


def _serve(pipe, work, start, setup):
    """What a process does: a row, its result, the next row, until it is sent none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is the parent's to answer
    hush_libraries()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe.send(_answer(start, *setup))
    while (row := pipe.recv()) is not None:
        pipe.send(_answer(work, row))


def _answer(function, *args):
    """What a function returns, and what it raises."""
    try:
        return function(*args), None
    except Exception as error:
        error.add_note(traceback.format_exc())          # it is raised again, elsewhere
        return None, error


def hush_libraries():
    """Keep stdout and stderr to Python: decoders remark there on every oddity of a file, in thousands of lines."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        setattr(sys, name, os.fdopen(os.dup(number), "w", 1, stream.encoding, errors="backslashreplace"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _end_with_parent():
    """A killed parent cannot stop its workers: they would wait for rows for ever."""
    parent_process().join()
    os._exit(1)
