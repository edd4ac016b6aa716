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
    badges(study, "another/copy")
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
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "REPO=owner/name" in done.stderr
    assert badges(study, "https://example.org/study").returncode == 2
    assert texts(study) == before


@pytest.mark.parametrize("name", [
    "../..", "./study", "someone/..", "someone/.git", "someone/..git", "someone/study/notebooks", "someone", "/study",
    "-someone/study", "someone-/study", "some--one/study", "some.one/study", "someone/my study", "someone/stüdy",
    f"{'x' * 40}/study", f"someone/{'x' * 101}", 'someone/study"', "someone/study\n",
])
def test_what_github_would_not_take_is_written_nowhere(study, name):
    before = texts(study)
    done = badges(study, "--", name)        # a name may begin like an option
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "REPO=owner/name" in done.stderr
    assert texts(study) == before


@pytest.mark.parametrize("given, name", [("someone/study.git", "someone/study"), ("some-1/.github", "some-1/.github"),
                                         (f"{'x' * 39}/a._-b", f"{'x' * 39}/a._-b"), ("Me/x.git.git", "Me/x")])
def test_names_are_taken_as_github_has_them(study, given, name):
    assert badges(study, given).returncode == 0
    for text in texts(study).values():
        assert f"github/{name}/blob/main/" in text and f'REPOSITORY = \\"{name}\\"' in text


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


@pytest.mark.parametrize("content", ["{}", "[]", "1", "", "{\"cells\": 3}", "{\"cells\": [{}]}", "{\"cells\": [[]]}",
                                     "{\"cells\": [{\"metadata\": {}, \"cell_type\": \"code\", \"source\": 1}]}", "\0"])
def test_what_is_no_notebook_is_named_in_one_line(study, content):
    (study / "notebooks" / "zz.ipynb").write_text(content)
    before = texts(study)
    done = badges(study, "someone/study")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("badges.py: zz.ipynb is not a notebook") and texts(study) == before


def test_a_notebook_without_a_setup_cell_is_named_and_none_is_changed(study):
    path = study / "notebooks" / "zz.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]), path)
    before = texts(study)
    done = badges(study, "someone/study")
    assert done.returncode == 2 and "zz.ipynb" in done.stderr and len(done.stderr.splitlines()) == 1
    assert texts(study) == before
