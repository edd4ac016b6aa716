"""The networks are the original study's, layer by layer, and learn on inputs of other sizes too."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bbnn_models import BBNN
from cnn_models import FrequencyCNN, SquareCNN, TemporalCNN, layer_table
from crnn_models import ParallelCRNN, SequentialCRNN
from learning.devices import failure

CNNS = (FrequencyCNN, TemporalCNN, SquareCNN)
FAMILIES = {
    "frequency": FrequencyCNN,
    "resnet": partial(FrequencyCNN, blocks=("resnet",) * 4),
    "densenet": partial(FrequencyCNN, blocks=("densenet",) * 4),
    "temporal": TemporalCNN,
    "square": SquareCNN,
    "sequential": SequentialCRNN,
    "sequential-gru-bi": partial(SequentialCRNN, rnn="gru", bidirectional=True),
    "parallel": ParallelCRNN,
    "parallel-gru-bi": partial(ParallelCRNN, rnn="gru", bidirectional=True),
    "bbnn": BBNN,
    "bbnn-paper": partial(BBNN, variant="paper"),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def one_seed_and_one_thread():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                # layers this small wait longer for a second thread than they take
    yield
    torch.set_num_threads(threads)


def weights(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def settled(model, *size):
    """The model in eval mode, with statistics, scales and shifts that are not those of a new norm."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    with torch.no_grad():
        model.train()(torch.randn(2, *size))
    return model.eval()


# ---- the tables of the original study ----------------------------------------------------------------------


@pytest.mark.parametrize("last_pool", [6, None])
@pytest.mark.parametrize("network, bins, count", [
    (FrequencyCNN, 12, 116_280), (FrequencyCNN, 84, 1_456_056), (FrequencyCNN, 128, 2_176_952),
    (TemporalCNN, 12, 1_005_736), (TemporalCNN, 84, 1_028_776), (TemporalCNN, 128, 1_042_856),
    (SquareCNN, 12, 241_216), (SquareCNN, 84, 372_288), (SquareCNN, 128, 372_288),
])
def test_cnns_have_the_weights_of_the_original(network, bins, count, last_pool):
    assert weights(network(bins, last_pool=last_pool)) == count


@pytest.mark.parametrize("block, second, every", [
    ("resnet", 1_457_624, 1_470_856), ("densenet", 1_462_296, 1_503_871),
])
def test_blocks_have_the_weights_of_the_original(block, second, every):
    assert weights(FrequencyCNN(84, blocks=("basic", block, "basic", "basic"))) == second
    assert weights(FrequencyCNN(84, blocks=(block,) * 4)) == every


@pytest.mark.parametrize("rnn, bidirectional, sequential, parallel", [
    ("lstm", False, 553_536, 588_904), ("lstm", True, 767_552, 731_240),
    ("gru", False, 504_128, 561_512), ("gru", True, 668_736, 676_456),
])
def test_recurrent_networks_have_the_weights_of_the_original(rnn, bidirectional, sequential, parallel):
    assert weights(SequentialCRNN(rnn=rnn, bidirectional=bidirectional)) == sequential
    idle = weights(SquareCNN(84).classify)    # counted by the original, without a part in its output
    assert weights(ParallelCRNN(rnn=rnn, bidirectional=bidirectional)) + idle == parallel


def test_bbnn_has_the_weights_of_the_original_and_of_the_paper():
    assert weights(BBNN()) == 51_160
    assert weights(BBNN(128, 1292, n_classes=10, variant="paper")) == 185_642
    assert weights(BBNN(128, 1292, n_classes=8, variant="paper")) == 185_642 - 66


def literal(channels, kernels, paddings, pools, widths):
    """A column of the original's table, without our building blocks."""
    layers, n_in = [], 1
    for n_out, kernel, padding, pool in zip(channels, kernels, paddings, pools, strict=True):
        layers += [nn.Conv2d(n_in, n_out, kernel, padding=padding, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(),
                   nn.MaxPool2d(pool)]
        n_in = n_out
    layers += [nn.Flatten(), nn.Dropout(0.5), nn.Linear(widths[0], widths[1])]
    for n_in, n_out in zip(widths[1:], widths[2:], strict=False):
        layers += [nn.ReLU(), nn.Dropout(0.5), nn.Linear(n_in, n_out)]
    return nn.Sequential(*layers)


LITERAL = {
    FrequencyCNN: ((16, 16, 32, 32), [(1, 5)] * 4, [(0, 2)] * 4, [(1, 4), (1, 4), (1, 4), (1, 6)],
                   (2688, 512, 128, 32, 8)),
    TemporalCNN: ((64, 128, 256, 512), [(84, 5), (1, 5), (1, 5), (1, 5)], [(0, 2)] * 4,
                  [(1, 4), (1, 4), (1, 4), (1, 6)], (512, 256, 32, 8)),
    SquareCNN: ((8, 32, 128, 256), [(3, 3)] * 4, [(1, 1)] * 4, [(2, 4), (2, 4), (3, 4), (5, 6)],
                (256, 128, 32, 8)),
}


@pytest.mark.parametrize("network", CNNS)
def test_cnns_are_the_original_function_for_function(network):
    ours, table = network(84, last_pool=6), literal(*LITERAL[network])
    x = torch.randn(2, 84, 640)
    settled(ours, 84, 640)
    table.load_state_dict(dict(zip(table.state_dict(), ours.state_dict().values(), strict=True)))
    table.eval()
    assert torch.allclose(ours(x), table(x[:, None]), atol=1e-6)
    ours.train(), table.train()                              # the same dropout in the same places
    torch.manual_seed(1)
    expected = table(x[:, None])
    torch.manual_seed(1)
    assert torch.allclose(ours(x), expected, atol=1e-5)


@pytest.mark.parametrize("bins, kernels, pools", [
    (12, [(3, 3), (3, 3), (3, 3), (1, 5)], [(2, 4), (2, 4), (2, 4), (1, 6)]),
    (84, [(3, 3)] * 4, [(2, 4), (2, 4), (3, 4), (5, 6)]),
    (128, [(3, 3)] * 4, [(2, 4), (2, 4), (3, 4), (6, 6)]),
])
def test_square_cnn_has_the_kernels_and_pools_of_the_table(bins, kernels, pools):
    rows = layer_table(SquareCNN(bins, last_pool=6), bins, 640)
    assert [row[2] for row in rows if row[1] == "Conv2d"] == kernels
    assert [row[2] for row in rows if row[1] == "MaxPool2d"] == pools


def test_sequential_crnn_is_the_original_at_84_bins_and_else_pools_every_bin():
    pools = {}
    for bins in (84, 128):
        rows = layer_table(SequentialCRNN(bins), bins, 640)
        pools[bins] = [row[2] for row in rows if row[1] == "MaxPool2d"]
        assert [row[3] for row in rows if row[1] == "MaxPool2d"][-1] == (256, 1, 20)     # 20 steps of 256
    assert pools[84] == [(2, 2), (2, 2), (3, 2), (4, 4)]
    assert pools[128] == [(2, 2), (2, 2), (3, 2), (10, 4)]


@pytest.mark.parametrize("rnn", ["lstm", "gru"])
def test_recurrent_layer_gives_the_last_output_forward_and_the_first_backward(rnn):
    model = SequentialCRNN(12, 128, rnn=rnn, bidirectional=True).eval()
    given = []
    model.recur.register_forward_hook(lambda layer, _, output: given.append(output[0]))
    model.classify.register_forward_hook(lambda layer, inputs, _: given.append(inputs[0]))
    model(torch.randn(3, 12, 128))
    outputs, used = given                                    # (batch, steps, 256), (batch, 256)
    assert outputs.shape == (3, 4, 256)
    assert torch.equal(used, torch.cat([outputs[:, -1, :128], outputs[:, 0, 128:]], dim=1))


def test_residual_block_adds_and_dense_block_concatenates():
    x = torch.randn(2, 12, 640)
    model = settled(FrequencyCNN(12, blocks=("resnet", "densenet", "basic", "basic")), 12, 640)
    resnet, densenet = model.convolve[0][0], model.convolve[1][0]
    first, second, norm = resnet.residual
    h = x[:, None]
    added = F.relu(norm(second(first[2](first[1](first[0](h))))) + F.conv2d(h, resnet.shortcut.weight))
    assert torch.allclose(resnet(h), added)

    def basic(block, h):                                     # the convolution first, whatever "ReLU BN Conv" says
        return F.relu(block[1](F.conv2d(h, block[0].weight, padding="same")))
    h = added[..., :160]
    a = basic(densenet.first, h)
    b = basic(densenet.second, torch.cat([h, a], 1))
    assert torch.allclose(densenet(h), basic(densenet.compress, torch.cat([h, a, b], 1)), atol=1e-6)


def test_bbnn_concatenates_its_input_and_has_no_padding_at_first():
    model = BBNN(84, 640).eval()
    rows = {row[0]: row for row in layer_table(model, 84, 640)}
    assert rows["shallow.0"][3] == (16, 82, 638)
    assert rows["shallow.3"][3] == (16, 82, 159)
    assert rows["transition.1"][3] == (32, 41, 79)
    block, x = model.broadcast[0], torch.randn(1, 16, 9, 9)
    assert torch.equal(block(x)[:, :16], x)
    assert block(x).shape == (1, 80, 9, 9)


# ---- the defect of the last pool ---------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [12, 84])
@pytest.mark.parametrize("network", CNNS)
def test_a_last_pool_of_6_never_sees_the_end_of_a_clip(network, bins):
    x = torch.randn(2, bins, 640)
    changed = x.clone()
    changed[..., 560:] = 10 * torch.randn(2, bins, 80)       # 3.7 s, beyond the reach of the convolutions too
    original, ours = network(bins, last_pool=6).eval(), network(bins).eval()
    assert torch.equal(original(x), original(changed))
    assert not torch.allclose(ours(x), ours(changed), atol=1e-4)
    ours.load_state_dict(original.state_dict())              # the pool has no weights: either may load the other


def test_with_all_frames_pooled_the_square_cnn_sees_the_highest_bins_too():
    x = torch.randn(2, 84, 640)
    changed = x.clone()
    changed[:, 80:] = 10 * torch.randn(2, 4, 640)
    original, ours = SquareCNN(84, last_pool=6).eval(), SquareCNN(84).eval()
    assert torch.equal(original(x), original(changed))       # a pool of 5 never sees the last two of seven
    assert not torch.allclose(ours(x), ours(changed), atol=1e-4)


@every_family
def test_every_family_sees_the_end_of_a_clip_by_default(family):
    model = settled(FAMILIES[family](12, 128), 12, 128)
    x = torch.randn(2, 12, 128)
    changed = x.clone()
    changed[..., 110:118] += 20
    assert not torch.allclose(model(x), model(changed), atol=1e-4)


# ---- other sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins, frames", [
    (12, 640), (84, 640), (128, 640), (128, 128), (128, 1292), (84, 107), (84, 64), (128, 215), (20, 128),
])
@every_family
def test_logits_for_inputs_of_every_size(family, bins, frames):
    with torch.device("meta"):                               # shapes alone: nothing is computed
        assert FAMILIES[family](bins, frames, n_classes=5)(torch.randn(3, bins, frames)).shape == (3, 5)
    if frames < 120:
        logits = FAMILIES[family](bins, frames, n_classes=5)(torch.randn(3, bins, frames))
        assert logits.shape == (3, 5) and logits.isfinite().all()


@pytest.mark.parametrize("family, bins, frames", [
    ("frequency", 1, 64), ("temporal", 1, 64), ("square", 8, 64), ("sequential", 8, 32), ("parallel", 8, 64),
    ("bbnn", 4, 10), ("bbnn-paper", 2, 8),
])
def test_the_smallest_input_works_and_a_smaller_one_is_refused(family, bins, frames):
    assert FAMILIES[family](bins, frames).eval()(torch.randn(2, bins, frames)).shape == (2, 8)
    for size in [(bins - 1, frames), (bins, frames - 1)]:
        with pytest.raises(ValueError, match=f"needs at least {bins} x {frames}$"):
            FAMILIES[family](*size)


@pytest.mark.parametrize("make, message", [
    (lambda: FrequencyCNN(84, n_classes=1), "n_classes must be at least 2, not 1"),
    (lambda: BBNN(n_classes=0), "n_classes must be at least 2, not 0"),
    (lambda: FrequencyCNN(84, blocks=("basic",) * 3), "blocks must be four of basic, resnet, densenet"),
    (lambda: FrequencyCNN(84, blocks=("basic", "vgg", "basic", "basic")), "blocks must be four of .* not .*vgg"),
    (lambda: SequentialCRNN(rnn="rnn"), "rnn must be one of lstm, gru, not 'rnn'"),
    (lambda: ParallelCRNN(rnn=None), "rnn must be one of lstm, gru, not None"),
    (lambda: BBNN(variant="keras"), "variant must be original or paper, not 'keras'"),
    (lambda: TemporalCNN(84, 128, last_pool=6), "last_pool=6 .* 2 left of 128 frames to one: choose 2 to 2, or None"),
    (lambda: SquareCNN(84, 1292, last_pool=6), "last_pool=6 .* 20 left of 1292 frames to one: choose 11 to 20, or"),
    (lambda: FrequencyCNN(84, last_pool=0), "last_pool=0 .* 10 left of 640"),
])
def test_wrong_arguments_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# ---- learning ----------------------------------------------------------------------------------------------


@every_family
def test_gradients_reach_every_weight(family):
    model = FAMILIES[family](12, 128, n_classes=4)           # an idle weight would also stop DDP
    x, genres = torch.randn(8, 12, 128), torch.arange(8) % 4
    F.cross_entropy(model(x), genres, label_smoothing=0.1).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    silent = [name for name, p in model.named_parameters() if p.grad.abs().max() < 1e-7]
    if family == "bbnn-paper":                               # its biases before a norm: in the paper's count
        silent = [name for name in silent if not name.endswith("2.bias")]
    assert silent == []


@every_family
def test_every_family_can_learn_one_batch_by_heart(family):
    size = (8, 16) if "bbnn" in family else (12, 64)
    model = FAMILIES[family](*size, n_classes=4)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    x, genres = torch.randn(8, *size), torch.arange(8) % 4
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), genres)
        if loss < 0.1:
            break
        loss.backward()
        optimiser.step()
    assert loss < 0.1


@every_family
def test_a_clip_gets_the_same_logits_alone_or_in_a_batch(family):
    model = settled(FAMILIES[family](24, 128), 24, 128)
    x = torch.randn(4, 24, 128)
    with torch.inference_mode():
        together = model(x)
        assert torch.equal(model(x), together)
        assert torch.allclose(model(x[2:3]), together[2:3], atol=1e-5)


@every_family
def test_bfloat16_and_channels_last_give_nearly_the_same_logits(family):
    model = settled(FAMILIES[family](24, 128), 24, 128)
    x = torch.randn(4, 24, 128)
    with torch.inference_mode():
        exact = model(x)
        model.to(memory_format=torch.channels_last)
        assert torch.allclose(model(x), exact, atol=1e-5)
    lacking = failure(model, x, "bfloat16", x.device)
    if lacking:
        pytest.skip(f"this CPU cannot train it in bfloat16: {lacking}")
    with torch.inference_mode():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = model(x)
    assert torch.allclose(coarse.float(), exact, atol=0.02)


def test_layer_table_lists_every_weight_once_and_leaves_the_model_as_it_was():
    model = ParallelCRNN(84, 128)
    rows = layer_table(model, 84, 128)
    assert sum(row[4] for row in rows) == weights(model)
    assert rows[0] == ("convolve.0.0", "Conv2d", (3, 3), (8, 84, 128), 72)
    assert rows[-1][3] == (8,)
    assert model.training
    assert not any(layer._forward_hooks for layer in model.modules())
