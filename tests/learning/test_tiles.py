"""A training step that goes tile by tile must learn what the layers learn: the same function, gradients and moments."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bbnn_models import BBNN
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


@pytest.mark.parametrize("batch, size", [(4, (12, 64)), (3, (13, 41))])        # 32 places at a time, or one
@pytest.mark.parametrize("make", [
    lambda: BBNN(12, 40), lambda: BBNN(12, 40, variant="paper"),
], ids=["bbnn", "bbnn-paper"])
def test_a_tiled_step_is_that_of_the_layers(make, batch, size, monkeypatch):
    monkeypatch.setattr(tiles, "VALUES", 2**12)                                 # several tiles, and a rest
    ours, exact = network(make)
    used, tiled = [], type(ours).tiled
    monkeypatch.setattr(type(ours), "tiled", lambda self, x: used.append(1) or tiled(self, x))
    x = torch.randn(batch, *size) + 3
    (loss, found), (expected_loss, expected) = taken(ours, x), taken(exact, x.double())
    assert used == [1]                                                          # in float32 alone
    assert loss == pytest.approx(expected_loss, abs=1e-4)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient.double(), expected[name], rtol=2e-3, atol=1e-4 * largest, msg=name)
    for (name, value), other in zip(ours.state_dict().items(), exact.state_dict().values(), strict=True):
        torch.testing.assert_close(value.to(other.dtype), other, rtol=1e-4, atol=1e-5, msg=name)


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
