"""What the second cell of each notebook does once the repository is there: on Colab packages and Drive; the path."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prepare(data_dir):
    """Make the modules importable from a notebook, and its paths relative to the repository.

    On Colab this also installs what requirements.txt names and the machine lacks, at the version of torch that is
    there, and mounts Google Drive if the data folder lies on it. A second call changes nothing.

    Parameters
    ----------
    data_dir : path-like or None
        The notebook's parameter. ``drive/...`` is on Google Drive, which is mounted beside the clone.

    Returns
    -------
    data_dir : str or path-like or None
        As given; on Google Drive the absolute path.
    """
    if "google.colab" in sys.modules:
        if Path.cwd() != ROOT:
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-r", ROOT / "requirements.txt",
                            f"torch=={version('torch')}"], check=True)
        if "/drive/" in f"/{data_dir}":
            from google.colab import drive

            data_dir = str(ROOT.parent / data_dir)
            drive.mount(data_dir.split("/drive/")[0] + "/drive")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    return data_dir
