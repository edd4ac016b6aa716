"""One style for all figures: colours of genres and lines, axes, and figures that display themselves in notebooks."""

import colorsys
import functools
import io
import zlib

# One colour for each of FMA's top-level genres, chosen to be distinguishable with normal, red-blind and green-blind
# vision, above all FMA-small's (the first eight), and to be visible as lines on white.
COLOURS = {
    "Electronic": "#0860c0", "Experimental": "#101880", "Folk": "#088868", "Hip-Hop": "#e0b010",
    "Instrumental": "#28b0f8", "International": "#781838", "Pop": "#f070b8", "Rock": "#e03808",
    "Classical": "#98a020", "Jazz": "#8870b0", "Blues": "#306058", "Country": "#a82038",
    "Soul-RnB": "#a03888", "Spoken": "#909090", "Easy Listening": "#28d890", "Old-Time / Historic": "#482800",
}
RUNS = ["#0860c0", "#e03808", "#088868", "#e0b010", "#781838", "#28b0f8", "#f070b8", "#909090"]
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)))    # in turn, because colours alone are hard to distinguish
TRAINING, VALIDATION, REPORTED, PLAIN, FAINT = "#8a8a8a", "#0860c0", "#e03808", "#303030", "#b0b0b0"
STYLE = {
    "figure.dpi": 110, "figure.facecolor": "white", "figure.constrained_layout.use": True,
    "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "legend.fontsize": 9,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "xtick.major.size": 0, "ytick.major.size": 0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.linewidth": 0.8,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.6,
    "lines.linewidth": 1.6, "legend.frameon": False, "image.cmap": "magma",
}


def styled(plot):
    """Draw with STYLE on Matplotlib's defaults, independent of the reader's settings and without changing them."""
    @functools.wraps(plot)
    def drawn(*args, **kwargs):
        import matplotlib.style

        with matplotlib.style.context(["default", STYLE]):
            figure = plot(*args, **kwargs)
            figure.draw_without_rendering()  # ticks are created on drawing, in the current style
        return figure
    return drawn


def new_figure(width, height, columns=1, rows=1):
    """A figure (inches) that displays itself in a notebook without pyplot, and its axes; rows share the x axis."""
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self):
            png = io.BytesIO()
            self.savefig(png, format="png")
            return png.getvalue()

    figure = NotebookFigure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, sharex="col" if rows > 1 else False)


def no_axis_line(axes, axis):
    """Remove the line and grid of an axis of categories."""
    axes.grid(False, axis=axis)
    axes.spines["left" if axis == "y" else "bottom"].set_visible(False)


def new_rows(names, xlabel, width=8.2, height=0.235):
    """A figure with a row for each name, the first on top; its axes, and a function that writes beside a row."""
    figure, axes = new_figure(width, height * len(names) + 1.5)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=xlabel, ylim=(len(names) - 0.4, -0.6))
    no_axis_line(axes, "y")
    beside = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}   # x = 1 is their right end
    return figure, axes, lambda row, text, x=1.02: axes.text(x, row, text, **beside)


def genre_colours(genres):
    """The colour of each genre, the same in every figure and in any subset.

    Parameters
    ----------
    genres : list of str
        FMA's top-level genres have fixed colours; for any other name the colour is derived from the name.

    Returns
    -------
    dict, genre to "#rrggbb"

    Examples
    --------
    >>> genre_colours(["Rock", "Zouk"])
    {'Rock': '#e03808', 'Zouk': '#c05487'}
    """
    def made(name):
        code = zlib.crc32(name.encode())  # not hash(), which changes from run to run
        rgb = colorsys.hls_to_rgb(code % 3600 / 3600, (0.3, 0.42, 0.54)[code // 3600 % 3], 0.46)
        return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)

    return {genre: COLOURS.get(genre) or made(genre) for genre in genres}
