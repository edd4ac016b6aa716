"""Features past one machine: the clips as tasks of a Dask scheduler. (audio/shards.py is for batch systems.)

    python features.py --data-dir data --scheduler tcp://host:8786

Data folder and cache are on a file system that all machines see under the same path. Who computes a clip writes its
rows into the one cache (audio/filling.py), in place, and nobody else writes these: the bytes are those of one process.
docs/scale.md says how to begin, what it costs and where it ends.
"""

import errno
import faulthandler
import hashlib
import importlib.metadata
import logging
import math
import os
import pickle
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial as bind
from itertools import islice
from pathlib import Path

from audio.shards import own_compiled
from audio.workers import set_malloc
from fma import UNWRITABLE, DataError

BATCH = 32          # clips in a task: a second or two, so that the scheduler is asked seldom and a death costs little
AHEAD = 2           # tasks given out for each worker: one that it is at, one that waits
HOPELESS = 3        # tasks that killed worker after worker while none was done: it is not the clips
ANSWER = 20         # seconds that a scheduler has to answer
LOOK = 5            # seconds between two looks at which workers there are
WAIT = 600          # seconds that a run waits when it has no worker
# To where glibc adjusts itself, but for a setting of Dask's nannies: all above 64 KiB is given back at once, pages come
# and go, and that is two fifths of a worker's time.
MALLOC = {"mmap_threshold": 2**25, "trim_threshold": 2**26}
ROOT = Path(__file__).resolve().parents[1]
TOP = Path(__file__).resolve().parents[__name__.count(".")]     # where imports begin: above ROOT if installed
LOST = "the Dask scheduler was lost or restarted: run the same command again, it goes on"


# ---------------------------------------------------------------- Dask: the client


@contextmanager
def connect(address, wait=WAIT):
    """`on_workers` with a client of the Dask scheduler at an address, ``tcp://host:8786``; None without an address.

    Raises
    ------
    DataError
        If Dask is not installed, nothing answers, no worker comes in `wait` seconds, or one has another Python.
    """
    if not address:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise DataError("--scheduler needs dask.distributed: "
                        "pip install -r requirements-cluster.txt -c constraints.txt") from error
    for logger in ("distributed.client", "distributed.batched", "tornado.application"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)        # a lost scheduler is said in a line, below
    try:
        client = Client(address, timeout=ANSWER)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"no Dask scheduler answers at {address} ({_line(error)}): begin one with dask scheduler, and "
                        "name it as tcp://host:8786") from error
    with client:
        count = await_workers(client, wait)
        for worker, found in _ask(client, client.get_versions)["workers"].items():
            there, here = found["host"]["python"].split(".")[:2], [str(part) for part in sys.version_info[:2]]
            if there != here:
                raise DataError(f"worker {worker} has Python {'.'.join(there)}, this is {'.'.join(here)}: use one")
        print(f"Dask: {count} workers, dashboard {client.dashboard_link}", flush=True)
        yield bind(on_workers, client, wait)


def await_workers(client, wait=WAIT):
    """Number of workers; if there is none, say so and wait for one, at most so many seconds."""
    from tqdm.auto import tqdm

    end = None
    while not (count := len(_ask(client, client.nthreads))):
        command = f"dask worker --nthreads 1 {client.scheduler.address}"
        if end is None:
            end = time.monotonic() + wait
            tqdm.write(f"no Dask worker is there, waiting {wait:g} s for one: start it with {command}", sys.stderr)
        elif time.monotonic() > end:
            raise DataError(f"no Dask worker came in {wait:g} s: start one with {command} and run the same command "
                            "again, it goes on (--wait-for-workers waits longer)")
        time.sleep(min(1, LOOK))
    if end is not None:
        tqdm.write(f"Dask workers are there: {count}", sys.stderr)
    return count


def _ask(client, question):
    """What the scheduler answers; an error if it is gone, or if the client had to connect to it again."""
    try:
        if client.status == "running":
            return question()
    except OSError as error:
        raise DataError(f"{LOST} ({_line(error)})") from error
    raise DataError(LOST)


def on_workers(client, wait, rows, work, limit, start, setup, versions, folders):
    """Do something with each row, on the workers of a Dask scheduler, which may die of it.

    Rows go out in tasks of `BATCH`, a few for each worker: neither scheduler nor client grows with the collection.
    A task whose worker died goes to another one. One that has killed four (the scheduler's ``allowed-failures`` and one
    more) is taken apart when all others are done, and its rows are tried alone.

    `rows`, `work`, `limit`, `start` and `setup`, and what is yielded, are those of `workers.in_processes`. `work` and
    `start` are of modules of this folder, which are sent to the workers; these must have the `versions` of libraries,
    {name: version}, and see the `folders`, the last of which is that of the growing cache. `wait` is for how many
    seconds the run waits for a worker when it has none.

    Raises
    ------
    DataError
        If the scheduler is lost, no worker comes, the first tasks all kill their workers, or a worker is of no use.
        What `work` raises three times is raised here.
    """
    name = f"features {folders[-1]}"        # also of an earlier client that was killed: it is replaced
    sources = {str(path.relative_to(TOP)): path.read_text(encoding="utf-8")
               for path in sorted([*ROOT.glob("*.py"), *Path(__file__).parent.glob("*.py")])}
    plugin = _make_plugin(sources, pickle.dumps((work, start, setup)), limit, versions, folders)
    _register(client, plugin, name, wait)
    tasks = (rows[k : k + BATCH] for k in range(0, len(rows), BATCH))
    suspects = yield from _share_out(client, name, tasks, wait)
    for row in (yield from _share_out(client, name, [[row] for row in suspects], wait, alone=True)):
        yield row, None, "killed its worker"
    with suppress(OSError):         # a worker may just be dying; what was sent is small, and the next run replaces it
        client.sync(client.scheduler.unregister_worker_plugin, name=name, callback_timeout=2)


def _register(client, plugin, name, wait):
    """Send a plugin to all workers, again if one did not answer: it may be dying, and others may have been left out."""
    end = time.monotonic() + wait
    while True:
        await_workers(client, wait)
        try:
            return client.register_plugin(plugin, name)
        except OSError as error:
            if error.errno in UNWRITABLE and error.errno != errno.ENOENT:       # which is a folder that died with it
                raise
            if time.monotonic() > end:
                raise DataError(f"a Dask worker does not answer the scheduler ({_line(error)}): restart that worker "
                                "and run the same command again") from error
        time.sleep(min(1, LOOK))


def _share_out(client, name, tasks, wait=WAIT, alone=False):
    """Yield what is done, and return the rows of tasks that killed their workers; `alone`: a task at a time."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    def task(name, rows):       # within a function, as below: the scheduler reads it too, and has no module of ours
        from audio import cluster

        return cluster.run_task(name, rows)

    done = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    tasks, given, died, most, counted, any_done = iter(tasks), {}, [], 1, -math.inf, alone
    while True:
        if time.monotonic() > counted + LOOK:       # workers come and go
            count, counted = await_workers(client, wait), time.monotonic()
            most = 1 if alone else AHEAD * count
        for rows in islice(tasks, max(0, most - len(given))):
            future = client.submit(task, name, rows, pure=False, retries=2)
            given[future] = rows
            done.add(future)
        if not given:
            return died
        with done.thread_condition:
            ready = done.thread_condition.wait_for(done.has_ready, LOOK)
        if not ready:       # one whose result could not be fetched at first is not reported by itself
            done.update([future for future in given if future.done()])
            continue
        future, result = next(done)
        if future not in given:             # reported twice
            continue
        rows, error = given.pop(future), result[1] if isinstance(result, tuple) else None
        if isinstance(result, list):        # whatever has happened to its worker since
            any_done = True
            yield from ((row, answer, None) for row, answer in zip(rows, result, strict=True))
        elif isinstance(error, KilledWorker):
            died += rows
            if not any_done and len(died) >= HOPELESS * BATCH:
                raise DataError(f"the first {HOPELESS} tasks all killed worker after worker: something else than the "
                                "clips is wrong, see the workers' logs (out of memory?)")
        elif error:
            raise error
        else:
            raise DataError(LOST)


def _line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


# ---------------------------------------------------------------- Dask: the workers


def _make_plugin(sources, job, limit, versions, folders):
    """What each worker is sent, also one that comes late: our modules, and what to do with them."""
    from distributed import WorkerPlugin

    class Modules(WorkerPlugin):            # within a function: pickled as it is, since the worker cannot import it yet
        def __init__(self):
            self.job, self.limit, self.versions, self.folders = job, limit, versions, folders
            self.sources, self.digest = sources, hashlib.sha256(repr(sources).encode()).hexdigest()[:16]

        def setup(self, worker):
            folder = Path(worker.local_directory) / f"modules-{self.digest}"
            for name, text in self.sources.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text, encoding="utf-8")
                module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
                loaded = sys.modules.get(module)                        # of an older run, or of the worker's own folder
                if loaded and not Path(loaded.__file__ or "").is_relative_to(folder):
                    del sys.modules[module]
            sys.path.insert(0, str(folder))
            self.local_directory, self.address = worker.local_directory, worker.address
            self.threads = worker.state.nthreads

    return Modules()


_prepared = {}      # on a worker: the plugin that it is prepared for, and what does a row


def run_task(name, rows):
    """On a worker: do the rows of a task, and give their results."""
    from distributed import get_worker

    plugin = get_worker().plugins[name]
    if _prepared.get("plugin") is not plugin:
        _prepared.clear()
        _prepared.update(work=_prepare(plugin), plugin=plugin)
    try:
        results = []
        for row in rows:
            faulthandler.dump_traceback_later(plugin.limit, exit=True)      # the log says where it hung
            results.append(_prepared["work"](row))
        return results
    finally:
        faulthandler.cancel_dump_traceback_later()


def _prepare(plugin):
    """Check that a worker is like the client, open the arrays, and return what does a row."""
    if plugin.threads != 1:
        raise DataError(f"worker {plugin.address} has {plugin.threads} threads: begin workers with --nthreads 1, and "
                        "as many as there are cores (--nworkers)")
    for library, wanted in plugin.versions.items():
        try:
            found = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != wanted:
            raise DataError(f"worker {plugin.address} has {library} {found}, this run needs {wanted}: "
                            "pip install -r requirements.txt -c constraints.txt there")
    for folder in plugin.folders:
        if not os.path.isdir(folder):
            raise DataError(f"worker {plugin.address} does not see {folder}: data folder and cache must be under the "
                            "same path on all machines")
    own_compiled(plugin.folders[-1], plugin.local_directory)
    set_malloc(**MALLOC)
    work, start, setup = pickle.loads(plugin.job)
    start(*setup)
    return work
