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

VALUES = 2**17      # of a tile, for each thread: half a MiB in float32
LIGHT = 256         # products for a value of a convolution; with more, it takes most of the time itself
TINY = 1e-37        # less than what two values differ by that are not the same
WIDE = 32           # rows of a matrix that elementwise operations take as one: short rows are slow


def applies(model, x):
    """Whether a training step on `x` can go tile by tile: on a CPU, in float32, with batch norms of one process."""
    return (model.training and torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
            and all(type(layer) is nn.BatchNorm2d and layer.training for layer in model.modules()
                    if isinstance(layer, nn.BatchNorm2d)))


def or_tiled(forward):
    """The forward of a class that has `tiled` too: the same function, taken where it `applies`."""
    @wraps(forward)
    def chosen(self, x):
        return self.tiled(x) if applies(self, x) else forward(self, x)
    return chosen


def matrix(x):
    """A map as a matrix, copied only where it is not channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()


def as_map(rows, like):
    """A matrix as a map of the batch, bins and frames of another."""
    batch, _, bins, frames = like.shape
    return rows.view(batch, bins, frames, -1).permute(0, 3, 1, 2)


def tiles(*matrices, values=None, rooms=0):
    """Take the same places of each matrix, few enough for the cache, and matrices to calculate in.

    Parameters
    ----------
    *matrices : Tensor, shape (places, ...)
    values : int, optional
        Values of a place that are in the cache at a time; by default those of the first matrix.
    rooms : int
        Matrices like the first one's tile. They are the same memory for each tile, so they stay in the cache.

    Yields
    ------
    list of Tensor
        A tile of each matrix, then the rooms.
    """
    places = max(1, VALUES * torch.get_num_threads() // (values or matrices[0].shape[1]) // WIDE) * WIDE
    room = [torch.empty_like(matrices[0][:places]) for _ in range(rooms)]
    for parts in zip(*(rows.split(places) for rows in matrices), strict=True):
        yield [*parts, *(part[:len(parts[0])] for part in room)]


def widen(places, *per_channel):
    """Values per channel for as many rows as can be taken as one, where tiles are of so many places together."""
    return [values.repeat(gcd(places, WIDE)) for values in per_channel]


class Sums:
    """Mean and variance of each channel, taken tile by tile about a first guess: squares do not swamp the variance."""

    def __init__(self, rows, places):
        self.guess, self.places = rows.mean(0), places
        self.wide, = widen(places, self.guess)
        self.total, self.squares = torch.zeros(2, len(self.wide))

    def add(self, rows, room):
        centred = torch.sub(rows.view(-1, len(self.wide)), self.wide, out=room.view(-1, len(self.wide)))
        self.total += centred.sum(0)
        self.squares += centred.square_().sum(0)

    def moments(self):
        shift, squares = (part.view(-1, len(self.guess)).sum(0) / self.places for part in (self.total, self.squares))
        return self.guess + shift, squares - shift**2


def through_moments(mean, dmean, dvariance, places):
    """Factor of a value, and offset, in what its gradient gains by the moments that depend on it."""
    factor = 2 * dvariance / places
    return factor, dmean / places - factor * mean


class Moments(torch.autograd.Function):
    """A map with the mean and the variance of each channel: taken once for all norms that read it."""

    @staticmethod
    def forward(ctx, x):                                    # (batch, channels, bins, frames)
        rows, sums = matrix(x), None
        for tile, room in tiles(rows, rooms=1):
            sums = sums or Sums(tile, len(rows))
            sums.add(tile, room)
        mean, variance = sums.moments()
        ctx.save_for_backward(x, mean)
        return x.view_as(x), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, dx, dmean, dvariance):
        x, mean = ctx.saved_tensors
        rows = matrix(x)
        factor, offset = widen(len(rows), *through_moments(mean, dmean, dvariance, len(rows)))
        found = torch.empty_like(rows)
        for tile, gradient, out in tiles(rows, matrix(dx), found):
            out = torch.add(gradient.view(-1, len(factor)), offset, out=out.view(-1, len(factor)))
            out.addcmul_(tile.view(-1, len(factor)), factor)
        return as_map(found, x)


def give_to_highest(gradient, top, values, gradients):
    """The gradient of a maximum `top` of several tensors: all of it to the first that is the highest."""
    left, room = gradient, torch.empty_like(top)
    for value, found in zip(values[:-1], gradients[:-1], strict=True):
        torch.sub(value, top, out=room)
        torch.ops.aten.threshold_backward.grad_input(left, room, -TINY, grad_input=found)
        left = left - found
    gradients[-1].copy_(left)


class FirstConvolution(torch.autograd.Function):
    """The max pool of a convolution of one channel, with mean and variance of what was pooled, which is never kept.

    Arguments are patches (places after the pool, values) and for each place of a pool's window the weights (out,
    values) with which it sees a patch.
    """

    @staticmethod
    def forward(ctx, patches, weights):
        window, out, _ = weights.shape
        found, sums = patches.new_empty(len(patches), out), None
        rooms = patches.new_empty(2, 0)
        for tile, top in tiles(patches, found, values=window * out):
            if rooms[0].numel() < window * top.numel():
                rooms = patches.new_empty(2, window * top.numel())
            z, room = (part[:window * top.numel()].view(window, -1, out) for part in rooms)
            torch.matmul(tile, weights.mT, out=z)
            sums = sums or Sums(z[0], window * len(patches))
            sums.add(z, room)
            torch.maximum(z[0], z[1], out=top)
            for other in z[2:]:
                torch.maximum(top, other, out=top)
        mean, variance = sums.moments()
        ctx.save_for_backward(patches, weights, found, mean)
        return found, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, dtop, dmean, dvariance):
        patches, weights, top, mean = ctx.saved_tensors
        window, out, _ = weights.shape
        factor, offset = widen(len(patches), *through_moments(mean, dmean, dvariance, window * len(patches)))
        dweights, rooms = torch.zeros_like(weights), patches.new_empty(2, 0)
        for tile, highest, gradient in tiles(patches, top, dtop, values=window * out):
            if rooms[0].numel() < window * highest.numel():
                rooms = patches.new_empty(2, window * highest.numel())
            z, dz = (part[:window * highest.numel()].view(window, -1, out) for part in rooms)
            torch.matmul(tile, weights.mT, out=z)
            give_to_highest(gradient, highest, z, dz)
            dz.view(-1, len(factor)).add_(offset).addcmul_(z.view(-1, len(factor)), factor)
            dweights.baddbmm_(dz.mT, tile.expand(window, -1, -1))
        return None, dweights


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
        for rows, branches in Projection.shares(n_maps, arguments):
            beta = int(outs is not None)                    # the first map's share is put there, the others' are added
            outs = outs or [rows.new_empty(len(rows), len(weight)) for _, _, weight in branches]
            for tile, *targets, active in tiles(rows, *outs, rooms=1):
                for (scale, shift, weight), target in zip(branches, targets, strict=True):
                    torch.addcmul(shift, tile.view(-1, len(scale)), scale, out=active.view(-1, len(scale))).relu_()
                    torch.addmm(target, active, weight.t(), beta=beta, out=target)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        dxs, found = [], []
        for rows, branches in Projection.shares(ctx.n_maps, ctx.saved_tensors):
            dx, sums = torch.empty_like(rows), [[torch.zeros_like(part) for part in branch] for branch in branches]
            for tile, target, *dys, active, dactive in tiles(rows, dx, *grads, rooms=2):
                Projection.backward_of_tile(branches, sums, tile, target, dys, active, dactive)
            dxs.append(as_map(dx, ctx.saved_tensors[0]))
            for *affine, dweight in sums:
                found += [*(part.view(-1, rows.shape[1]).sum(0) for part in affine), dweight]
        return None, *dxs, *found

    @staticmethod
    def shares(n_maps, arguments):
        """Of each map the matrix, and the branches with scale and shift for as many rows as are taken as one."""
        each = (len(arguments) - n_maps) // n_maps
        for k, x in enumerate(arguments[:n_maps]):
            parts = arguments[n_maps + k * each:n_maps + (k + 1) * each]
            rows = matrix(x)
            affine = widen(len(rows), *parts[::3], *parts[1::3])
            yield rows, list(zip(affine[:each // 3], affine[each // 3:], parts[2::3], strict=True))

    @staticmethod
    def backward_of_tile(branches, sums, x, dx, dys, active, dactive):
        """Write the gradient of a tile, and add its part to the sums over all places."""
        a, d, x, dx = (part.view(-1, len(branches[0][0])) for part in (active, dactive, x, dx))
        for k, ((scale, shift, weight), (dscale, dshift, dweight)) in enumerate(zip(branches, sums, strict=True)):
            torch.addcmul(shift, x, scale, out=a).relu_()
            dweight.addmm_(dys[k].t(), active)
            torch.mm(dys[k], weight, out=dactive)
            torch.ops.aten.threshold_backward.grad_input(d, a, 0, grad_input=d)
            dx.addcmul_(d, scale) if k else torch.mul(d, scale, out=dx)
            dshift += d.sum(0)
            dscale += d.mul_(x).sum(0)


class Activation(torch.autograd.Function):
    """``relu(x * scale + shift)`` of a map, one of each per channel."""

    @staticmethod
    def forward(ctx, x, scale, shift):
        ctx.save_for_backward(x, scale, shift)
        rows = matrix(x)
        scale, shift = widen(len(rows), scale, shift)
        found = torch.empty_like(rows)
        for tile, out in tiles(rows, found):
            torch.addcmul(shift, tile.view(-1, len(scale)), scale, out=out.view(-1, len(scale))).relu_()
        return as_map(found, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, *affine = ctx.saved_tensors
        rows = matrix(x)
        scale, shift = widen(len(rows), *affine)
        dscale, dshift = torch.zeros(2, len(scale))
        found = torch.empty_like(rows)
        for parts in tiles(rows, matrix(dy), found, rooms=1):
            tile, dy, out, d = (part.view(-1, len(scale)) for part in parts)
            torch.addcmul(shift, tile, scale, out=d)
            torch.ops.aten.threshold_backward.grad_input(dy, d, 0, grad_input=d)
            torch.mul(d, scale, out=out)
            dshift += d.sum(0)
            dscale += d.mul_(tile).sum(0)
        return as_map(found, x), *(part.view(-1, rows.shape[1]).sum(0) for part in (dscale, dshift))


def scale_and_shift(norm, mean, variance, count, sign=1):
    """What a batch norm amounts to for a batch with such moments, which it keeps for evaluation."""
    with torch.no_grad():
        norm.running_mean.lerp_(sign * mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / max(1, count - 1)), norm.momentum)
        norm.num_batches_tracked += 1
    scale = sign * norm.weight * (variance + norm.eps).rsqrt()
    return scale, norm.bias - mean * scale


def activate(norm, x):
    """Batch norm and ReLU of a map."""
    x, mean, variance = Moments.apply(x)
    return Activation.apply(x, *scale_and_shift(norm, mean, variance, x.numel() / x.shape[1]))


def convolve_and_pool(x, convolve, norm, pool):
    """A convolution, its batch norm, max pool and ReLU.

    The pool comes before the norm, which grows with its input once channels of negative scale have changed sign.
    """
    sign = torch.ones_like(norm.weight).copysign(norm.weight.detach())
    weight, (height, width) = convolve.weight * sign.view(-1, 1, 1, 1), pool.kernel_size
    patches = patches_of(x, convolve, pool)
    if patches is None:
        bias = None if convolve.bias is None else convolve.bias * sign
        x, mean, variance = Moments.apply(convolve._conv_forward(x, weight, bias))
        y, count = pool(x), x.numel() // x.shape[1]
    else:
        seen = torch.stack([nn.functional.pad(weight, (b, width - 1 - b, a, height - 1 - a)).flatten(1)
                            for a in range(height) for b in range(width)])          # (window, out, values)
        y, mean, variance = FirstConvolution.apply(patches.view(-1, seen.shape[2]), seen)
        y, count = y.view(*patches.shape[:3], -1).permute(0, 3, 1, 2), len(seen) * len(y)
    return Activation.apply(y, *scale_and_shift(norm, mean, variance, count, sign))


def patches_of(x, convolve, pool):
    """What each place after the pool sees of a map of one channel: (batch, bins, frames, height, width).

    None for more channels, for a bias, for large kernels, and where the pool leaves bins or frames out.
    """
    (tall, wide), (height, width) = convolve.kernel_size, pool.kernel_size
    if x.shape[1] > 1 or x.requires_grad or convolve.bias is not None or tall * wide > 9 or height * width < 2:
        return None
    padding = convolve.padding
    if isinstance(padding, str):
        padding = (tall // 2, wide // 2) if padding == "same" else (0, 0)
    x = nn.functional.pad(x[:, 0], (padding[1], padding[1], padding[0], padding[0]))
    if (x.shape[1] - tall + 1) % height or (x.shape[2] - wide + 1) % width:
        return None
    return x.unfold(1, tall + height - 1, height).unfold(2, wide + width - 1, width).contiguous()


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
