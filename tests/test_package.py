"""`pip install .` gives one package, which works beside anybody's own modules of the same names."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import soundfile
from conftest import PACKAGES, ROOT, copy_code
from synthetic import RATE, tone
from test_layout import imports, modules


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The content of the wheel, as pip installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    copy_code(source)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "requirements.txt", "requirements-audio.txt"):
        shutil.copy(ROOT / name, source)
    for name in ("install", "weights"):
        shutil.copytree(ROOT / name, source / name)
    pip = sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"
    done = subprocess.run([*pip, "-w", folder, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_package_holds_every_module_under_one_name(installed):
    assert sorted(path.name.split("-")[0] for path in installed.iterdir()) == ["musicgenres", "musicgenres"]
    found = {".".join(path.relative_to(installed / "musicgenres").with_suffix("").parts): path
             for path in installed.rglob("*.py")}
    assert set(modules()) == {name for name in found if not name.endswith("__")}
    ours = {name.split(".")[0] for name in modules()} | set(PACKAGES)
    for name, path in found.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) else [])
            assert not ours & {each.split(".")[0] for each in names}, f"{name} imports {names}"
    assert any(other.split(".")[0] in ours for name in modules() for other in imports(name))    # which were changed


def test_three_lines_in_a_folder_with_modules_of_ones_own(installed, tmp_path):
    """No main guard: processes that decode must not run the script again."""
    for name in ("features", "dataset", "audio", "fma", "classifier"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the working folder was imported')")
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, tone(31), RATE)
    (tmp_path / "script.py").write_text("from musicgenres import classify\n"
                                        "for found in classify(['a.wav', 'b.wav']):\n"
                                        "    print(found['file'], found['genre'])\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(installed)})
    assert done.returncode == 0 and done.stderr == "", done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["a.wav", "b.wav"]


def test_its_commands_are_ours(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    for command, status, line in (("predict nothing.mp3", 2, "predict.py: nothing.mp3 not found"),
                                  ("fma --help", 0, "--data-dir"), ("", 0, "musicgenres COMMAND"),
                                  ("nonsense", 2, "usage: musicgenres COMMAND")):
        done = subprocess.run([sys.executable, "-m", "musicgenres", *command.split()], cwd=tmp_path, env=environment,
                              capture_output=True, text=True)
        assert done.returncode == status and line in done.stdout + done.stderr
    assert "musicgenres = musicgenres.__main__:main" in next(installed.glob("*/entry_points.txt")).read_text()
