"""Read thousands of corrupted caches, configs and tables: each is read, or rejected with a `DataError`.

    python soak/fuzz_readers.py                 # 20,000 files, some minutes
    python soak/fuzz_readers.py --first 4711 --files 1          # one of them, with its traceback

Exit status 1 if a file causes another error, kills the process, or exceeds the limits of time or memory.
"""

import argparse
import contextlib
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hostile import peak_memory  # noqa: E402
from hostile_readers import FILES, copy_files, make_files, try_broken  # noqa: E402

from audio.workers import in_processes  # noqa: E402
from features import cpu_count  # noqa: E402
from fma import progress_bar  # noqa: E402

LIMIT = 60      # seconds for one file
MOST = 2.0      # GB for a process with one file, including Python and torch

_worker = {}


def start(source, folder):
    """Copy the files that are to be corrupted."""
    import torch

    torch.set_num_threads(1)
    _worker["files"] = copy_files(source, folder)


def try_file(number):
    """Outcome of a file, seconds, memory in GB, and the traceback of an unexpected error."""
    peak_memory()
    began, wrong = time.perf_counter(), ""
    try:
        _, outcome = try_broken(_worker["files"], number)
    except Exception as error:
        outcome, wrong = type(error).__name__, traceback.format_exc()
    return outcome, time.perf_counter() - began, peak_memory(), wrong


def main():
    parser = argparse.ArgumentParser(description="Read corrupted caches, configs and tables.")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file (default: 0)")
    parser.add_argument("--workers", type=int, default=cpu_count())
    args = parser.parse_args()
    numbers, names = range(args.first, args.first + args.files), list(FILES)
    counts, slowest, largest, failed, began = Counter(), (0, None), (0, None), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        valid = make_files(Path(folder) / "valid")
        results = in_processes(numbers, try_file, args.workers, LIMIT, start, (valid, folder))
        with contextlib.closing(results):
            for number, found, reason in progress_bar(results, total=args.files, unit="file", show=sys.stderr.isatty()):
                outcome, seconds, memory, wrong = found or ("killed", 0, 0, reason)
                counts[names[number % len(names)], outcome] += 1
                slowest, largest = max(slowest, (seconds, number)), max(largest, (memory, number))
                if wrong:
                    failed.append((number, wrong))
    outcomes = sorted({outcome for _, outcome in counts})
    print(f"\n| file | {' | '.join(outcomes)} |\n|:--|{'--:|' * len(outcomes)}")
    for name in names:
        print(f"| {name} | " + " | ".join(str(counts[name, outcome]) for outcome in outcomes) + " |")
    print(f"\n{args.files} files in {time.perf_counter() - began:.0f} s; crashes, hangs, other errors: {len(failed)}")
    print(f"slowest: file {slowest[1]}, {slowest[0]:.2f} s; most memory: file {largest[1]}, {largest[0]:.2f} GB")
    for number, wrong in failed[:20]:
        print(f"\nfile {number} ({names[number % len(names)]}): {wrong}")
    return 1 if failed or largest[0] > MOST else 0


if __name__ == "__main__":
    import fuzz_readers  # by its name: processes look there for what they do

    sys.exit(fuzz_readers.main())
