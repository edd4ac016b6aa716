"""The networks past the study: statistics are SciPy's, and each branch learns to answer by itself."""

import numpy as np
import pytest
import torch
from scipy import fft, stats

from resnet_models import ClipStatistics, ResNet, SpecMask, StatisticsResNet

pytestmark = pytest.mark.usefixtures("one_thread")


def test_clip_statistics_are_those_of_scipy():
    x = np.random.default_rng(0).gamma(2, size=(3, 64, 51)).astype(np.float32)
    layer = ClipStatistics(64, 13, least=1e-9)
    found = layer(torch.from_numpy(x)).numpy()
    both = np.concatenate([x, fft.dct(x, axis=1, norm="ortho")[:, :13]], axis=1).astype(float)
    expected = [both.mean(2), both.std(2), np.median(both, 2), both.min(2), both.max(2), stats.skew(both, axis=2),
                stats.kurtosis(both, axis=2, fisher=False), np.abs(np.diff(both, axis=2)).mean(2)]
    np.testing.assert_allclose(found, np.concatenate(expected, 1), rtol=1e-3, atol=1e-4)
    assert layer.n_values == 8 * (64 + 13) == found.shape[1]
    assert not list(layer.parameters()) and not layer.state_dict()


def test_clip_statistics_of_a_clip_that_never_changes_are_finite():
    assert ClipStatistics(16, 5)(torch.full((2, 16, 20), -80.0)).isfinite().all()


def test_masks_hide_stretches_in_training_alone():
    x, layer = torch.rand(40, 32, 64) + 1, SpecMask(0.125)
    torch.manual_seed(3)
    masked = layer(x)
    torch.manual_seed(3)
    assert torch.equal(masked, layer(x)) and not torch.equal(masked, layer(x))
    hidden = masked == 0
    assert torch.equal(masked[~hidden], x[~hidden])
    for dim, most in ((1, 4), (2, 8)):                      # bins, then frames
        whole = hidden.all(3 - dim).sum(1)
        assert 0 < whole.max() <= 2 * most and whole.min() < whole.max()
    assert torch.equal(layer.eval()(x), x) and torch.equal(SpecMask(0.0)(x), x)


def test_more_coefficients_than_bins_there_are_not():
    assert ClipStatistics(12).n_values == 8 * (12 + 12)


def test_the_residual_network_is_small():
    assert sum(p.numel() for p in ResNet(128, 128).parameters()) == 693_584


@pytest.mark.parametrize("kind", [ResNet, StatisticsResNet])
def test_network_takes_other_lengths_and_classes(kind):
    network = kind(84, 640, 5, width=4).eval()
    assert network(torch.randn(2, 84, 640)).shape == (2, 5) == network(torch.randn(2, 84, 215)).shape
    with pytest.raises(ValueError, match="n_classes must be at least 2"):
        kind(84, 640, 1)


def test_statistics_alone_are_a_network_too():
    network = StatisticsResNet(32, 32, 3, width=0).eval()
    assert network(torch.randn(4, 32, 32)).shape == (4, 3) and network.resnet is None


def test_branches_are_averaged_and_in_training_either_may_be_left_out():
    network = StatisticsResNet(32, 32, 3, width=4, dropout=0.0).eval()
    x = torch.randn(200, 32, 32)
    resnet, dense = network.resnet(x), network.dense(network.statistics(x))
    assert torch.allclose(network(x), (resnet + dense) / 2, atol=1e-6)
    network.training = True                                 # this module alone: its layers answer as before
    with torch.no_grad():
        mixed = network(x)
    alone = [torch.isclose(mixed, branch, atol=1e-6).all(1).float().mean() for branch in (resnet, dense)]
    assert all(0.1 < share < 0.45 for share in alone) and sum(alone) < 0.75
