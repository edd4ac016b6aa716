"""Several clips, or forms of one clip, side by side."""

import numpy as np

from figures import new_figure, styled


@styled
def plot_grid(clips, feature):
    """Spectrograms in a row, on one scale of colours.

    Parameters
    ----------
    clips : dict of str to Tensor or ndarray, shape (1, bins, frames)
        Title to clip; the axes count its frames.
    feature : str
        Named on the axis of frequency.
    """
    images = {title: np.asarray(clip)[0] for title, clip in clips.items()}
    figure, panels = new_figure(7.6, 2.2, columns=len(images))
    low, high = min(x.min() for x in images.values()), max(x.max() for x in images.values())
    for axes, (title, image) in zip(np.atleast_1d(panels), images.items(), strict=True):
        axes.imshow(image, origin="lower", aspect="auto", vmin=low, vmax=high, interpolation="nearest")
        axes.set(title=title, xlabel="frame")
        axes.grid(False)
    np.atleast_1d(panels)[0].set_ylabel(f"bin of {feature}")
    return figure
