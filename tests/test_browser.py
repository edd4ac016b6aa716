"""In JupyterLab, in a real browser, notebooks run from the first cell to the last, can be seen, heard, and given music.

Without a browser the tests are skipped; where CI is set they fail, unless NO_BROWSER says that none is wanted.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
from conftest import copy_code

try:
    from playwright import sync_api as playwright
except ImportError:
    playwright = None

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "features_to_npy.ipynb"
PREDICT = ROOT / "notebooks" / "predict.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},                        # else only cells in sight are there
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},     # else it asks
}
MINUTES = 60_000        # in playwright's milliseconds; the waits are for busy machines
ERROR = "[data-mime-type='application/vnd.jupyter.error']"
DONE = """error => document.querySelector(error)
    || [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(p => /\\d/.test(p.textContent))"""


def do_without(remedy):
    """Skip a test, or fail it on a machine that should have a browser: nobody reads there what was skipped."""
    if os.environ.get("CI") and not os.environ.get("NO_BROWSER"):
        pytest.fail(f"{remedy}, or set NO_BROWSER=1 to do without this test")
    pytest.skip(remedy)


@pytest.mark.parametrize("variables, outcome", [({}, "skip"), ({"CI": "true"}, "fail"), ({"CI": ""}, "skip"),
                                                ({"CI": "true", "NO_BROWSER": "1"}, "skip")])
def test_a_missing_browser_is_only_overlooked_on_purpose(monkeypatch, variables, outcome):
    for name in ("CI", "NO_BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(getattr(pytest, outcome).Exception, match="install"):
        do_without("no browser here: install Chromium")


@pytest.fixture
def page():
    """A page of the browser that is installed."""
    if playwright is None:
        do_without("no playwright here: install requirements-dev.txt")
    with playwright.sync_playwright() as driver:
        program = next(filter(None, map(shutil.which, BROWSERS)), driver.chromium.executable_path)
        if not Path(program).exists():
            do_without("no browser here: install Chromium, or run `.venv/bin/playwright install chromium`")
        browser = driver.chromium.launch(executable_path=program, timeout=2 * MINUTES)
        page = browser.new_page(viewport={"width": 1200, "height": 1600})
        page.set_default_timeout(3 * MINUTES)
        yield page
        browser.close()


@pytest.fixture
def lab(demo, tmp_path):
    """Address and token of a JupyterLab on a copy of modules, weights and notebooks, whose outputs are taken away."""
    study = tmp_path / "study"
    (study / "notebooks").mkdir(parents=True)
    copy_code(study)
    shutil.copytree(ROOT / "weights", study / "weights")
    shutil.copy(ROOT / "notebooks" / "colab.py", study / "notebooks")
    for path in (NOTEBOOK, PREDICT):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, study / "notebooks" / path.name)
    for name, values in SETTINGS.items():
        path = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    folders = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",     # nobody's own
               "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "share", "JUPYTER_RUNTIME_DIR": "runtime",
               "IPYTHONDIR": "ipython"}
    environment = os.environ | {name: str(tmp_path / folder) for name, folder in folders.items()}
    environment["DATA_DIR"] = str(demo)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={study}"]
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, cwd=study, stdout=log, stderr=log)
    try:
        yield wait_for_server(server, tmp_path)
    finally:
        server.terminate()      # it ends its kernels
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:       # seen once, with JupyterLab 4.2.0
            server.kill()
            server.wait()


def wait_for_server(server, folder, seconds=180):
    """Address and token that a server writes down once it listens, on whichever port was free."""
    for _ in range(10 * seconds):
        try:
            info = json.loads((folder / "runtime" / f"jpserver-{server.pid}.json").read_text())
            return info["url"], info["token"]
        except (FileNotFoundError, ValueError):     # not there, or not written to its end
            time.sleep(0.1)
        if server.poll() is not None:
            break
    pytest.fail(f"JupyterLab did not start:\n{(folder / 'lab.log').read_text()[-2000:]}")


def run_all(page, lab, path):
    """Open a notebook, run it from the first cell to the last, and see that each has run."""
    committed = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    url, token = lab
    page.goto(f"{url}lab/tree/notebooks/{path.name}?token={token}")
    page.get_by_text("| Idle").wait_for()       # the kernel is connected, else JupyterLab asks for one
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(DONE, arg=ERROR, timeout=8 * MINUTES)
    assert page.locator(ERROR).all_inner_texts() == []
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
    assert [int(re.sub(r"\D", "", text)) for text in prompts] == list(range(1, len(committed) + 1))
    return committed


@pytest.mark.timeout(1200)         # its own waits are shorter and say what they wait for
def test_notebook_runs_in_jupyterlab(page, lab, tmp_path):
    committed = run_all(page, lab, NOTEBOOK)

    page.wait_for_function("[...document.images].every(image => image.complete)")
    widths = page.locator(".jp-OutputArea-output img").evaluate_all("images => images.map(i => i.naturalWidth)")
    figures = [o for cell in committed for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(widths) == len(figures) >= 3 and min(widths) > 0

    page.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.readyState || a.error)")
    seconds = page.locator("audio").evaluate_all("players => players.map(a => a.duration || 0)")
    assert seconds and min(seconds) > 1, "a player without sound"

    page.locator("audio").first.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "notebook.png")


@pytest.mark.timeout(1200)
def test_a_file_is_uploaded_and_answered(page, lab, tmp_path):
    """The button takes a file; its answer stands below, and the cells below that are then about it."""
    seconds = np.arange(40 * 22_050) / 22_050
    soundfile.write(tmp_path / "my tune.wav", 0.3 * np.sin(2 * np.pi * 440 * seconds * (1 + seconds / 80)), 22_050)
    run_all(page, lab, PREDICT)
    assert page.get_by_text("my tune.wav").count() == 0

    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload audio").click()
    chooser.value.set_files(tmp_path / "my tune.wav")
    cell = page.locator(".jp-CodeCell", has=page.get_by_role("button", name="Upload audio"))
    said = re.compile(r"^my tune\.wav +\D+\d+ %")       # a genre, or none of these
    cell.get_by_text(said).wait_for()
    cell.locator("img").wait_for()
    cell.locator("audio").wait_for()

    page.locator(".jp-CodeCell", has_text="song = Path(path or").locator(".jp-InputPrompt").click()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run Selected Cell and All Below", exact=True).click()
    page.get_by_text(said).nth(1).wait_for()
    page.wait_for_function(DONE, arg=ERROR)
    assert page.locator(ERROR).all_inner_texts() == []
