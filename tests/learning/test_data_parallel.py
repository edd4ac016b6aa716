"""Two processes compute what one computes. Started by torchrun, this file is the two processes (at its end)."""

import gc
import itertools
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import ROOT, quiet_environment
from torch import nn

import training
from learning import devices, runs
from study.rows import EXPERIMENTS

pytestmark = pytest.mark.usefixtures("one_thread")



JOINT = ("cqt_square", "cqt_parallel_gru_bi")
SHARED = {"epochs": 3, "batch_size": 13, "lr": 1e-4, "precision": "float32"}    # batches of 7 + 6 clips, then 7 + 7
CHANNELS = 3
JOINT_NORMS = {2: devices.JointBatchNorm1d, 4: devices.JointBatchNorm2d}        # by the dimensions of a batch


def joint_batches():
    """Batches for a batch norm: uneven, a single clip, far from zero."""
    rng = torch.Generator().manual_seed(0)
    return {"uneven": torch.randn(5, CHANNELS, 4, 6, generator=rng), "single": torch.randn(1, 3, 4, 6, generator=rng),
            "far": 1000 + torch.randn(7, CHANNELS, 4, 6, generator=rng),
            "vectors": torch.randn(9, CHANNELS, generator=rng),
            "bfloat16": (5 + 0.5 * torch.randn(7, CHANNELS, 4, 6, generator=rng)).bfloat16()}


def norm_and_gradients(norm, x):
    """What a batch norm makes of a batch, and the gradients of a loss that is not linear in it."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.copy_(0.5 + torch.rand(CHANNELS, generator=rng))
        norm.bias.copy_(torch.randn(CHANNELS, generator=rng))
    x = x.clone().requires_grad_()
    y = norm(x)
    (y**3 + y.sin()).sum().backward()
    return {"output": y.detach(), "input": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
            "mean": norm.running_mean, "variance": norm.running_var}


def numerical_gradients(rank):
    """Analytic and numerical gradient of the sum of both processes' losses, at a few inputs of each process."""
    x = torch.randn(5, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(2)).double()[rank::2].contiguous()
    norm = devices.JointBatchNorm2d(CHANNELS).double()
    found = norm_and_gradients(norm, x)["input"].flatten()

    def loss(values):
        y = norm(values)
        total = (y**3 + y.sin()).sum().detach()
        torch.distributed.all_reduce(total)
        return total.item()

    pairs = []
    for owner, place in itertools.product((0, 1), (0, 7, 11)):      # both processes take part in each
        step = torch.zeros(x.numel(), dtype=torch.float64)
        step[place] = 1e-5 * (owner == rank)
        slope = (loss(x + step.view_as(x)) - loss(x - step.view_as(x))) / 2e-5
        if owner == rank:
            pairs.append((found[place].item(), slope))
    return pairs


def one_of_two_processes(data, out):
    """What torchrun starts: batch norms, two experiments, and then the command itself."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, _ = devices.world()
    nn.Dropout.forward = lambda self, x: x
    replace = os.replace

    def replace_and_note(source, target):
        with open(out / f"written_by_{rank}", "a") as file:
            file.write(f"{target}\n")
        replace(source, target)

    os.replace = replace_and_note
    dist.init_process_group("gloo")
    result = {"numerical": numerical_gradients(rank), "norms": {}, "histories": {}}
    for name, x in joint_batches().items():
        result["norms"][name] = norm_and_gradients(JOINT_NORMS[x.ndim](CHANNELS), x[rank::2])
    for name in JOINT:
        result["histories"][name] = training.run(name, EXPERIMENTS[name], data, SHARED, out / "runs", device="cpu",
                                                 progress=False)[1]
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
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
        return out, {name: training.run(name, EXPERIMENTS[name], tiny, SHARED, out, device="cpu", progress=False)[1]
                     for name in JOINT}


@pytest.mark.parametrize("batch", joint_batches())
def test_joint_batch_norm_is_batch_norm_of_the_joint_batch(two, batch):
    x = joint_batches()[batch]
    alone = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}[x.ndim]
    expected, parts = norm_and_gradients(alone(CHANNELS), x), [rank["norms"][batch] for rank in two[1]]
    rtol, atol = {"far": (1e-3, 2e-3),                  # at 1000, float32 has four digits left
                  "bfloat16": (5e-2, 0.3)}.get(batch, (1e-4, 1e-5))
    for name in ("output", "input"):
        whole = torch.empty_like(x)
        whole[0::2], whole[1::2] = parts[0][name], parts[1][name]
        torch.testing.assert_close(whole, expected[name], rtol=rtol, atol=atol)
    for name in ("weight", "bias"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], expected[name], rtol=rtol, atol=atol)
    for name in ("mean", "variance"):
        torch.testing.assert_close(parts[0][name], expected[name], rtol=1e-5, atol=1e-5)
        assert torch.equal(parts[0][name], parts[1][name])


def test_joint_batch_norm_has_the_gradient_of_its_function(two):
    for rank in two[1]:
        assert len(rank["numerical"]) == 3
        for found, slope in rank["numerical"]:
            assert found == pytest.approx(slope, rel=1e-6, abs=1e-8) and abs(slope) > 1e-3


@pytest.mark.parametrize("name", JOINT)
def test_two_processes_train_as_one(two, one, name):
    ours, theirs = two[1][0]["histories"][name], one[1][name]
    assert len(ours) == len(theirs) == 3
    for ours_, theirs_, most in zip(ours, theirs, (1e-4, 1e-3, 5e-3), strict=True):     # Adam makes much of rounding
        assert ours_["train_loss"] == pytest.approx(theirs_["train_loss"], abs=most)
        assert ours_["validation_loss"] == pytest.approx(theirs_["validation_loss"], abs=most)
    for split in ("validation", "test"):
        both = [runs.load_probabilities(out / "tiny" / name / "seed0", split) for out in (two[0] / "runs", one[0])]
        np.testing.assert_allclose(both[0]["probabilities"], both[1]["probabilities"], atol=5e-3)
        assert both[0]["tracks"].tolist() == both[1]["tracks"].tolist()


def test_both_processes_see_the_same_history(two):
    first, second = ([[{k: v for k, v in epoch.items() if k != "seconds"} for epoch in rank["histories"][name]]
                      for name in JOINT] for rank in two[1])
    assert first == second


def test_only_the_first_process_writes(two):
    out, ranks, said = two
    assert all((rank["backend"], rank["left"], rank["status"]) == ("gloo", True, 0) for rank in ranks)
    assert len((out / "written_by_0").read_text().splitlines()) > 10
    assert not (out / "written_by_1").exists()
    assert said.count("has the best validation accuracy") == 1              # and reports
    assert runs.is_finished(out / "runs" / "tiny" / "chroma_cqt_square" / "seed0")


def test_a_killed_process_ends_the_job_which_then_goes_on_to_the_same_weights(tiny, tmp_path):
    def start(runs_dir):
        return torchrun(tmp_path, "training.py", "chroma_cqt_square", "--data-dir", tiny, "--runs-dir", runs_dir,
                        "--epochs", "12", "--device", "cpu")

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
