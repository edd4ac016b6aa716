"""What is said twice is said alike: versions of Python, of ruff, the commands of CI, the lowest versions."""

import re
from contextlib import suppress
from importlib import metadata

import pytest
from conftest import ROOT
from packaging.specifiers import SpecifierSet

yaml = pytest.importorskip("yaml")                  # comes with jupyter


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def promised():
    """The versions of Python that the README promises."""
    first, last = map(int, re.search(r"Python 3\.(\d+) to 3\.(\d+)", text("README.md")).groups())
    return [f"3.{minor}" for minor in range(first, last + 1)]


def test_ci_runs_the_same_on_every_python_that_is_promised():
    workflow = yaml.safe_load(text(".github/workflows/test.yml"))
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == promised()
    assert "${{ matrix.python }}" in job["container"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert "make test" in text(".ci/run")
    nightly = [step["run"] for step in workflow["jobs"]["lowest"]["steps"] if "run" in step]
    assert nightly == [f"make nightly PYTHON=python{promised()[0]}"]
    assert f'target-version = "py{promised()[0].replace(".", "")}"' in text("pyproject.toml")


def test_the_hook_runs_the_ruff_that_make_installs():
    [repo] = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    [hook] = repo["hooks"]
    assert repo["repo"] == "local" and hook["entry"].startswith(".venv/bin/python -m ruff check")
    assert re.search(r"^ruff==\d", text("constraints.txt"), re.M)
    assert re.search(r"^ruff>=", text("requirements-dev.txt"), re.M)


def test_every_requirement_has_a_lowest_version_and_a_pin_above_it():
    """`make nightly` turns >= into ==; a requirement of another form would be installed in its newest version."""
    pins = dict(line.split("==") for line in text("constraints.txt").splitlines() if "==" in line)
    lines = [line for path in ROOT.glob("requirements*.txt") for line in text(path.name).splitlines()]
    lines = [line.partition("#")[0].strip() for line in lines if line and line[0] not in "#-"]
    assert len(lines) > 15
    for line in lines:
        name, lowest = re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups()
        assert tuple(map(int, lowest.split("."))) <= tuple(map(int, pins[name].split(".")))


def test_every_pin_installs_on_the_first_release_of_each_python_that_is_promised():
    """Debian 12 has Python 3.11.2. Of a package that is installed in another version than its pin, nothing is known."""
    checked = 0
    for name, pin in re.findall(r"^([\w-]+)==([\w.]+)", text("constraints.txt"), re.M):
        with suppress(metadata.PackageNotFoundError):
            if metadata.version(name) == pin:
                needs, checked = SpecifierSet(metadata.metadata(name).get("Requires-Python") or ""), checked + 1
                assert all(needs.contains(f"{version}.0") for version in promised()), f"{name} needs Python {needs}"
    assert checked


def test_targets_that_are_named_exist():
    targets = set(re.findall(r"^([\w-]+):", text("Makefile"), re.M))
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", ".ci/run", ".github/workflows/test.yml"):
        assert set(re.findall(r"(?:^ +|`|run: )make ([a-z]+)\b", text(name), re.M)) <= targets, name
    for script in re.findall(r"\$\(RUN\) (\w[\w/]*\.py)", text("Makefile")):
        assert (ROOT / script).is_file(), script
    assert {f"soak/{path.name}" for path in (ROOT / "soak").glob("*.py")} == set(
        re.findall(r"soak/\w+\.py", text("Makefile")))


def test_what_windows_runs_without_make_is_what_make_demo_runs():
    [target] = re.findall(r"^demo:.*\n((?:\t.*\n)+)", text("Makefile"), re.M)
    without = re.findall(r"^    \.venv\\Scripts\\python (.*)", text("docs/platforms.md"), re.M)
    assert without[0] == "-m pip install -r requirements-dev.txt -c constraints.txt"
    assert without[1:] == re.findall(r"\$\(RUN\) (.*)", target)


def test_the_citation_has_what_the_format_asks_for():
    cited = yaml.safe_load(text("CITATION.cff"))
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software" and cited["license"] == "MIT"
    assert {"title", "message", "authors"} <= set(cited)
    for entry in (cited, *cited["references"]):
        assert entry["title"] and entry["authors"] and all(
            {"name"} == set(author) or {"family-names", "given-names"} == set(author) for author in entry["authors"])
    assert {entry["title"].split(":")[0] for entry in cited["references"]} == {"FMA", "librosa"}
    assert all(entry["type"] == "conference-paper" for entry in cited["references"])
