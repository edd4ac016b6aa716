"""What training costs: the original study's loop beside this repository's, and the least that a network needs.

    python benchmarks/training.py --network FrequencyCNN BBNN --size 84x640

Each loop has a process of its own, set up as its program would be; their epochs are taken in turns.
docs/speed.md explains the table.
"""

import argparse
import copy
import inspect
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))    # for the modules of the repository

from benchmarks.limits import copy_bandwidth, least_work, matrix_rate  # noqa: E402
from benchmarks.timing import in_turns, machine, ratio, write_tracks  # noqa: E402
from cnn_models import JoinedConv2d  # noqa: E402
from dataset import FeatureDataset  # noqa: E402
from fma import run_command  # noqa: E402
from learning.devices import choose_device, choose_precision, keep_memory  # noqa: E402
from learning.steps import optimizer_for, train_epoch  # noqa: E402
from study.tables import format_table  # noqa: E402
from training import MODELS, Training  # noqa: E402

CLASSES, BATCH = 8, 32
SIZES = {"84x640": (84, 640), "128x128": (128, 128)}
NETWORKS = {        # a class of training.MODELS and its arguments
    "FrequencyCNN": ("FrequencyCNN", {}),
    "TemporalCNN": ("TemporalCNN", {}),
    "SquareCNN": ("SquareCNN", {}),
    "ResNet-all": ("FrequencyCNN", {"blocks": ("resnet",) * 4}),
    "DenseNet-all": ("FrequencyCNN", {"blocks": ("densenet",) * 4}),
    "SequentialCRNN": ("SequentialCRNN", {"rnn": "gru"}),
    "ParallelCRNN": ("ParallelCRNN", {"rnn": "gru"}),
    "BBNN": ("BBNN", {}),
}
LOOPS = ("original", "original, memory kept", "ours")
# What makes the libraries work as on a CPU without AVX-512 and bfloat16, or on one beside a GPU.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "CUDA_VISIBLE_DEVICES": ""}


def lay_out(data_dir, n_clips, size):
    """A data folder of random clips: a float16 cache as features.py makes it, a float64 array as the original's."""
    write_tracks(data_dir, n_clips)
    features = Path(data_dir) / "features"
    features.mkdir()
    values = np.random.default_rng(0).normal(-40, 15, (n_clips, *size)).astype(np.float16)
    np.save(features / "cqt.npy", values)
    (features / "cqt.json").write_text(json.dumps({"scale": 1.0, "offset": 0.0, "power": 1.0}))
    (features / "index.csv").write_text("track_id,status\n" + "".join(f"{k + 1},ok\n" for k in range(n_clips)))
    np.save(Path(data_dir) / "original.npy", 10 ** (values.astype(np.float64) / 20))    # linear, as it was fed


def build(name, size=SIZES["84x640"]):
    """Our network as the original's function, and the original's own: biases, and ReLU before each pool."""
    torch.manual_seed(0)
    (kind, args), (n_bins, n_frames) = NETWORKS[name], size
    network = MODELS[kind]
    if "last_pool" in inspect.signature(network).parameters and n_frames == 640:
        args = {**args, "last_pool": 6}
    ours = network(n_bins, n_frames=n_frames, n_classes=CLASSES, **args)
    original = copy.deepcopy(ours)
    for layer in original.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
        if isinstance(layer, JoinedConv2d):
            layer.__class__ = Concatenated
        if isinstance(layer, nn.Sequential) and [type(part) for part in layer[-2:]] == [nn.MaxPool2d, nn.ReLU]:
            layer[-2], layer[-1] = layer[-1], layer[-2]
    return ours, original


class Concatenated(JoinedConv2d):
    """The same convolution as the original makes it: of the maps, copied into one, and with its bias."""

    def forward(self, maps):
        return self._conv_forward(torch.cat(maps, dim=1), self.weight, self.bias)


class OriginalDataset(Dataset):
    """One clip at a time, out of a float64 array on disk."""

    def __init__(self, path, labels):
        self.array, self.labels = np.load(path, mmap_mode="r"), labels

    def __len__(self):
        return len(self.array)

    def __getitem__(self, k):
        return torch.tensor(self.array[k], dtype=torch.float32), self.labels[k]


def original_epoch(model, loader, optimizer, device):
    """One pass over the training clips as the original study made it: float32, a wait for the loss at each step."""
    model.train()
    criterion, total = nn.CrossEntropyLoss(), 0.0
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


def epoch_of(loop, name, data_dir, size, precision="auto"):
    """An epoch of one of `LOOPS` as a call, with the memory settings of its program; for a process of its own."""
    if loop != "original":
        keep_memory()
    device = choose_device()
    dataset = FeatureDataset(data_dir, "cqt", device=device)
    dataset.normalise()
    settings, model = Training(batch_size=BATCH), build(name, size)[loop != "ours"]
    if loop == "ours":
        settings.precision = choose_precision(precision, device)
        model = model.to(device, memory_format=torch.channels_last)         # as training.fit does
        optimizer, bar = optimizer_for(model, settings), tqdm(disable=True)
        call = lambda: train_epoch(model, dataset, optimizer, settings, 0, bar)             # noqa: E731
    else:
        model = model.to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
        loader = DataLoader(OriginalDataset(Path(data_dir) / "original.npy", dataset.labels.cpu()), BATCH, shuffle=True)
        call = lambda: original_epoch(model, loader, optimizer, device)                     # noqa: E731
    return (lambda: (call(), torch.cuda.synchronize())) if device.type == "cuda" else call


def compare(name, size, n_clips, seconds, limits):
    """A row of the table: clips per second of the loops, and how near ours is to what the machine allows."""
    with tempfile.TemporaryDirectory() as folder:
        lay_out(folder, n_clips, size)
        took = in_turns({loop: (epoch_of, (loop, name, folder, size)) for loop in LOOPS}, seconds)
        plain = took
        if choose_device().type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2":
            with patch.dict(os.environ, AVX2):
                plain = in_turns({loop: (epoch_of, (loop, name, folder, size, "float32"))
                                  for loop in ("original", "ours")}, seconds)
    operations, traffic = least_work(build(name, size)[0], size, BATCH)
    _, traffic32 = least_work(build(name, size)[0], size, BATCH, value_bytes=4)
    rate, bandwidth, rate32 = limits
    times = {"operations": operations / rate, "bytes": traffic / bandwidth}
    bound = max(times, key=times.get)
    ours, theirs = (np.median(took[loop]) / n_clips for loop in ("ours", "original"))
    return {"network": name, "size": "×".join(map(str, size)), "turns": len(took["ours"]),
            **{loop: n_clips / np.median(took[loop]) for loop in LOOPS},
            "ratio": ratio(took["original"], took["ours"]), "ratio, memory kept": ratio(took[LOOPS[1]], took["ours"]),
            "ratio, AVX2": ratio(plain["original"], plain["ours"]),
            "operations": operations, "bytes": traffic, "bound": bound, "share": times[bound] / ours,
            "original share": max(operations / rate32, traffic32 / bandwidth) / theirs}


def measure(networks=tuple(NETWORKS), sizes=tuple(SIZES), seconds=20):
    """Rows of `compare` for networks and sizes, and the machine's matrix rate, copy bandwidth and rate in float32."""
    device = choose_device()
    limits = (matrix_rate(device, choose_precision("auto", device)), copy_bandwidth(device),
              matrix_rate(device, "float32"))
    pairs = [(name, SIZES[size]) for size in sizes for name in networks]
    bar = tqdm(pairs, desc="networks", unit="network", leave=False, disable=None)
    return [compare(name, size, 2 * BATCH, seconds, limits) for name, size in bar], limits


def describe_limits(limits, device):
    """The figures that bound every row, in a line."""
    return (f"{choose_precision('auto', device)} matrix products {limits[0] / 1e9:,.0f} GFLOP/s, float32 "
            f"{limits[2] / 1e9:,.0f} GFLOP/s, copies {limits[1] / 1e9:.1f} GB/s read and written")


def table(rows):
    """Rows of `measure` as Markdown."""
    cells = [(row["network"], row["size"], f"{row['original']:.0f}", f"{row[LOOPS[1]]:.0f}", f"{row['ours']:.0f}",
              f"{row['ratio']:.1f}", f"{row['ratio, memory kept']:.1f}", f"{row['ratio, AVX2']:.1f}",
              f"{row['operations'] / 1e6:.0f}", f"{row['bytes'] / 1e6:.1f}", row["bound"], f"{100 * row['share']:.0f}",
              f"{100 * row['original share']:.0f}") for row in rows]
    return format_table(cells, ["network", "input", "original, clips/s", "with memory kept", "ours", "ratio",
                                "ratio, memory kept", "ratio, float32 on AVX2", "MFLOP/clip", "MB/clip", "bound by",
                                "% of the bound", "original, % of float32's"])


def main(argv=None):
    parser = argparse.ArgumentParser(description="Measure training: the original study's loop beside this one.")
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NAME",
                        help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--size", nargs="+", default=list(SIZES), choices=SIZES, help="bins x frames (default: both)")
    parser.add_argument("--seconds", type=float, default=20, help="to measure each network for (default: %(default)s)")
    args = parser.parse_args(argv)
    device = choose_device()
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    print(gpu + machine("torch", "numpy") + f", {torch.get_num_threads()} threads", flush=True)
    start = time.perf_counter()
    rows, limits = measure(args.network, args.size, args.seconds)
    print(describe_limits(limits, device) + f"; batches of {BATCH}, epochs of {2 * BATCH} clips\n")
    print(table(rows) + f"\n\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(run_command(main))
