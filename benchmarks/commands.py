"""What surrounds training: the start of each command, processes that share a training, a cache on disk.

    python benchmarks/commands.py

docs/speed.md explains the tables.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))    # for the modules of the repository

from benchmarks.timing import ONE_THREAD, ROOT, interleave, machine  # noqa: E402
from benchmarks.training import CLASSES, lay_out  # noqa: E402
from fma import DataError, run_command  # noqa: E402
from learning.runs import load_history  # noqa: E402
from study.tables import format_table

COMMANDS = ("demo", "features", "fma", "training", "experiments", "baselines", "predict", "study.ensembles",
            "study.leakage", "study.reproduce")
LARGE = ("torch", "librosa", "scipy", "sklearn", "pandas", "matplotlib", "numba", "soundfile")
SHARED = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}


# ---------------------------------------------------------------- start


def start_up(repeats=5):
    """Seconds from start to end of ``--help`` of each command, in turns, and the large libraries that it imports.

    Returns
    -------
    seconds : dict of str to ndarray, shape (repeats,)
    imported : dict of str to list of str
    """
    def run(*command):
        return subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    calls = {name: lambda name=name: run("-m", name, "--help") for name in COMMANDS}
    code = ("import runpy, sys; name = sys.argv[1]; sys.argv = [name, '--help']\n"
            "try: runpy.run_module(name, run_name='__main__')\n"
            "except SystemExit: pass\n"
            f"print('imported', *[name for name in {LARGE} if name in sys.modules])")
    imported = {name: run("-c", code, name).splitlines()[-1].split()[1:] for name in COMMANDS}
    return interleave(calls, repeats), imported


# ---------------------------------------------------------------- several processes


def data_of(data_dir, n_clips, n_files=1):
    """A data folder of random clips, a twentieth for validation and for test each; `n_files` times one block of them.

    The array of a collection that no memory holds takes minutes to fill with numbers drawn one by one.
    """
    block = n_clips // n_files
    lay_out(data_dir, block, (84, 640))
    features = Path(data_dir) / "features"
    (Path(data_dir) / "original.npy").unlink()
    array = np.load(features / "cqt.npy")
    with open(features / "cqt.npy", "r+b") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False,
                                                    "shape": (n_clips, 84, 640)})
        for _ in range(n_files):
            array.tofile(file)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)      # what is read comes from the disk
    held_out = max(1, n_clips // 20 // CLASSES) * CLASSES
    lines = [",set,set,track", ",split,subset,genre_top", "track_id,,,"]
    for k in range(n_clips):
        split = "validation" if k < held_out else "test" if k < 2 * held_out else "training"
        lines.append(f"{k + 1},{split},small,genre {k % CLASSES}")
    (Path(data_dir) / "fma_metadata" / "tracks.csv").write_text("\n".join(lines) + "\n")
    (features / "index.csv").write_text("track_id,status\n" + "".join(f"{k + 1},ok\n" for k in range(n_clips)))


def share_training(experiment="cqt_square", n_clips=640, epochs=4):
    """Clips per second of training.py by one process and by two, on random clips.

    Returns
    -------
    dict of str to float
        Keys of `SHARED`; of the median epoch but the first, validation included.
    """
    with tempfile.TemporaryDirectory() as folder:
        data_of(folder, n_clips)
        return {who: n_clips / train(experiment, folder, epochs, *how) for who, how in SHARED.items()}


def train(experiment, data_dir, epochs, processes=1, threads=1, before=None, expect=True):
    """Seconds of the median epoch, but the first, of training.py on its own."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    code = ("import sys, runpy, dataset\n" + ("" if expect else
            "dataset.FeatureDataset.expect = lambda self, rows: None\n") +
            "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")
    with tempfile.TemporaryDirectory() as runs_dir:
        command = [*(start if processes > 1 else [sys.executable, "-c", code]), "training.py", experiment, "--data-dir",
                   str(data_dir), "--runs-dir", runs_dir, "--epochs", str(epochs)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **dict.fromkeys(ONE_THREAD, str(threads)),
                                                      "TQDM_DISABLE": "1"},
                              preexec_fn=before, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().rpartition("\n")[2]
            raise DataError(f"training.py failed: {reason or f'status {done.returncode}'}")
        (run_dir,) = Path(runs_dir).glob("*/*/seed0")
        return float(np.median([epoch["seconds"] for epoch in load_history(run_dir)[1:]]))


# ---------------------------------------------------------------- a cache larger than memory


@contextmanager
def memory_limit(n_bytes):
    """A call that puts its process under a limit of memory, page cache included; Linux with cgroup v2, as root."""
    root = Path("/sys/fs/cgroup")
    group = root / f"benchmark-{os.getpid()}"
    try:
        if "memory" not in (root / "cgroup.controllers").read_text().split():
            raise OSError
        group.mkdir()
        (group / "memory.max").write_text(str(n_bytes))
    except OSError as error:
        raise DataError("memory cannot be limited here, which takes Linux with cgroup v2, and root: training from a "
                        "disk is not measured") from error
    try:
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()


def train_from_disk(experiment="cqt_temporal", n_clips=16_000, limit=2**30, epochs=2):
    """Clips per second of training on a cache held in memory, and on the same in a fraction of the memory.

    Returns
    -------
    dict of str to float
        "held in memory"; "read from disk", with `limit` bytes for all; and "without being told": the system is not
        told which rows come next.
    """
    with tempfile.TemporaryDirectory(dir=ROOT / "data" if (ROOT / "data").is_dir() else None) as folder:
        data_of(folder, n_clips, n_files=16)
        with memory_limit(limit) as before:
            found = {"read from disk": train(experiment, folder, epochs, threads=2, before=before),
                     "without being told": train(experiment, folder, epochs, threads=2, before=before, expect=False)}
        found["held in memory"] = train(experiment, folder, epochs, threads=2)
        return {how: n_clips / seconds for how, seconds in found.items()}


# ---------------------------------------------------------------- the command


def report(start, shared, disk):
    """Three tables; `disk` is None where it could not be measured."""
    seconds, imported = start
    rows = [(f"python -m {name} --help", f"{np.median(values):.2f}", ", ".join(imported[name]) or "none of them")
            for name, values in seconds.items()]
    tables = [format_table(rows, ["command", "seconds", f"imports of {', '.join(LARGE)}"])]
    first = next(iter(shared.values()))
    rows = [(who, f"{rate:.0f}", f"{rate / first:.2f}") for who, rate in shared.items()]
    tables.append(format_table(rows, ["training.py cqt_square", "clips of the collection/s", "/ 1 process, 1 thread"]))
    if disk:
        rows = [(how, f"{rate:.0f}", f"{rate / disk['held in memory']:.2f}") for how, rate in disk.items()]
        tables.append(format_table(rows, ["training.py cqt_temporal, a cache of 1.7 GB, 1 GiB for the process",
                                          "clips of the collection/s", "/ held in memory"]))
    return "\n\n".join(tables)


def measure():
    """What `report` takes."""
    try:
        disk = train_from_disk()
    except DataError as error:
        print(error, file=sys.stderr)
        disk = None
    return start_up(), share_training(), disk


def main(argv=None):
    parser = argparse.ArgumentParser(description="Measure start-up, two processes and a cache on disk.")
    parser.parse_args(argv)
    print(machine("torch", "numpy"), flush=True)
    print("\n" + report(*measure()))


if __name__ == "__main__":
    sys.exit(run_command(main))
