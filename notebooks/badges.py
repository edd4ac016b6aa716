"""Put links to Colab and nbviewer at the top of each notebook, and tell its setup cell where the repository is.

    python notebooks/badges.py owner/name       default: the git remote `origin`

Everything else in a notebook stays as it is, byte for byte; a second run changes nothing.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# As GitHub has them: an owner of up to 39 letters and digits with single hyphens between (an underscore where a company
# manages it); a name of up to 100 letters, digits, dots, hyphens and underscores, neither . nor .. nor ending in .git.
OWNER_NAME = r"((?=[^/]{1,39}/)[a-z\d](?:-?[a-z\d_])*/(?!\.{0,2}(?:\.git)*/?$)[\w.-]{1,100}?)(?:\.git)*"
NAME = re.compile(OWNER_NAME, re.ASCII | re.IGNORECASE)
REMOTE = re.compile(rf"(?:https?://|ssh://)?(?:[^/@]+@)?github\.com[:/]{OWNER_NAME}/?", re.ASCII | re.IGNORECASE)
SETTING = re.compile(r'^REPOSITORY = "[^"]*"', re.M)
BADGES = """\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{place})
[![Show in nbviewer](https://raw.githubusercontent.com/jupyter/design/main/logos/Badges/nbviewer_badge.svg)]\
(https://nbviewer.org/github/{place})"""


def git(*command):
    """First line that git prints in this repository, or nothing if it fails."""
    try:
        done = subprocess.run(["git", "-C", FOLDER, *command], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def find_repository():
    """owner/name of the remote `origin` if that is on GitHub, else None."""
    remote = REMOTE.fullmatch(git("remote", "get-url", "origin"))
    return remote and remote[1]


def find_branch():
    """The remote's default branch as far as git knows it, else the one that is checked out, else main."""
    default = git("symbolic-ref", "--short", "refs/remotes/origin/HEAD").removeprefix("origin/")
    return default or git("symbolic-ref", "--short", "HEAD") or "main"


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
        If the file is no notebook, or none of its cells has the line ``REPOSITORY = "..."``.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if "badges" not in cell["metadata"].get("tags", [])]
        setup = [cell for cell in cells if cell["cell_type"] == "code" and SETTING.search("".join(cell["source"]))]
    except (ValueError, LookupError, TypeError, AttributeError) as error:       # no JSON, or JSON of another form
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path.name} is not a notebook ({why}): take the last version that git has") from error
    if not setup:
        raise ValueError(f"{path.name} has no line REPOSITORY = \"\": copy the setup cell of another notebook")
    for cell in setup:
        source = SETTING.sub(f'REPOSITORY = "{repository}"', "".join(cell["source"]))
        cell["source"] = source.splitlines(keepends=True)
    badges = {"cell_type": "markdown", "id": "badges", "metadata": {"tags": ["badges"]},
              "source": BADGES.format(place=place).splitlines(keepends=True)}
    notebook["cells"] = [badges, *cells]
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def main(argv=None):
    parser = argparse.ArgumentParser(description="Put links to Colab and nbviewer at the top of each notebook.")
    parser.add_argument("repository", nargs="?", help="owner/name on GitHub (default: that of the git remote origin)")
    given = parser.parse_args(argv).repository
    marked = {}
    try:
        if given and not NAME.fullmatch(given):
            raise ValueError(f"{given!r} is not owner/name: make badges REPO=owner/name")
        repository = NAME.fullmatch(given)[1] if given else find_repository()
        if not repository:
            raise ValueError("git knows no remote origin on GitHub: name one, make badges REPO=owner/name")
        for path in sorted(FOLDER.glob("*.ipynb")):
            place = f"{repository}/blob/{find_branch()}/notebooks/{path.name}"
            marked[path] = mark(path, place, repository)
    except ValueError as error:
        print(f"badges.py: {error}", file=sys.stderr)
        return 2
    for path, text in marked.items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(marked)} notebooks lead to github.com/{repository}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
