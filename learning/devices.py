"""Where a network is trained: its device, precision and memory, and the processes that share the work."""

import ctypes
import os
import platform
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from fma import DataError

PRECISIONS = ("auto", "float32", "bfloat16")


def world():
    """Rank of this process and number of processes, as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))






def keep_memory():
    """Have glibc keep what a step frees for the next step, instead of giving it back to Linux page by page.

    On a CPU that giving and taking is up to a third of a training step. Other systems do without.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)             # M_MMAP_MAX: large tensors too come from the heap,
        libc.mallopt(-1, 2**31 - 1)     # M_TRIM_THRESHOLD: and the heap is not cut back


@contextmanager
def process_group(device):
    """Connect the processes that torchrun started, for as long as the context lasts; one alone needs no group.

    Raises
    ------
    DataError
        In the processes that are left, if another one dies.
    """
    if world()[1] == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        dist.barrier()                  # one that leaves while another still talks to it is aborted
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            raise DataError(f"process {world()[0]} of {world()[1]} lost the others, one of which has died (out of "
                            "memory, or killed): the same command goes on after the last finished epoch") from error
        raise
    dist.destroy_process_group()


class NormOverProcesses(torch.autograd.Function):
    """Batch norm over the clips of all processes, in the kernels of torch's own: three passes forward, four back."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        count = x.new_tensor([x.numel() / x.shape[1]], dtype=weight.dtype)
        mean, variance = torch.zeros_like(weight), torch.zeros_like(weight)
        if len(x):                                                              # a last batch may leave one without
            mean, variance = torch.batch_norm_update_stats(x, mean, variance, 0.0)  # in float32, as these are
        sums = torch.cat([mean * count, count])
        dist.all_reduce(sums)
        joint, total = sums[:-1] / sums[-1], sums[-1]
        variance = (variance + (mean - joint).square()) * count     # not the mean square: large ones would swamp it
        dist.all_reduce(variance)
        variance /= total
        ctx.save_for_backward(x, weight, joint, variance, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(joint, variance, total)
        y = torch.native_batch_norm(x, weight, bias, joint, variance, False, 0.0, eps)[0] if len(x) else x.clone()
        return y, joint, variance, total

    @staticmethod
    def backward(ctx, gradient, *_):
        x, weight, mean, variance, total = ctx.saved_tensors
        known = mean, variance, None, None, False, ctx.eps
        dx, dw, db = gradient, torch.zeros_like(weight), torch.zeros_like(weight)
        if len(x):                                  # the kernels crash without
            dx, dw, db = torch.ops.aten.native_batch_norm_backward(gradient, x, weight, *known, [True] * 3)
        sums = torch.cat([dw, db])
        dist.all_reduce(sums)                       # the loss of each process depends on the statistics of all
        scale = weight * (variance + ctx.eps).rsqrt() / total
        of_norm, of_mean = (scale * part for part in sums.chunk(2))
        if len(x):
            dx = dx - torch.native_batch_norm(x, of_norm, of_mean, mean, variance, False, 0.0, ctx.eps)[0]
        return dx, dw, db, None


class JointBatchNorm:
    """Batch norm over the clips of all processes, for CPUs; torch's own SyncBatchNorm needs a GPU.

    With it, N processes with a batch each compute what one process computes with the joint batch.
    """

    def forward(self, x):                                                       # (batch, channels, ...)
        if not self.training:
            return super().forward(x)
        weight = self.weight if self.affine else torch.ones_like(self.running_mean)
        bias = self.bias if self.affine else torch.zeros_like(self.running_mean)
        y, mean, variance, total = NormOverProcesses.apply(x, weight, bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1).clamp(min=1), self.momentum)
            self.num_batches_tracked += 1
        return y


class JointBatchNorm1d(JointBatchNorm, nn.BatchNorm1d):
    """Of vectors."""


class JointBatchNorm2d(JointBatchNorm, nn.BatchNorm2d):
    """Of maps."""


def join_processes(model):
    """Wrap a network for data parallel training, its batch norms over the clips of all processes."""
    if next(model.parameters()).device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    joint = {nn.BatchNorm1d: JointBatchNorm1d, nn.BatchNorm2d: JointBatchNorm2d}
    for layer in model.modules():
        layer.__class__ = joint.get(type(layer), type(layer))
    return nn.parallel.DistributedDataParallel(model)


def choose_device(name=None):
    """The named device, by default the GPU of this process or the CPU; a DataError if there is no such device."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        if device == torch.device("cuda"):
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, AttributeError) as error:     # the last two from a torch without CUDA
        raise DataError(f"device {name!r} cannot be used: choose cpu, or cuda or mps where there is one") from error
    return device


def choose_precision(precision, device):
    """Resolve "auto": bfloat16 where the hardware multiplies it, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    flags = Path("/proc/cpuinfo")
    fast = flags.is_file() and any(flag in flags.read_text() for flag in ("avx512_bf16", "amx_bf16"))
    return "bfloat16" if device.type == "cpu" and fast else "float32"


def autocast(precision, device):
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
