"""One page of figures for a few experiments: a table, clips to listen to, curves and matrices of each network."""

import os
from functools import partial
from html import escape
from pathlib import Path
from urllib.parse import quote

from audio.cache import save_text, save_whole
from fma import audio_paths, load_tracks
from learning.runs import load_history, load_probabilities
from plots.runs import plot_confusion, plot_history, plot_roc
from study.result_files import seed_folders
from study.tables import results_table, title_of

KINDS = {"history": "learning curves", "roc": "ROC curves", "confusion": "confusion matrix"}
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; color: #222;
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 0.85rem } td, th { padding: 0.25rem 0.6rem; text-align: left }
tr { border-bottom: 1px solid #ddd } .scroll { overflow-x: auto } .wrong { color: #c03010 }
.synthetic { background: #fff3cd; padding: 0.6rem 1rem } img { max-width: 100%; height: auto }
audio { height: 2rem; width: 14rem }
small { font-weight: normal }
.pair { display: grid; grid-template-columns: 1fr 1fr; align-items: start }"""


def data_name(result):
    """The data of a result in the title of a figure."""
    return "synthetic demo corpus" if result["dataset"] == "demo" else title_of([result])


def save_figures(result, runs_dir, folder):
    """Save learning curves, ROC curves and confusion matrix of an experiment as PNG files.

    Parameters
    ----------
    result : dict
        From `study.runner.run_experiment`.
    runs_dir : path-like
        The runs that it is of.
    folder : Path
        Made if it does not exist; gets ``<experiment>_history.png``, ``_roc.png`` and ``_confusion.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, genres, config = result["experiment"], list(result["test"]["genres"]), result["config"]
    runs = seed_folders(result, runs_dir)
    test = load_probabilities(runs[0])
    for kind, figure in (
        ("history", plot_history([load_history(run) for run in runs], selected=[s["epoch"] for s in result["seeds"]])),
        ("roc", plot_roc(test["labels"], test["probabilities"], genres)),
        ("confusion", plot_confusion(result["test"]["confusion"], genres)),
    ):
        title = f"{config['model']['class']}: {KINDS[kind]} ({data_name(result)})"
        if kind == "history":       # its legend is where a figure's title would be
            figure.axes[0].set_title(title, loc="left", fontsize=11)
        else:
            figure.suptitle(title, fontsize=11)
        save_whole(folder / f"{name}_{kind}.png", partial(figure.savefig, format="png"))


def save_page(results, runs_dir, folder, data_dir, subset="small"):
    """Save the figures of some experiments and a page that shows them, to be opened in a browser.

    Parameters
    ----------
    results : list of dict
        From `study.runner.run_experiment`, of one data set.
    runs_dir : path-like
    folder : Path
        Gets ``index.html``, and the figures in ``figures``.
    data_dir, subset
        Where the clips are that the page plays; it refers to them by relative paths.

    Returns
    -------
    Path
        Of the page.
    """
    for result in results:
        save_figures(result, runs_dir, folder / "figures")
    demo = results[0]["dataset"] == "demo"
    title = f"{len(results)} network{'s' * (len(results) > 1)} on {'the ' * demo}{data_name(results[0])}"
    warning = ('<p class="synthetic"><b>Synthetic:</b> a program composed this music. The figures show that everything '
               "runs; they say nothing about real music.</p>") if demo else ""
    parts = [f"<h1>{escape(title)}</h1>", warning, _table(results_table(results, seconds=True)),
             "<h2>Listen</h2>", _clips(results, runs_dir, folder, data_dir, subset), *map(_network, results)]
    html = (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
            f'<meta name="viewport" content="width=device-width"><style>\n{STYLE}\n</style></head><body>\n'
            + "\n".join(parts) + "\n</body></html>\n")
    save_text(folder / "index.html", html)
    return folder / "index.html"


def _cells(rows, tag="td"):
    return "\n".join("<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in row) + "</tr>" for row in rows)


def _table(markdown):
    """The table of results and its caption, from Markdown."""
    lines, caption = markdown.split("\n\n", 1)
    head, _, *rows = ([escape(cell.strip()) for cell in line.strip("|").split("|")] for line in lines.splitlines())
    return f'<div class="scroll"><table>{_cells([head], "th")}\n{_cells(rows)}</table></div><p>{escape(caption)}</p>'


def _clips(results, runs_dir, folder, data_dir, subset):
    """A test clip of each genre, with a player and what each network (its first seed) takes it for."""
    tests = [load_probabilities(seed_folders(result, runs_dir)[0]) for result in results]
    genres, labels, tracks = tests[0]["genres"].tolist(), tests[0]["labels"].tolist(), tests[0]["tracks"].tolist()
    rows, paths = [], audio_paths(data_dir, load_tracks(data_dir, subset), subset)
    for k, genre in enumerate(genres):
        if k in labels:
            track = tracks[labels.index(k)]
            url = quote(Path(os.path.relpath(paths[track], folder)).as_posix())
            heard = [genres[said["probabilities"][said["tracks"].tolist().index(track)].argmax()] for said in tests]
            rows.append([f'<audio controls preload="none" src="{url}"></audio>', f"<b>{escape(genre)}</b>",
                         *(escape(word) if word == genre else f'<span class="wrong">{escape(word)}</span>'
                           for word in heard)])
    names = (f"{escape(r['config']['model']['class'])}<br><small>{escape(r['experiment'])}</small>" for r in results)
    head = ["a test clip", "genre", *names]
    return (f'<p>One test clip of each genre, and what each network takes it for (<span class="wrong">red</span>: '
            f'wrong).</p><div class="scroll"><table>{_cells([head], "th")}\n{_cells(rows)}</table></div>')


def _network(result):
    """The figures of a network."""
    name, network = escape(result["experiment"]), escape(result["config"]["model"]["class"])
    curves, *pair = (f'<img src="figures/{quote(result["experiment"])}_{kind}.png" alt="{network}: {what}">'
                     for kind, what in KINDS.items())
    return f'<h2>{network} <small>({name})</small></h2>\n{curves}\n<div class="pair">{"".join(pair)}</div>'
