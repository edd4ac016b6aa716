"""All benchmarks in one run and one table: what was measured, against what, and what bounds it.

    python benchmarks/table.py --data-dir data --keep       # and write the tables into docs/speed.md
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))    # for the modules of the repository

from benchmarks import commands, extraction, training  # noqa: E402
from benchmarks.timing import machine, ratio  # noqa: E402
from fma import DataError, find_data, run_command  # noqa: E402
from learning.devices import choose_device  # noqa: E402
from study.tables import format_table

TARGETS = {"FrequencyCNN": 3, "TemporalCNN": 3, "SquareCNN": 3, "DenseNet-all": 5, "BBNN": 5}   # at 84 × 640
AVX2_TARGETS = {"FrequencyCNN": 4, "TemporalCNN": 2.1, "SquareCNN": 2.2, "ResNet-all": 3.3, "DenseNet-all": 3.3,
                "SequentialCRNN": 2, "ParallelCRNN": 2, "BBNN": 6}      # in float32 on AVX2, which most machines have
MARKS = "<!-- bench -->", "<!-- end -->"


def extraction_rows(found):
    """Rows (what, measured, target, met, bound by) of features."""
    seconds, rates, memory = found["seconds"], found["rates"], found["memory"]
    decoding = seconds["decoding"]
    whole, two = ratio(seconds["six features"], decoding), ratio(rates[2][:, 1], rates[1][:, 1])
    grown = (memory[1][1] - memory[1][0]) / extraction.TRACKS
    ours = sum(ms for _, ms, *_ in found["parts"])
    slowest, ms = max(((name, ms) for name, ms, *_ in found["parts"]), key=lambda part: part[1])
    return [
        ("all six features of a clip / decoding it", f"{whole:.2f}", "≤ 1.7", whole <= 1.7,
         f"decoding, {100 / whole:.0f} % of the time; of the rest {slowest}, {100 * ms / ours:.0f} %"),
        ("the original's procedure / ours", f"{ratio(seconds['original'], seconds['six features']):.1f}", "", None,
         "librosa builds its filters anew for each clip, and each clip is decoded twice"),
        ("features.py, 2 processes / 1, without start-up", f"{two:.2f}", "≥ 1.8", two >= 1.8, "cores"),
        ("memory of features.py for each track more, MiB", f"{grown:.3f}", "0", abs(grown) < 0.05,
         f"libraries: {memory[1][0]:.0f} MiB at {extraction.TRACKS} tracks"),
    ]


def training_rows(rows):
    """Rows of training, two for each network and size: as this machine trains, and as one with AVX2 alone does."""
    table = []
    for row in rows:
        what = f"training, {row['network']} {row['size']}"
        targets = [kind.get(row["network"]) if row["size"] == "84×640" else None for kind in (TARGETS, AVX2_TARGETS)]
        bounds = (f"{row['bound']}; {100 * row['share']:.0f} % of what they allow, the original "
                  f"{100 * row['original share']:.0f} % in float32", "float32, operations and memory")
        for key, target, suffix, bound in zip(("ratio", "ratio, AVX2"), targets, ("", ", float32 on AVX2"), bounds,
                                              strict=True):
            table.append((f"{what}: ours / the original's loop{suffix}", f"{row[key]:.1f}",
                          f"≥ {target}" if target else "", row[key] >= target if target else None, bound))
    return table


def command_rows(start, shared, disk):
    """Rows of what surrounds training."""
    seconds = {name: float(np.median(values)) for name, values in start[0].items()}
    both = [shared[who] / shared["1 process, 1 thread"] for who in list(shared)[1:]]
    rows = [
        ("predict.py --help, seconds", f"{seconds['predict']:.2f}", "< 0.5", seconds["predict"] < 0.5,
         "imports of pandas and numpy"),
        ("training.py cqt_square, 2 processes / 1, a thread each", f"{both[1]:.2f}", "", None,
         f"cores; one process with 2 threads has {both[0]:.2f}"),
    ]
    if disk:
        share = disk["read from disk"] / disk["held in memory"]
        rows.append(("training from a cache of 1.7 GB with 1 GiB of memory / held in memory", f"{share:.2f}", "", None,
                     f"the disk; {disk['without being told'] / disk['held in memory']:.2f} where it is not told "
                     "which rows come next"))
    return rows


def table(rows):
    """The one table, as Markdown."""
    cells = [(what, measured, target, {True: "yes", False: "no", None: ""}[met], bound)
             for what, measured, target, met, bound in rows]
    return format_table(cells, ["what", "measured", "target", "met", "bound by"])


def put(path, text):
    """Write text between the marks of a file."""
    old = Path(path).read_text(encoding="utf-8")
    begin, end = MARKS
    if old.count(begin) != 1 or end not in old.partition(begin)[2]:
        raise DataError(f"{path} has no single {begin} with an {end} behind it: put them where the table is to stand")
    before, _, rest = old.partition(begin)
    Path(path).write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main(argv=None):
    parser = argparse.ArgumentParser(description="Measure everything: on two quiet cores about twenty minutes.")
    parser.add_argument("--data-dir", help="in FMA's layout (default: $DATA_DIR, data, or the demo corpus)")
    parser.add_argument("--keep", action="store_true", help="write the tables into docs/speed.md")
    parser.add_argument("--seconds", type=float, default=20, help="for each network (default: %(default)s)")
    args = parser.parse_args(argv)
    data_dir, device = find_data(args.data_dir), choose_device()
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    about = gpu + machine("torch", "librosa", "numpy", "soxr") + f", {torch.get_num_threads()} threads"
    start = time.perf_counter()
    print(about, flush=True)
    features = extraction.measure(data_dir)
    print(f"{features['clips']}\n\n{extraction.report(features)}\n", flush=True)
    trained, limits = training.measure(seconds=args.seconds)
    print(f"{training.describe_limits(limits, device)}\n\n{training.table(trained)}\n", flush=True)
    rest = commands.measure()
    print(commands.report(*rest) + "\n", flush=True)
    rows = extraction_rows(features) + training_rows(trained) + command_rows(*rest)
    print(f"{table(rows)}\n\n{(time.perf_counter() - start) / 60:.0f} minutes")
    if args.keep:
        put(commands.ROOT / "docs" / "speed.md", "\n\n".join([
            about, features["clips"], training.describe_limits(limits, device), table(rows), "What stands behind it:",
            extraction.report(features), training.table(trained), commands.report(*rest)]))


if __name__ == "__main__":
    sys.exit(run_command(main))
