"""What bounds a training step: the operations and bytes that a network needs, and what the machine has of each."""

import copy
import time

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook


def matrix_rate(device, precision, size=2048, repeats=7):
    """Floating point operations per second of a product of two large matrices, on all threads."""
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, precision)) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device, repeats)


def copy_bandwidth(device, n_bytes=2**28, repeats=7):
    """Bytes per second, read and written, of a copy that no cache holds."""
    source = torch.ones(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * n_bytes / median_seconds(lambda: target.copy_(source), device, repeats)


def median_seconds(call, device, repeats):
    """Median time of a call, the GPU's part of it included; one call before that does not count."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def least_work(model, size, batch_size, value_bytes=2):
    """Operations and bytes that a training step needs at least, for each clip.

    Operations are those of convolutions, dense and recurrent layers: one product and one sum for each weight and
    place going forward, as many for the gradient of the weights, as many for that of the input unless that is the
    clip. Bytes: the clip is read in forward and backward; what such a layer puts out is written, read by the norm
    behind it, which must have seen all of it, and read again going backward, its gradient written and read. All
    else (norm, ReLU, pool) could be done in passing. Weights are read twice, and Adam reads and writes each with
    its gradient and two moments, once a step.

    Parameters
    ----------
    model : nn.Module
        Takes (batch, bins, frames).
    size : (bins, frames)
    batch_size : int
        Clips that share the weights' traffic.
    value_bytes : int
        Of an activation: 2 for bfloat16. Weights and moments have 4.

    Returns
    -------
    operations, bytes : float

    Examples
    --------
    >>> dense = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    >>> least_work(dense, (3, 4), batch_size=1)             # 2 x 2 x 60; 2 x 2 x 12 + 5 x 2 x 5 + 9 x 4 x 65
    (240.0, 2438.0)
    """
    operations, values, clip = 0, 0, torch.zeros(1, *size)

    def note(layer, inputs, output):
        nonlocal operations, values
        if not isinstance(layer, (nn.Conv2d, nn.Linear, nn.RNNBase)):
            return
        output = output[0] if isinstance(output, tuple) else output         # recurrent layers give their state too
        weights = sum(p.numel() for name, p in layer.named_parameters() if "bias" not in name)
        places = output.shape[-2:].numel() if isinstance(layer, nn.Conv2d) else output.shape[1:-1].numel()
        maps = inputs[0] if isinstance(inputs[0], tuple) else inputs[:1]    # a convolution may take several as one
        for x in maps:
            share = x.shape[1] / sum(m.shape[1] for m in maps)
            operations += 2 * weights * places * share * (2 if x.data_ptr() == clip.data_ptr() else 3)
        values += output[0].numel()

    with register_module_forward_hook(note), torch.no_grad():
        copy.deepcopy(model).eval()(clip)
    weights = sum(p.numel() for p in model.parameters())
    traffic = 2 * value_bytes * clip.numel() + 5 * value_bytes * values + 9 * 4 * weights / batch_size
    return float(operations), float(traffic)
