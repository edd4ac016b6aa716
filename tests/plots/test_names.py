"""Names of genres in any script and of any length can be read in every figure."""

import warnings

import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

import evaluation as ev
from plots import features, metadata, predictions, results, runs, style

NAMES = {
    "short": ["Folk", "Rock"],
    "long": ["Contemporary Singer-Songwriter and Acoustic Folk Revival (Northern Europe)", "Drum & Bass: $ and _ or $",
             "Neoclassical Darkwave, Ethereal and Industrial Electronic Music", "Rock"],
    "Cyrillic": ["Народная музыка", "Классическая музыка эпохи романтизма и модерна", "Рок"],
    "Japanese": ["演歌", "日本の伝統的な民謡と演歌のすべてを含むとても長い分類名", "Jポップ", "Rock", "雅楽"],
}


def drawn(genres):
    """Every figure that shows names of genres."""
    rng, count = np.random.default_rng(0), len(genres)
    labels = np.arange(60) % count
    scores = rng.random((60, count)) + 0.5 * np.eye(count)[labels]
    summary = ev.summarise(labels, scores, np.arange(60) // 2, genres)
    probabilities = dict(zip(genres, (scores[0] / scores[0].sum()).tolist(), strict=True))
    tracks = pd.DataFrame({"genre": np.array(genres)[labels], "artist_id": np.arange(60) // 2,
                           "split": np.resize(["training", "validation", "test"], 60), "listens": 7.0,
                           "released": "1999"})
    clip = rng.random((24, 50))
    yield runs.plot_confusion(summary["confusion"], genres)
    yield runs.plot_roc(labels, scores, genres)
    yield runs.plot_roc_and_confusion(labels, scores, genres)
    yield runs.plot_genre_accuracy(summary, 1 / count)
    yield runs.plot_embedding(rng.random((60, 2)), labels, genres)
    for kind in ("roc", "confusion"):
        yield runs.plot_panels(labels, {"SVC": scores, "LDA": scores}, genres, kind)
    yield predictions.plot_probabilities(probabilities, f"{genres[0]}.mp3: probability of each genre")
    yield predictions.plot_course([{"start": 30.0 * k, "probabilities": probabilities} for k in range(3)], 90.0,
                                  [(30.0 * k, f"{genre}\n(test)") for k, genre in enumerate(genres[:2])])
    yield from (plot(tracks) for plot in (metadata.plot_splits, metadata.plot_artist_shares,
                                          metadata.plot_years_and_plays))
    yield features.plot_waveforms({genre: (rng.normal(size=99), 100) for genre in genres})
    yield features.plot_spectra({genre: rng.random(24) for genre in genres}, "own")
    yield features.plot_relevance(clip, {f"{genres[0]}: integrated gradients, smoothed": clip - 0.5}, "own")
    made = {"experiment": "cqt_square", "dataset": "own", "test": summary, "seeds": [{"epoch": 1}],
            "config": {"feature": "cqt", "model": {"class": "SquareCNN", "args": {}}}}
    yield results.plot_recall([made])


def margins(figure):
    """Inches from what is drawn to the edges of the figure: left, bottom, right and top."""
    with style.quiet_glyphs():
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return [box.x0, box.y0, width - box.x1, height - box.y1]


@pytest.mark.parametrize("kind", NAMES)
def test_no_name_is_cut_off_or_leaves_no_room(kind, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")                      # a missing letter, a layout that does not fit
        for figure in drawn(NAMES[kind]):
            assert min(margins(figure)) > -0.01, "a text is cut off"
            assert min(axes.get_position().width * figure.get_figwidth() for axes in figure.axes
                       if axes.get_label() != "<colorbar>") > 1, "no room for the drawing"
            assert figure._repr_png_()[:4] == b"\x89PNG"
    assert kind == "Japanese" or capsys.readouterr().err == ""


@pytest.fixture
def fonts():
    """The fonts as they were, afterwards."""
    before = list(font_manager.fontManager.ttflist)
    for cached in (style.find_font, style.missing_script):
        cached.cache_clear()
    yield
    font_manager.fontManager.ttflist[:] = before
    style.find_font.cache_clear()


def test_letters_come_from_an_installed_font_that_has_them(fonts, tmp_path):
    pen = TTGlyphPen(None)
    for place in ((0, 0), (500, 0), (500, 700)):
        (pen.lineTo if pen.points else pen.moveTo)(place)
    pen.closePath()
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "sign"])
    font.setupCharacterMap({ord(letter): "sign" for letter in "ዘፈን"})
    font.setupGlyf(dict.fromkeys([".notdef", "sign"], pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys([".notdef", "sign"], (600, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Ethiopic of a test", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "ethiopic.ttf")
    font_manager.fontManager.addfont(tmp_path / "ethiopic.ttf")
    figure = runs.plot_confusion([[3, 1], [0, 2]], ["ዘፈን", "Rock"])
    families = {text.get_text(): text.get_fontfamily() for text in figure.axes[0].get_xticklabels()}
    assert families["ዘፈን"] == ["DejaVu Sans", "Ethiopic of a test"] and len(families["Rock"]) == 1


def test_without_such_a_font_one_line_says_what_to_install(fonts, capsys):
    for genres in (["ꦄꦅ", "Rock"], ["ꦄ", "Folk"]):
        runs.plot_confusion([[3, 1], [0, 2]], genres)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "Noto Sans Javanese" in said and "install Noto Sans" in said
