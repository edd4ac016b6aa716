"""Fault injection: commands killed at random moments, full disks, two processes on one run.

    python soak/faults.py                       # about five minutes on two cores
    python soak/faults.py --rounds 50 --seed 7  # longer, at other moments

After each fault the same command is run to its end, and its output is compared byte for byte with that of an
undisturbed run. Prints a table; the exit status is 1 if any output differs.
"""

import argparse
import contextlib
import faulthandler
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pandas as pd  # noqa: E402 - sys.path is set above

import demo  # noqa: E402
import features  # noqa: E402
from audio import cluster  # noqa: E402
from fma import DataError  # noqa: E402
from study.tables import format_table  # noqa: E402

QUIET = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}


def python(*line, **kwargs):
    """Start a command of this repository."""
    given = {"cwd": ROOT, "env": QUIET, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, line)], **given | kwargs)


def finish(*line):
    """Run a command to its end; an AssertionError if it fails."""
    process = python(*line)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said[-500:]


def contents(folder):
    """Relative name to bytes of all files that are not hidden, without their seconds, which differ between runs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not re.search(r"(^|/)\.", name):
            found[name] = re.sub(rb'("seconds": )[\d.e+-]+', rb"\1", path.read_bytes())
    return found


def kill_and_go_on(line, folder, whole, lasts, kills, rng):
    """Kill a command at random moments; whenever it finishes first, compare its output and start again."""
    for _ in range(kills):
        while True:
            process = python(*line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.2, 0.9) * lasts)
            process.kill()
            if process.wait() == -9:
                break
            same_bytes(folder, whole)
            shutil.rmtree(folder)
    finish(*line)
    same_bytes(folder, whole)


def same_bytes(folder, whole):
    one, other = contents(folder), contents(whole)
    differ = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    assert not differ, f"different bytes in {', '.join(differ)}"


def timed(*line):
    start = time.monotonic()
    finish(*line)
    return time.monotonic() - start


# ---- one function for each fault, which returns a description -----------------------------------------------------


def forty_clips(folder):
    """A data folder with 40 clips of the synthetic corpus."""
    source, data = Path(demo.make(ROOT / "data" / "demo")), folder / "corpus"
    tracks = pd.read_csv(source / "fma_metadata" / "tracks.csv", index_col=0, header=[0, 1])
    chosen = sorted(random.Random(0).sample(list(tracks.index), 40))
    (data / "fma_metadata").mkdir(parents=True)
    tracks.loc[chosen].to_csv(data / "fma_metadata" / "tracks.csv")
    (data / "fma_small").symlink_to(source / "fma_small")
    return data


def features_killed(folder, rounds, rng):
    """features.py with two processes."""
    data = forty_clips(folder)
    line = ["features.py", "--data-dir", data, "--workers", 2, "--features", "cqt", "mel_stft", "mfcc",
            "--features-dir"]
    lasts = timed(*line, folder / "whole")
    kill_and_go_on([*line, folder / "killed"], folder / "killed", folder / "whole", lasts, rounds, rng)
    assert not (folder / "killed" / ".partial").exists(), "temporary files are left"
    return f"{rounds} kills of features.py with 2 processes, then to the end"


def workers_killed(folder, rounds, rng):
    """features.py on two Dask workers, of which one or both are killed as a run begins, or within two seconds."""
    try:
        import dask
        from distributed import LocalCluster
    except ImportError:
        return None
    data, tries, early, both, hit = forty_clips(folder), 10 * rounds, 0, 0, 0
    features.fill_cache(data, ["mel_stft"], features_dir=folder / "whole", workers=1, progress=False)
    cluster.BATCH = 1
    settings = {"distributed.deploy.lost-worker-timeout": "1h", "distributed.admin.log-format": "%(message)s"}
    with dask.config.set(settings), open(os.devnull, "w") as quiet, LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
            silence_logs="CRITICAL", local_directory=str(folder)) as local:

        def kill(pids, after):
            time.sleep(after)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        for _ in range(tries):
            pids = [nanny.pid for nanny in local.workers.values() if nanny.pid]     # also of one that is starting
            pids = rng.sample(pids, min(len(pids), rng.choice((1, 1, 2))))
            after = rng.uniform(0, rng.choice((0.5, 2)))
            killer = threading.Thread(target=kill, args=(pids, after))
            faulthandler.dump_traceback_later(180, exit=True)       # a run that hangs
            killer.start()
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                features.fill_cache(data, ["mel_stft"], features_dir=folder / "killed", progress=False,
                                    scheduler=local.scheduler_address, wait_for_workers=60)
            hit += not killer.is_alive()
            killer.join()
            faulthandler.cancel_dump_traceback_later()
            early += after < 0.5
            both += len(pids) > 1
            same_bytes(folder / "killed", folder / "whole")
            assert not (folder / "killed" / ".partial").exists(), "something is left"
            shutil.rmtree(folder / "killed")
    return (f"{tries} runs of features.py on 2 Dask workers: workers killed before the end of {hit}, in the first half "
            f"second of {early}, both at once in {both}")


def tiny(folder):
    from synthetic import make_collection

    return make_collection(folder / "tiny")


def training_line(data, runs_dir, epochs=30):
    return ["training.py", "chroma_cqt_square", "--data-dir", data, "--runs-dir", runs_dir, "--epochs", epochs,
            "--batch-size", 16, "--precision", "float32", "--device", "cpu"]


def training_killed(folder, rounds, rng):
    data = tiny(folder)
    lasts = timed(*training_line(data, folder / "whole"))
    kill_and_go_on(training_line(data, folder / "killed"), folder / "killed", folder / "whole", lasts, rounds, rng)
    return f"{rounds} kills of training.py, then to the end"


def experiments_killed(folder, rounds, rng):
    """Two seeds, their result and predictions, and then the table of a text."""
    data, lines = tiny(folder), {}
    for name in ("whole", "killed"):
        lines[name] = ["experiments.py", "run", "chroma_cqt_square", "--repeats", 2, "--epochs", 3, "--data-dir", data,
                       "--device", "cpu", "--runs-dir", folder / name, "--results-dir", folder / name / "results"]
    kill_and_go_on(lines["killed"], folder / "killed", folder / "whole", timed(*lines["whole"]), rounds, rng)
    for name in lines:
        (folder / name / "README.md").write_text("<!-- table tiny * -->\n<!-- end -->\n")
        finish("experiments.py", "table", "--readme", folder / name / "README.md", "--results-dir",
               folder / name / "results")
    same_bytes(folder / "killed", folder / "whole")
    return f"{rounds} kills of experiments.py run, then to the end and into a table"


def two_at_once(folder, rounds, rng):
    data, refused = tiny(folder), 0
    finish(*training_line(data, folder / "whole"))
    for k in range(rounds):
        both = []
        for _ in range(2):
            both.append(python(*training_line(data, folder / f"run{k}")))
            time.sleep(rng.uniform(0, 0.5))
        said = [process.communicate(timeout=600)[1] for process in both]
        statuses = sorted(process.returncode for process in both)
        assert statuses in ([0, 0], [0, 2]), said
        refused += statuses == [0, 2]
        assert all(process.returncode == 0 or "is being trained by another process" in text
                   for process, text in zip(both, said, strict=True)), said
        same_bytes(folder / f"run{k}", folder / "whole")
    return f"{rounds} pairs of training.py on one run: the second refused {refused} times, else it came after the first"


def disks_full(folder, rounds, rng):
    """A file system that is full, and then enlarged; mounted in a namespace of its own."""
    mount = ["unshare", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*mount, "mount -t tmpfs none /mnt"],
                                                     capture_output=True).returncode:
        return None
    data, sizes = tiny(folder), [100, 600, 1500, 2500, 4000, *(rng.randint(50, 5000) for _ in range(rounds - 5))]
    finish(*training_line(data, folder / "whole", 4))
    (folder / "disk").mkdir()
    line = " ".join(f"'{word}'" for word in [sys.executable, *training_line(data, folder / "disk" / "runs", 4)])
    stopped = 0
    for size in sizes:
        script = (f"set -e; mount -t tmpfs -o size={size}k none {folder}/disk; status=0; {line} || status=$?; "
                  f"echo status $status >&2; mount -o remount,size=99m {folder}/disk; {line}; "
                  f"cp -r {folder}/disk/runs {folder}/copy{size}")
        done = subprocess.run([*mount, script], cwd=ROOT, env=QUIET, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-500:]
        stopped += "status 2" in done.stderr
        assert ("status 2" in done.stderr) == ("cannot be" in done.stderr), done.stderr[-500:]
        same_bytes(folder / f"copy{size}", folder / "whole")
    return f"training.py on {len(sizes)} disks of {min(sizes)} to {max(sizes)} kB: {stopped} full, then enlarged"


FAULTS = (features_killed, workers_killed, training_killed, experiments_killed, two_at_once, disks_full)
NEEDS = {workers_killed: "dask.distributed", disks_full: "permission to mount"}


def main(argv=None):
    parser = argparse.ArgumentParser(description="Inject faults at random moments and check that nothing is lost.")
    parser.add_argument("--rounds", type=int, default=8, help="kills of each command (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default 0)")
    parser.add_argument("--only", nargs="+", choices=[fault.__name__ for fault in FAULTS], metavar="FAULT",
                        help=f"one or more of {', '.join(fault.__name__ for fault in FAULTS)}")
    args = parser.parse_args(argv)
    rows, failed = [], False
    for fault in FAULTS:
        if args.only and fault.__name__ not in args.only:
            continue
        start, name = time.monotonic(), fault.__name__.replace("_", " ")
        with tempfile.TemporaryDirectory() as folder:
            try:
                tried = fault(Path(folder), args.rounds, random.Random(args.seed))
                outcome = f"not tried: no {NEEDS[fault]}" if tried is None else "same bytes, no incomplete files"
            except (AssertionError, DataError, subprocess.TimeoutExpired) as error:
                tried, outcome, failed = "", f"FAILED: {' '.join(str(error).split())}", True
        print(f"{name}: {outcome}", file=sys.stderr, flush=True)
        rows.append([name, tried, outcome, f"{time.monotonic() - start:.0f}"])
    print(format_table(rows, ["fault", "tried", "outcome", "seconds"]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
