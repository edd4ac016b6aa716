"""Each figure is drawn, saved and says what it should."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import evaluation as ev
from plots import features as ff
from plots import metadata as mf
from plots import players, style
from plots import runs as fg

ROOT = Path(__file__).resolve().parents[2]
GENRES = ["Electronic", "Experimental", "Folk", "Hip-Hop", "Instrumental", "International", "Pop", "Rock"]
RNG = np.random.default_rng(0)
LABELS = np.arange(160) % 8
SCORES = RNG.random((3, 160, 8)) + 0.5 * np.eye(8)[LABELS]


def history(best=3, epochs=6):
    return [{"epoch": e, "train_loss": 2 / e, "train_accuracy": e / 10, "validation_loss": 2 / e + 0.1,
             "validation_accuracy": 0.4 - 0.01 * abs(e - best)} for e in range(1, epochs + 1)]


@pytest.fixture
def save(tmp_path):
    def to_png(figure):
        figure.savefig(tmp_path / "figure.png")
        png = (tmp_path / "figure.png").read_bytes()
        assert png[:4] == b"\x89PNG" and len(png) > 5000
        return figure
    return to_png


def texts(axes):
    return [text.get_text() for text in axes.texts]


def tick_names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_importing_and_plotting_leave_matplotlib_as_it_was():
    code = ("import sys, plots.runs; assert 'matplotlib' not in sys.modules\n"
            "import matplotlib\n"
            "settings = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != 'backend'}\n"
            "matplotlib.rcParams['font.size'] = 30; before = settings()\n"
            "figure = plots.runs.plot_confusion([[3, 1], [0, 2]], ['Folk', 'Rock'])\n"
            "assert figure.axes[0].xaxis.label.get_size() == 10\n"  # the reader's 30 does not get in
            "assert settings() == before and 'matplotlib.pyplot' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_figure_shows_itself_in_a_notebook_without_pyplot():
    assert fg.plot_confusion([[3, 1], [0, 2]], ["Folk", "Rock"])._repr_png_()[:4] == b"\x89PNG"


def test_a_genre_keeps_its_colour_in_any_subset_and_order():
    everything = style.genre_colours([*style.COLOURS, "Zouk", "Gqom"])
    for some in (["Rock", "Folk"], ["Gqom", "Pop"], GENRES[::-1]):
        assert style.genre_colours(some) == {genre: everything[genre] for genre in some}
    assert len(set(everything.values())) == 18


@pytest.mark.parametrize("sight", [
    np.eye(3),
    [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],  # no red
    [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],  # no green
])  # Machado, Oliveira and Fernandes 2009, on linear RGB
def test_genres_of_fma_small_can_be_told_apart(sight):
    colours = style.genre_colours(GENRES).values()
    srgb = np.array([[int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])
    linear = np.where(srgb <= .04045, srgb / 12.92, ((srgb + .055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(sight), 0, 1)
    lms = np.cbrt(seen @ np.transpose([[.4122, .5363, .0514], [.2119, .6807, .1074], [.0883, .2817, .6300]]))
    oklab = [[.2105, .7936, -.0041], [1.9780, -2.4286, .4506], [.0259, .7828, -.8087]]
    lab = lms @ np.transpose(oklab)
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))
    assert nearest > 0.1  # Okabe and Ito's eight colours, black among them, come to 0.076
    assert (lab[:, 0] < 0.8).all()  # dark enough for a line on white


def test_history_marks_the_epoch_with_the_best_validation_accuracy(save):
    figure = save(fg.plot_history([history(best=2), history(best=5)]))
    assert [axes.get_ylabel() for axes in figure.axes] == ["cross entropy (nats)", "accuracy (%)"]
    marked = [line.get_xdata()[0] for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert marked == [2, 5]
    assert figure.axes[1].lines[0].get_ydata()[-1] == pytest.approx(60)  # per cent


def test_history_of_one_run_or_of_named_ones(save):
    assert len(save(fg.plot_history(history())).axes[0].lines) == 3
    figure = save(fg.plot_history([history(), history()], names=["CQT", "mel"], selected=[1, 6]))
    assert {"CQT", "mel"} <= {text.get_text() for text in figure.legends[0].get_texts()}
    assert [line.get_xdata()[0] for line in figure.axes[1].lines if line.get_marker() == "o"] == [1, 6]


def test_roc_has_a_curve_per_genre_with_its_area_best_first(save):
    figure = save(fg.plot_roc(LABELS, SCORES[0], GENRES))
    areas = ev.genre_auc(LABELS, SCORES[0])
    entries = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert entries == [f"{areas[k]:.2f}  {GENRES[k]}" for k in np.argsort(-areas)] + ["0.50  chance"]
    assert len(figure.axes[0].lines) == 9
    assert figure.axes[0].lines[0].get_color() == style.COLOURS[GENRES[areas.argmax()]]
    assert len(save(fg.plot_roc(LABELS[LABELS < 7], SCORES[0][LABELS < 7], GENRES)).axes[0].lines) == 8


def test_confusion_shows_per_cent_of_the_row_with_counts(save):
    axes = save(fg.plot_confusion([[30, 10], [0, 20]], ["Folk", "Rock"])).axes[0]
    assert texts(axes) == ["75", "30", "25", "10", "100", "20"]
    assert tick_names(axes.yaxis) == ["Folk (40)", "Rock (20)"] and tick_names(axes.xaxis) == ["Folk", "Rock"]
    save(fg.plot_confusion(np.zeros((2, 2), int), ["Folk", "Rock"]))  # genres without clips


def test_intervals(save):
    names, means, intervals = ["CNN", "BBNN", "SVM"], [.455, .511, .478], [(.42, .49), (.47, .55), None]
    figure = save(fg.plot_intervals(names, means, intervals, chance=1 / 8))
    axes = figure.axes[0]
    assert texts(axes) == ["45.5", "42.0 – 49.0", "51.1", "47.0 – 55.0", "47.8", ""]
    assert tick_names(axes.yaxis) == ["CNN", "BBNN", "SVM"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    assert axes.lines[0].get_xdata() == pytest.approx([42, 45.5, 49])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["measured, 95 % interval", "chance"]


def test_genre_accuracy_takes_a_summary(save):
    summary = ev.summarise(LABELS, SCORES, np.arange(160) // 4, GENRES)
    axes = save(fg.plot_genre_accuracy(summary, chance=1 / 8)).axes[0]
    recall = [100 * row["accuracy"] for row in summary["genres"].values()]
    assert [bar.get_width() for bar in axes.patches] == recall
    assert tick_names(axes.yaxis)[0] == "Electronic (20)" and len(axes.lines) == 9
    summary = ev.summarise([0, 0], np.eye(8)[:2], ["x", "x"], GENRES)  # no interval, seven genres missing
    assert len(save(fg.plot_genre_accuracy(summary, chance=1 / 8)).axes[0].patches) == 1


TRACKS = pd.DataFrame({
    "genre": ["Folk"] * 10 + ["Rock"] * 4, "split": ["training"] * 5 + ["test"] * 9,
    "artist_id": [1, 1, 1, 1, 2] + [3] * 4 + [4] + [5, 6, 7, 8],
    "artist": ["a"] * 5 + ["The Band"] * 4 + ["d"] + ["x"] * 4,
    "released": ["2008-11-26", "2009", None] + ["2011-01-01 00:00:00"] * 11, "listens": [0, 10, None, *range(11)],
})


def test_splits_count_tracks_and_artists(save):
    tracks, artists = save(mf.plot_splits(TRACKS)).axes
    assert tick_names(tracks.yaxis) == ["Rock", "Folk"]             # the first on top
    assert [text.strip() for text in texts(tracks)] == ["4", "10"] and artists.get_xlabel() == "number of artists"
    assert [text.strip() for text in texts(artists)] == ["4", "4"]


def test_artist_shares_name_who_fills_a_genre(save):
    axes = save(mf.plot_artist_shares(TRACKS[TRACKS["split"] == "test"])).axes[0]
    assert texts(axes) == ["The Band", "2", "1.5", "x", "4", "4.0", "artists", "effective"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([80, 20, 25, 25, 25, 25])
    save(mf.plot_artist_shares(TRACKS[["genre"]]))                  # unknown artists stand alone


def test_years_and_plays(save):
    years, plays = save(mf.plot_years_and_plays(TRACKS)).axes
    assert {round(bar.get_x() + 0.4): bar.get_height() for bar in years.patches} == {2008: 1, 2009: 1, 2011: 11}
    assert plays.get_xscale() == "log" and tick_names(plays.yaxis) == ["Rock", "Folk"]


def test_embedding_colours_points_by_genre(save):
    points = RNG.normal(size=(160, 2))
    scatter = save(fg.plot_embedding(points, LABELS, GENRES)).axes[0].collections[0]
    place = np.flatnonzero((scatter.get_offsets() == points[7]).all(1))[0]
    red, green, blue = (round(255 * c) for c in scatter.get_facecolors()[place][:3])
    assert f"#{red:02x}{green:02x}{blue:02x}" == style.COLOURS["Rock"]


@pytest.mark.parametrize("feature, bins, names, label, unit", [
    ("cqt", 84, [f"C{k}" for k in range(1, 8)], "note", "magnitude (dB)"),
    ("mel_stft", 128, ["0", "500", "1000", "2000", "4000", "8000"], "frequency (Hz)", "power (dB)"),
    ("chroma_cens", 12, list("CDEFGAB"), "pitch class", "relative energy"),
    ("mfcc", 20, ["0", "5", "10", "15"], "coefficient", "value"),
    ("vggish", 50, ["0", "10", "20", "30", "40"], "bin", "value"),
])
def test_features_have_axes_in_units(save, feature, bins, names, label, unit):
    axes, bar = save(ff.plot_feature(RNG.random((bins, 640)), feature)).axes
    assert tick_names(axes.yaxis) == names
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("time (s)", label, unit)
    assert axes.get_xlim() == pytest.approx((0, 640 * 1024 / 22050))


def test_mel_ticks_sit_at_librosas_bands():
    librosa = pytest.importorskip("librosa")
    bands = librosa.mel_frequencies(130, fmin=0, fmax=11025)[1:-1]
    axes = ff.plot_feature(np.zeros((128, 10)), "mel_stft").axes[0]
    for place, hz in list(zip(axes.get_yticks(), (0, 500, 1000, 2000, 4000, 8000), strict=True))[1:]:
        assert place == pytest.approx(np.interp(hz, bands, np.arange(128)), abs=0.02)


def test_a_feature_can_be_drawn_beside_others(save):
    from matplotlib.figure import Figure

    figure = Figure()
    for axes, feature in zip(figure.subplots(2), ("cqt", "mfcc"), strict=True):
        assert ff.plot_feature(RNG.random((20, 30)), feature, axes=axes) is figure
    save(figure)


def test_features_of_a_clip_share_the_axis_of_time(save):
    bins = {"cqt": 84, "chroma_cqt": 12, "chroma_cens": 12, "chroma_stft": 12, "mel_stft": 128, "mfcc": 20}
    figure = save(ff.plot_features({name: RNG.random((n, 640)) for name, n in bins.items()}, title="a clip"))
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["cqt", "chroma_cqt", "mel_stft", "chroma_cens", "mfcc", "chroma_stft"]
    assert all(axes.get_xlim() == pytest.approx((0, 640 * 1024 / 22050)) for axes in panels.values())
    assert [name for name, axes in panels.items() if axes.get_xlabel()] == ["mfcc", "chroma_stft"]


def test_waveforms_and_spectra_keep_the_colours_of_genres(save):
    y = RNG.normal(0, 0.1, 22050)
    figure = save(ff.plot_waveforms({"Folk": (y, 22050), "Rock": (y[:11025], 22050)}))
    assert [axes.get_ylabel() for axes in figure.axes] == ["Folk", "Rock"]
    assert figure.axes[0].get_xlim()[1] == pytest.approx(1)         # the longest clip is seen whole
    axes = save(ff.plot_spectra({"Folk": RNG.random(84), "Rock": RNG.random(84)}, "cqt")).axes[0]
    assert [line.get_color() for line in axes.lines] == [style.COLOURS["Folk"], style.COLOURS["Rock"]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("note", "magnitude (dB)")
    save(ff.plot_waveforms({"Rock": (y, 22050)}))


def test_no_two_of_fmas_reds_or_blues_share_a_line_style(save):
    figure = save(fg.plot_panels(LABELS, {"one": SCORES[0], "two": SCORES[1]}, GENRES))
    spectra = save(ff.plot_spectra({genre: RNG.random(84) for genre in GENRES}, "cqt"))
    for axes in (*figure.axes, *spectra.axes):
        styles = {line.get_label(): (line.get_linestyle(), line._unscaled_dash_pattern) for line in axes.lines}
        assert styles["Rock"] != styles["International"]
        assert styles["Electronic"] != styles["Experimental"] and styles["Electronic"] != styles["Instrumental"]


@pytest.mark.parametrize("folder, publish, heard", [("data/demo", "1", True), ("data/demo/", "1", True),
                                                    ("data/emotify", "1", False), ("data/emotify", "", True)])
def test_others_music_is_not_published(monkeypatch, folder, publish, heard):
    from IPython.display import HTML, Audio

    monkeypatch.setenv("PUBLISH", publish)
    shown = players.player(RNG.uniform(-0.1, 0.1, 22050), 22050, folder)
    assert isinstance(shown, Audio if heard else HTML)
    html = shown._repr_html_()
    assert ("data:audio/mpeg;base64," in html and "<audio" in html) is heard
    assert heard or ("may not be published" in html and "audio" not in html and "\n" not in html)


@pytest.mark.parametrize("publish", ["", "1"])
def test_a_track_without_sound_is_one_short_line(monkeypatch, tmp_path, publish):
    monkeypatch.setenv("PUBLISH", publish)
    html = players.listen(tmp_path, 7)._repr_html_()
    assert "track 7" in html and len(html) < 60 and "<audio" not in html


def test_decibels_show_the_upper_eighty():
    image = ff.plot_feature(np.array([[-100.0, 0.0]]), "cqt").axes[0].images[0]
    assert image.get_clim() == (-80, 0)


@pytest.mark.parametrize("call", [
    lambda: fg.plot_roc(LABELS, SCORES, GENRES),
    lambda: fg.plot_confusion(np.eye(3, dtype=int), GENRES),
    lambda: fg.plot_intervals(["a"], [.1, .2], [None], 0.5),
])
def test_errors_take_one_line(call):
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
