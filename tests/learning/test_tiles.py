"""A training step that goes tile by tile must learn what the layers learn: the same function, gradients and moments."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bbnn_models import BBNN
from cnn_models import ConvBlock, FrequencyCNN, SquareCNN
from crnn_models import ParallelCRNN, SequentialCRNN
from learning import tiles


def network(make):
    """A network with scales and shifts of either sign, and the same in double precision, whose layers are plain."""
    torch.manual_seed(0)
    model = make().to(memory_format=torch.channels_last)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1, 0.7)
            nn.init.normal_(layer.bias, 0, 0.5)
        if isinstance(layer, nn.Dropout):
            layer.p = 0
    return model, copy.deepcopy(model).double()


def taken(model, x):
    """Loss and gradients of a training step."""
    loss = F.cross_entropy(model(x), torch.arange(len(x)) % 8)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("batch, size", [(4, (12, 64)), (3, (13, 71))])        # many places at a time, or one
@pytest.mark.parametrize("make", [
    BBNN, partial(BBNN, variant="paper"), FrequencyCNN, SquareCNN, SequentialCRNN, ParallelCRNN,
], ids=["bbnn", "bbnn-paper", "frequency", "square", "sequential", "parallel"])
def test_a_tiled_step_is_that_of_the_layers(make, batch, size, monkeypatch):
    monkeypatch.setattr(tiles, "VALUES", 2**11)                                 # several tiles, and a rest
    ours, exact = network(partial(make, *size))
    used, kind = [], BBNN if isinstance(ours, BBNN) else ConvBlock
    monkeypatch.setattr(kind, "tiled", lambda self, x, tiled=kind.tiled: used.append(x.dtype) or tiled(self, x))
    x = torch.randn(batch, *size) + 3
    (loss, found), (expected_loss, expected) = taken(ours, x), taken(exact, x.double())
    assert set(used) == {torch.float32}                                         # the other went layer by layer
    assert loss == pytest.approx(expected_loss, abs=1e-4)
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in found.items():            # a value at ReLU's edge may fall on either side: the layers' do too
        assert (gradient - expected[name]).norm() < 0.02 * expected[name].norm() + 1e-4 * largest, name
    for (name, value), other in zip(ours.state_dict().items(), exact.state_dict().values(), strict=True):
        torch.testing.assert_close(value.to(other.dtype), other, rtol=1e-4, atol=1e-5, msg=name)


def test_a_maximum_gives_its_gradient_to_the_first_of_the_highest():
    values = torch.tensor([[[1.0]], [[3.0]], [[3.0]], [[2.0]]])
    gradients = torch.empty_like(values)
    tiles.give_to_highest(torch.tensor([[5.0]]), torch.tensor([[3.0]]), values, gradients)
    assert gradients.flatten().tolist() == [0, 5, 0, 0]


def test_moments_of_a_channel_far_from_zero_are_those_of_float64():
    x = (torch.randn(2, 3, 40, 50) * 0.1 + torch.tensor([1000.0, -5.0, 0.0])[:, None, None])
    _, mean, variance = tiles.Moments.apply(x.contiguous(memory_format=torch.channels_last))
    exact = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance.double(), exact.var(1, correction=0), rtol=1e-3, atol=0)


def test_tiles_are_for_training_steps_in_float32_with_plain_norms():
    model, x = BBNN(12, 40), torch.randn(2, 12, 40)
    assert tiles.applies(model, x)
    assert not tiles.applies(model, x.double())
    with torch.no_grad():
        assert not tiles.applies(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not tiles.applies(model, x)
    assert not tiles.applies(copy.deepcopy(model).eval(), x)
    model.shallow[1].__class__ = type("JointBatchNorm2d", (nn.BatchNorm2d,), {})    # as devices.join_processes does
    assert not tiles.applies(model, x)
