"""A notebook alone on a bare machine, as Colab opens it: its setup cell fetches the rest, and leaves torch alone."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import copy_code

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = min((ROOT / "notebooks").glob("*.ipynb"))    # all have the same setup cell

KERNEL = """
import json, os, sys, types
mounted = []

def mount(folder):
    mounted.append(folder)
    if not os.path.isdir(folder):
        os.makedirs(folder + "/MyDrive/music/fma_metadata")
        open(folder + "/MyDrive/music/fma_metadata/tracks.csv", "w").close()

colab = types.ModuleType("google.colab")
colab.drive = types.SimpleNamespace(mount=mount)
sys.modules |= {"google": types.ModuleType("google"), "google.colab": colab}
for _ in range(2):                              # a second run of both cells does no harm
    notebook = {"data_dir": sys.argv[2], "runs_dir": None, "results_dir": "results", "epochs": 30}
    exec(sys.argv[1], notebook)
exec(sys.argv[1], notebook)                     # nor does one of the setup cell alone
import fma
print(json.dumps([os.getcwd(), fma.__file__, str(fma.find_data(notebook["data_dir"])), notebook["runs_dir"],
                  notebook["results_dir"], mounted]))
"""


def setup_cell(repository):
    code = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    return re.sub('^REPOSITORY = "[^"]*"', f'REPOSITORY = "{repository}"', "".join(code[1]["source"]), flags=re.M)


def run_python(folder, *arguments, **environment):
    return subprocess.run([sys.executable, "-P", "-c", *arguments], cwd=folder, env=os.environ | environment,
                          capture_output=True, text=True)


@pytest.fixture
def internet(tmp_path):
    """Environment in which github.com/someone/study has these modules, and pip finds newer wheels and nothing else.

    pip is told to upgrade all it can, and to write down what it would install instead of doing so.
    """
    study = tmp_path / "github" / "someone" / "study"
    study.mkdir(parents=True)
    copy_code(study)
    shutil.copy(ROOT / "requirements.txt", study)
    (study / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "colab.py", study / "notebooks")
    somebody = ["-c", "user.name=test", "-c", "user.email=test", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=all"]):
        subprocess.run(["git", "-C", study, *somebody, *command], check=True)
    for name in ("torch", "tqdm"):
        with zipfile.ZipFile(tmp_path / f"{name}-99-py3-none-any.whl", "w") as wheel:
            about = f"{name}-99.dist-info"
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{tmp_path}/github/.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://github.com/", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path), "PIP_UPGRADE": "1", "PIP_DRY_RUN": "1",
            "PIP_REPORT": str(tmp_path / "report.json")}


def test_a_notebook_alone_fetches_the_modules_and_keeps_torch(tmp_path, internet):
    content = tmp_path / "content"
    content.mkdir()
    data = content / "drive" / "MyDrive" / "music"
    for data_dir in ("drive/MyDrive/music", str(data)):     # the second in a new kernel, beside the finished clone
        done = run_python(content, KERNEL, setup_cell("someone/study"), data_dir, **internet)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == [
            str(content / "study"), str(content / "study" / "fma.py"), str(data), f"{data}/runs/{{epochs}}_epochs",
            str(data / "results"), [str(content / "drive")] * 3]
        assert f"On Google Drive: data_dir {data}, runs_dir {data}/runs/{{epochs}}_epochs, results_dir" in done.stdout
    offered = json.loads((tmp_path / "report.json").read_text())["install"]
    assert [item["metadata"]["name"] for item in offered] == ["tqdm"], "torch would be replaced"


@pytest.mark.parametrize("repository, prelude", [
    ("", "import sys; sys.modules['google.colab'] = sys; data_dir = None\n"), ("someone/study", "data_dir = None\n"),
])
def test_where_nothing_can_be_fetched_one_line_says_what_to_do(tmp_path, repository, prelude):
    done = run_python(tmp_path, prelude + setup_cell(repository))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "REPOSITORY" in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [ROOT, ROOT / "notebooks"], ids=lambda p: p.name)
def test_in_a_clone_nothing_is_fetched(folder):
    said = "import fma; print(fma.__file__, data_dir, runs_dir, os.getcwd())"
    done = run_python(folder, f"data_dir, runs_dir = 'data', None\n{setup_cell('')}\n{said}")
    assert done.stdout.split() == [str(ROOT / "fma.py"), "data", "None", str(ROOT)], done.stderr


def test_runs_and_results_that_were_given_a_folder_stay_there(monkeypatch, tmp_path):
    drive = SimpleNamespace(mount=lambda folder: None)
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=drive))
    monkeypatch.setitem(sys.modules, "google", SimpleNamespace(colab=sys.modules["google.colab"]))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "notebooks")])
    import colab

    for runs_dir, data_dir in (("mine", "drive/MyDrive/music"), ("runs", "data/demo")):
        notebook = {"data_dir": data_dir, "runs_dir": runs_dir, "results_dir": "other"}
        colab.prepare(notebook)
        assert (notebook["runs_dir"], notebook["results_dir"]) == (runs_dir, "other")
