"""What macOS and Windows lack is replaced, or one line says so: here it is taken away."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_training import Cut, cut, outcome, train

import features
from audio import filling, workers
from benchmarks import timing
from dataset import memory_limit
from fma import DataError
from learning import runs

psutil = pytest.importorskip("psutil")      # comes with Dask
MACOS = {os: ("posix_fadvise", "posix_fallocate", "sched_getaffinity")}
WINDOWS = {os: (*MACOS[os], "sysconf", "getloadavg", "wait4", "O_DSYNC"), signal: ("alarm",)}


def take_away(monkeypatch, lacking):
    for module, names in lacking.items():
        for name in names:
            monkeypatch.delattr(module, name, raising=False)


def in_use(path):
    """Whether a file, or one in a folder, is open or mapped into memory in this process or one that it started."""
    path = Path(path).resolve()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for file in (*process.open_files(), *process.memory_maps()):
            if path == Path(file.path) or path in Path(file.path).parents:
                return True
    return False


@pytest.fixture
def windows(monkeypatch):
    """Neither fcntl nor the rest; and files that are open cannot be renamed, replaced or deleted with their folder."""
    take_away(monkeypatch, WINDOWS)
    monkeypatch.setitem(sys.modules, "fcntl", None)

    def careful(function):
        def guarded(*paths, **options):
            for path in paths:
                if in_use(path):
                    raise PermissionError(13, "it is being used by another process", str(path))
            return function(*paths, **options)
        return guarded

    monkeypatch.setattr(os, "replace", careful(os.replace))
    monkeypatch.setattr(shutil, "rmtree", careful(shutil.rmtree))


def test_the_windows_of_these_tests_renames_no_open_file(windows, tmp_path):
    (tmp_path / "x").touch()
    with open(tmp_path / "x"), pytest.raises(PermissionError):
        os.replace(tmp_path / "x", tmp_path / "y")
    os.replace(tmp_path / "x", tmp_path / "y")


def test_windows_fills_a_cache_with_the_same_bytes(windows, small, cache, tmp_path):
    assert features.fill_cache(small, ("mfcc",), features_dir=tmp_path, workers=1, progress=False) is not None
    for name in ("index.csv", "mfcc.npy", "mfcc.json"):
        assert (tmp_path / name).read_bytes() == (cache / name).read_bytes()
    assert not (tmp_path / ".partial").exists()


def test_macos_fills_a_cache_with_the_same_bytes(monkeypatch, small, cache, tmp_path):
    take_away(monkeypatch, MACOS)
    assert features.cpu_count() == os.cpu_count()
    features.fill_cache(small, ("mfcc",), features_dir=tmp_path, workers=1, progress=False)
    assert (tmp_path / "mfcc.npy").read_bytes() == (cache / "mfcc.npy").read_bytes()


def test_windows_trains_and_goes_on(windows, tiny, tmp_path):
    whole = outcome(train(tiny, tmp_path / "whole")[0])
    with pytest.MonkeyPatch.context() as once, pytest.raises(Cut):
        cut(once, runs, "save_state", 2)
        train(tiny, tmp_path / "cut")
    assert outcome(train(tiny, tmp_path / "cut")[0]) == whole


def test_windows_cannot_share_a_cache(windows, tmp_path):
    with pytest.raises(DataError, match="--shard needs Linux or macOS"), filling.lock(tmp_path, shared=True):
        pass


def test_windows_ends_a_crashed_worker_in_words(monkeypatch):
    take_away(monkeypatch, {signal: ("SIGKILL", "SIGALRM")})
    assert workers._cause(0xC0000005) == "exit status 3221225477"


@pytest.mark.parametrize("sysconf", [None, lambda name: (_ for _ in ()).throw(ValueError(name))])
def test_memory_that_a_system_does_not_tell_has_no_limit(monkeypatch, sysconf, tmp_path):
    if sysconf:
        monkeypatch.setattr(os, "sysconf", sysconf)
    else:
        monkeypatch.delattr(os, "sysconf")
    assert memory_limit(tmp_path / "none", tmp_path) == float("inf")


def test_benchmarks_say_what_windows_cannot_measure(windows):
    assert "load" not in timing.machine()
    with pytest.raises(DataError, match="on Linux or macOS"):
        timing.watch([sys.executable, "-c", ""])


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_download_needs_wsl_on_windows(tmp_path):
    (tmp_path / "fcntl.py").write_text("raise ImportError('no fcntl here')")
    done = subprocess.run(["bash", ROOT / "download_data.sh", "small", tmp_path / "data"], capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1 and done.stderr.strip().endswith("on Windows run it in WSL")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "data").exists()


def test_a_lock_that_is_not_there_keeps_nobody_out(windows, tmp_path):
    with runs.lock(tmp_path / "run"), runs.lock(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
