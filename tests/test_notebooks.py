"""The notebooks run from the first cell to the last on the demo corpus, and what is committed can be shown."""

import json
import re
from pathlib import Path

import pytest

from evaluation import format_accuracy

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = {   # parameters with which a notebook takes seconds
    "exploration": {},
    "features_to_npy": {},
    "base_models": {"repeats": 1},
    "chroma_cnn_architecture": {"epochs": 2, "repeats": 1},
    "mel_cnn_architecture": {"epochs": 2},
    "cqt_cnn_architecture": {"epochs": 2, "repeats": 1},
    "crnn_architecture": {"epochs": 1, "feature": "mel128"},
    "bbnn_architecture": {"epochs": 1, "feature": "mel128"},
    "results": {},
    "augmentation": {"epochs": 2, "repeats": 1},
    "feature_fusion": {},
    "tags": {},
    "predict": {},
    "your_music": {"epochs": 2},
}
AUDIO = re.compile(r"data:audio|<audio|\baudio/[\w.+-]+")
SOMEONES_FOLDER = re.compile(r"(?<![\w./])/(?:home|root|Users|work|tmp|mnt|content|usr|opt)/")


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def printed_first(path):
    """What a notebook's first output says: which data, which versions, which device."""
    lines = ["".join(o["text"]) for cell in cells(path) for o in cell["outputs"] if o.get("name") == "stdout"]
    return lines[0] if lines else ""


def on_demo(path):
    """Whether a notebook was rendered on the synthetic corpus and on nothing else."""
    return set(re.findall(r"\b(demo|emotify|fma_\w+)\b", printed_first(path))) == {"demo"}


def test_every_notebook_has_a_quick_run():
    assert {path.stem for path in NOTEBOOKS} == set(QUICK)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook_can_be_shown(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < 2_000_000
    assert not SOMEONES_FOLDER.search(text), "a path of somebody's machine"
    code = cells(path)
    assert all(cell["execution_count"] for cell in code if "".join(cell["source"]).strip()), "a cell was never run"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"], "a warning is shown to the reader"
    assert not [o for o in outputs if "widget" in str(o.get("data", {}).keys())], "a progress bar was left behind"
    if not on_demo(path):
        assert not AUDIO.search(json.dumps(outputs)), "others' music may not be published: render with PUBLISH=1"
        tags = [tag for cell in code for tag in cell["metadata"].get("tags", [])]
        assert "injected-parameters" not in tags, "made with other parameters than those the reader sees"


@pytest.mark.parametrize("output", [{"data": {"audio/mpeg": "AAAA"}}, {"data": {"text/html": "<audio controls>"}},
                                    {"data": {"text/html": ["<source src='data:audio/mpeg;base64,AAAA'>"]}}])
def test_embedded_music_would_be_found(tmp_path, output):
    path = tmp_path / "some.ipynb"
    setup = {"output_type": "stream", "name": "stdout", "text": ["data/emotify: 400 tracks {'torch': '2'} cpu"]}
    cell = {"cell_type": "code", "metadata": {}, "execution_count": 1, "source": ["1"],
            "outputs": [setup, {"output_type": "display_data", **output}]}
    path.write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(AssertionError, match="may not be published"):
        test_committed_notebook_can_be_shown(path)
    setup["text"] = ["data/demo: 120 tracks {'torch': '2'} cpu"]
    path.write_text(json.dumps({"cells": [cell]}))
    test_committed_notebook_can_be_shown(path)


def test_injected_parameters_would_be_found(tmp_path):
    path = tmp_path / "some.ipynb"
    cell = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "execution_count": 1, "source": ["1"],
            "outputs": []}
    path.write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(AssertionError, match="other parameters"):
        test_committed_notebook_can_be_shown(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_says_with_what_it_was_made(path):
    printed = printed_first(path)
    assert re.search(r"\d+ (tracks|genres)", printed), "no line on the data set"
    assert re.search(r"'torch': '\d", printed), "no versions"
    assert re.search(r"\b(cpu|cuda|mps)\b(?!')", printed), "no device"


def shown_rows(path):
    """Experiment and test accuracy, as written, of every row of the tables of results that a notebook shows."""
    for cell in cells(path):
        for output in cell["outputs"]:
            columns = []
            for line in "".join(output.get("data", {}).get("text/markdown", "")).splitlines():
                row = [word.strip() for word in line.split("|")[1:-1]]
                if not row or row[0] == "experiment":
                    columns = row
                elif "test %" in columns and not row[0].startswith(":"):
                    yield row[0], row[columns.index("test %")]


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if any(shown_rows(path))], ids=lambda p: p.stem)
def test_accuracies_shown_can_be_traced_to_a_result(path):
    for name, shown in shown_rows(path):
        stored = [format_accuracy(json.loads(file.read_text(encoding="utf-8"))["test"])
                  for file in (ROOT / "results").rglob(f"{name}.json")]
        assert shown in stored, f"{name}: {shown} is in no {name}.json"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_tables_that_a_notebook_keeps_are_committed(path):
    """Figures of no single experiment go to results/ as they are computed: what is shown, is there."""
    code = "".join("".join(cell["source"]) for cell in cells(path))
    kept = re.findall(r'save_table\(\w+, [\w.]+, f?"(\w+)', code)
    assert all(list((ROOT / "results").glob(f"*/{name}*.csv")) for name in kept), kept


def test_notebooks_begin_alike():
    """Parameters, then one setup cell: a fix in one is a fix in all."""
    assert not [path.name for path in NOTEBOOKS if "data_dir = " not in "".join(cells(path)[0]["source"])]
    setups = {re.sub('^REPOSITORY = "[^"]*"', "", "".join(cells(path)[1]["source"]), flags=re.M) for path in NOTEBOOKS}
    assert len(setups) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_explains_more_than_it_computes(path):
    words = sum(len("".join(cell["source"]).split()) for cell in cells(path, "markdown"))
    code = sum(len("".join(cell["source"]).split()) for cell in cells(path))
    assert words >= code
    assert max(len("".join(cell["source"]).splitlines()) for cell in cells(path)) <= 25, "a cell longer than a screen"
    assert "parameters" in cells(path)[0]["metadata"]["tags"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_on_the_demo_corpus(path, demo, tmp_path, monkeypatch):
    import papermill

    monkeypatch.setenv("TQDM_DISABLE", "1")     # as `make notebooks` does: bars are written to stderr
    parameters = {"data_dir": str(demo), **QUICK[path.stem]}
    asks = "".join(cells(path)[0]["source"])
    if path.stem != "results":                  # which only reads what is committed
        parameters |= {name: str(tmp_path / name) for name in ("runs_dir", "results_dir") if f"{name} = " in asks}
    done = papermill.execute_notebook(path, tmp_path / path.name, parameters, cwd=path.parent, progress_bar=False,
                                      kernel_name="python3", execution_timeout=300)
    outputs = [o for cell in done.cells if cell.cell_type == "code" for o in cell.outputs]
    assert len([o for o in outputs if "image/png" in o.get("data", {})]) >= 3
    assert not [o for o in outputs if o.output_type == "error"]
    assert "".join(o.text for o in outputs if o.get("name") == "stderr") == ""
