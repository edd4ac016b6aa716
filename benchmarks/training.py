"""What a training step costs: the original study's loop beside this repository's, on the same weights.

    python benchmarks/training.py --model FrequencyCNN BBNN

Epochs of the two loops are taken in turns. benchmarks/README.md explains the table.
"""

import argparse
import copy
import inspect
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))    # for the modules of the repository

from benchmarks.timing import interleave, machine, ratio, write_tracks  # noqa: E402
from datasets import FeatureDataset  # noqa: E402
from devices import choose_device, choose_precision, keep_memory  # noqa: E402
from evaluation import format_table  # noqa: E402
from fma import run_command  # noqa: E402
from training import MODELS, Training, train_epoch  # noqa: E402

BINS, FRAMES, CLASSES, BATCH = 84, 640, 8, 32


def lay_out(data_dir, n_clips):
    """A data folder of random clips: a float16 cache as features.py makes it, a float64 array as the original's."""
    write_tracks(data_dir, n_clips)
    features = Path(data_dir) / "features"
    features.mkdir()
    values = np.random.default_rng(0).normal(-40, 15, (n_clips, BINS, FRAMES)).astype(np.float16)
    np.save(features / "cqt.npy", values)
    (features / "cqt.json").write_text(json.dumps({"scale": 1.0, "offset": 0.0, "power": 1.0}))
    (features / "index.csv").write_text("track_id,status\n" + "".join(f"{k + 1},ok\n" for k in range(n_clips)))
    np.save(Path(data_dir) / "original.npy", 10 ** (values.astype(np.float64) / 20))    # linear, as it was fed


def build(name):
    """Our network as the original's function, and the original's own: biases, and ReLU before each pool."""
    torch.manual_seed(0)
    network = MODELS[name]
    pool = {"last_pool": 6} if "last_pool" in inspect.signature(network).parameters else {}
    ours = network(BINS, n_frames=FRAMES, n_classes=CLASSES, **pool)
    original = copy.deepcopy(ours)
    for layer in original.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
        if isinstance(layer, nn.Sequential) and [type(part) for part in layer[-2:]] == [nn.MaxPool2d, nn.ReLU]:
            layer[-2], layer[-1] = layer[-1], layer[-2]
    return ours, original


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


def compare(name, data_dir, turns, device, settings):
    """Seconds per epoch of the two loops.

    Returns
    -------
    seconds : dict of str to ndarray, shape (turns,)
        Keys "original" and "ours".
    """
    dataset = FeatureDataset(data_dir, "cqt", device=device)
    dataset.normalise()
    ours, original = build(name)
    original = original.to(device)
    ours = ours.to(device, memory_format=torch.channels_last)       # as training.fit does
    loader = DataLoader(OriginalDataset(Path(data_dir) / "original.npy", dataset.labels.cpu()), BATCH, shuffle=True)
    optimizers = [torch.optim.Adam(model.parameters(), lr=settings.lr) for model in (original, ours)]
    bar = tqdm(disable=True)
    calls = {"original": lambda: original_epoch(original, loader, optimizers[0], device),
             "ours": lambda: train_epoch(ours, dataset, optimizers[1], settings, 0, bar)}
    if device.type == "cuda":
        calls = {key: lambda call=call: (call(), torch.cuda.synchronize()) for key, call in calls.items()}
    interleave(calls, 1)                                            # kernels are chosen, memory is allocated
    return interleave(calls, turns)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Measure training: the original study's loop beside this one.")
    parser.add_argument("--model", nargs="+", default=["FrequencyCNN", "TemporalCNN", "SquareCNN"], choices=MODELS,
                        metavar="NAME", help=f"of {', '.join(MODELS)} (default: the three CNNs)")
    parser.add_argument("--clips", type=int, default=4 * BATCH, help="clips of an epoch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20,
                        help="steps to measure of each loop, rounded up to whole epochs (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.clips < CLASSES or args.steps < 1:
        parser.error(f"--clips must be at least {CLASSES}, one of each genre, and --steps at least 1")
    device, settings = choose_device(), Training(batch_size=BATCH)
    keep_memory()                       # of the whole process: the original's loop gains by it too
    settings.precision = choose_precision(settings.precision, device)
    turns = -(-args.steps // -(-args.clips // BATCH))
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    print(gpu + machine("torch", "numpy") + f", {torch.get_num_threads()} threads")
    print(f"original: float32, contiguous; ours: {settings.precision}, channels last; "
          f"batches of {BATCH} at {BINS} x {FRAMES}, {turns} turns of {args.clips} clips\n", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        lay_out(folder, args.clips)
        for name in tqdm(args.model, desc="networks", unit="network", leave=False):
            seconds = compare(name, folder, turns, device, settings)
            speeds = (f"{args.clips / np.median(seconds[loop]):.1f}" for loop in ("original", "ours"))
            rows.append((name, *speeds, f"{ratio(seconds['original'], seconds['ours']):.2f}"))
    print(format_table(rows, ["network", "original, clips/s", "ours, clips/s", "ratio"]))


if __name__ == "__main__":
    sys.exit(run_command(main))
