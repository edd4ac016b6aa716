"""Drawings of the architectures, as boxes and arrows and as the shapes of their activations."""

import numpy as np

from plots.style import FAINT, PLAIN, new_figure, styled

FILLS = {"data": "#ffffff", "conv": "#cfe0f4", "pool": "#e4e4e4", "rnn": "#cdeade", "dense": "#fbe3c0",
         "join": "#f6d3e6"}
KINDS = {"conv": "convolution", "pool": "pool or average", "rnn": "recurrent layer", "dense": "dense layers",
         "join": "add or concatenate"}

# A drawing: boxes by name, (column, row, kind, text), and arrows between names. Rows count upwards.
DRAWINGS = {
    "residual block": (
        {"x": (0, 0.5, "data", "input"), "a": (1, 1, "conv", "conv 1×5\nnorm, ReLU"),
         "b": (2, 1, "conv", "conv 1×5\nnorm"),
         "s": (1.5, 0, "conv", "conv 1×1"), "+": (3, 0.5, "join", "add,\nReLU"), "y": (4, 0.5, "data", "output")},
        "x a, a b, b +, x s, s +, + y"),
    "dense block": (
        {"x": (0, 0.5, "data", "input"), "a": (1, 1, "conv", "conv 1×5\nnorm, ReLU"),
         "c": (2, 0.5, "join", "concatenate\nwith input"),
         "b": (3, 1, "conv", "conv 1×5\nnorm, ReLU"), "d": (4, 0.5, "join", "concatenate\nwith that"),
         "e": (5, 0.5, "conv", "conv 1×1\nnorm, ReLU"), "y": (6, 0.5, "data", "output")},
        "x a, a c, x c, c b, b d, c d, d e, e y"),
    "SequentialCRNN": (
        {"x": (0, 0, "data", "clip\nbins × frames"), "c": (1, 0, "conv", "4 × conv 3×3\nand pool"),
         "s": (2, 0, "data", "steps of\n256 values"), "r": (3, 0, "rnn", "LSTM or GRU\n128 values"),
         "h": (4, 0, "data", "last output"), "d": (5, 0, "dense", "128, 32\nclasses")},
        "x c, c s, s r, r h, h d"),
    "ParallelCRNN": (
        {"x": (0, 0.5, "data", "clip\nbins × frames"), "c": (1.5, 1, "conv", "SquareCNN's convolutions\n256 values"),
         "p": (1, 0, "pool", "mean of\n20 frames"), "r": (2, 0, "rnn", "LSTM or GRU\n128 values"),
         "+": (3, 0.5, "join", "concatenate\n384 or 512"), "d": (4, 0.5, "dense", "256, 32\nclasses")},
        "x c, x p, p r, r +, c +, + d"),
    "inception block": (
        {"x": (0, 1.5, "data", "input"), "p": (1, 3, "pool", "max pool 3×3"), "p1": (2, 3, "conv", "conv 1×1"),
         "t1": (1, 2, "conv", "conv 1×1"), "t": (2, 2, "conv", "conv 3×3"), "f1": (1, 1, "conv", "conv 1×1"),
         "f": (2, 1, "conv", "conv 5×5"), "o": (1.5, 0, "conv", "conv 1×1"),
         "+": (3, 1.5, "join", "concatenate\nwith input"), "y": (4, 1.5, "data", "output")},
        "x p, p p1, p1 +, x t1, t1 t, t +, x f1, f1 f, f +, x o, o +, x +, + y"),
    "BBNN": (
        {"x": (0, 0, "data", "clip\nbins × frames"), "c": (1, 0, "conv", "conv 3×3\npool 1×4"),
         "i1": (2, 0, "join", "inception\nblock 1"),
         "i2": (3, 0, "join", "inception\nblock 2"), "i3": (4, 0, "join", "inception\nblock 3"),
         "t": (5, 0, "conv", "conv 1×1\npool 2×2"), "m": (6, 0, "pool", "mean over\nthe clip"),
         "d": (7, 0, "dense", "classes")},
        "x c, c i1, i1 i2, i2 i3, i3 t, t m, m d"),
}


@styled
def plot_diagram(name):
    """Block diagram of an architecture or of one of its blocks.

    Parameters
    ----------
    name : str
        A key of `DRAWINGS`.
    """
    from matplotlib.patches import Patch

    boxes, arrows = DRAWINGS[name]
    columns, rows = (max(box[k] for box in boxes.values()) + 1 for k in (0, 1))
    figure, axes = new_figure(min(9.0, 1.55 * columns), 0.75 * rows + 0.5)
    axes.set(xlim=(-0.55, columns - 0.45), ylim=(-0.5, rows - 0.5))
    axes.set_axis_off()
    drawn = {key: axes.text(column, row, text, ha="center", va="center", fontsize=9, zorder=3, in_layout=False, bbox={
        "boxstyle": "round,pad=0.35", "facecolor": FILLS[kind], "edgecolor": PLAIN, "linewidth": 0.8})
        for key, (column, row, kind, text) in boxes.items()}
    figure.draw_without_rendering()                         # the boxes get the size of their text here
    for arrow in arrows.split(", "):
        start, end = arrow.split()
        axes.annotate("", boxes[end][:2], boxes[start][:2], zorder=4, arrowprops={
            "arrowstyle": "-|>", "color": PLAIN, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0,
            "patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()})
    used = dict.fromkeys(kind for _, _, kind, _ in boxes.values() if kind in KINDS)
    figure.legend(handles=[Patch(facecolor=FILLS[kind], edgecolor=PLAIN, linewidth=0.6, label=KINDS[kind])
                           for kind in used], loc="outside lower center", ncols=len(used), handlelength=1.2)
    return figure


@styled
def plot_shapes(rows, n_bins, n_frames):
    """Shapes of the activations after each pool, drawn to scale, and sizes of the dense layers.

    Parameters
    ----------
    rows : list of tuple
        From `cnn_models.layer_table`, of a sequential network.
    n_bins, n_frames : int
        Size of the clip.
    """
    from matplotlib.patches import Rectangle

    pictures = [("clip", (1, n_bins, n_frames))]
    pictures += [(f"pool {k}", row[3]) for k, row in enumerate([r for r in rows if "MaxPool" in r[1]], 1)]
    figure, axes = new_figure(9.0, 2.9)
    left, gap = 0.0, 0.16 * n_frames
    for name, (channels, bins, frames) in pictures:
        layers = int(np.clip(np.log2(channels), 0, 8))          # one sheet per doubling of the channels
        for sheet in reversed(range(layers + 1)):
            offset = 0.012 * sheet
            axes.add_patch(Rectangle((left + offset * n_frames, (n_bins - bins) / 2 + offset * 2 * n_bins),
                                     max(frames, 0.008 * n_frames), max(bins, 0.02 * n_bins), facecolor=FILLS["conv"],
                                     edgecolor=PLAIN if sheet == 0 else FAINT, linewidth=0.8))
        width = max(frames, 0.008 * n_frames) + 0.012 * layers * n_frames
        axes.text(left + width / 2, -0.08 * n_bins, f"{name}\n{channels} × {bins} × {frames}",
                  ha="center", va="top", fontsize=9)
        left += max(width, 0.2 * n_frames) + gap
    dense = [row for row in rows if row[1] == "Linear"]
    axes.text(left, n_bins / 2, "dense\n" + "\n".join(str(row[3][0]) for row in dense), ha="center", va="center",
              fontsize=9, bbox={"boxstyle": "round,pad=0.4", "facecolor": FILLS["dense"], "edgecolor": PLAIN,
                                "linewidth": 0.8})
    axes.set(xlim=(-0.02 * n_frames, left + gap), ylim=(-0.4 * n_bins, 1.25 * n_bins))
    axes.set_axis_off()
    axes.set_title("channels × bins × frames", fontsize=9, loc="left")
    return figure
