"""The README is short, its links and those of all other texts work, and its figures are those of results/."""

import hashlib
import json
import re

import pytest
from conftest import ROOT
from PIL import Image

from evaluation import format_accuracy
from images import make
from study.comparisons import contrast, contrasts, right_by_clip
from study.predictions import load_predictions
from study.rows import CNNS, REPORTED

TEXTS = sorted(str(path.relative_to(ROOT)) for pattern in ("*.md", "docs/*.md", "notebooks/*.md", "weights/*.md",
                                                           "notebooks/*.ipynb") for path in ROOT.glob(pattern))
LINK = re.compile(r"\]\(([^()\s]*(?:\([^()]*\)[^()\s]*)*)\)")        # also of a picture within a link
HTML_LINK = re.compile(r'(?:href|src)="([^"]*)"')


def text(name):
    """What a reader sees of a file: of a notebook its prose."""
    content = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        cells = json.loads(content)["cells"]
        content = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"```.*?```|^    .*?$", "", content, flags=re.DOTALL | re.M)


def anchors(name):
    """The headings of a Markdown file as GitHub links to them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)$", text(name), re.M)}


def links(name):
    return LINK.findall(text(name)) + HTML_LINK.findall(text(name))


def test_the_readme_can_be_read_to_the_end():
    assert len((ROOT / "README.md").read_bytes()) <= 12_288


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name):
    for link in links(name):
        if re.match(r"https?://", link):
            assert re.fullmatch(r"https?://[\w.-]+\.\w+(/\S*)?", link), link
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists() and ROOT in target.parents, f"{name} links to {link}"
        assert not anchor or anchor in anchors(str(target.relative_to(ROOT))), f"{name}: {link} has no such heading"


def test_links_are_found():
    assert {"images/plots.png", "images/thumbnails/predict.png", "notebooks/predict.ipynb", "docs/results.md",
            "https://github.com/mdeff/fma"} <= set(links("README.md"))
    assert "../resnet_models.py" in links("notebooks/predict.ipynb")


def accuracy(name):
    return format_accuracy(json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))["test"])


def ratios(network):
    """How much faster than the study's loop, than that loop with our memory setting, and on AVX2, by docs/speed.md."""
    table = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    cells = re.search(rf"^\| {network} +\| +84×640 \|(.*)\|$", table, re.M)[1].split("|")
    avx2 = re.search(rf"^\| {network} +\|((?: +[\d.]+ \|){{5}})$", table, re.M)[1].split("|")
    return [cell.strip() for cell in (*cells[3:5], avx2[3])]


def test_every_figure_in_the_prose_of_the_readme_is_a_measured_one():
    tables = re.compile(r"<!-- (\w+) .*?<!-- end -->", re.DOTALL)
    shown = re.findall(r"(?<![\w.])\d+\.\d(?!\d)", tables.sub("", LINK.sub("]", text("README.md"))))
    accuracies = [accuracy(f"fma_small/{name}").split(" ")[0] for name in (
        "mel128_bbnn_paper", "ensemble_vggish", "statistics_resnet")]
    accuracies += [accuracy(f"allmusic/{name}") for name in (
        "mel_stft_bbnn_paper", "cqt_bbnn_paper", "baseline_SVC_musicnn")]
    assert sorted(shown) == sorted(accuracies + ratios("SquareCNN") + ratios("BBNN") + features_compared())


def features_compared():
    """What the README says of the study's table: leads of the CQT over mel as reported, and differences measured."""
    reported = [cqt - mel for cqt, mel in zip(REPORTED["cqt"], REPORTED["mel_stft"], strict=True)]
    chromas = [f"{feature}_{cnn}" for feature in REPORTED if "chroma" in feature for cnn in CNNS]
    cqt, mel = ([f"{feature}_{cnn}" for cnn in CNNS] for feature in ("cqt", "mel_stft"))
    answers = {name: load_predictions(ROOT / "results" / "allmusic" / f"{name}.csv") for name in chromas + cqt + mel}
    found = contrasts(right_by_clip(answers), {"cqt - mel": contrast(cqt, mel),
                                               "both - chroma": contrast(cqt + mel, chromas)})
    measured = found[["difference", "low", "high"]].to_numpy().ravel()
    return [f"{abs(value):.1f}" for value in [min(reported), max(reported), *measured]]


def test_the_pictures_show_what_is_there_now():
    """Made anew where this fails: python images/make.py forest, puzzle, and thumbnails."""
    with Image.open(ROOT / "images" / "puzzle.png") as picture:
        assert picture.info["Description"] == make.describe_puzzle(make.puzzle())
    with Image.open(ROOT / "images" / "models.png") as picture:
        assert picture.info["Description"] == make.describe(make.forest_results())
    assert set(make.THUMBNAILS) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    for name in make.THUMBNAILS:
        path = ROOT / "images" / "thumbnails" / f"{name}.png"
        assert path.stat().st_size <= make.BYTES
        with Image.open(path) as picture:
            assert picture.size == make.SIZE
            assert picture.info["Description"] == f"{name} {hashlib.sha256(make.notebook_figure(name)).hexdigest()}"
    assert "Joe Pass" in Image.open(ROOT / "images" / "plots.png").info["Description"]
