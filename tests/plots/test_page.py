"""The page of figures names every network and its data, and what it refers to exists."""

import re
from urllib.parse import unquote

import pytest
from synthetic import make_collection

from plots.page import save_figures, save_page
from study.runner import run_experiment

NAMES = ("chroma_cqt_square", "chroma_cqt_temporal")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The page's folder and text: of a collection in a folder named demo, so that it counts as the synthetic one."""
    folder = tmp_path_factory.mktemp("page")
    data = make_collection(folder / "data" / "demo", features=(("chroma_cqt", 12),))
    results = [run_experiment(name, data, 1, {"epochs": 1, "batch_size": 16}, folder / "results", progress=False,
                              runs_dir=folder / "runs", device="cpu") for name in NAMES]
    page = save_page(results, folder / "runs", folder / "runs" / "demo", data)
    return page, page.read_text(encoding="utf-8"), results, data


def test_the_page_shows_table_and_figures_of_each_network(shown):
    page, text, results, _ = shown
    assert page.name == "index.html" and "synthetic demo corpus" in text and "Synthetic:" in text
    images = re.findall(r'<img src="([^"]+)"', text)
    assert len(images) == 3 * len(NAMES) and all((page.parent / image).stat().st_size > 5000 for image in images)
    for result in results:
        accuracy = f"{100 * result['test']['accuracy']:.1f}"
        assert re.search(rf"<tr><td>{result['experiment']}</td>.*<td>{accuracy}</td>", text)
    assert "epoch chosen on validation" in text


def test_each_player_refers_to_a_clip_of_its_genre(shown):
    page, text, results, data = shown
    players = re.findall(r'<audio [^>]*src="([^"]+)"></audio></td><td><b>([^<]+)</b>', text)
    assert [genre for _, genre in players] == list(results[0]["test"]["genres"])
    for source, _ in players:
        assert (page.parent / unquote(source)).resolve().is_relative_to(data.resolve() / "fma_small")


def test_a_figure_names_its_network_and_its_data(shown, tmp_path, monkeypatch):
    page, _, results, _ = shown
    figures = []
    monkeypatch.setattr("plots.page.save_whole", lambda path, write: figures.append(write.func.__self__))
    save_figures(results[0], page.parent.parent, tmp_path)
    for figure in figures:
        words = figure.get_suptitle() or figure.axes[0].get_title(loc="left")
        assert words.startswith("SquareCNN: ") and words.endswith("(synthetic demo corpus)")
    assert len(figures) == 3
