"""Batch norm, ReLU and 1×1 convolution tile by tile, so that what lies between them never leaves the cache.

On a CPU in float32 a network of many small layers waits for memory: each layer writes a map that the next one reads
again. Here a thousand places of a map at a time pass through all of them, and going backward they are computed
once more instead of being kept. Function, parameters and gradients are those of the layers, to rounding.

A map is (batch, channels, bins, frames) in channels-last layout; a matrix of it is (places, channels).
"""

from functools import wraps
from math import gcd

import torch
from torch import nn
from torch.autograd.function import once_differentiable

VALUES = 2**16      # of a tile, for each thread: a quarter of a MiB in float32
WIDE = 32           # rows of a matrix that elementwise operations take as one: short rows are slow


def applies(model, x):
    """Whether a training step on `x` can go tile by tile: on a CPU, in float32, with batch norms of one process."""
    return (model.training and torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
            and all(type(layer) is nn.BatchNorm2d for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)))


def or_tiled(forward):
    """The forward of a class that has `tiled` too: the same function, taken where it `applies`."""
    @wraps(forward)
    def chosen(self, x):
        return self.tiled(x) if applies(self, x) else forward(self, x)
    return chosen


def matrix(x):
    """A map as a matrix, copied only where it is not channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_map(rows, like):
    """A matrix as a map of the batch, bins and frames of another."""
    batch, _, bins, frames = like.shape
    return rows.view(batch, bins, frames, -1).permute(0, 3, 1, 2)


def tiles(*matrices):
    """The same places of each matrix, few enough for the cache."""
    values = VALUES * torch.get_num_threads()
    places = max(1, values // matrices[0].shape[1] // WIDE) * WIDE
    return zip(*(rows.split(places) for rows in matrices), strict=True)


def widen(rows, *per_channel):
    """How many rows can be taken as one, and values per channel as often."""
    count = gcd(len(rows), WIDE)
    return count, *(values.repeat(count) for values in per_channel)


class Moments(torch.autograd.Function):
    """A map with the mean and the variance of each channel: taken once for all norms that read it."""

    @staticmethod
    def forward(ctx, x):                                    # (batch, channels, bins, frames)
        rows = matrix(x)
        guess = next(tiles(rows))[0].mean(0)                # near the mean, so that squares do not swamp the variance
        count, wide = widen(rows, guess)
        total, squares = torch.zeros_like(wide), torch.zeros_like(wide)
        for tile, in tiles(rows):
            centred = tile.view(-1, len(wide)) - wide
            total += centred.sum(0)
            squares += centred.square_().sum(0)
        shift = total.view(count, -1).sum(0) / len(rows)
        variance = squares.view(count, -1).sum(0) / len(rows) - shift**2
        ctx.save_for_backward(x, guess + shift)
        return x.view_as(x), guess + shift, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, dx, dmean, dvariance):
        x, mean = ctx.saved_tensors
        rows = matrix(x)
        factor = 2 * dvariance / len(rows)
        count, factor, offset = widen(rows, factor, dmean / len(rows) - factor * mean)
        found = torch.empty_like(rows)
        for tile, gradient, out in tiles(rows, matrix(dx), found):
            out = torch.add(gradient.view(-1, len(factor)), offset, out=out.view(-1, len(factor)))
            out.addcmul_(tile.view(-1, len(factor)), factor)
        return as_map(found, x)


class Projection(torch.autograd.Function):
    """Branches of maps as if these were concatenated, each ``relu(x * scale + shift) @ weight.T``: a matrix for each.

    Arguments are the number of maps, the maps, then scale, shift and weight of each branch for the first map, for the
    second ... A weight is (out, channels), a result (places, out).
    """

    @staticmethod
    def forward(ctx, n_maps, *arguments):
        ctx.n_maps = n_maps
        ctx.save_for_backward(*arguments)
        outs = None
        for rows, _, branches in Projection.shares(n_maps, arguments):
            beta = int(outs is not None)                    # the first map's share is put there, the others' are added
            outs = outs or [rows.new_empty(len(rows), len(weight)) for _, _, weight in branches]
            for tile, *targets in tiles(rows, *outs):
                for (scale, shift, weight), target in zip(branches, targets, strict=True):
                    active = torch.addcmul(shift, tile.view(-1, len(scale)), scale).relu_()
                    torch.addmm(target, active.view(tile.shape), weight.t(), beta=beta, out=target)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        dxs, found = [], []
        for rows, count, branches in Projection.shares(ctx.n_maps, ctx.saved_tensors):
            dx, sums = torch.empty_like(rows), [[torch.zeros_like(part) for part in branch] for branch in branches]
            for parts in tiles(rows, dx, *grads):
                Projection.backward_of_tile(branches, sums, *parts)
            dxs.append(as_map(dx, ctx.saved_tensors[0]))
            for dscale, dshift, dweight in sums:
                found += [dscale.view(count, -1).sum(0), dshift.view(count, -1).sum(0), dweight]
        return None, *dxs, *found

    @staticmethod
    def shares(n_maps, arguments):
        """Of each map the matrix, the rows of it that are taken as one, and the branches."""
        each = (len(arguments) - n_maps) // n_maps
        for k, x in enumerate(arguments[:n_maps]):
            parts = arguments[n_maps + k * each:n_maps + (k + 1) * each]
            rows = matrix(x)
            count, *affine = widen(rows, *parts[::3], *parts[1::3])
            yield rows, count, list(zip(affine[:each // 3], affine[each // 3:], parts[2::3], strict=True))

    @staticmethod
    def backward_of_tile(branches, sums, x, dx, *grads):
        """Write the gradient of a tile, and add its part to the sums over all places."""
        x, dx = (part.view(-1, len(branches[0][0])) for part in (x, dx))
        for k, ((scale, shift, weight), (dscale, dshift, dweight)) in enumerate(zip(branches, sums, strict=True)):
            active = torch.addcmul(shift, x, scale).relu_()
            torch.addmm(dweight, grads[k].t(), active.view(len(grads[k]), -1), out=dweight)
            d = (grads[k] @ weight).view(x.shape)
            torch.ops.aten.threshold_backward.grad_input(d, active, 0, grad_input=d)
            dx.addcmul_(d, scale) if k else torch.mul(d, scale, out=dx)
            dshift += d.sum(0)
            dscale += d.mul_(x).sum(0)


class Activation(torch.autograd.Function):
    """``relu(x * scale + shift)`` of a map, one of each per channel."""

    @staticmethod
    def forward(ctx, x, scale, shift):
        rows = matrix(x)
        _, scale, shift = widen(rows, scale, shift)
        found = torch.empty_like(rows)
        for tile, out in tiles(rows, found):
            torch.addcmul(shift, tile.view(-1, len(scale)), scale, out=out.view(-1, len(scale))).relu_()
        found = as_map(found, x)
        ctx.save_for_backward(x, found, scale)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, y, scale = ctx.saved_tensors
        rows = matrix(x)
        dscale, dshift = torch.zeros(2, len(scale))
        found = torch.empty_like(rows)
        for parts in tiles(rows, matrix(y), matrix(dy), found):
            tile, active, dy, out = (part.view(-1, len(scale)) for part in parts)
            d = torch.ops.aten.threshold_backward(dy, active, 0)
            torch.mul(d, scale, out=out)
            dshift += d.sum(0)
            dscale += d.mul_(tile).sum(0)
        return as_map(found, x), *(part.view(-1, rows.shape[1]).sum(0) for part in (dscale, dshift))


def scale_and_shift(norm, mean, variance, count):
    """What a batch norm amounts to for a batch with such moments, which it keeps for evaluation."""
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / max(1, count - 1)), norm.momentum)
        norm.num_batches_tracked += 1
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return scale, norm.bias - mean * scale


def activate(norm, x):
    """Batch norm and ReLU of a map."""
    x, mean, variance = Moments.apply(x)
    return Activation.apply(x, *scale_and_shift(norm, mean, variance, x.numel() / x.shape[1]))


def project(maps, *branches):
    """Each branch, Sequential(BatchNorm2d, ReLU, 1×1 Conv2d), of maps as if they were concatenated: a list of maps.

    Maps are given with their moments.
    """
    maps, means, variances = zip(*maps, strict=True)
    mean, variance, count = torch.cat(means), torch.cat(variances), maps[0].numel() / maps[0].shape[1]
    widths = [x.shape[1] for x in maps]
    arguments = [[] for _ in maps]
    for norm, _, convolve in branches:
        parts = *scale_and_shift(norm, mean, variance, count), convolve.weight.flatten(1)
        for given, *shares in zip(arguments, *(part.split(widths, dim=-1) for part in parts), strict=True):
            given += [share.contiguous() for share in shares]
    outs = Projection.apply(len(maps), *maps, *(part for given in arguments for part in given))
    return [as_map(out if last.bias is None else out + last.bias, maps[0])
            for out, (_, _, last) in zip(outs, branches, strict=True)]
