"""Two processes compute what one computes. Started by torchrun, this file is the two processes (at its end)."""

import gc
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import ROOT, quiet_environment
from torch import nn

import training
from fma import DataError
from learning import devices, runs
from study.rows import EXPERIMENTS

pytestmark = pytest.mark.usefixtures("one_thread")



JOINT = ("cqt_square", "cqt_parallel_gru_bi")
WHOLE = "chroma_cqt_frequency"                                                  # with its batch norms and dropout
SHARED = {"epochs": 3, "batch_size": 13, "lr": 1e-4, "precision": "float32"}    # batches of 7 + 6 clips, then 7 + 7


def train(name, data, runs_dir):
    return training.run(name, EXPERIMENTS[name], data, SHARED, runs_dir, device="cpu", progress=False)[1]


@contextmanager
def comparable():
    """Networks of which N processes compute what one does: no dropout, and batch norms as in evaluation."""
    def evaluate(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
        monkeypatch.setattr(nn.modules.batchnorm._BatchNorm, "forward", evaluate)
        yield


def one_of_two_processes(data, out):
    """What torchrun starts: two experiments that one process repeats, one as it is, and then the command itself."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, _ = devices.world()
    replace = os.replace

    def replace_and_note(source, target):
        with open(out / f"written_by_{rank}", "a") as file:
            file.write(f"{target}\n")
        replace(source, target)

    os.replace = replace_and_note
    dist.init_process_group("gloo")
    result = {"histories": {}}
    with comparable():
        for name in JOINT:
            result["histories"][name] = train(name, data, out / "runs")
    result["histories"][WHOLE] = train(WHOLE, data, out / "runs")
    # A group cannot be made anew under the same torchrun (gloo meets itself in its store): the command gets this one.
    dist.init_process_group = lambda backend: result.update(backend=backend)
    destroy, dist.destroy_process_group = dist.destroy_process_group, lambda: result.update(left=True)
    sys.argv = ["training.py", "chroma_cqt_square", "--data-dir", str(data), "--runs-dir", str(out / "runs"),
                "--epochs", "2", "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "training.py"), run_name="__main__")
    torch.save(result | {"status": end.value.code}, out / f"rank{rank}.pt")
    gc.collect()                                # no network may outlive the group that its gradients are shared in
    dist.barrier()
    destroy()


def torchrun(out, *command):
    """Start two processes of a command; `out` is a folder of theirs."""
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                             *command], env=quiet_environment(out / "site"), cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def two(tiny, tmp_path_factory):
    """Folder of what two processes computed, what each returned, what the command printed."""
    out = tmp_path_factory.mktemp("two")
    process = torchrun(out, __file__, tiny, out)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out, [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)], said


@pytest.fixture(scope="module")
def one(tiny, tmp_path_factory):
    """Folder and histories of the same experiments in one process."""
    out = tmp_path_factory.mktemp("one")
    with comparable():
        return out, {name: train(name, tiny, out) for name in JOINT}


@pytest.mark.parametrize("name", JOINT)
def test_two_processes_train_as_one(two, one, name):
    ours, theirs = two[1][0]["histories"][name], one[1][name]
    assert len(ours) == len(theirs) == 3
    for ours_, theirs_, most in zip(ours, theirs, (2e-4, 1e-3, 5e-3), strict=True):     # Adam makes much of rounding
        assert ours_["train_loss"] == pytest.approx(theirs_["train_loss"], abs=most)
        assert ours_["validation_loss"] == pytest.approx(theirs_["validation_loss"], abs=most)
    for split in ("validation", "test"):
        both = [runs.load_probabilities(out / "tiny" / name / "seed0", split) for out in (two[0] / "runs", one[0])]
        np.testing.assert_allclose(both[0]["probabilities"], both[1]["probabilities"], atol=5e-3)
        assert both[0]["tracks"].tolist() == both[1]["tracks"].tolist()


def test_both_processes_see_the_same_history(two):
    first, second = ([[{k: v for k, v in epoch.items() if k != "seconds"} for epoch in rank["histories"][name]]
                      for name in (*JOINT, WHOLE)] for rank in two[1])
    assert first == second


def test_what_is_validated_is_what_is_saved(two):
    """On CPUs each process has batch norm statistics of its own; those of the first process are saved."""
    best = runs.selected(two[1][0]["histories"][WHOLE])
    kept = runs.load_probabilities(two[0] / "runs" / "tiny" / WHOLE / "seed0", "validation")
    loss = -np.log(kept["probabilities"][np.arange(len(kept["labels"])), kept["labels"]]).mean()
    assert best["validation_loss"] == pytest.approx(loss, rel=1e-6)


def test_a_batch_too_small_for_the_processes_is_one_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(DataError, match="batch_size 7 is less than two clips for each of 4 processes"):
        training.run("x", EXPERIMENTS[WHOLE], tiny, {"batch_size": 7}, tmp_path, device="cpu", progress=False)


def test_only_the_first_process_writes(two):
    out, ranks, said = two
    assert all((rank["backend"], rank["left"], rank["status"]) == ("gloo", True, 0) for rank in ranks)
    assert len((out / "written_by_0").read_text().splitlines()) > 10
    assert not (out / "written_by_1").exists()
    assert said.count("has the best validation accuracy") == 1              # and reports
    assert runs.is_finished(out / "runs" / "tiny" / "chroma_cqt_square" / "seed0")


def test_a_killed_process_ends_the_job_which_then_goes_on_to_the_same_weights(tiny, tmp_path):
    def start(runs_dir):
        return torchrun(tmp_path, "tests/every_epoch.py", "chroma_cqt_square", "--data-dir", tiny, "--runs-dir",
                        runs_dir, "--epochs", "12", "--device", "cpu")

    killed, run_dir = start(tmp_path / "killed"), tmp_path / "killed" / "tiny" / "chroma_cqt_square" / "seed0"
    end = time.monotonic() + 60
    while not (run_dir / "state.pt").is_file() and time.monotonic() < end:
        time.sleep(0.01)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children")
    if not children.exists():
        killed.kill()
        pytest.skip("this system does not list a process's children")
    os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
    _, errors = killed.communicate(timeout=60)
    assert killed.returncode != 0 and (run_dir / "state.pt").is_file() and not runs.is_finished(run_dir)
    assert "Traceback" not in errors.partition("torch/distributed/elastic")[0]
    assert "lost the others" in errors or "SIGTERM" in errors          # torchrun may be the first to notice
    for name in ("killed", "whole"):
        process = start(tmp_path / name)
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0 and "of 12 has the best" in said, errors
    weights = [(tmp_path / name / "tiny" / "chroma_cqt_square" / "seed0" / "model.safetensors").read_bytes()
               for name in ("killed", "whole")]
    assert weights[0] == weights[1]


if __name__ == "__main__":
    one_of_two_processes(*map(Path, sys.argv[1:]))
