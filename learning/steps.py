"""One pass over the training clips, step by step.

On a GPU no step waits for a result: batches are gathered and augmented on the GPU, and loss and accuracy stay there
until the end of the pass. The step of a small network is then limited by the launches of its kernels; `StepGraph`
launches all of them at once.
"""

import math
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from learning.augmentation import augment
from learning.devices import autocast, gradient_scaler, world
from learning.pitch_copies import clips_or_copies

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
AHEAD = 4       # batches that the system is asked to read in advance, if they come from a disk


def optimizer_for(model, settings):
    """Adam or AdamW as the settings say; on a GPU in one kernel for all weights, its rate there if it is recorded."""
    device = next(model.parameters()).device
    rate, how = settings.lr, {"fused": True} if device.type == "cuda" else {}
    if settings.graph:
        rate, how = torch.tensor(settings.lr, device=device), {**how, "capturable": True}
    return OPTIMIZERS[settings.optimizer](model.parameters(), lr=rate, weight_decay=settings.weight_decay, **how)


def learning_rate(step, steps, settings):
    """Learning rate of a step: constant, or one cycle (Smith and Topin, arXiv 1708.07120)."""
    if not settings.one_cycle:
        return settings.lr
    warm = max(1, round(0.3 * steps))
    if step < warm:
        return settings.lr * (0.04 + 0.96 * step / warm)
    return settings.lr * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def set_learning_rate(optimizer, rate):
    """Set the rate of the next step. A CUDA graph reads it from a tensor on the GPU; a resumed run has it on CPU."""
    for group in optimizer.param_groups:
        there, device = group["lr"], group["params"][0].device
        group["lr"] = there.to(device).fill_(rate) if isinstance(there, torch.Tensor) else rate


def count_steps(clips, batch_size):
    """Steps of an epoch: a last batch of less than two clips for each process is joined to the one before it."""
    return max(1, -(-clips // batch_size) - (0 < clips % batch_size < 2 * world()[1]))


def batches_of(rows, settings, epoch, device):
    """The rows of an epoch in batches, in an order that depends on seed and epoch alone: list of Tensor."""
    order = torch.from_numpy(rows)[torch.randperm(len(rows), generator=torch.Generator().manual_seed(
        settings.seed * 10_007 + epoch))]
    batches = [*order.to(device).split(settings.batch_size)]
    if len(batches) > count_steps(len(rows), settings.batch_size):
        batches[-2:] = [torch.cat(batches[-2:])]                        # batch norm needs two clips
    return batches


def train_epoch(model, dataset, optimizer, settings, epoch, bar, mean=None, graph=None, scaler=None):
    """One pass over the training clips, in an order that depends on seed and epoch alone.

    Parameters
    ----------
    mean : AveragedModel, optional
        A running mean of the weights, updated after each step.
    graph : StepGraph, optional
        Takes the steps; pass one graph to all epochs of a training.
    scaler : GradScaler, optional
        Scales the gradients of float16; pass one scaler to all epochs of a training.

    Returns
    -------
    loss, accuracy : float
        Means over the clips, as they were when each was learned.
    """
    rank, size = world()
    scaler = scaler or gradient_scaler(settings.precision, dataset.device)
    batches = batches_of(dataset.rows["training"], settings, epoch, dataset.device)
    torch.manual_seed((settings.seed * 10_007 + epoch) * 1_009 + rank)  # dropout: a resumed run draws the same
    generator = graph.generator if graph else torch.Generator(dataset.device)
    generator.manual_seed(torch.initial_seed() + 500)                   # so does augmentation
    step = partial(learn, model, dataset, optimizer, scaler, settings, generator)
    totals = torch.zeros(2, device=dataset.device)                      # stays on the GPU, so the loop never waits
    model.train()
    for k, batch in enumerate(batches):
        set_learning_rate(optimizer, learning_rate(epoch * len(batches) + k, settings.epochs * len(batches), settings))
        if k + AHEAD < len(batches) and not settings.pitch_copies:      # which copy is read is drawn later
            dataset.expect(batches[k + AHEAD][rank::size])
        totals += graph.take(step, batch) if graph else step(batch[rank::size], len(batch))
        if mean:
            mean.update_parameters(model)
        bar.update()
    if size > 1:
        dist.all_reduce(totals)
    return tuple((totals / len(dataset.rows["training"])).tolist())


def learn(model, dataset, optimizer, scaler, settings, generator, rows, count):
    """A step on this process's share of a batch of `count` clips: summed loss and correct answers, Tensor (2,)."""
    x, y, targets = training_batch(dataset, rows, settings, generator)
    with autocast(settings.precision, dataset.device):
        logits, more = (model(x), 0) if dataset.tags is None else model(x, dataset.tags[rows])
        logits = logits.float()
        weights = dataset.class_weights if settings.balance else None
        loss = more + nn.functional.cross_entropy(logits, targets, weights, reduction="sum",
                                                  label_smoothing=settings.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss * world()[1] / count).backward()                  # processes are averaged: mean over the batch
    if settings.clip_norm:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    scaler.step(optimizer)                                              # unless a gradient of float16 overflowed
    scaler.update()
    return torch.stack([loss.detach(), (logits.argmax(1) == y).sum()])


def averaged(model, decay):
    """A running mean of a network's weights [1]_, a network itself; None without a decay.

    After n steps the decay is at most (1 + n) / (10 + n), so that short trainings forget their first weights.

    References
    ----------
    .. [1] B. T. Polyak, A. B. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal on
       Control and Optimization 30(4), 1992.
    """
    def update(means, weights, _):
        n = int(mean.n_averaged)                # kept on the CPU: no waiting for a GPU
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(means, weights, n)

    mean = AveragedModel(model, multi_avg_fn=update, use_buffers=True) if decay else None
    return mean


def steps_taken(optimizer):
    """Steps that Adam has counted: those whose gradients overflowed in float16 are not among them."""
    return next((int(state["step"]) for state in optimizer.state.values()), 0)


def training_batch(dataset, rows, settings, generator):
    """Augmented and normalised clips, their labels, and the targets: the labels, or mixtures of them (mixup)."""
    if not settings.is_on():
        x, y = dataset.batch(rows)
        return x, y, y
    y = dataset.labels[rows]
    targets = (y[:, None] == torch.arange(len(dataset.genres), device=y.device)).float()     # one_hot waits for the GPU
    values = clips_or_copies(dataset, rows, generator) if settings.pitch_copies else dataset.raw(rows)
    joint, fills = isinstance(values, list), [part.mean for part in dataset.parts]
    in_db = [part.scale == "db" and "power" in part.info for part in dataset.parts]
    parts, targets = augment(values if joint else [values], targets, settings, generator, fills, in_db)
    return dataset.normalised(parts if joint else parts[0]), y, targets


class StepGraph:
    """A training step recorded once as a CUDA graph and then replayed: one launch instead of one for each kernel.

    The first steps of a training run as usual, on their own stream: libraries choose kernels and allocate memory in
    them, which must not be recorded. Batches of another size than the recorded one run as usual too. `device` is a GPU
    that holds the data set.
    """

    def __init__(self, device):
        self.generator, self.first, self.graph, self.size = torch.Generator(device), 3, None, 0

    def take(self, step, batch):
        """Take a step on a batch of rows; what is recorded and replayed is the `step` of the recording call."""
        self.size = self.size or len(batch)
        if self.first > 0:
            self.first -= 1
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                found = step(batch, len(batch))
            torch.cuda.current_stream().wait_stream(stream)
            return found
        if len(batch) != self.size:
            return step(batch, len(batch))
        if self.graph is None:
            self.rows, graph = batch.clone(), torch.cuda.CUDAGraph()
            graph.register_generator_state(self.generator)
            with torch.cuda.graph(graph):
                self.found = step(self.rows, len(batch))
            self.graph = graph
        self.rows.copy_(batch)
        self.graph.replay()
        return self.found
