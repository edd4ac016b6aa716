"""Put links to Colab and nbviewer at the top of each notebook, and tell its setup cell where the repository is.

    python notebooks/badges.py owner/name       default: the git remote `origin`

Everything else in a notebook stays as it is, byte for byte; a second run changes nothing.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OWNER_NAME = r"([\w-]+/(?!\.)[\w.-]+?)(?:\.git)?"
REMOTE = re.compile(rf"(?:https?://|ssh://)?(?:[^/@]+@)?github\.com[:/]{OWNER_NAME}/?", re.ASCII)
SETTING = re.compile(r'^REPOSITORY = "[^"]*"', re.M)
BADGES = """\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{place})
[![Show in nbviewer](https://raw.githubusercontent.com/jupyter/design/main/logos/Badges/nbviewer_badge.svg)]\
(https://nbviewer.org/github/{place})"""


def git(*command):
    """What git prints in this repository; nothing if it fails or is not installed."""
    try:
        return subprocess.check_output(["git", "-C", FOLDER, *command], stderr=subprocess.DEVNULL, text=True).strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


def mark(path, place, repository):
    """A notebook's text with badges that lead to `place`, and with `repository` in its setup cell.

    Parameters
    ----------
    path : Path
        A notebook, laid out as nbformat writes it.
    place : str
        ``owner/name/blob/branch/notebooks/file.ipynb``.
    repository : str
        ``owner/name``.

    Returns
    -------
    text : str

    Raises
    ------
    ValueError
        If the notebook has no setup cell.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if "badges" not in cell["metadata"].get("tags", [])]
    settings = 0
    for cell in cells:
        if cell["cell_type"] == "code":
            source, found = SETTING.subn(f'REPOSITORY = "{repository}"', "".join(cell["source"]))
            cell["source"], settings = source.splitlines(keepends=True), settings + found
    if settings != 1:
        raise ValueError(f"{path.name} has {settings} lines REPOSITORY = \"...\", and needs one, in its setup cell")
    badges = {"cell_type": "markdown", "id": "badges", "metadata": {"tags": ["badges"]},
              "source": BADGES.format(place=place).splitlines(keepends=True)}
    notebook["cells"] = [badges, *cells]
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def main(argv=None):
    parser = argparse.ArgumentParser(description="Put links to Colab and nbviewer at the top of each notebook.")
    parser.add_argument("repository", nargs="?", help="owner/name on GitHub (default: that of the git remote origin)")
    given = parser.parse_args(argv).repository
    found = re.fullmatch(OWNER_NAME, given, re.ASCII) if given else REMOTE.fullmatch(git("remote", "get-url", "origin"))
    if not found:
        what = f"{given!r} is not owner/name" if given else "git knows no remote origin on GitHub"
        parser.error(f"{what}: make badges REPO=owner/name")
    default = git("symbolic-ref", "--short", "refs/remotes/origin/HEAD").removeprefix("origin/")
    branch = default or git("symbolic-ref", "--short", "HEAD") or "main"
    paths = sorted(FOLDER.glob("*.ipynb"))
    marked = {path: mark(path, f"{found[1]}/blob/{branch}/notebooks/{path.name}", found[1]) for path in paths}
    for path, text in marked.items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(marked)} notebooks lead to github.com/{found[1]}")


if __name__ == "__main__":
    main()
