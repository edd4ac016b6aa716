"""A row of work that crashes or hangs its process costs itself; the others are done all the same."""

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from audio.workers import in_processes
from fma import DataError

_worker = {}


def start(folder):
    _worker["folder"] = Path(folder)
    if not _worker["folder"].is_dir():
        raise DataError(f"{folder} is not there")


def exits(folder):
    os._exit(3)


def work(row):
    with open(_worker["folder"] / str(row), "a") as file:
        file.write(f"{os.getpid()}\n")
    if row in ("killed", "killed once") and not (row == "killed once" and tries(_worker["folder"], row) > 1):
        os.kill(os.getpid(), signal.SIGSEGV)
    if row == "exits":
        os._exit(7)
    if row == "hangs":
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))      # nothing but SIGKILL ends it
        time.sleep(99)
    if row == "times out":
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")
    if row == "fails":
        raise ValueError("cannot be done")
    return f"did {row}"


def tries(folder, row):
    return (folder / str(row)).read_text().count("\n")


def test_what_dies_is_tried_once_more_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pebble.common.CONSTS.term_timeout", 0.2)
    rows = ["killed", 1, "hangs", 2, "killed once", 3, 4]
    began = time.monotonic()
    found = {row: (result, reason) for row, result, reason in in_processes(rows, work, 2, 1, start, (tmp_path,))}
    assert set(found) == set(rows) and set(list(found)[-3:]) == {"killed", "hangs", "killed once"}
    for row in (1, 2, 3, 4, "killed once"):
        assert found[row] == (f"did {row}", None)
    assert found["killed"] == (None, "killed its process (SIGSEGV)")
    assert found["hangs"] == (None, "took longer than 1 s")
    assert {row: tries(tmp_path, row) for row in rows} == {row: 2 if isinstance(row, str) else 1 for row in rows}
    assert time.monotonic() - began < 20


def test_processes_have_ended_when_all_is_done(tmp_path):
    assert len(list(in_processes(range(3), work, 2, 9, start, (tmp_path,)))) == 3
    assert not any(alive(int(path.read_text())) for path in tmp_path.iterdir())     # what they had open can be renamed


def test_an_error_is_raised_here(tmp_path):
    with pytest.raises(ValueError, match="cannot be done") as error:
        list(in_processes([1, "fails", 2], work, 1, 9, start, (tmp_path,)))
    assert "in work" in str(error.value.__cause__)          # where it was raised there


def test_processes_that_cannot_begin_are_an_error(tmp_path):
    with pytest.raises(DataError, match="none is not there"):
        list(in_processes([1, 2], work, 2, 9, start, (tmp_path / "none",)))
    with pytest.raises(DataError, match="a worker process was killed"):
        list(in_processes([1, 2], work, 1, 9, exits, (tmp_path,)))


def test_it_is_given_up_if_nothing_survives(tmp_path, monkeypatch):
    monkeypatch.setattr("audio.workers.HOPELESS", 2)
    with pytest.raises(DataError, match=r"the first 2 clips .*SIGSEGV.* --workers 1"):
        list(in_processes(["exits", "killed", 1, 2], work, 1, 9, start, (tmp_path,)))


def test_no_process_is_left_when_it_is_abandoned(tmp_path):
    results = in_processes(["hangs", *range(50)], work, 2, 60, start, (tmp_path,))
    end = time.monotonic() + 30
    while next(results)[0] < 5 or not (tmp_path / "hangs").exists() and time.monotonic() < end:
        pass
    results.close()
    pids = {int(pid) for path in tmp_path.iterdir() for pid in path.read_text().split()}
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert pids and not any(map(alive, pids))


def alive(pid):
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_file_system_that_times_out_is_no_fault_of_the_clip(tmp_path):
    with pytest.raises(TimeoutError, match="Connection timed out"):
        list(in_processes(["times out"], work, 1, 60, start, (tmp_path,)))
