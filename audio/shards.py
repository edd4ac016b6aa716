"""Features past one machine as the shards of a batch system; and what machines share of what numba compiles.

    python features.py --data-dir data --shard 2/16         # and 1/16, 3/16, ...: a process each, on any machine

Data folder and cache are on a file system that all machines see under the same path. Each shard writes the rows of its
own clips into the one cache (audio/filling.py), in place: the bytes are those of one process. docs/scale.md says more.
"""

import atexit
import os
import shutil
import tempfile
import time

from audio.filling import lock
from fma import DataError

SHOWN_AFTER = 90    # seconds until a file made elsewhere is surely seen: NFS remembers for a minute that it was not


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


def plan_shard(partial, shards, plan, compile_it):
    """The arrays to compute, as `plan` gives them: allocated by the first of so many shards, while the others wait.

    They wait for the file ``shared``, which says in how many shards the arrays were allocated. What was written to a
    file is seen by who locks it next; that another file is there may be seen late on NFS, and a second allocation
    would empty the arrays.
    """
    with lock(partial, "shared", wait=True) as file:
        file.seek(0)
        planned, count = file.read(), str(shards)
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


# ---------------------------------------------------------------- what numba compiles


def compile_for_all(partial, compile_it):
    """Keep what numba compiles of librosa beside the growing cache: each process then takes a copy, `own_compiled`."""
    os.environ["NUMBA_CACHE_DIR"] = str(partial / "numba")
    compile_it()


def own_compiled(partial, parent=None):
    """Give this process a copy: processes that compile into one folder at once spoil each other's files."""
    folder = tempfile.mkdtemp(prefix="numba-", dir=parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if (partial / "numba").is_dir():
        shutil.copytree(partial / "numba", folder, dirs_exist_ok=True)
    os.environ["NUMBA_CACHE_DIR"] = folder
