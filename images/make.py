"""The pictures of the README: from a clip, from results/, and from the figures that the notebooks show.

    python images/make.py drawings --data-dir data/allmusic --track 77
    python images/make.py forest
    python images/make.py puzzle
    python images/make.py thumbnails
    python images/make.py page --song ten_clips.mp3

Each PNG says in its field "Description" what it was made from; tests/test_docs.py compares that with what is there now.
"""

import argparse
import base64
import hashlib
import io
import json
import sys
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from shutil import which

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))       # for the modules of the repository

import fma  # noqa: E402
from audio.cache import save_whole  # noqa: E402
from evaluation import format_interval  # noqa: E402
from plots.features import plot_feature  # noqa: E402
from plots.results import plot_differences, plot_forest  # noqa: E402
from plots.style import new_figure, styled  # noqa: E402
from study.comparisons import contrasts, from_mel_to_cqt, right_by_clip  # noqa: E402
from study.predictions import load_predictions  # noqa: E402
from study.result_files import load_results  # noqa: E402
from study.rows import STUDY  # noqa: E402

IMAGES = ROOT / "images"
FOREST = "fma_small", ("mel128_*", "baseline_SVC", "baseline_RandomForest", "baseline_LDA")
PANELS = {
    "cqt": "CQT: the notes", "mel_stft": "mel: bands as the ear hears", "mfcc": "MFCC: timbre in 20 numbers",
    "chroma_cqt": "chroma of the CQT: harmony", "chroma_cens": "chroma CENS: smoothed",
    "chroma_stft": "chroma of the STFT",
}
SIZE, BYTES = (240, 160), 15_000    # of a thumbnail: pixels, and the most it may take
WHOLE = 0, 0, 1, 1
DIAGRAMS = ("bbnn_architecture",)   # shown with a margin instead of cut at the sides
THUMBNAILS = {      # the figure of each notebook, counted from 0, and the part to show: left, top, right, bottom
    "exploration": (1, (0.02, 0, 0.93, 1)), "features_to_npy": (1, WHOLE), "base_models": (0, (0, 0, 0.76, 1)),
    "chroma_cnn_architecture": (0, WHOLE), "mel_cnn_architecture": (0, WHOLE),
    "cqt_cnn_architecture": (0, (0.3, 0, 0.66, 1)), "crnn_architecture": (2, (0.48, 0.06, 1, 1)),
    "bbnn_architecture": (0, WHOLE), "results": (4, (0, 0, 1, 0.86)), "augmentation": (2, (0, 0.06, 0.37, 1)),
    "feature_fusion": (5, (0.05, 0.02, 1, 0.85)), "tags": (5, (0, 0, 0.76, 1)), "predict": (3, WHOLE),
    "your_music": (3, WHOLE),
}


@styled
def plot_drawings(features):
    """The six features of a clip, three beside one another: those of sound above, those of harmony below."""
    figure, panels = new_figure(12.6, 4.8, columns=3, rows=2)
    for (name, title), axes in zip(PANELS.items(), panels.flat, strict=True):
        plot_feature(features[name], name, axes=axes)
        axes.set_title(title)
        if axes in panels[0]:
            axes.set_xlabel("")
    return figure


def draw_clip(data_dir, track_id):
    """images/plots.png: what the networks see of a clip."""
    from audio import transforms

    tracks = fma.load_tracks(data_dir)
    track = tracks.loc[track_id]
    y, sample_rate = transforms.read_audio(fma.audio_paths(data_dir, tracks)[track_id])
    said = f"track {track_id} of {fma.dataset_name(data_dir)}: {track.get('artist')}, {track.get('title')}"
    save(plot_drawings(transforms.extract(y, sample_rate, PANELS)), IMAGES / "plots.png", said, dpi=110)


def forest_results():
    """The results that the forest shows."""
    dataset, names = FOREST
    return [r for r in load_results(ROOT / "results" / dataset) if any(fnmatch(r["experiment"], n) for n in names)
            and (r["experiment"] in STUDY or r["experiment"].startswith("baseline_"))]


def describe(results):
    """What a forest shows, in words."""
    return "; ".join(f"{r['experiment']} {100 * r['test']['accuracy']:.1f} ({format_interval(r['test']['interval'])})"
                     for r in results)


def draw_forest():
    """images/models.png: test accuracy of every model with its interval."""
    results = forest_results()
    save(plot_forest(results), IMAGES / "models.png", describe(results), dpi=110)


def puzzle():
    """What each step from mel to the CQT changes on AllMusic-492, as `comparisons.contrasts` gives it."""
    asked = from_mel_to_cqt()
    names = {name for weights in asked.values() for name in weights}
    return contrasts(right_by_clip({name: load_predictions(ROOT / "results" / "allmusic" / f"{name}.csv")
                                    for name in sorted(names)}), asked)


def describe_puzzle(found):
    """The differences of `puzzle`, in words."""
    return "; ".join(f"{label} {row['difference']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})"
                     for label, row in found.iterrows())


def draw_puzzle():
    """images/puzzle.png: the differences of `puzzle`."""
    found = puzzle()
    figure = plot_differences(list(found.index), found, "points of test accuracy on AllMusic-492, 95 % interval")
    save(figure, IMAGES / "puzzle.png", describe_puzzle(found), dpi=110)


def notebook_figure(name):
    """The PNG of a notebook's figure that stands for it."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    figures = [output["data"]["image/png"] for cell in cells for output in cell.get("outputs", [])
               if "image/png" in output.get("data", {})]
    return base64.b64decode("".join(figures[THUMBNAILS[name][0]]))


def draw_thumbnail(name):
    """images/thumbnails/<notebook>.png, with as many colours as it may take."""
    from PIL import Image, ImageOps
    from PIL.PngImagePlugin import PngInfo

    png = notebook_figure(name)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    width, height = picture.size
    left, top, right, bottom = THUMBNAILS[name][1]
    part = picture.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))
    small = ImageOps.pad(part, SIZE, color="white") if name in DIAGRAMS else ImageOps.fit(part, SIZE)
    info = PngInfo()
    info.add_text("Description", f"{name} {hashlib.sha256(png).hexdigest()}")
    for colours in (256, 128, 64, 32, 16, 8):
        small.quantize(colours).save(written := io.BytesIO(), format="png", optimize=True, pnginfo=info)
        if len(written.getvalue()) <= BYTES:
            break
    write(IMAGES / "thumbnails" / f"{name}.png", lambda path: path.write_bytes(written.getvalue()))


def draw_page(song):
    """images/try.png: the page of docs/try, built by `make page`, with a song in it that plays."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver, driver.chromium.launch(executable_path=which("chromium")) as browser:
        page = browser.new_page(viewport={"width": 860, "height": 400})
        page.goto((ROOT / "docs" / "try" / "index.html").as_uri())
        page.set_input_files("#files", song)
        page.locator("audio").evaluate("player => { player.currentTime = 0.41 * player.duration }", timeout=600_000)
        page.locator("p.now", has_not_text="0:00:").wait_for()
        write(IMAGES / "try.png", lambda path: path.write_bytes(page.screenshot(full_page=True)))


def save(figure, path, description, dpi):
    """Write a figure as a PNG that says what it shows."""
    write(path, partial(figure.savefig, format="png", dpi=dpi, metadata={"Description": description}))


def write(path, how):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(path, how)
    print(path.relative_to(ROOT), f"{path.stat().st_size / 1000:.1f} kB")


def main(argv=None):
    parser = argparse.ArgumentParser(description="Make the pictures of the README.")
    parser.add_argument("what", choices=("drawings", "forest", "puzzle", "thumbnails", "page"))
    parser.add_argument("--data-dir", help="of the clip to draw (default: $DATA_DIR, data, or the demo corpus)")
    parser.add_argument("--track", type=int, default=2, help="the clip to draw (default: %(default)s)")
    parser.add_argument("--song", help="the file to show on the page")
    args = parser.parse_args(argv)
    if args.what == "drawings":
        draw_clip(fma.find_data(args.data_dir), args.track)
    elif args.what == "forest":
        draw_forest()
    elif args.what == "puzzle":
        draw_puzzle()
    elif args.what == "page":
        draw_page(args.song)
    else:
        for name in THUMBNAILS:
            draw_thumbnail(name)


if __name__ == "__main__":
    sys.exit(fma.run_command(main))
