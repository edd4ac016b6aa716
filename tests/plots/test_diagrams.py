"""The drawings show the networks as they are."""

import re
import warnings

import pytest
from torch import nn

from bbnn_models import BBNN, InceptionBlock
from cnn_models import DenseBlock, FrequencyCNN, ResidualBlock, SquareCNN, layer_table
from crnn_models import ParallelCRNN, SequentialCRNN
from plots import diagrams


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


@pytest.mark.parametrize("name", diagrams.DRAWINGS)
def test_every_arrow_joins_two_boxes_and_every_box_is_reached(name, tmp_path):
    boxes, arrows = diagrams.DRAWINGS[name]
    ends = [arrow.split() for arrow in arrows.split(", ")]
    assert {end for pair in ends for end in pair} == set(boxes)
    assert len(boxes) - len({end for _, end in ends}) == 1                  # one input
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = diagrams.plot_diagram(name)
        figure.savefig(tmp_path / "diagram.png")
    assert len(texts(figure)) == len(boxes)


@pytest.mark.parametrize(("name", "network"), [
    ("residual block", ResidualBlock(4, 8, (1, 5))), ("dense block", DenseBlock(4, 8, (1, 5))),
    ("inception block", InceptionBlock(16, 16, False)),
])
def test_blocks_are_drawn_with_the_kernels_they_have(name, network):
    drawn = sorted(kernel for text in texts(diagrams.plot_diagram(name))
                   for kernel in re.findall(r"conv (\d×\d)", text))
    there = sorted("×".join(map(str, m.kernel_size)) for m in network.modules() if isinstance(m, nn.Conv2d))
    assert drawn == there


def test_networks_are_drawn_with_the_widths_they_have():
    for name, network in (("SequentialCRNN", SequentialCRNN()), ("ParallelCRNN", ParallelCRNN())):
        rows = layer_table(network, 84, 640)
        dense = [row[3][0] for row in rows if row[1] == "Linear"][:-1]
        said = texts(diagrams.plot_diagram(name))
        assert ", ".join(map(str, dense)) + "\nclasses" in said
        assert any(str(network.recur.hidden_size) in text for text in said if "LSTM" in text)
    inception = [m for m in BBNN().modules() if isinstance(m, InceptionBlock)]
    assert sum("inception" in text for text in texts(diagrams.plot_diagram("BBNN"))) == len(inception)


def test_shapes_are_those_of_the_layers(tmp_path):
    figure = diagrams.plot_shapes(layer_table(SquareCNN(84), 84, 640), 84, 640)
    figure.savefig(tmp_path / "shapes.png")
    assert texts(figure) == ["clip\n1 × 84 × 640", "pool 1\n8 × 42 × 160", "pool 2\n32 × 21 × 40",
                             "pool 3\n128 × 7 × 10", "pool 4\n256 × 1 × 1", "dense\n128\n32\n8"]
    assert len(diagrams.plot_shapes(layer_table(FrequencyCNN(12, 128), 12, 128), 12, 128).axes) == 1
