"""Thousands of damaged files: none may crash a process, hang it, take its memory, or cause an error but a `DataError`.

    python soak/fuzz.py audio                       # what `audio.clips.clip_features` makes of sound, some minutes
    python soak/fuzz.py readers                     # caches, configs, results and tables, and what reads them
    python soak/fuzz.py audio --first 4711 --files 1            # one of them, with its traceback

Exit status 1 if any file does. `hostile.fuzzed(4711, hostile.seeds())` makes audio file 4711 again.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from hostile import SEEDS, fuzzed, peak_memory, seeds  # noqa: E402
from hostile_readers import FILES, copy_files, make_files, try_broken  # noqa: E402

from audio.cache import USABLE  # noqa: E402
from audio.clips import clip_features  # noqa: E402
from audio.workers import in_processes  # noqa: E402
from features import STUDY_FEATURES, cpu_count  # noqa: E402
from fma import progress_bar  # noqa: E402
from study.tables import format_table  # noqa: E402

LIMIT = 60      # seconds for one file
MOST = {"audio": 1.5, "readers": 2.0}       # GB for a process with one file, including Python, librosa or torch
NAMES = {"audio": [f"{kind} {subtype or ''}".strip() for kind, subtype, *_ in SEEDS], "readers": list(FILES)}

_worker = {}


def start(kind, folder):
    """Prepare a process, and limit it to one thread."""
    import librosa  # noqa: F401 - only loaded libraries can be limited
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    _worker.update(limits=threadpool_limits(1), seeds=seeds(), audio=Path(folder) / f"{os.getpid()}.mp3")
    if kind == "readers":
        _worker["files"] = copy_files(Path(folder) / "valid", folder)


def audio(number):
    """Status of a damaged audio file; an invalid result is an error."""
    _worker["audio"].write_bytes(fuzzed(number, _worker["seeds"]))
    status, values = clip_features(_worker["audio"], STUDY_FEATURES)
    if (status in USABLE) != bool(values) or not all(np.isfinite(x).all() for x in values.values()):
        raise AssertionError(f"file {number} is {status} with {len(values)} features, or values are not finite")
    return status


def readers(number):
    """Whether a damaged file is read or refused."""
    return try_broken(_worker["files"], number)[1]


def try_file(kind, number):
    """Outcome of a file, seconds, memory in GB, and the traceback of an unexpected error."""
    peak_memory()
    began, wrong = time.perf_counter(), ""
    try:
        outcome = globals()[kind](number)
    except Exception as error:
        outcome, wrong = type(error).__name__, traceback.format_exc()
    return outcome, time.perf_counter() - began, peak_memory(), wrong


def main():
    parser = argparse.ArgumentParser(description="Try damaged files.")
    parser.add_argument("kind", choices=NAMES, help="of the files that are damaged")
    parser.add_argument("--files", type=int, default=20_000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first file (default: 0)")
    args = parser.parse_args()
    numbers, names = range(args.first, args.first + args.files), NAMES[args.kind]
    counts, slowest, largest, failed, began = Counter(), (0, None), (0, None), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if args.kind == "readers":
            make_files(Path(folder) / "valid")
        results = in_processes(numbers, partial(try_file, args.kind), cpu_count(), LIMIT, start, (args.kind, folder))
        with contextlib.closing(results):
            for number, found, reason in progress_bar(results, total=args.files, unit="file", show=sys.stderr.isatty()):
                outcome, seconds, memory, wrong = found or ("killed", 0, 0, reason)
                counts[names[number % len(names)], outcome] += 1
                slowest, largest = max(slowest, (seconds, number)), max(largest, (memory, number))
                if wrong:
                    failed.append((number, wrong))
    outcomes = sorted({outcome for _, outcome in counts})
    print(format_table([[name, *(counts[name, outcome] for outcome in outcomes)] for name in dict.fromkeys(names)],
                       ["file", *outcomes]))
    print(f"\n{args.files} files in {time.perf_counter() - began:.0f} s; crashes, hangs, other errors: {len(failed)}")
    print(f"slowest: file {slowest[1]}, {slowest[0]:.2f} s; most memory: file {largest[1]}, {largest[0]:.2f} GB")
    for number, wrong in failed[:20]:
        print(f"\nfile {number} ({names[number % len(names)]}): {wrong}")
    return 1 if failed or largest[0] > MOST[args.kind] else 0


if __name__ == "__main__":
    import fuzz  # by its name: processes look there for what they do

    sys.exit(fuzz.main())
