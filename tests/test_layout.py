"""The README's list of modules is all of them, and data flows down it: each imports only from those above."""

import ast
import re

from conftest import ROOT

# The command of training.py takes names from the row below it; nothing of it is needed to import the module.
LATE = {("training", "experiments")}


def listed():
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## How it is built")[1]
    return [name for row in re.findall(r"^\|(.*?)\|", table, re.M) for name in re.findall(r"`(\w+)\.py`", row)]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_module_is_listed_once():
    assert sorted(listed()) == sorted(path.stem for path in ROOT.glob("*.py"))


def test_modules_import_from_above():
    place = {name: k for k, name in enumerate(listed())}
    upward = {(name, other) for name in place for other in imports(ROOT / f"{name}.py")
              if place.get(other, -1) > place[name]}
    assert upward == LATE
