"""Where a network is trained: its device, precision and memory, and the processes that share the work."""

import os
import platform
import sys
from contextlib import contextmanager, nullcontext
from copy import deepcopy

import torch
import torch.distributed as dist
from torch import nn

from audio.workers import set_malloc
from dataset import memory_limit
from fma import DataError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def world():
    """Rank of this process and number of processes, as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def keep_memory():
    """Have glibc keep the memory that a step frees for the next step, instead of returning it to Linux page by page.

    On a CPU returning and requesting it again takes up to a third of a training step. Does nothing on other systems.
    """
    set_malloc(mmap_max=0, trim_threshold=2**31 - 1)        # large tensors are on the heap too, which never shrinks


def step_memory(model, clips, batch_size, precision):
    """Estimate the bytes that a training step on a CPU takes: twice what its forward pass keeps for the backward pass.

    That is measured on a batch of two clips. Twice, because gradients and glibc's gaps come on top: the peaks of seven
    trainings were 1.7 to 2.3 times as high.
    """
    twin, kept = deepcopy(model).train(), {}
    weights = {tuple(sorted(parameter.shape)) for parameter in twin.parameters()}     # autocast copies and turns them

    def note(tensor):
        if tuple(sorted(tensor.shape)) not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()          # itself, it would hold its own graph in memory for good

    with (torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
          autocast(precision, torch.device("cpu"))):
        logits = twin(clips)            # as long as these are there, so is what was kept, each at its own address
    del logits
    return batch_size * sum(kept.values())         # twice, for each of the two


def warn_of_memory(model, clips, settings, dataset):
    """Say on stderr if a step on a CPU will hardly fit into memory: the system would end the process without a word."""
    if dataset.device.type != "cpu" or world()[0]:
        return
    batch_size, there = min(settings.batch_size, len(dataset.rows["training"])), memory_limit()
    needed = step_memory(model, clips, batch_size, settings.precision)
    if needed > 0.8 * there:
        print(f"warning: {type(model).__name__} takes about {needed / 1e9:.2g} GB of memory for {batch_size} clips at "
              f"a time, of {there / 1e9:.2g}: if the system ends the process, choose a smaller batch_size, or a "
              "feature with fewer frames (mel128)", file=sys.stderr)


def ran_out_of_memory(error):
    """Whether an error of torch's says that memory, of a GPU or of this computer, ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


@contextmanager
def memory_named():
    """Turn torch's errors when memory runs out into a DataError; a context, or a decorator."""
    try:
        yield
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise DataError("there is too little memory for this training: choose a smaller batch_size, or a feature "
                            "with fewer frames (mel128)") from error
        raise


@contextmanager
def process_group(device):
    """Connect the processes that torchrun started, for as long as the context lasts; a single process needs no group.

    If one dies, the others get a DataError.
    """
    if world()[1] == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        dist.barrier()                  # leaving while another still communicates aborts the process
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            raise DataError(f"process {world()[0]} of {world()[1]} lost the others, one of which has died (out of "
                            "memory, or killed): the same command continues after the last saved epoch") from error
        raise
    dist.destroy_process_group()


def join_processes(model):
    """Wrap a network for data parallel training: the gradients are means over all processes.

    On GPUs batch norm uses the clips of all processes (SyncBatchNorm). On CPUs, for which torch has none, each process
    normalises its own share of a batch.
    """
    if next(model.parameters()).device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return nn.parallel.DistributedDataParallel(model)


def share_statistics(model):
    """Give all processes the batch norm statistics of the first, whose weights are saved: they validate one network."""
    if world()[1] > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


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


def name_of(device):
    """The name of a GPU, or the kind of processor, for the record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def fast_precisions(device):
    """Precisions in which a device multiplies faster than in float32, the preferred one first: tuple of str.

    bfloat16 has float32's range and needs no scaled gradients, so it comes first. GPUs have it from compute capability
    8.0 on; those before multiply float16 fast, except 5.x and 6.1. A CPU has bfloat16 if it has the instructions and
    oneDNN uses them, which ONEDNN_MAX_CPU_ISA may forbid; without them it is emulated, slower than float32.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 0):
            return "bfloat16", "float16"
        return ("float16",) if capability >= (7, 0) or capability in ((6, 0), (6, 2)) else ()
    if device.type != "cpu" or not (torch.backends.mkldnn.is_available() and
                                    torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return ()
    has = getattr(torch.cpu, "get_capabilities", dict)()            # older versions of torch have no such function
    return ("bfloat16",) if has.get("amx_bf16") or has.get("avx512_bf16") else ()


def choose_precision(precision, device, model=None, clips=None):
    """Resolve "auto" to the fastest precision in which a device can train a network; check any other.

    Parameters
    ----------
    precision : str
        One of `PRECISIONS`.
    device : torch.device
    model : nn.Module, optional
        The network; without it only the device decides.
    clips : Tensor or list of Tensor, optional
        A batch of two, on the device. What lacks a kernel is known by trying: with these a step is made, forward and
        backward, of a copy of the network.

    Raises
    ------
    DataError
        If the device cannot train this network in the named precision.
    """
    if precision == "auto":
        return next((fast for fast in fast_precisions(device) if not failure(model, clips, fast, device)), "float32")
    if reason := failure(model, clips, precision, device):
        other, network = choose_precision("auto", device, model, clips), type(model).__name__
        raise DataError(f"{network} cannot be trained in {precision} on this {device.type} ({reason}): pass "
                        f"--precision {other}")
    return precision


def failure(model, clips, precision, device):
    """Why a network cannot make a step in a precision, in a line; empty if it can. The network stays as it was."""
    if precision == "float32" or model is None:
        return ""
    twin = deepcopy(model).to(device, memory_format=torch.channels_last).train()
    try:
        with autocast(precision, device):
            loss = twin(clips).float().sum()
        loss.backward()
    except RuntimeError as error:
        if ran_out_of_memory(error):                # which says nothing about the precision
            raise DataError(f"the memory of {device} is too small for this network: close what else uses it"
                            + ", or choose --device cpu" * (device.type != "cpu")) from error
        return str(error).strip().partition("\n")[0].partition(". ")[0]
    return ""


def autocast(precision, device):
    """Context in which a network computes in a precision where that is safe, and in float32 elsewhere."""
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def inference_autocast(precision, device):
    """`autocast` for networks that only predict: a precision that this device does not multiply fast becomes float32.

    So a run is read on any machine, whatever it was trained on, with the same answers up to rounding.
    """
    return autocast(precision if precision in fast_precisions(device) else "float32", device)


def gradient_scaler(precision, device):
    """Scale losses so that float16's small gradients do not vanish; in other precisions it does nothing.

    It skips a step whose gradients overflow, and halves the scale.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")
