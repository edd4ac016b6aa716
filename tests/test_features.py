"""The feature cache holds what the clips give, whatever may happen while it is filled."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import FAULTS, ROOT, write_cache

import features
import fma
from audio.cache import describe, find_present, load_index
from audio.clips import clip_features
from audio.filling import write_row
from audio.transforms import FEATURES
from features import fill_cache
from fma import DataError, audio_path, run_command

ALL = tuple(FEATURES)


# ---------------------------------------------------------------- one file


@pytest.mark.parametrize("fault", ["nan", "no samples", "empty file", "text", "folder", "cut header"])
def test_what_is_no_audio_has_a_status_and_no_crash(tmp_path, fault):
    path = tmp_path / "x.mp3"
    if fault == "nan":
        soundfile.write(path, np.full(30 * 22050, np.nan), 22050, format="WAV", subtype="FLOAT")
    elif fault == "no samples":
        soundfile.write(path, np.zeros(0), 22050, format="WAV")
    elif fault == "folder":
        path.mkdir()
    else:
        path.write_bytes({"empty file": b"", "text": b"not audio\n" * 999, "cut header": b"RIFF\xff\xff"}[fault])
    assert clip_features(path) == ("missing" if fault == "folder" else "undecodable", {})


# ---------------------------------------------------------------- the cache as it is left


def test_rows_are_in_the_order_of_the_index_and_the_faults_known(small, cache):
    index = load_index(cache)
    order = pd.read_csv(small / "fma_metadata" / "tracks.csv", index_col=0, header=[0, 1]).index
    assert index["track_id"].tolist() == order.tolist() != sorted(order)
    status = index.set_index("track_id")["status"]
    assert status[status != "ok"].to_dict() == {i: fault for fault, i in FAULTS.items()}
    array = np.load(cache / "mfcc.npy")
    for row in (0, len(index) // 2, len(index) - 1):
        state, found = clip_features(audio_path(small, index["track_id"][row]), ["mfcc"])
        assert np.abs(array[row] - found.get("mfcc", 0)).max() < 1e-3, state    # a fault's row is zero


def test_files_keep_the_contract(cache):
    index = load_index(cache)
    assert (cache / "index.csv").read_text().startswith("track_id,status\n")
    assert {p.name for p in cache.iterdir()} == {"index.csv"} | {f"{n}.{e}" for n in ALL for e in ("npy", "json")}
    bins = dict(cqt=84, chroma_cqt=12, chroma_cens=12, chroma_stft=12, mel_stft=128, mfcc=20, mel128=128,
                mel84=84, mel_fine=128, mel84_fine=84, logstft84=84, cqt128=128)
    for name in ALL:
        array = np.load(cache / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        info = json.loads((cache / f"{name}.json").read_text())
        assert array.shape == tuple(info["shape"]) == (len(index), bins[name], 128 if name == "mel128" else 640)
        assert array.dtype == info["dtype"] == {"mel128": "uint8", "mfcc": "float32"}.get(name, "float16")
        assert {"unit", "axes", "scale", "offset", "sample_rate", "hop_length", "versions"} <= info.keys()
        assert (info["seconds"], info["from"]) == (30, "start")
        assert np.isfinite(array).all()


# ---------------------------------------------------------------- filling it


def command(*args, **kwargs):
    environment = {k: v for k, v in os.environ.items() if k != "DATA_DIR"}
    return subprocess.Popen([sys.executable, ROOT / "features.py", *map(str, args)], env=environment, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),    # a shell may ignore it
                            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*")}


def fails(capsys, *args):
    """Run the command in this process; it must end in status 2 and one line, which is returned."""
    status = run_command(lambda: features.main([str(a) for a in args]))
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and "Traceback" not in message
    return message


@pytest.fixture
def copy(cache, tmp_path):
    return Path(shutil.copytree(cache, tmp_path / "features"))


def test_two_processes_give_the_bytes_of_one_and_a_summary(small, cache, tmp_path):
    process = command("--data-dir", small, "--features-dir", tmp_path / "two", "--workers", 2, "--features", *ALL)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert contents(tmp_path / "two") == contents(cache)
    for fault, track_id in FAULTS.items():
        assert f"{fault}: {track_id}" in out
    assert not (small / "features").exists()


def descendants(process):
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listing.read_text().split()] if listing.exists() else []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_run_goes_on_to_the_same_bytes_and_leaves_nothing(small, cache, tmp_path):
    folder, rng = tmp_path / "features", np.random.default_rng()
    journal = folder / ".partial" / "progress.csv"
    args = ("--data-dir", small, "--features-dir", folder, "--features", *ALL, "--workers")
    for workers, after, how in ((2, 0, signal.SIGKILL), (1, 3, signal.SIGINT), (1, 8, signal.SIGKILL)):
        with open(tmp_path / "stderr", "w") as printed:     # a pipe would wait for workers that are left over
            process, end = command(*args, workers, stdout=printed, stderr=printed), time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if journal.exists() and journal.read_text().count("\n") >= after:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        children = descendants(process)
        process.send_signal(how)
        process.wait(60)
        err = (tmp_path / "stderr").read_text()
        assert process.returncode in ((130,) if how == signal.SIGINT else (-how, 0)), err
        if how == signal.SIGINT:
            assert "run the same command to continue" in err and "Traceback" not in err
        while any(map(alive, children)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(map(alive, children)), "worker processes outlive the command"
        assert not (folder / "index.csv").exists()      # nothing that looks complete
    process = command(*args, 1)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert contents(folder) == contents(cache)


def test_a_complete_cache_is_left_alone(small, copy, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in copy.iterdir()}
    monkeypatch.setattr("audio.clips.clip_features", lambda *a: pytest.fail("computed again"))
    index = fill_cache(small, ALL, features_dir=copy, progress=False)
    assert {p: p.stat().st_mtime_ns for p in copy.iterdir()} == before
    assert index["status"].tolist() == load_index(copy)["status"].tolist()


def test_a_feature_added_later_is_all_that_is_computed(small, cache, copy, monkeypatch):
    for path in copy.glob("chroma_stft.*"):
        path.unlink()
    seen = []
    monkeypatch.setattr("audio.clips.clip_features", lambda path, names, part: seen.append((path, names)) or
                        clip_features(path, names, part))
    fill_cache(small, ALL, features_dir=copy, workers=1, progress=False)
    assert {names for _, names in seen} == {("chroma_stft",)}
    assert len(seen) == (load_index(cache)["status"] == "ok").sum()     # what gave nothing is not tried again
    assert contents(copy) == contents(cache)


def test_other_parameters_in_the_cache_are_refused(small, copy, capsys):
    info = json.loads((copy / "cqt.json").read_text())
    (copy / "cqt.json").write_text(json.dumps(info | {"hop_length": 512}))
    message = fails(capsys, "--data-dir", small, "--features-dir", copy)
    assert f"{copy}/cqt.json was made with hop_length 512, this run needs 1024: delete {copy}/cqt.*" in message


def test_long_parameters_are_cut_off(tmp_path):
    info = describe("statistics", 9)
    (tmp_path / "statistics.json").write_text(json.dumps(info | {"columns": info["columns"][::-1]}))
    (tmp_path / "statistics.npy").touch()
    with pytest.raises(DataError, match=r"statistics.json was made with columns \['zcr.* needs \['chroma") as error:
        find_present(tmp_path, ["statistics"], 9)
    assert len(str(error.value)) < 500


def test_other_versions_in_the_cache_are_no_hindrance(small, copy):
    info = json.loads((copy / "cqt.json").read_text())
    (copy / "cqt.json").write_text(json.dumps(info | {"versions": {"librosa": "0.1"}}))
    fill_cache(small, features_dir=copy, progress=False)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b""])
def test_damaged_json_in_the_cache_is_named(small, copy, capsys, content):
    (copy / "cqt.json").write_bytes(content)
    assert f"{copy}/cqt.json" in fails(capsys, "--data-dir", small, "--features-dir", copy)


def test_arrays_without_an_index_are_named(small, copy, capsys):
    (copy / "index.csv").unlink()
    assert f"{copy}/index.csv" in fails(capsys, "--data-dir", small, "--features-dir", copy)


def test_a_cache_of_other_tracks_is_refused(small, copy, capsys):
    index = pd.read_csv(copy / "index.csv")
    index[::-1].to_csv(copy / "index.csv", index=False)
    message = fails(capsys, "--data-dir", small, "--features-dir", copy)
    assert f"{copy}/index.csv lists other tracks" in message and "--features-dir" in message


def test_audio_that_changed_since_is_noticed(small, copy, capsys):
    index = pd.read_csv(copy / "index.csv")
    index.loc[index["track_id"] == FAULTS["silent"], "status"] = "ok"
    index.to_csv(copy / "index.csv", index=False)
    (copy / "mfcc.npy").unlink()
    message = fails(capsys, "--data-dir", small, "--features-dir", copy, "--workers", 1)
    assert f"track {FAULTS['silent']} is silent" in message


class Stop(Exception):
    pass


def run_for(clips, small, folder):
    """Fill a cache with two features, and die after so many clips."""
    calls = iter(range(clips))

    def dies(*given):
        if next(calls, None) is None:
            raise Stop
        return clip_features(*given)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr("audio.clips.clip_features", dies)
        fill_cache(small, ("mel_stft", "mfcc"), features_dir=folder, workers=1, progress=False)
    return folder


@pytest.fixture
def cut_off(small, tmp_path):
    """A run that died after seven clips; gives its folder."""
    return run_for(7, small, tmp_path / "cut")


def assert_goes_on(small, cache, folder):
    fill_cache(small, ("mel_stft", "mfcc"), features_dir=folder, workers=1, progress=False)
    assert contents(folder) == {k: v for k, v in contents(cache).items() if k.stem in ("index", "mel_stft", "mfcc")}


def test_only_what_is_left_is_computed(small, cache, cut_off, monkeypatch):
    seen = []
    monkeypatch.setattr("audio.clips.clip_features", lambda *a: seen.append(a) or clip_features(*a))
    assert_goes_on(small, cache, cut_off)
    assert len(seen) == len(load_index(cache)) - 7


@pytest.mark.parametrize("damage", [b"5,o", b"word\n", b"\0\xff\xfe\n", b"6,fine\n", b"999,ok\n", b",\n", b"-1,ok\n"])
def test_a_damaged_line_of_the_journal_costs_a_clip_and_nothing_else(small, cache, cut_off, damage):
    journal = cut_off / ".partial" / "progress.csv"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7
    np.lib.format.open_memmap(cut_off / ".partial" / "mfcc.npy", "r+")[6] = 7     # not counted as written
    journal.write_bytes(b"".join(lines[:6]) + damage)
    assert_goes_on(small, cache, cut_off)


def test_a_torn_line_is_not_completed_by_the_next(small, cache, cut_off):
    journal = cut_off / ".partial" / "progress.csv"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]) + b"1")
    run_for(1, small, cut_off)          # of row 2: 1 and 2,ok would make 12,ok
    assert_goes_on(small, cache, cut_off)


def test_a_journal_without_its_plan_does_not_count(small, cache, cut_off):
    (cut_off / ".partial" / "plan.json").unlink()       # as when the run was killed while it cleared up
    (cut_off / ".partial" / "progress.csv").write_text("".join(f"{row},ok\n" for row in range(99)))
    assert_goes_on(small, cache, cut_off)


def test_an_unfinished_run_with_other_settings_is_named(small, cut_off, capsys):
    message = fails(capsys, "--data-dir", small, "--features-dir", cut_off, "--features", "cqt")
    assert f"{cut_off}/.partial" in message and "mel_stft, mfcc" in message
    (cut_off / ".partial" / "plan.json").write_text("{")
    assert f"{cut_off}/.partial" in fails(capsys, "--data-dir", small, "--features-dir", cut_off)


def test_a_second_process_is_told_to_wait(small, cut_off, cache, capsys):
    with features.lock(cut_off / ".partial"):
        message = fails(capsys, "--data-dir", small, "--features-dir", cut_off, "--features", "mel_stft", "mfcc")
        assert "another process" in message and str(cut_off) in message
    assert_goes_on(small, cache, cut_off)


def test_a_full_disk_is_met_before_the_work_and_stays_usable(small, cache, tmp_path, capsys, monkeypatch):
    def full(file, start, size):
        os.pwrite(file, bytes(1000), start)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        message = fails(capsys, "--data-dir", small, "--features-dir", tmp_path / "cut")
    assert "GB" in message and str(tmp_path / "cut") in message
    assert not list((tmp_path / "cut").rglob("*.npy"))
    assert_goes_on(small, cache, tmp_path / "cut")


def test_a_folder_that_cannot_be_written_is_named(small, tmp_path, capsys):
    (tmp_path / "file").touch()
    message = fails(capsys, "--data-dir", small, "--features-dir", tmp_path / "file" / "features")
    assert f"{tmp_path}/file" in message and "--features-dir" in message


def test_no_audio_says_what_to_run(small, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(small / "fma_metadata", bare / "fma_metadata")
    said = fails(capsys, "--data-dir", bare)
    assert ".mp3 not found): put it there, or say in the column track,file" in said and "download" not in said
    assert not (bare / "features").exists()
    write_cache(bare, "mine", np.zeros((2, 1, 1)))          # made elsewhere
    assert "has mine, but no index.csv with track_id,status" in fails(capsys, "--data-dir", bare)
    ids = fma.load_tracks(bare).index
    write_cache(bare, "mine", np.zeros((len(ids), 1, 1)), ids)
    assert f"train on what {bare}/features has, mine, or" in fails(capsys, "--data-dir", bare)
    (bare / "fma_metadata" / "raw_tracks.csv").touch()      # FMA itself
    assert fails(capsys, "--data-dir", bare).endswith(f"run ./download_data.sh small {bare}")


@pytest.mark.parametrize("args", [["--features", "spectrogram"], ["--workers", "0"], ["--subset", "tiny"], ["cqt"]])
def test_wrong_arguments_end_in_status_2(args, capsys):
    with pytest.raises(SystemExit) as caught:
        features.main(args)
    assert caught.value.code == 2 and "error: " in capsys.readouterr().err


def test_help_names_every_feature(capsys):
    with pytest.raises(SystemExit) as caught:
        features.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ALL)


def test_a_finished_cache_is_read_without_audio_and_without_writing(small, cache, tmp_path, monkeypatch):
    data = tmp_path / "elsewhere"
    shutil.copytree(small / "fma_metadata", data / "fma_metadata")
    shutil.copytree(cache, data / "features")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (data / "features").iterdir())
    index = features.fill_cache(data, ["cqt", "mfcc"], progress=False)
    assert (index["status"] == "ok").any()
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (data / "features").iterdir()) == before


def test_first_use_by_two_processes_leaves_librosa_whole(small, tmp_path):
    fresh = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")}      # as after installation
    command = [sys.executable, "features.py", "--data-dir", str(small), "--features-dir", str(tmp_path / "features")]
    subprocess.run([*command, "--workers", "2", "--features", "chroma_stft"], cwd=ROOT, env=fresh, check=True)
    code = "import librosa, numpy as np; librosa.estimate_tuning(S=np.random.rand(513, 9))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=fresh, check=True)


class Full(io.FileIO):
    """A file on a disk that has room for all but one byte."""

    def write(self, data):
        return super().write(data[:-1])


def test_a_row_that_the_disk_cuts_short_is_an_error(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 8), np.float16))
    with Full(str(tmp_path / "x.npy"), "r+") as file, pytest.raises(OSError) as error:
        write_row(file, 2, 4, bytes(16))
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path / "x.npy")


def test_a_fault_of_the_machine_is_none_of_the_clip(small, cache, monkeypatch):
    clip = audio_path(small, load_index(cache).query("status == 'ok'")["track_id"].iloc[0])
    for fault in (MemoryError, OSError, ImportError):
        monkeypatch.setattr("audio.clips.compute", lambda *args, fault=fault: (_ for _ in ()).throw(fault))
        with pytest.raises(fault):
            clip_features(clip, ["mfcc"])


def test_a_run_that_was_killed_when_it_cleared_up_is_in_nobodys_way(small, copy, cache):
    (copy / "mfcc.npy").unlink()
    (copy / ".partial").mkdir()
    (copy / ".partial" / "plan.json").write_text('{"names": ["cqt"]}')       # whose arrays have their names
    fill_cache(small, ("mfcc",), features_dir=copy, workers=1, progress=False)
    assert contents(copy) == contents(cache)
