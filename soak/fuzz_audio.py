"""Test `features.clip_features` on thousands of corrupted audio files: no crash, no hang, limited memory.

    python soak/fuzz_audio.py                   # 100,000 files, some minutes
    python soak/fuzz_audio.py --only 4711       # save one of them as a file

Exit status 1 if a file killed its process, exceeded the time limit, or the memory limit `MOST`.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from hostile import SEEDS, fuzzed, peak_memory, seeds  # noqa: E402

from audio.cache import USABLE  # noqa: E402
from audio.clips import clip_features  # noqa: E402
from audio.workers import in_processes  # noqa: E402
from features import STUDY_FEATURES, cpu_count  # noqa: E402
from fma import progress_bar  # noqa: E402

LIMIT = 60      # seconds for one file
MOST = 1.5      # GB for a process with one file, including Python and librosa

_worker = {}


def start(folder):
    """Limit the process to one thread."""
    import librosa  # noqa: F401 - only loaded libraries can be limited
    from threadpoolctl import threadpool_limits

    _worker.update(limits=threadpool_limits(1), seeds=seeds(), path=Path(folder) / f"{os.getpid()}.mp3")


def try_file(number):
    """Status of a file, seconds and memory; an invalid result is an error."""
    _worker["path"].write_bytes(fuzzed(number, _worker["seeds"]))
    peak_memory()
    began = time.perf_counter()
    status, values = clip_features(_worker["path"], STUDY_FEATURES)
    seconds = time.perf_counter() - began
    if (status in USABLE) != bool(values) or not all(np.isfinite(x).all() for x in values.values()):
        raise AssertionError(f"file {number} is {status} with {len(values)} features, or values are not finite")
    return status, seconds, peak_memory()


def report(counts, slowest, largest, failed, seconds):
    """Print the table of results."""
    names = [f"{kind} {subtype or ''}".strip() for kind, subtype, *_ in SEEDS]
    statuses = sorted({status for status, _ in counts})
    print(f"\n| made of | {' | '.join(statuses)} |\n|:--|{'--:|' * len(statuses)}")
    for kind in sorted({*names}):
        print(f"| {kind} | " + " | ".join(str(counts[status, kind]) for status in statuses) + " |")
    total = Counter()
    for (status, _), count in counts.items():
        total[status] += count
    print("| **all** | " + " | ".join(str(total[status]) for status in statuses) + " |")
    print(f"\n{total.total()} files in {seconds:.0f} s; crashes and hangs: {len(failed)}")
    print(f"slowest: file {slowest[1]}, {slowest[0]:.2f} s; most memory: file {largest[1]}, {largest[0]:.2f} GB")
    for number, reason in failed:
        print(f"  file {number} ({names[number % len(names)]}): {reason}")


def main():
    parser = argparse.ArgumentParser(description="Test features.clip_features on corrupted audio files.")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file (default: 0)")
    parser.add_argument("--workers", type=int, default=cpu_count())
    parser.add_argument("--only", type=int, help="write file <number>.fuzzed and stop")
    args = parser.parse_args()
    if args.only is not None:
        Path(f"{args.only}.fuzzed").write_bytes(fuzzed(args.only, seeds()))
        return 0
    numbers = range(args.first, args.first + args.files)
    counts, slowest, largest, failed, began = Counter(), (0, None), (0, None), [], time.perf_counter()
    names = [f"{kind} {subtype or ''}".strip() for kind, subtype, *_ in SEEDS]
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(
            in_processes(numbers, try_file, args.workers, LIMIT, start, (folder,))) as results:
        for number, found, reason in progress_bar(results, total=args.files, unit="file", show=sys.stderr.isatty()):
            status, seconds, memory = found or ("killed", 0, 0)
            counts[status, names[number % len(names)]] += 1
            slowest, largest = max(slowest, (seconds, number)), max(largest, (memory, number))
            if reason:
                failed.append((number, reason))
    report(counts, slowest, largest, failed, time.perf_counter() - began)
    return 1 if failed or largest[0] > MOST else 0


if __name__ == "__main__":
    import fuzz_audio  # by its name: processes look there for what they do

    sys.exit(fuzz_audio.main())
