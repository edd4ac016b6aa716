"""The notebooks run from the first cell to the last on the demo corpus, and what is committed can be shown."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = {   # parameters with which a notebook takes seconds
    "features_to_npy": {},
    "cqt_cnn_architecture": {"epochs": 2, "repeats": 1},
}
SOMEONES_FOLDER = re.compile(r"(?<![\w./])/(?:home|root|Users|work|tmp|mnt|content|usr|opt)/")


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_explains_more_than_it_computes(path):
    words = sum(len("".join(cell["source"]).split()) for cell in cells(path, "markdown"))
    code = sum(len("".join(cell["source"]).split()) for cell in cells(path))
    assert words >= code
    assert max(len("".join(cell["source"]).splitlines()) for cell in cells(path)) <= 25, "a cell longer than a screen"
    assert "parameters" in cells(path)[0]["metadata"]["tags"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_on_the_demo_corpus(path, demo, tmp_path):
    import papermill

    parameters = {"data_dir": str(demo), **QUICK[path.stem]}
    if "runs_dir" in "".join(cells(path)[0]["source"]):
        parameters |= {"runs_dir": str(tmp_path / "runs"), "results_dir": str(tmp_path / "results")}
    done = papermill.execute_notebook(path, tmp_path / path.name, parameters, cwd=path.parent, progress_bar=False,
                                      kernel_name="python3", execution_timeout=300)
    images = [o for cell in done.cells if cell.cell_type == "code" for o in cell.outputs
              if "image/png" in o.get("data", {})]
    assert len(images) >= 3
