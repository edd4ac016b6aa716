"""`make badges` changes the badges and the REPOSITORY of each notebook, and nothing else."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def study(tmp_path):
    """A repository without commits that holds the script and copies of the notebooks."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    return tmp_path


def git(folder, *command):
    subprocess.run(["git", "-C", folder, *command], check=True)


def badges(study, *arguments):
    command = [sys.executable, study / "notebooks" / "badges.py", *arguments]
    return subprocess.run(command, cwd=study.parent, capture_output=True, text=True)


def texts(study):
    return {path.name: path.read_bytes().decode() for path in (study / "notebooks").glob("*.ipynb")}


def without(text):
    """A notebook's text less the cell of badges and the value of REPOSITORY, cut out without parsing it."""
    text = re.sub(r'  \{\n   "cell_type": "markdown",\n   "id": "badges",\n.*?\n  \},\n', "", text, flags=re.S)
    return re.sub(r'REPOSITORY = \\"[^"]*\\"', "", text)


def test_only_badges_and_repository_change(study):
    before = texts(study)
    assert badges(study, "someone/study").returncode == 0
    after = texts(study)
    for name, text in after.items():
        assert without(text) == without(before[name])
        notebook = nbformat.reads(text, 4)
        nbformat.validate(notebook)
        top = notebook.cells[0]
        assert (top.cell_type, top.metadata.tags) == ("markdown", ["badges"])
        place = f"someone/study/blob/main/notebooks/{name}"
        assert f"(https://colab.research.google.com/github/{place})" in top.source
        assert f"(https://nbviewer.org/github/{place})" in top.source
        assert text.count('REPOSITORY = \\"someone/study\\"') == 1
        assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    badges(study, "someone/study")
    assert texts(study) == after, "a second run changed something"
    badges(study, "another/copy.git")
    assert {name: text.replace("another/copy", "someone/study") for name, text in texts(study).items()} == after


@pytest.mark.parametrize("remote", [
    "https://github.com/some-one/my.study", "https://token@github.com/some-one/my.study.git",
    "git@github.com:some-one/my.study.git", "ssh://git@github.com/some-one/my.study.git",
    "https://github.com/some-one/my.study/",
])
def test_repository_and_branch_are_found_in_the_remote(study, remote):
    git(study, "remote", "add", "origin", remote)
    git(study, "symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk")
    assert badges(study).returncode == 0
    for name, text in texts(study).items():
        assert f"colab.research.google.com/github/some-one/my.study/blob/trunk/notebooks/{name})" in text
        assert 'REPOSITORY = \\"some-one/my.study\\"' in text
        assert "token" not in json.loads(text)["cells"][0]["source"][0]


@pytest.mark.parametrize("remote", [None, "https://example.org/someone/study.git", "elsewhere/study",
                                    "https://github.com/../.."])
def test_without_a_repository_one_line_says_what_to_do(study, remote):
    if remote:
        git(study, "remote", "add", "origin", remote)
    before = texts(study)
    done = badges(study)
    assert done.returncode == 2 and "REPO=owner/name" in done.stderr.splitlines()[-1]
    assert badges(study, "https://example.org/study").returncode == 2
    assert texts(study) == before


@pytest.mark.parametrize("name", ["../..", "someone/..", "someone/.git", "someone/study/notebooks", "someone", "/study",
                                  "someone/my study", "someone/stüdy", 'someone/study"', "someone/study\n"])
def test_what_is_not_owner_and_name_is_written_nowhere(study, name):
    before = texts(study)
    done = badges(study, name)
    assert done.returncode == 2 and "is not owner/name: make badges REPO=owner/name" in done.stderr.splitlines()[-1]
    assert texts(study) == before


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_hands_the_name_on_as_it_is(study):
    shutil.copy(ROOT / "Makefile", study)
    before = texts(study)

    def made(name):
        return subprocess.run(["make", "-s", "badges", f"PYTHON={sys.executable}", f"REPO={name}"], cwd=study,
                              capture_output=True, text=True)

    assert "'my study/x; touch y' is not owner/name" in made("my study/x; touch y").stderr
    assert not (study / "y").exists()
    assert "no remote origin" in made("").stderr and texts(study) == before
    assert made("someone/study").returncode == 0 and texts(study) != before
