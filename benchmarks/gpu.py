"""What a GPU makes of the study: every family of networks, in every precision, in at most eight minutes.

    python benchmarks/gpu.py --json gpu.json

Each row is printed, and written to the JSON, as soon as it is measured; what the time did not allow is listed last.
Clips are random and made on the card: 6,400 of 84 x 640, as the CQT of FMA-small's training clips. The original
study's loop gathers clips on the CPU, one by one, in float32, and waits for the loss of each step.
"""

import argparse
import json
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))    # for the modules of the repository

from audio.cache import save_text  # noqa: E402
from audio.transforms import CLIP_SECONDS, SAMPLE_RATE, STUDY_FEATURES  # noqa: E402
from benchmarks.limits import median_seconds  # noqa: E402
from benchmarks.timing import machine  # noqa: E402
from benchmarks.training import CLASSES, NETWORKS, build, original_epoch  # noqa: E402
from fma import DataError, run_command  # noqa: E402
from learning.devices import choose_device  # noqa: E402
from learning.steps import StepGraph, optimizer_for, train_epoch  # noqa: E402
from study.tables import format_table  # noqa: E402
from training import Training  # noqa: E402

SIZE, CLIPS = (84, 640), 6400
PRECISIONS = ("float32", "float16", "bfloat16")
BATCHES = (32, 256)
COMPILED = ("BBNN", "DenseNet-all")         # whose steps are many small kernels
BESIDE = 4                                  # processes that share the card
STUDY = {"FrequencyCNN": 6, "TemporalCNN": 6, "SquareCNN": 6, "ResNet-all": 2, "DenseNet-all": 2, "SequentialCRNN": 4,
         "ParallelCRNN": 4, "BBNN": 2}      # rows of the study (five features, mel128) that each network stands for
EPOCHS, REPEATS = 50, 3                     # as the study trained them


def random_clips(device, clips=CLIPS, size=SIZE):
    """What learning.steps needs of a data set: random clips on the device, as float16 decibels, with labels."""
    values = torch.empty(clips, *size, dtype=torch.float16, device=device).normal_(-40, 15)
    labels = torch.arange(clips, device=device) % CLASSES

    def raw(rows):
        return values[rows].float()

    def normalised(x):
        return x.sub_(-40).div_(15)

    return SimpleNamespace(
        values=values, labels=labels, rows={"training": np.arange(clips)}, genres=range(CLASSES), device=device,
        raw=raw, normalised=normalised, is_held=lambda: True, expect=lambda rows: None, tags=None,
        batch=lambda rows: (normalised(raw(rows)), labels[rows]))


def time_epochs(epoch, clips, device, seconds):
    """Clips per second of the epochs that fit into so many seconds, one at least; the first does not count."""
    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    epoch()
    wait()
    start, done = time.perf_counter(), 0
    while not done or time.perf_counter() - start < seconds:
        epoch()
        wait()
        done += 1
    return clips * done / (time.perf_counter() - start)


def ours(network, dataset, batch, precision, graph=False, compiled=False, seconds=1.0):
    """Clips per second of this repository's training."""
    device = dataset.device
    settings = Training(batch_size=batch, precision=precision, graph=graph)
    model = build(network, dataset.values.shape[1:])[0].to(device, memory_format=torch.channels_last)
    optimizer = optimizer_for(model, settings)
    step_graph = StepGraph(device) if graph else None
    model = torch.compile(model) if compiled else model
    few = SimpleNamespace(**{**vars(dataset), "rows": {"training": dataset.rows["training"][: 16 * batch]}})

    def epoch():
        train_epoch(model, few, optimizer, settings, 0, tqdm(disable=True), None, step_graph)

    return time_epochs(epoch, len(few.rows["training"]), device, seconds)


def original(network, dataset, batch, seconds=1.0):
    """Clips per second of the original study's loop: float64 arrays in the memory of the CPU, clip by clip."""
    device, clips = dataset.device, min(8 * batch, len(dataset.values))
    held = TensorDataset(dataset.values[:clips].double().cpu(), dataset.labels[:clips].cpu())
    loader = DataLoader(held, batch, shuffle=True,
                        collate_fn=lambda items: tuple(torch.stack(part) for part in zip(*items, strict=True)))
    model = build(network, dataset.values.shape[1:])[1].to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    as_float = ((x.float(), y) for _ in iter(int, 1) for x, y in loader)        # without end
    return time_epochs(lambda: original_epoch(model, [next(as_float) for _ in range(len(loader))], optimizer, device),
                       clips, device, seconds)


def beside(network, device_name, batch, precision, clips, size, seconds):
    """A process of its own, for several on one card: clips per second."""
    dataset = random_clips(torch.device(device_name), clips, size)
    return ours(network, dataset, batch, precision, device_name.startswith("cuda"), seconds=seconds)


def cases(networks, cuda):
    """What is measured, the most wanted first: (network, loop, batch, precision, graph, compiled)."""
    graphs = (False, True) if cuda else (False,)
    for network in networks:
        yield network, "original", BATCHES[0], "float32", False, False
        yield from ((network, "ours", BATCHES[0], precision, graph, False)
                    for precision in PRECISIONS for graph in graphs)
    if "SquareCNN" in networks:
        yield "SquareCNN", f"{BESIDE} processes", BATCHES[0], "bfloat16", cuda, False
    yield from ((network, "ours", BATCHES[0], "bfloat16", False, True) for network in networks if network in COMPILED)
    yield from ((network, "ours", batch, precision, graph, False) for batch in BATCHES[1:] for network in networks
                for precision in PRECISIONS for graph in graphs)


def measure(case, dataset, seconds):
    """A row: what was measured, clips per second, peak memory of the card in MiB, seconds to measure it."""
    network, loop, batch, precision, graph, compiled = case
    device, start = dataset.device, time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if loop == "original":
        rate = original(network, dataset, batch, seconds)
    elif loop == "ours":
        rate = ours(network, dataset, batch, precision, graph, compiled, seconds)
    else:
        clips, size = len(dataset.values), tuple(dataset.values.shape[1:])
        job = network, str(device), batch, precision, clips, size, 4 * seconds
        with get_context("spawn").Pool(BESIDE) as pool:
            rate = sum(pool.starmap(beside, [job] * BESIDE))
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    return {"network": network, "loop": loop, "batch": batch, "precision": precision, "graph": graph,
            "compiled": compiled, "clips_per_second": round(rate, 1), "peak_mib": peak and round(peak),
            "seconds": round(time.perf_counter() - start, 1)}


def features_row(device, batch, repeats=3):
    """Clips per second of all six features, computed in batches on the device from waveforms of 30 s."""
    from audio.gpu import extract_batch

    waves = torch.randn(batch, CLIP_SECONDS * SAMPLE_RATE, device=device).mul_(0.1)
    extract_batch(waves, STUDY_FEATURES)            # filters are built
    taken = median_seconds(lambda: extract_batch(waves, STUDY_FEATURES), device, repeats)
    return {"network": "six features", "loop": "ours", "batch": batch, "precision": "float64", "graph": False,
            "compiled": False, "clips_per_second": round(batch / taken, 1), "peak_mib": None, "seconds": taken}


def study_hours(rows):
    """Hours for the whole study (`STUDY`, 50 epochs of 6,400 clips, three seeds) in the fastest measured setting each.

    Returns
    -------
    dict of str to float
        ``ours`` and ``original``; empty if a network was not measured in both loops.
    """
    hours = {}
    for loop in ("ours", "original"):
        best = {name: max((r["clips_per_second"] for r in rows if r["network"] == name and r["loop"] == loop
                           and r["batch"] == BATCHES[0]), default=None) for name in STUDY}
        if None in best.values():
            return {}
        hours[loop] = sum(STUDY[name] * EPOCHS * REPEATS * CLIPS / rate / 3600 for name, rate in best.items())
    return hours


def summary(rows):
    """A line for each network, as Markdown: clips per second, and how many times the original's."""
    def best(network, loop, batch, precisions=PRECISIONS, compiled=False):
        return max((r["clips_per_second"] for r in rows if r["precision"] in precisions and
                    (r["network"], r["loop"], r["batch"], r["compiled"]) == (network, loop, batch, compiled)),
                   default=None)

    cells = []
    for network in dict.fromkeys(r["network"] for r in rows if r["network"] in NETWORKS):
        original, large = best(network, "original", BATCHES[0]), best(network, "ours", BATCHES[1])
        small = [*(best(network, "ours", BATCHES[0], [precision]) for precision in PRECISIONS),
                 best(network, "ours", BATCHES[0], compiled=True)]
        fastest = max(filter(None, small), default=None)
        cells.append([network, *(value and f"{value:,.0f}" for value in (original, *small, large)),
                      original and fastest and f"{fastest / original:.1f}"])
    return format_table(cells, ["clips/s", "original", *PRECISIONS, "compiled", f"batch {BATCHES[1]}", "/ original"])


def main(argv=None):
    parser = argparse.ArgumentParser(description="Measure training and features on a GPU, in at most eight minutes.")
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NAME",
                        help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--json", type=Path, help="write the rows here, after each of them")
    parser.add_argument("--summary", type=Path, metavar="JSON", help="print the summary of such a file, and stop")
    parser.add_argument("--minutes", type=float, default=8, help="begin no row after so many (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1, help="to time a row for (default: %(default)s)")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one); the CPU does a hundredth")
    args = parser.parse_args(argv)
    if args.summary:
        kept = json.loads(args.summary.read_text(encoding="utf-8"))
        print(f"{summary(kept['rows'])}\n\n{kept['about']}")
        return
    device, start = choose_device(args.device), time.perf_counter()
    cuda = device.type == "cuda"
    what = torch.cuda.get_device_name(device) if cuda else "no GPU: the CPU, at a hundredth of the size"
    about = f"{what}; {machine('torch', 'numpy')}"
    print(about, flush=True)
    dataset = random_clips(device, CLIPS if cuda else CLIPS // 100, SIZE)
    rows, failed = [], []

    def keep(label, call):
        """Measure a row, show and write it; what fails, or comes too late, is named at the end."""
        if time.perf_counter() - start > 60 * args.minutes:
            failed.append(f"{label}: no time left")
            return
        try:
            rows.append(call())
        except (RuntimeError, ImportError, DataError) as error:     # this card cannot, or a library is missing
            failed.append(f"{label}: {' '.join(str(error).split())[:120]}")
            return
        print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        save()

    def save():
        if args.json:
            save_text(args.json, json.dumps({"about": about, "rows": rows, "not_measured": failed}, indent=1))

    keep("six features", lambda: features_row(device, 64 if cuda else 2))
    for case in cases(args.network, cuda):
        keep(" ".join(map(str, case)), lambda case=case: measure(case, dataset, args.seconds))
    save()
    print(f"\n{summary(rows)}\n\n{about} ({time.perf_counter() - start:.0f} s to measure)")
    if hours := study_hours(rows):
        print(f"The study's 32 rows, three seeds of 50 epochs: {hours['ours']:.1f} hours, the original's loop "
              f"{hours['original']:.1f}")
    for line in failed:
        print(f"not measured: {line}")


if __name__ == "__main__":
    sys.exit(run_command(main))
