"""Faults from outside: kills, full disks, a second process, odd clocks and locales, a cache that changes.

Whatever happens, nothing half-written gets its final name, the remedy is said in one line, and going on ends in the
same bytes. soak/faults.py does the same for longer.
"""

import errno
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import test_download
from conftest import ROOT
from synthetic import made_up
from test_training import outcome, train

import experiments
import training
from fma import DataError, run_command
from learning import runs
from study import marked_tables, result_files, tables

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    return outcome(train(tiny, tmp_path_factory.mktemp("undisturbed"))[0])


@pytest.fixture
def data(tiny, tmp_path):
    """A copy of `tiny` to change."""
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


def command(capsys, main, *argv):
    """Exit status of a command run here, and the lines it says on stderr."""
    capsys.readouterr()
    return run_command(lambda: main([str(arg) for arg in argv])), capsys.readouterr().err.splitlines()


# ---- killed -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_a_download_killed_at_any_moment_ends_in_the_same_files(tmp_path):
    server, folder, rng = test_download.Server(), tmp_path / "data", random.Random(0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    expected = {**test_download.METADATA, **test_download.AUDIO}
    start = time.monotonic()
    assert test_download.fetch(server, tmp_path / "whole")[0] == 0
    lasts, killed, end = time.monotonic() - start, 0, time.monotonic() + 20
    while killed < 6 and time.monotonic() < end:
        process = test_download.start(server, folder)
        time.sleep(rng.uniform(0.1, 0.9) * lasts)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        for name, content in test_download.content(folder).items() if folder.exists() else ():
            if not name.endswith(".part"):
                whole = content == {**expected, **server.archives}[name]
                assert whole, f"{name} is half-written"
        if process.returncode == 0:             # it was quicker: begin anew
            shutil.rmtree(folder)
    status, said = test_download.fetch(server, folder)
    server.shutdown()
    server.server_close()
    assert status == 0 and killed == 6, said
    found = test_download.content(folder)
    assert found.keys() == expected.keys() and all(found[name] == expected[name] for name in expected)


def write_for_ever(folder):
    """Write one result, one table and one text again and again, in two versions; ended by a kill."""
    result = json.loads((folder / "results" / "some" / "cqt_square.json").read_text())
    clips = np.arange(4000)
    tests = [{"probabilities": np.eye(2)[clips % 2], "labels": clips % 2, "artists": clips, "tracks": clips,
              "genres": np.array(["Folk", "Rock"])}]
    for k in itertools.count():
        result["seeds"][0]["test"] = result["test"]["accuracy"] = float(k % 2)
        result["padding"] = "x" * 500_000                               # so that writing takes a while
        result_files.save_result(folder / "results" / "some" / "cqt_square.json", result, tests)
        marked_tables.write_marked_tables(folder / "README.md", folder / "results")


def test_results_and_tables_killed_while_they_are_written_are_whole(tmp_path):
    made_up("cqt_square", 0, 1.0, tmp_path / "results" / "some")
    rows = "".join(f"line {k}\n" for k in range(50_000))
    readme, rng = tmp_path / "README.md", random.Random(0)
    readme.write_text(f"<!-- table some * -->\n<!-- end -->\n{rows}")
    marked_tables.write_marked_tables(readme, tmp_path / "results")
    for _ in range(12):
        process = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(tmp_path,))
        process.start()
        time.sleep(rng.uniform(0.05, 0.25))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert result_files.read_result(tmp_path / "results" / "some" / "cqt_square.json")["seeds"][0]["test"] in (0, 1)
        said = tables.load_predictions(tmp_path / "results" / "some" / "cqt_square.csv")
        assert len(said) in (40, 4000) and set(said["seed0"]) == {"Folk", "Rock"}
        assert readme.read_text().endswith(f"<!-- end -->\n{rows}")


# ---- no room, no permission -----------------------------------------------------------------------------------


@contextmanager
def no_file_above(size):
    """As on a full disk, a file cannot grow past so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size, name", [(100, "config.json"), (100_000, "model.safetensors"), (1_500_000, "state.pt")])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tiny, tmp_path, undisturbed, size, name):
    with no_file_above(size), pytest.raises(DataError, match=f"{name} cannot be written .*: free some space") as error:
        train(tiny, tmp_path)
    run_dir = tmp_path / "tiny" / "short" / "seed0"
    assert "\n" not in str(error.value) and not list(run_dir.glob(".*"))    # what was begun takes no room
    assert outcome(train(tiny, tmp_path)[0]) == undisturbed


def test_a_full_disk_leaves_the_result_that_was_there(tmp_path):
    made_up("cqt_square", 0, 0.9, tmp_path / "some")
    before = {path.name: path.read_bytes() for path in (tmp_path / "some").iterdir()}
    with no_file_above(100), pytest.raises(DataError, match="cqt_square.csv cannot be written"):
        made_up("cqt_square", 0, 0.4, tmp_path / "some")
    assert {path.name: path.read_bytes() for path in (tmp_path / "some").iterdir()} == before


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_a_full_disk_ends_a_download_at_once_and_it_goes_on(tmp_path):
    server, folder = test_download.Server(), tmp_path / "data"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    status, said = test_download.fetch(server, folder, inject=full)
    assert status == 1 and "fma_small.zip.part cannot be written" in said and "trying again" not in said
    assert (folder / "fma_small.zip.part").stat().st_size == 50_000
    assert test_download.fetch(server, folder)[0] == 0
    server.shutdown()
    server.server_close()
    assert test_download.content(folder) == {**test_download.METADATA, **test_download.AUDIO}


@pytest.mark.parametrize("main, argv", [
    (training.main, ["chroma_cqt_square", "--runs-dir"]),
    (experiments.main, ["run", "chroma_cqt_square", "--epochs", "1", "--runs-dir"]),
], ids=["training.py", "experiments.py"])
@pytest.mark.parametrize("obstacle", ["a file in the way", "read-only"])
def test_a_folder_that_cannot_be_made_is_one_line(tiny, tmp_path, capsys, monkeypatch, main, argv, obstacle):
    (tmp_path / "file").touch()
    if obstacle == "read-only":                             # the administrator is not stopped by permissions
        def refuse(path, *args):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        monkeypatch.setattr(os, "mkdir", refuse)
    folder = tmp_path / ("file" if obstacle == "a file in the way" else "none") / "runs"
    status, said = command(capsys, main, *argv, folder, "--data-dir", tiny, "--device", "cpu", "--results-dir"
                           if main is experiments.main else "--seed", tmp_path if main is experiments.main else 0)
    assert status == 2 and len(said) == 1 and str(tmp_path) in said[0] and "another folder" in said[0]


# ---- two at once, and a cell that is stopped ------------------------------------------------------------------


def test_a_run_is_trained_by_one_process_at_a_time(tiny, tmp_path, undisturbed):
    """The command is at it; this process is refused until the other is killed, and then ends as if alone."""
    line = [sys.executable, "-c", "import sys, test_training as t, pathlib, time\n"
            "from learning import runs\nsave = runs.save_state\n"
            "runs.save_state = lambda *args: (save(*args), time.sleep(99))\n"
            "t.training.SAVE_EVERY = 0\nt.torch.set_num_threads(1)\n"
            "t.train(*map(pathlib.Path, sys.argv[1:]))", tiny, tmp_path]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    other = subprocess.Popen(line, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})
    run_dir, end = tmp_path / "tiny" / "short" / "seed0", time.monotonic() + 60
    try:
        while not (run_dir / "state.pt").is_file() and time.monotonic() < end:
            assert other.poll() is None
            time.sleep(0.05)
        before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
        with pytest.raises(DataError, match="is being trained by another process: wait for it, or stop it"):
            train(tiny, tmp_path)
        assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before
    finally:
        other.kill()
        other.wait()
    assert outcome(train(tiny, tmp_path)[0]) == undisturbed
    with runs.lock(run_dir), runs.lock(run_dir):                        # a finished run is read by any number
        assert train(tiny, tmp_path)[0] == run_dir


def test_only_the_first_process_of_a_training_locks_it(tmp_path):
    with runs.lock(tmp_path / "run"), runs.lock(tmp_path / "run", write=False):
        pass
    with runs.lock(tmp_path / "run"), pytest.raises(DataError), runs.lock(tmp_path / "run"):
        pass


def test_a_notebook_cell_that_is_interrupted_goes_on_when_it_is_run_again(tiny, tmp_path, monkeypatch):
    cell = ("from study.runner import run_experiments\n"
            "results, run_dirs = run_experiments(['chroma_cqt_square'], data, 3, 2, device='cpu', progress=False,\n"
            "                                    runs_dir=folder / 'runs', results_dir=folder / 'results')\n")
    names = {"data": tiny, "folder": tmp_path}
    step, calls, epochs = training.train_epoch, itertools.count(), []

    def stopped(*args):
        if next(calls) == 4:                                            # in the second epoch of the second seed
            raise KeyboardInterrupt
        epochs.append((args[3].seed, args[4]))
        return step(*args)

    monkeypatch.setattr(training, "train_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        exec(cell, names)
    assert not (tmp_path / "results").exists()
    exec(cell, names)
    assert epochs == [(seed, epoch) for seed in (0, 1) for epoch in range(3)]           # each once
    whole = {"data": tiny, "folder": tmp_path / "whole"}
    exec(cell, whole)
    assert list(map(outcome, names["run_dirs"]["chroma_cqt_square"])) == list(
        map(outcome, whole["run_dirs"]["chroma_cqt_square"]))


# ---- another clock, another locale ----------------------------------------------------------------------------


BACKWARDS = """
import itertools, time
past = itertools.count(10**9, -3600)
time.time = time.monotonic = time.perf_counter = lambda: float(next(past))
"""
PLACES = {
    "usual": ({}, ""),
    "files not UTF-8 by default, clock set back": (
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}, BACKWARDS),
    "Turkish": ({"LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Tokyo"}, ""),
}


def test_clock_and_locale_change_not_a_byte(data, tmp_path):
    path = data / "fma_metadata" / "tracks.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("Folk", "İlahi – ılık").replace("Rock", "Ìjálá"),
                    encoding="utf-8")
    processes = []
    for k, (variables, inject) in enumerate(PLACES.values()):
        (tmp_path / f"site{k}").mkdir()
        (tmp_path / f"site{k}" / "sitecustomize.py").write_text(inject)
        line = [sys.executable, "experiments.py", "run", "chroma_cqt_square", "--epochs", "2", "--data-dir", data,
                "--runs-dir", tmp_path / str(k), "--results-dir", tmp_path / str(k), "--device", "cpu"]
        variables = variables | {"PYTHONPATH": str(tmp_path / f"site{k}"), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        processes.append(subprocess.Popen(line, cwd=ROOT, env=os.environ | variables, stdout=subprocess.PIPE,
                                          stderr=subprocess.PIPE))
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    found = []
    for k in range(len(PLACES)):
        run_dir = tmp_path / str(k) / "tiny" / "chroma_cqt_square" / "seed0"
        result = json.loads((tmp_path / str(k) / "tiny" / "chroma_cqt_square.json").read_bytes())
        result["seeds"][0].pop("seconds")
        found.append([outcome(run_dir), (run_dir / "config.json").read_bytes(), result,
                      (tmp_path / str(k) / "tiny" / "chroma_cqt_square.csv").read_bytes()])
    assert found[1] == found[0] and found[2] == found[0]
    assert "İlahi" in result["test"]["genres"] or "İlahi – ılık" in result["test"]["genres"]


# ---- a cache that changes under an unfinished run --------------------------------------------------------------


def rewrite(path, change):
    path.write_text(change(path.read_text()))


def change_one_value(folder):
    array = np.load(folder / "features" / "chroma_cqt.npy")
    array[60, 3, 7] += 1                                                # of a test clip: no normalisation notices
    np.save(folder / "features" / "chroma_cqt.npy", array)


def another_librosa(folder):
    rewrite(folder / "features" / "chroma_cqt.json",
            lambda text: json.dumps(json.loads(text) | {"versions": {"librosa": "9.9"}}))


CHANGES = {
    "deleted": (lambda f: (f / "features" / "chroma_cqt.npy").unlink(), "chroma_cqt.npy not found: run features.py"),
    "index deleted": (lambda f: (f / "features" / "index.csv").unlink(), "index.csv not found: make it first"),
    "truncated": (lambda f: os.truncate(f / "features" / "chroma_cqt.npy", 9999), "chroma_cqt.npy or its .json is dam"),
    "index one row short": (lambda f: rewrite(f / "features" / "index.csv", lambda text: text[:-6]),
                            "chroma_cqt.npy has shape .*, index.csv lists 63 tracks: delete"),
    "of another librosa": (another_librosa, r"begun with another feature_parameters \(versions\): delete"),
    "one value": (change_one_value, r"begun with other data \(chroma_cqt.npy\): delete"),
    "a clip's status": (lambda f: rewrite(f / "features" / "index.csv", lambda t: t.replace("65,ok", "65,silent")),
                        r"begun with other data \(index.csv\): delete"),
    "two rows swapped": (lambda f: rewrite(f / "features" / "index.csv",
                                           lambda t: t.replace("64,", "x").replace("65,", "64,").replace("x", "65,")),
                         r"begun with other data \(index.csv\): delete"),
    "a test clip's genre": (lambda f: rewrite(f / "fma_metadata" / "tracks.csv",
                                              lambda t: t.replace("65,test,small,Rock", "65,test,small,Folk")),
                            r"begun with other data \(tracks.csv\): delete"),
    "a test clip's artist": (lambda f: rewrite(f / "fma_metadata" / "tracks.csv",
                                               lambda t: t.replace(",131\n", ",1\n")),
                             r"begun with other data \(tracks.csv\): delete"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_another_cache(data, tmp_path, monkeypatch, change):
    step = training.train_epoch

    def interrupted_in_the_second_epoch(*args):
        if args[4]:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "train_epoch", interrupted_in_the_second_epoch)
        train(data, tmp_path / "runs")
    do, message = CHANGES[change]
    do(data)
    with pytest.raises(DataError, match=message) as error:
        train(data, tmp_path / "runs")
    assert "\n" not in str(error.value)
