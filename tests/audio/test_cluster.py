"""On several machines the cache comes to the bytes of one process, whoever is killed meanwhile."""

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from test_features import contents, fails

from audio import cluster
from audio.cache import load_index
from benchmarks import scale
from features import fill_cache
from fma import DataError

NAMES = ("mel_stft",)       # for which numba has nothing to compile


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """A Dask scheduler with two worker processes, which their nannies begin anew; they die twice of one task."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    settings = {"distributed.scheduler.allowed-failures": 1, "distributed.admin.log-format": "%(message)s",
                "distributed.deploy.lost-worker-timeout": "1h"}     # LocalCluster's own: it would end their nannies
    with dask.config.set(settings), distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs="CRITICAL",
        local_directory=str(tmp_path_factory.mktemp("dask")),
    ) as local:
        yield local


@pytest.fixture
def run(small, workers, tmp_path, monkeypatch):
    """Fill a fresh cache on the workers, from this process; gives its folder."""

    monkeypatch.setenv("NUMBA_CACHE_DIR", os.environ.get("NUMBA_CACHE_DIR", ""))     # the client changes it

    def fill(folder="features", batch=2, **kwargs):
        monkeypatch.setattr(cluster, "BATCH", batch)
        fill_cache(small, NAMES, features_dir=tmp_path / folder, progress=False, scheduler=workers.scheduler_address,
                   **kwargs)
        return tmp_path / folder

    return fill


@pytest.fixture
def sent(monkeypatch):
    """Change what the workers are sent: `code` that is added to clips.py, or an argument of the plugin."""

    def change(code="", **others):
        def make(sources, job, limit, versions, folders):
            given = {"limit": limit, "versions": versions, "folders": folders} | others
            return make_plugin({**sources, "audio/clips.py": sources["audio/clips.py"] + code}, job, **given)

        monkeypatch.setattr(cluster, "_make_plugin", make)

    make_plugin = cluster._make_plugin
    return change


def fatal(what, names):
    """Code that has some clips do something to the worker that opens them."""
    return (f"\nimport time\n_inner = clip_features\ndef clip_features(path, names, part):\n"
            f"    if path.stem in {names}:\n        {what}\n    return _inner(path, names, part)\n")


KILL = "os.kill(os.getpid(), 9)"


def assert_same(folder, cache, names=NAMES):
    assert contents(folder) == {k: v for k, v in contents(cache).items() if k.stem in ("index", *names)}


def when_written(folder, lines, do):
    """Do something in a thread as soon as the journals of a growing cache have so many lines."""

    def watch():
        while sum(path.read_bytes().count(b"\n") for path in (folder / ".partial").glob("progress*.csv")) < lines:
            time.sleep(0.005)
        do()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


# ---------------------------------------------------------------- Dask


def test_a_killed_worker_costs_nothing_but_time(run, cache, workers, tmp_path):
    pid = workers.workers[0].pid
    killed = when_written(tmp_path / "features", 3, lambda: os.kill(pid, signal.SIGKILL))
    assert_same(run(batch=1), cache)
    assert not killed.is_alive() and workers.workers[0].pid != pid


def test_no_more_tasks_are_given_out_than_workers_can_use(run, cache, monkeypatch):
    from distributed import Client

    submit, most = Client.submit, []
    monkeypatch.setattr(Client, "submit", lambda client, *args, **kwargs: (
        most.append(len(client.futures)), submit(client, *args, **kwargs))[1])
    assert_same(run(batch=1), cache)
    assert len(most) == len(load_index(cache)) and max(most) < 2 * cluster.AHEAD + 4     # some are being let go


def test_a_clip_that_kills_its_worker_is_found_and_all_others_are_computed(run, cache, sent, workers, monkeypatch,
                                                                           capsys):
    monkeypatch.setattr(workers.scheduler, "allowed_failures", 0)       # a start of a worker takes a second
    index = load_index(cache)
    row = index.index[index["status"] == "ok"][3]
    culprit = f"{index['track_id'][row]:06d}"
    half = f"write_row(_worker['files']['mel_stft'], {row}, {len(index)}, b'x' * {2 * 128 * 640})"
    sent(fatal(f"{half}; {KILL}", [culprit]))       # it dies when it has written
    folder = run(batch=3)
    status = load_index(folder)["status"]
    assert status[row] == "undecodable" and status.drop(row).equals(index["status"].drop(row))
    mine, theirs = (np.load(path / "mel_stft.npy") for path in (folder, cache))
    theirs[row] = 0
    assert np.array_equal(mine, theirs)
    assert f"{culprit}.mp3 is undecodable: it killed its worker" in capsys.readouterr().err


def test_workers_have_the_modules_of_this_run_and_not_of_the_last(run, cache, sent):
    sent("\ndef clip_features(path, names, part):\n    return 'short', {}\n")
    assert set(load_index(run("last"))["status"]) == {"short"}
    sent()
    assert_same(run("this"), cache)


def test_a_clip_that_takes_for_ever_ends_its_worker():
    code = ("import sys, time, types\nfrom audio import cluster\n"
            "plugin = types.SimpleNamespace(limit=0.5)\n"
            "worker = types.SimpleNamespace(plugins={'run': plugin})\n"
            "sys.modules['distributed'] = types.SimpleNamespace(get_worker=lambda: worker)\n"
            "cluster._prepared.update(plugin=plugin, work=time.sleep)\n"
            "assert cluster.run_task('run', [0, 0.1]) == [None, None]\n"
            "time.sleep(1)\n"               # nothing is left that would end it between two tasks
            "print('there', flush=True)\n"
            "cluster.run_task('run', [0.1, 99])\n")
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and found.stdout == "there\n" and "run_task" in found.stderr


def test_if_every_clip_kills_the_run_ends(run, cache, sent, workers, monkeypatch):
    monkeypatch.setattr(workers.scheduler, "allowed_failures", 0)
    monkeypatch.setattr(cluster, "HOPELESS", 1)
    sent(fatal(KILL, [f"{i:06d}" for i in load_index(cache)["track_id"]]))
    with pytest.raises(DataError, match="something else"):
        run()


def test_two_runs_on_the_same_workers_do_not_mix(run, cache, tmp_path):
    """A worker that is between them opens the arrays of each anew."""
    with ThreadPoolExecutor(2) as threads:
        for folder in threads.map(run, ("a", "b"), (1, 1)):     # what one of them raises is raised here
            assert_same(folder, cache)


def test_a_worker_that_dies_while_a_run_begins_is_survived(run, cache, workers, monkeypatch):
    """The scheduler tells no worker more when one has not answered."""
    from distributed.comm import CommClosedError

    async def closed(msg, **kwargs):
        asked.append(msg["op"])
        if asked.count("plugin-add") == 1:
            raise CommClosedError("Stream is closed")
        return await broadcast(msg=msg, **kwargs)

    broadcast, asked = workers.scheduler.broadcast, []
    monkeypatch.setattr(workers.scheduler, "broadcast", closed)
    monkeypatch.setattr(cluster, "LOOK", 0.05)
    assert_same(run(), cache)
    assert asked == ["plugin-add", "plugin-add", "plugin-remove"]


def test_a_run_without_workers_says_so_gives_up_in_time_and_goes_on_when_one_is_back(run, cache, workers, tmp_path,
                                                                                     monkeypatch, capsys):
    from distributed import Client

    def kill_all_at_the_fifth(*args, **kwargs):
        calls.append(args)
        for worker in workers.workers.values() if len(calls) == 5 else ():
            os.kill(worker.pid, signal.SIGKILL)
        return submit(*args, **kwargs)

    submit, calls = Client.submit, []
    monkeypatch.setattr(Client, "submit", kill_all_at_the_fifth)
    monkeypatch.setattr(cluster, "LOOK", 0.01)
    with pytest.raises(DataError, match="no Dask worker came in 0 s: .*--wait-for-workers"):
        run(batch=1, wait_for_workers=0)
    assert not (tmp_path / "features" / "index.csv").exists()
    assert_same(run(batch=1), cache)        # they are being started meanwhile
    said = capsys.readouterr().err
    assert "waiting 0 s" in said and "waiting 600 s" in said and "workers are there: " in said


def test_a_result_that_could_not_be_fetched_is_fetched_again(run, cache, monkeypatch):
    from distributed import Client

    async def fetch(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("no route to host")
        return await gather(*args, **kwargs)

    gather, calls = Client._gather, []
    monkeypatch.setattr(Client, "_gather", fetch)
    monkeypatch.setattr(cluster, "LOOK", 0.1)
    assert_same(run(), cache)


def test_a_lost_scheduler_is_told_from_lost_workers(workers):
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0",
                      silence_logs="CRITICAL") as local:
        client = Client(local.scheduler_address, timeout=1)
        with pytest.raises(DataError, match="no Dask worker came in 0 s"):
            cluster.await_workers(client, 0)
    with pytest.raises(DataError, match="scheduler was lost"):
        cluster.await_workers(client, 0)
    client.close()


def test_a_killed_client_goes_on_where_it_was(small, cache, workers, tmp_path, run):
    folder = tmp_path / "features"
    code = "import sys, features\nfrom audio import cluster\ncluster.BATCH = 1\nfeatures.main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, "--data-dir", small, "--features-dir", folder, "--features",
                                *NAMES, "--scheduler", workers.scheduler_address], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    when_written(folder, 1, process.kill).join(60)
    out, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL and "/status" in out      # the dashboard's address
    assert not (folder / "index.csv").exists()
    assert_same(run(), cache)


@pytest.mark.parametrize("wrong, said", [({"versions": {"librosa": "0.1"}}, "librosa .*needs 0.1"),
                                         ({"folders": [Path("/no/such/folder")]}, "does not see /no/such/folder")])
def test_a_worker_that_is_of_no_use_is_named(run, sent, wrong, said):
    sent(**wrong)
    with pytest.raises(DataError, match=f"worker tcp://127.0.0.1:[0-9]+ .*{said}"):
        run()


def test_workers_must_have_one_thread():
    with pytest.raises(DataError, match="--nthreads 1"):
        cluster._prepare(SimpleNamespace(address="tcp://host:1", threads=4))


def test_without_dask_or_a_scheduler_a_line_says_what_to_do(small, tmp_path, capsys, monkeypatch):
    args = ("--data-dir", small, "--features-dir", tmp_path / "features", "--scheduler", "tcp://127.0.0.1:1")
    monkeypatch.setattr(cluster, "ANSWER", 0.1)
    assert "dask scheduler" in fails(capsys, *args)
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert "pip install -r requirements-cluster.txt" in fails(capsys, *args)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_workers_keep_their_memory_between_clips():
    code = ("import resource\nfrom audio import cluster\ncluster.set_malloc(**cluster.MALLOC)\n"
            "for k in range(9):\n    del (x := bytearray(2**23))[:]\n    if k == 3:\n"
            "        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n")
    nanny = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}       # what Dask's nannies set
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=nanny, capture_output=True, check=True)
    assert int(found.stdout) < 2**23 / 4096                         # pages: less than once what is taken five times


def test_the_benchmark_hands_out_its_tasks_and_counts_each_process():
    pytest.importorskip("distributed")
    wall, cpu = scale.time_scheduler(2, [[0.01] * 5] * 20)
    assert wall >= 20 * 0.05 / 2 and set(cpu) == {"scheduler", "client", "workers"} and min(cpu.values()) > 0
