"""Features past one machine: the clips as tasks of a Dask scheduler, or as the shards of a batch system.

    python features.py --data-dir data --scheduler tcp://host:8786
    python features.py --data-dir data --shard 2/16         # and 1/16, 3/16, ...: a process each, on any machine

Data folder and cache are on a file system that all machines see under the same path. Who computes a clip writes its
rows into the one cache (audio/cache.py), in place, and nobody else writes these: the bytes are those of one process.
docs/scale.md says how to begin, what it costs and where it ends.
"""

import atexit
import ctypes
import faulthandler
import hashlib
import importlib.metadata
import logging
import math
import os
import pickle
import platform
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

from audio.cache import InUse, lock
from fma import DataError

BATCH = 32          # clips in a task: a second or two, so that the scheduler is asked seldom and a death costs little
AHEAD = 2           # tasks given out for each worker: one that it is at, one that waits
HOPELESS = 3        # tasks that killed worker after worker while none was done: it is not the clips
ANSWER = 20         # seconds that a scheduler has to answer
PATIENCE = 3        # seconds that a shard waits for one that looks whether all is done
SHOWN_AFTER = 90    # seconds until a file made elsewhere is surely seen: NFS remembers for a minute that it was not
ROOT = Path(__file__).resolve().parents[1]
LOST = "the Dask scheduler was lost or restarted: run the same command again, it goes on"


# ---------------------------------------------------------------- Dask: the client


@contextmanager
def connect(address):
    """A client of the Dask scheduler at an address, ``tcp://host:8786``; None without an address.

    Raises
    ------
    DataError
        If Dask is not installed, nothing answers, or a worker has another Python.
    """
    if not address:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise DataError("--scheduler needs dask.distributed: "
                        "pip install -r requirements-cluster.txt -c constraints.txt") from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)      # a lost scheduler is said in a line, below
    try:
        client = Client(address, timeout=ANSWER)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"no Dask scheduler answers at {address} ({_line(error)}): begin one with dask scheduler, and "
                        "name it as tcp://host:8786") from error
    with client:
        if not client.nthreads():
            print(f"no workers yet, waiting: begin them with dask worker --nthreads 1 {address}", flush=True)
            client.wait_for_workers(1)
        for worker, found in client.get_versions()["workers"].items():
            there, here = found["host"]["python"].split(".")[:2], [str(part) for part in sys.version_info[:2]]
            if there != here:
                raise DataError(f"worker {worker} has Python {'.'.join(there)}, this is {'.'.join(here)}: use one")
        print(f"Dask: {len(client.nthreads())} workers, dashboard {client.dashboard_link}", flush=True)
        yield client


def on_workers(client, rows, work, limit, start, setup, versions, folders):
    """Do something with each row, on the workers of a Dask scheduler, which may die of it.

    Rows go out in tasks of `BATCH`, a few for each worker: neither scheduler nor client grows with the collection.
    A task whose worker died goes to another one. One that has killed four (the scheduler's ``allowed-failures`` and one
    more) is taken apart when all others are done, and its rows are tried alone.

    Parameters
    ----------
    client : distributed.Client
    rows : list of int
    work : callable
        Is given a row. It and `start` are of modules of this folder, which are sent to the workers.
    limit : float
        Seconds that a row may take: a worker that takes longer ends, and its nanny begins another.
    start : callable
        Called on each worker before its first row, with `setup`.
    setup : tuple
    versions : dict of str to str
        Libraries that the workers must have in these versions.
    folders : list of Path
        What the workers must see; the last one is that of the growing cache.

    Yields
    ------
    row, result, reason
        As `pool.in_processes` does.

    Raises
    ------
    DataError
        If the scheduler is lost, the first tasks all kill their workers, or a worker is of no use. What `work` raises
        three times is raised here.
    """
    from distributed.comm import CommClosedError

    name = f"features {folders[-1]}"        # also of an earlier client that was killed: it is replaced
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
               for path in sorted([*ROOT.glob("*.py"), *Path(__file__).parent.glob("*.py")])}
    plugin = _make_plugin(sources, pickle.dumps((work, start, setup)), limit, versions, folders)
    try:
        client.register_plugin(plugin, name)
        tasks = (rows[k : k + BATCH] for k in range(0, len(rows), BATCH))
        suspects = yield from _share_out(client, name, tasks)
        for row in (yield from _share_out(client, name, [[row] for row in suspects], alone=True)):
            yield row, None, "killed its worker"
    except CommClosedError as error:
        raise DataError(f"{LOST} ({_line(error)})") from error
    with suppress(OSError):         # a worker may just be dying; what was sent is small, and the next run replaces it
        client.unregister_worker_plugin(name)


def _share_out(client, name, tasks, alone=False):
    """Yield what is done, and return the rows of tasks that killed their workers; `alone`: a task at a time."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    def task(name, rows):       # within a function, as below: the scheduler reads it too, and has no module of ours
        from audio import cluster

        return cluster.run_task(name, rows)

    done = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    tasks, given, died, most, counted, any_done = iter(tasks), {}, [], 1, -math.inf, alone
    while True:
        if not alone and time.monotonic() > counted + 5:        # workers come and go
            most, counted = max(1, AHEAD * len(client.nthreads())), time.monotonic()
        for rows in islice(tasks, max(0, most - len(given))):
            future = client.submit(task, name, rows, pure=False, retries=2)
            given[future] = rows
            done.add(future)
        if not given:
            return died
        future, result = next(done)
        rows, error = given.pop(future), future.exception() if future.status == "error" else None
        if future.status == "finished":
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
        _prepared["plugin"] = None
        _prepared["work"] = _prepare(plugin)
        _prepared["plugin"] = plugin
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
    keep_memory()
    work, start, setup = pickle.loads(plugin.job)
    start(*setup)
    return work


def keep_memory():
    """Have glibc keep what a clip frees for the next one, as it does by itself but for a setting of Dask's nannies.

    They have it give back all above 64 KiB at once: pages come and go, which is two fifths of a worker's time.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**25)         # M_MMAP_THRESHOLD: where glibc's own adjustment ends,
        libc.mallopt(-1, 2**26)         # M_TRIM_THRESHOLD: and twice that


# ---------------------------------------------------------------- what numba compiles


def compile_for_all(partial, compile_it):
    """Keep what numba compiles of librosa beside the growing cache, for `own_compiled`."""
    before = os.environ.get("NUMBA_CACHE_DIR")
    os.environ["NUMBA_CACHE_DIR"] = str(partial / "numba")
    try:
        compile_it()
    finally:
        if before is None:
            del os.environ["NUMBA_CACHE_DIR"]
        else:
            os.environ["NUMBA_CACHE_DIR"] = before


def own_compiled(partial, parent=None):
    """Give this process a copy: processes that compile into one folder at once spoil each other's files."""
    folder = tempfile.mkdtemp(prefix="numba-", dir=parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if (partial / "numba").is_dir():
        shutil.copytree(partial / "numba", folder, dirs_exist_ok=True)
    os.environ["NUMBA_CACHE_DIR"] = folder


# ---------------------------------------------------------------- shards


def parse_shard(text):
    """Which shard of how many: (2, 16) for ``2/16``.

    >>> parse_shard("2/16")
    (2, 16)
    """
    shard, _, count = text.partition("/")
    if not (shard.isdecimal() and count.isdecimal() and 1 <= int(shard) <= int(count)):
        raise DataError(f"--shard {text} is none: say 1/16 for the first of sixteen, and so on to 16/16")
    return int(shard), int(count)


@contextmanager
def hold_shard(partial, shard):
    """Keep out whoever fills the cache alone, and a second process with this shard; other shards may come."""
    end = time.monotonic() + PATIENCE
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock(partial, shared=True))
                break
            except InUse:               # perhaps by a shard that has ended, and looks whether it was the last
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        held.enter_context(lock(partial, "lock-{}of{}".format(*shard)))
        yield


def plan_shard(partial, shard, plan, compile_it):
    """The arrays to compute, as `plan` gives them: allocated by whichever shard comes first, while others wait.

    They wait for the file ``shared``, which says in how many shards the arrays were allocated. What was written to a
    file is seen by who locks it next; that another file is there may be seen late on NFS, and a second allocation
    would empty the arrays.
    """
    with lock(partial, "shared", wait=True) as file:
        file.seek(0)
        planned, count = file.read(), str(shard[1])
        if planned not in ("", "any", count):
            raise DataError(f"{partial} is being filled in {planned} shards, not in {count}: go on with these, or end "
                            "it with features.py without --shard")
        end = time.monotonic() + SHOWN_AFTER
        while planned and not (partial / "plan.json").is_file():
            if time.monotonic() > end:
                raise DataError(f"{partial}/plan.json is not seen: run the same command again, or delete the folder")
            time.sleep(1)
        infos = plan()
        if planned != count:
            compile_for_all(partial, compile_it)
            file.truncate(0)
            file.write(count)
            file.flush()
            os.fsync(file.fileno())
    own_compiled(partial)
    return infos
