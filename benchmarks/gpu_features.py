"""What `features.py --device cuda` gains: batches on the device beside one process, and what bounds both.

    python benchmarks/gpu_features.py --data-dir data

Without a GPU the batches are computed on the CPU, in one thread: that says what they cost, not what a GPU gains.
All times are taken in turns and given as medians, ratios turn by turn.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))    # for the modules of the repository

from audio import transforms  # noqa: E402
from audio.gpu import extract_batch  # noqa: E402
from audio.transforms import CLIP_SECONDS, SAMPLE_RATE, STUDY_FEATURES  # noqa: E402
from benchmarks.extraction import find_clips  # noqa: E402
from benchmarks.limits import copy_bandwidth, median_seconds  # noqa: E402
from benchmarks.timing import interleave, machine, ratio  # noqa: E402
from fma import find_data, run_command  # noqa: E402
from learning.devices import choose_device  # noqa: E402
from study.tables import format_table


def decode(path):
    """What a process does for the GPU: a waveform at the features' sample rate."""
    return transforms.resample(*transforms.read_audio(path))


def on_device(y, device):
    """Features of a batch, from memory that any process can write back to such memory."""
    return {name: x.cpu() for name, x in extract_batch(y.to(device)).items()}


def time_batches(clips, device, batches, repeats):
    """Seconds per clip of decoding, of `transforms.extract`, and of batches of so many; a value a turn."""
    waves = [decode(path) for path in clips]
    stacked = torch.zeros(max(batches), CLIP_SECONDS * SAMPLE_RATE)
    for k, row in enumerate(stacked):
        wave = waves[k % len(waves)]
        row[: len(wave)] = torch.from_numpy(wave)
    calls = {"decoding": (lambda: [decode(path) for path in clips], len(clips)),
             "transforms.extract": (lambda: [transforms.extract(wave, SAMPLE_RATE) for wave in waves], len(clips))}
    for size in batches:
        calls[f"batches of {size}"] = (lambda size=size: on_device(stacked[:size], device)), size
    for call, _ in calls.values():
        call()                                      # filters are built, kernels chosen
    seconds = interleave({name: call for name, (call, _) in calls.items()}, repeats)
    return {name: seconds[name] / n for name, (_, n) in calls.items()}


# ---------------------------------------------------------------- what bounds it


class Traffic(TorchDispatchMode):
    """Counts the bytes of tensors that operations read and write; views move nothing."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:                                  # a composite operation: its parts are counted
            found = func.decompose(*args, **(kwargs or {}))
        if found is not NotImplemented:
            return found
        found = func(*args, **(kwargs or {}))
        if not any(returned.alias_info for returned in func._schema.returns):
            tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs, found)) if torch.is_tensor(x)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return found


def work(n_samples=CLIP_SECONDS * SAMPLE_RATE, names=STUDY_FEATURES):
    """Operations of the matrix products of a clip, and bytes that its tensors move in the device's memory.

    The Fourier transforms, a fiftieth of the operations, are not counted. Counted on the CPU: it is the same work.

    Returns
    -------
    operations, bytes : int
    """
    y = torch.zeros(1, n_samples)
    extract_batch(y, names)                         # what is built once does not count
    with FlopCounterMode(display=False) as counter:
        extract_batch(y, names)
    with Traffic() as traffic:
        extract_batch(y, names)
    return counter.get_total_flops(), traffic.bytes


def bounds(device):
    """What a clip needs and the device has: (of what, needed, per second), in operations and bytes."""
    operations, moved = work()
    a = torch.randn(2048, 2048, dtype=torch.float64, device=device)
    y, back = torch.zeros(1, CLIP_SECONDS * SAMPLE_RATE), extract_batch(torch.zeros(1, CLIP_SECONDS * SAMPLE_RATE))
    many = y.repeat(32, 1)
    link = many.nbytes / median_seconds(lambda: many.to(device, copy=True), device, 7)
    return [("products in float64, GFLOP", operations, 2 * 2048**3 / median_seconds(lambda: a @ a, device, 5)),
            ("tensors in its memory, GB", moved, copy_bandwidth(device)),
            ("waveform to it and features back, GB", y.nbytes + sum(x.nbytes for x in back.values()), link)]


def main(argv=None):
    parser = argparse.ArgumentParser(description="Compare features computed in batches with one process.")
    parser.add_argument("--data-dir", help="in FMA's layout (default: $DATA_DIR, data, or the demo corpus)")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    parser.add_argument("--clips", type=int, default=8, help="files to measure on (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="clips at a time")
    parser.add_argument("--repeats", type=int, default=7, help="turns (default: %(default)s)")
    args = parser.parse_args(argv)
    if min(args.clips, args.repeats, *args.batches) < 1:
        parser.error("--clips, --repeats and --batches must be at least 1")
    device, clips = choose_device(args.device), find_clips(find_data(args.data_dir), args.clips)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU, one thread: no GPU was measured"
    print(machine("torch", "librosa", "numpy", "soxr"))
    print(f"{len(clips)} files; batches on {where}\n", flush=True)

    threads = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            seconds = time_batches(clips, device, args.batches, args.repeats)
            limits = bounds(device)
        finally:
            torch.set_num_threads(threads)
    process = seconds["transforms.extract"]
    rows = [(name, f"{1000 * np.median(x):.1f}", f"{1 / np.median(x):.1f}", f"{ratio(process, x):.2f}")
            for name, x in seconds.items()]
    print(format_table(rows, ["one process, or the device", "ms a clip", "clips/s", "/ transforms.extract"]) + "\n")
    rows = [(name, f"{need / 1e9:.3f}", f"{have / 1e9:.1f}", f"{have / need:.0f}") for name, need, have in limits]
    print(format_table(rows, ["bound of the device", "a clip", "a second", "clips/s at most"]) + "\n")
    best = min(np.median(x) for name, x in seconds.items() if name.startswith("batches"))
    decoding, both = np.median(seconds["decoding"]), np.median(seconds["decoding"] + process)
    print(f"A process decodes {1 / decoding:.1f} clips/s, or makes the features too of {1 / both:.1f}: a device that "
          f"keeps up gains {both / decoding:.2f} at most. This one keeps up with {decoding / best:.1f} processes.")


if __name__ == "__main__":
    sys.exit(run_command(main))
