"""CONTRIBUTING.md lists every module, data flows down the list, and the examples in docstrings are true."""

import ast
import doctest
import importlib
import re
import sys
from importlib.metadata import packages_distributions

import pytest
from conftest import PACKAGES, ROOT

# Rows of the study are data and import nothing, so the commands above study/ may name them.
DATA = {"study.rows"}
# python fma.py prints the audit, which reads audio: within the command alone, so that importing fma stays cheap.
COMMAND = {("fma", "audio.audit"), ("fma", "audio.audit.print_audit")}


def listed():
    """Modules in the order of that list, dotted."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## How it is built")[1].split("\n## ")[0]
    return [path.replace("/", ".") for path in re.findall(r"^\| \[[^]]*\]\(([\w/]+)\.py\)", table, re.M)]


def modules():
    """Every module, dotted."""
    packages = (path for name in PACKAGES for path in (ROOT / name).glob("*.py") if path.stem != "__init__")
    return sorted([path.stem for path in ROOT.glob("*.py")] + [f"{path.parent.name}.{path.stem}" for path in packages])


def imports(module):
    """What a module imports, at its top or within functions, dotted."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_module_is_listed_once():
    assert sorted(listed()) == modules()
    assert len(list(ROOT.glob("*.py"))) <= 15


def test_modules_import_from_above():
    place = {name: k for k, name in enumerate(listed())}
    upward = {(name, other) for name in place for other in imports(name)
              if place.get(other, -1) > place[name] and other not in DATA}
    assert upward <= COMMAND
    assert not {other for name in DATA for other in imports(name)} & set(place)


def test_no_module_hides_a_package():
    """The repository comes first on a notebook's path, and `from datasets import load_dataset` is HuggingFace's."""
    ours = {name.split(".")[0] for name in modules()}
    assert not ours & (sys.stdlib_module_names | set(packages_distributions()) | {"datasets", "evaluate"})


def test_a_folder_is_a_plain_package():
    for name in PACKAGES:
        text = (ROOT / name / "__init__.py").read_text(encoding="utf-8")
        assert [type(node) for node in ast.parse(text).body] == [ast.Expr], name


@pytest.mark.parametrize("module", [name for name in modules() if ">>> " in
                                    (ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")])
def test_examples_in_docstrings(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted and not found.failed
