"""How `pip install .` makes the package ``musicgenres`` of the modules of this repository.

They import each other by plain names, ``from audio.cache import PART``, which would land in site-packages beside
everybody's ``audio`` and ``features``. In the wheel they are ``musicgenres.audio.cache`` and so on, and their imports
are changed to match while they are copied. pyproject.toml names the class below.
"""

import re
from pathlib import Path

from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "musicgenres"
FOLDERS = ("audio", "learning", "study", "plots", "classifier")
OURS = "|".join([*FOLDERS, *(path.stem for path in ROOT.glob("*.py"))])
FROM = re.compile(rf"^(\s*from )({OURS})(?=[. ])", re.M)
IMPORT = re.compile(rf"^(\s*)import ({OURS})( as \w+)?(?=\s*(#.*)?$)", re.M)
LEFT = re.compile(rf"^\s*import (.*, *)?({OURS})\b|import_module\(.({OURS})\b", re.M)
START = f'''"""Music genres: `classify` songs from Python; ``python -m {PACKAGE} COMMAND`` runs the commands."""

__all__ = ["classify"]


def __getattr__(name):      # only now: commands need not wait for it
    if name == "classify":
        from {PACKAGE}.classifier.songs import classify

        return classify
    raise AttributeError(f"module {PACKAGE} has no attribute {{name}}")
'''
COMMANDS = "predict", "fma", "collection", "features", "training", "experiments", "baselines", "demo"
MAIN = f'''"""The commands: {PACKAGE} predict song.mp3, {PACKAGE} features --help, {PACKAGE} study.leakage ..."""

import runpy
import sys
from importlib.resources import files


def main():
    name, known = (sys.argv[1:] or ["--help"])[0], "{", ".join(COMMANDS)}"
    if name.startswith(("_", ".")) or not (files("{PACKAGE}") / (name.replace(".", "/") + ".py")).is_file():
        print(f"usage: {PACKAGE} COMMAND ...   ({{known}}; COMMAND --help)")
        sys.exit(0 if name in ("-h", "--help") else 2)
    del sys.argv[0]
    runpy.run_module(f"{PACKAGE}.{{name}}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
'''


def inside(text):
    """The text of a module with its imports as they are within the package."""
    text = IMPORT.sub(rf"\1from {PACKAGE} import \2\3", FROM.sub(rf"\1{PACKAGE}.\2", text))
    if found := LEFT.search(text):
        raise ValueError(f"an import that the package would not find: {found[0].strip()}")
    return text


class BuildPackage(build_py):
    """Copies modules with their imports changed, and adds ``__init__`` and ``__main__``."""

    def build_module(self, module, module_file, package):
        target, copied = super().build_module(module, module_file, package)
        Path(target).write_text(inside(Path(module_file).read_text(encoding="utf-8")), encoding="utf-8")
        return target, copied

    def run(self):
        if self.editable_mode:
            raise SystemExit("not editable, since imports are changed: pip install . (a clone needs no install)")
        super().run()
        for name, text in (("__init__", START), ("__main__", MAIN)):
            (Path(self.build_lib) / PACKAGE / f"{name}.py").write_text(text, encoding="utf-8")
