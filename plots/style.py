"""One style for all figures: colours and names of genres, letters, axes; figures display themselves in notebooks."""

import colorsys
import contextlib
import functools
import io
import sys
import unicodedata
import warnings
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
            with quiet_glyphs():
                figure.draw_without_rendering()  # ticks are created on drawing, in the current style
                if choose_fonts(figure):
                    figure.draw_without_rendering()
        return figure
    return drawn


@contextlib.contextmanager
def quiet_glyphs():
    """No warning of Matplotlib's for each missing letter and drawing: `find_font` has said it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


# ---------------------------------------------------------------- letters and names


def choose_fonts(figure):
    """Give texts with letters that the usual font lacks a second font that has them; whether there are such texts."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    usual, found = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap(), False
    for text in figure.findobj(Text):
        lacking = frozenset(letter for letter in text.get_text() if letter.isprintable() and ord(letter) not in usual)
        if lacking and (name := find_font(lacking)):
            text.set_fontfamily(["DejaVu Sans", name])
            found = True
    return found


@functools.cache
def find_font(letters):
    """Name of an installed font with these letters; None if there is none, which is said once for each script."""
    from matplotlib import font_manager

    fonts = font_manager.fontManager
    for path in set(font_manager.findSystemFonts()) - {font.fname for font in fonts.ttflist}:
        with contextlib.suppress(RuntimeError, OSError):    # installed since Matplotlib made its list; or a damaged one
            fonts.addfont(path)
    wanted = {ord(letter) for letter in letters}
    for font in sorted(fonts.ttflist, key=lambda font: (font.style != "normal", "Sans" not in font.name, font.name)):
        if not font.name.startswith("Last Resort") and wanted <= font_manager.get_font(font.fname).get_charmap().keys():
            return font.name
    for letter in sorted(letters):
        script = unicodedata.name(letter, "UNNAMED").replace("-", " ").split()[0]
        missing_script("CJK" if script in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL") else script.title())
    return None


@functools.cache
def missing_script(script):
    """Say which font to install."""
    print(f"figures: no font here has the {script} letters, boxes stand for them: install Noto Sans {script} "
          f"(apt install fonts-noto{'-cjk' * (script == 'CJK')}, or fonts.google.com/noto)", file=sys.stderr)


def width(text):
    """Columns of a text: a Chinese, Japanese or Korean letter takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def beyond(genres):
    """Inches that the names of genres need beyond those that FMA's do."""
    return 0.12 * max(0, *(width(name) - 13 for name in shortened(genres)))


def shortened(names, most=24):
    """Names of genres or files that fit beside an axis.

    Parameters
    ----------
    names : iterable of str
    most : int
        Columns of a name. What is longer loses its middle, unless two names would become the same.

    Returns
    -------
    list of str
        In one line each, and without mathematics: a dollar sign is one.

    Examples
    --------
    >>> shortened(["Rock", "Contemporary Singer-Songwriter and Folk Revival"], 20)
    ['Rock', 'Contemporary…Revival']
    """
    def cut(text):
        head = tail = text
        while width(head) > 0.6 * most:
            head = head[:-1]
        while width(head + tail) > most - 1:
            tail = tail[1:]
        return f"{head.rpartition(' ')[0] or head}…{tail.partition(' ')[2] or tail}"        # whole words, if there are

    names = [" ".join(str(name).split()) for name in names]
    short = [name if width(name) <= most else cut(name) for name in names]
    short = short if len(set(short)) == len(set(names)) else names
    return [name.replace("$", r"\$") for name in short]


def new_figure(width, height, columns=1, rows=1):
    """A figure (inches) that displays itself in a notebook without pyplot, and its axes; rows share the x axis."""
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def savefig(self, *args, **kwargs):
            with quiet_glyphs():
                super().savefig(*args, **kwargs)

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
