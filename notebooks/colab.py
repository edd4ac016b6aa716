"""What the second cell of each notebook does once the repository is there: on Colab packages and Drive; the path."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prepare(notebook):
    """Make the modules importable from a notebook, and its paths relative to the repository.

    On Colab this also installs what requirements.txt names and the machine lacks, at the version of torch that is
    there, and mounts Google Drive if the data folder lies on it. Runs and results then go there too, unless the
    notebook's parameters name other folders: the machine is gone when Colab disconnects. A second call changes nothing.

    Parameters
    ----------
    notebook : dict
        The notebook's variables: its parameters ``source`` and ``data_dir`` (``drive/...`` is on Google Drive, which is
        mounted beside the clone), ``runs_dir`` and ``results_dir``, those that it has, become absolute paths there.
    """
    on_drive = [name for name in ("source", "data_dir") if "/drive/" in f"/{notebook.get(name)}"]
    if "google.colab" in sys.modules:
        if Path.cwd() != ROOT:
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-r", ROOT / "requirements.txt",
                            f"torch=={version('torch')}"], check=True)
        for name in on_drive:
            from google.colab import drive

            notebook[name] = str(ROOT.parent / notebook[name])
            drive.mount(notebook[name].split("/drive/")[0] + "/drive")
        if "data_dir" in on_drive:
            home = notebook["data_dir"]
            runs = f"{home}/runs" + ("/{epochs}_epochs" if "epochs" in notebook else "")
            for name, default, there in (("runs_dir", (None, "runs"), runs),
                                         ("results_dir", ("results",), f"{home}/results")):
                if notebook.get(name, "") in default:
                    notebook[name] = there
            print("On Google Drive: " + ", ".join(f"{name} {notebook[name]}" for name in
                                                  ("data_dir", "runs_dir", "results_dir") if name in notebook))
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
