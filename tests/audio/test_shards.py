"""The shards of a batch system fill one cache, each its own rows, with the bytes of one process."""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from test_cluster import NAMES, assert_same, when_written
from test_features import command, fails

import features
from audio import filling, shards
from audio.cache import load_index
from features import fill_cache


@pytest.fixture(autouse=True)
def numba_folder(monkeypatch):
    """A shard in this process changes it for the process; it is put back."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", os.environ.get("NUMBA_CACHE_DIR", ""))


def shard(small, folder, which):
    return command("--data-dir", small, "--features-dir", folder, "--features", *NAMES, "--workers", 1,
                   "--shard", which)


def test_shards_at_once_and_one_of_them_killed_give_the_bytes_of_one(small, cache, tmp_path):
    folder = tmp_path / "features"
    processes = [shard(small, folder, f"{k}/3") for k in (1, 2, 3)]
    when_written(folder, 2, processes[1].kill).join(60)
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL, 0], outputs
    assert all("others are not" in out for out, _ in (outputs[0], outputs[2]))
    assert not (folder / "index.csv").exists()
    last = shard(small, folder, "2/3")
    out, err = last.communicate()
    assert last.returncode == 0 and f"{len(load_index(cache))} tracks" in out, err
    assert_same(folder, cache)


def test_a_run_without_shards_ends_what_they_left(small, cache, tmp_path):
    folder = tmp_path / "features"
    assert fill_cache(small, NAMES, features_dir=folder, workers=1, progress=False, shard=(2, 2)) is None
    seen = (folder / ".partial" / "progress-2of2.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) % 2 for line in seen] == [1] * (len(load_index(cache)) // 2)
    fill_cache(small, NAMES, features_dir=folder, workers=1, progress=False)
    assert_same(folder, cache)


def test_who_does_not_belong_to_the_shards_at_work_is_kept_out(small, tmp_path, capsys):
    folder = tmp_path / "features"
    fill_cache(small, NAMES, features_dir=folder, workers=1, progress=False, shard=(1, 2))
    args = ("--data-dir", small, "--features-dir", folder, "--features", *NAMES, "--workers", 1)
    with filling.lock(folder / ".partial", shared=True), filling.lock(folder / ".partial", "lock-2of2"):
        assert "another process" in fails(capsys, *args)
        assert "another process" in fails(capsys, *args, "--shard", "2/2")
        assert "in 2 shards, not in 3" in fails(capsys, *args, "--shard", "3/3")
        features.main([str(a) for a in (*args, "--shard", "1/2")])          # the same again: there is nothing left
    assert "others are not" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "1", "/", "-1/4", "1/0", "1.5/4", "²/4"])
def test_what_is_no_shard_is_said_in_a_line(text, small, capsys):
    assert f"--shard {text} is none" in fails(capsys, "--data-dir", small, f"--shard={text}")


def test_arrays_that_another_machine_allocated_are_not_emptied(tmp_path, monkeypatch):
    """On NFS their plan may be seen some time after the lock is free."""
    partial, calls = tmp_path / ".partial", []
    with filling.lock(partial, "shared") as file:
        file.write("2")
    monkeypatch.setattr(time, "sleep", lambda seconds: (partial / "plan.json").touch())
    plan = lambda: calls.append((partial / "plan.json").exists())       # noqa: E731
    shards.plan_shard(partial, 2, plan, lambda: calls.append("compiled"))
    assert calls == [True]


def test_the_journals_of_all_shards_are_read_and_left_alone(tmp_path):
    texts = {"progress-1of2.csv": "0,ok\n2,o", "progress-2of2.csv": "1,ok\n3,s"}      # of a killed one; at this moment
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert filling.read_status(tmp_path, None, 4) == {0: "ok", 1: "ok"}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == texts


def test_a_lock_in_a_folder_that_was_cleared_up_does_not_count(tmp_path):
    first, second = tmp_path / "lock", threading.Event()
    held = []

    def wait():
        with filling.lock(tmp_path, wait=True) as file:
            held.append(os.path.samestat(os.fstat(file.fileno()), os.stat(first)))
            second.set()

    with filling.lock(tmp_path):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.2)
        first.unlink()
    assert second.wait(10) and held == [True]


def test_arrays_that_machines_share_are_written_through(tmp_path):
    (tmp_path / "x.npy").touch()
    for shared in (False, True):
        with filling.open_array(tmp_path, "x") as file:
            assert bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DSYNC) == shared
        (tmp_path / "shared").touch()


def test_what_numba_compiled_is_copied_and_not_shared(tmp_path):
    def compile_it():
        folder = Path(os.environ["NUMBA_CACHE_DIR"])
        folder.mkdir()
        (folder / "compiled").write_text("x")

    shards.compile_for_all(tmp_path, compile_it)
    folders = []
    for _ in range(2):
        shards.own_compiled(tmp_path, tmp_path)
        folders.append(Path(os.environ["NUMBA_CACHE_DIR"]))
    assert len({*folders, tmp_path / "numba"}) == 3 and all((folder / "compiled").exists() for folder in folders)
