"""No audio file, however broken, ends a run, hangs it or takes its memory: every clip gets a status or a reason."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import soundfile
from conftest import write_tracks
from hostile import absurd_headers, encode, mutate, odd_sounds, peak_memory, seeds, sound, sparse, wav_header
from synthetic import ROOT

import features
import predict
from audio import transforms
from audio.cache import STATUSES, USABLE, load_index
from audio.clips import clip_features
from audio.transforms import Undecodable, read_audio
from audio.workers import in_processes
from classifier import songs
from features import fill_cache
from fma import audio_path, run_command

sys.path.insert(0, str(ROOT / "soak"))

import fuzz  # noqa: E402

ALL = (*transforms.FEATURES, "statistics")
CONFIG = {"feature": "mel128", "dataset": "mine"}
BOUND = 0.7     # GB that one clip may add to a process: 30 s at 384 kHz with all that is computed of them


@pytest.fixture(scope="module")
def mp3():
    return encode(sound(1, 44_100, 2), 44_100, "MP3")


def added(call):
    """What a call returns, and the GB by which it made this process grow at most."""
    peak_memory()
    before = peak_memory()
    return call(), peak_memory() - before


# ---------------------------------------------------------------- one file


@pytest.mark.filterwarnings("ignore:Empty filters:UserWarning")
@pytest.mark.parametrize("name", odd_sounds(0.1))
def test_every_sound_has_its_status_and_features_that_are_numbers(tmp_path, name):
    y, rate, status = odd_sounds()[name]
    soundfile.write(tmp_path / "x.mp3", y, rate, format="WAV", subtype="FLOAT")
    (found, values), memory = added(lambda: clip_features(tmp_path / "x.mp3", ALL))
    assert found == status and memory < BOUND
    assert set(values) == (set(ALL) if status == "ok" else set())
    if status == "undecodable":         # for every reader, and before anything is computed of it
        with pytest.raises(Undecodable, match="not numbers|sample rate|no samples|channels"):
            read_audio(tmp_path / "x.mp3")
    for key, x in values.items():
        stored = x.astype("float32" if key in ("mfcc", "statistics") else "float16")       # which overflows earlier
        assert np.isfinite(stored).all(), key


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [(np.inf, -np.inf), (np.nan, 0), (3e38, 3e38)])
def test_what_is_no_sound_is_refused_without_a_warning(tmp_path, values):
    y = np.tile(np.float32(values), (44_100, 1))
    soundfile.write(tmp_path / "x.wav", y, 44_100, subtype="FLOAT")
    with pytest.raises(Undecodable, match="not numbers"):
        read_audio(tmp_path / "x.wav")


def test_headers_that_promise_what_is_not_there(tmp_path, mp3):
    files = absurd_headers(mp3, encode(sound(1, 44_100), 44_100, "FLAC"))
    for name, content in files.items():
        (tmp_path / "x.mp3").write_bytes(content)
        found, memory = added(lambda: clip_features(tmp_path / "x.mp3"))
        assert found in (("short", {}), ("undecodable", {})) and memory < 0.2, name


def test_an_mp3_cut_anywhere_or_with_a_flipped_byte(tmp_path, mp3):
    rng = np.random.default_rng(0)
    cut = [mp3[:end] for end in (*range(60), *rng.integers(60, len(mp3), 60))]
    flipped = [mp3[:at] + bytes([mp3[at] ^ 255]) + mp3[at + 1 :] for at in rng.integers(len(mp3), size=60)]
    for content in (*cut, *flipped, b"this is no music\n" * 999, bytes(9999), b"\xff" * 9999):
        (tmp_path / "x.mp3").write_bytes(content)
        assert clip_features(tmp_path / "x.mp3") in (("short", {}), ("undecodable", {}))


def test_hours_of_silence_are_silent(tmp_path):
    sparse(tmp_path / "hours.wav", wav_header(3 * 3600 * 2000, rate=1000), 3 * 3600 * 2000)
    soundfile.write(tmp_path / "hours.flac", np.zeros(3 * 3600 * 1000, np.int16), 1000)
    for name in ("hours.wav", "hours.flac"):
        (status, memory) = added(lambda name=name: clip_features(tmp_path / name)[0])
        assert status == "silent" and memory < 0.1
        assert songs.clip_features(tmp_path / name, CONFIG) == ([], "silence", [])


def test_a_track_of_months_is_refused_by_predict(tmp_path, monkeypatch):
    monkeypatch.setattr(songs, "LONGEST", 0.01)
    y = np.tile(sound(30, 8000), (3, 1))
    soundfile.write(tmp_path / "x.wav", y, 8000)
    assert songs.clip_features(tmp_path / "x.wav", CONFIG)[1] == "longer than 0.01 hours: cut it"


def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.mp3")                        # opening it would wait for a writer
    os.symlink("/dev/zero", tmp_path / "device.mp3")        # which has no end
    os.symlink(tmp_path / "nowhere", tmp_path / "broken.mp3")
    os.symlink(tmp_path / "loop.mp3", tmp_path / "loop.mp3")
    (tmp_path / "folder.mp3").mkdir()
    monkeypatch.setattr("builtins.open", lambda path, *args, **kwargs: pytest.fail(f"{path} was opened"))
    for path in (*tmp_path.iterdir(), tmp_path / "vanished.mp3"):
        assert clip_features(path) == ("missing", {})
        with pytest.raises(Undecodable, match="not a file"):
            read_audio(path)
        assert songs.clip_features(path, CONFIG)[1] == "not a file"


def test_a_file_that_may_not_be_read(tmp_path, mp3):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "x.mp3").write_bytes(mp3)
    (tmp_path / "x.mp3").chmod(0)
    assert clip_features(tmp_path / "x.mp3") == ("undecodable", {})


NAMES = (b"it's \"quoted\".wav", b"two\nlines.wav", "Üñí ☃.wav".encode(), b"latin caf\xe9.wav", b"-rf; $(touch x).wav",
         b"%s{0}\t.wav", b"\x1b[31mred.wav")


def test_a_name_may_be_any_bytes(tmp_path):
    wav = encode(sound(30.2, 8000), 8000, "WAV")
    for name in NAMES:
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as file:
            file.write(wav)
        assert clip_features(os.fsdecode(path), ["mfcc"])[0] == "ok"


def test_an_error_nobody_foresaw_costs_one_clip_and_is_said(tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "x.wav", sound(30.2, 8000), 8000)
    monkeypatch.setattr("audio.clips.extract", lambda *args: [][1])
    assert clip_features(tmp_path / "x.wav") == ("undecodable", {})
    assert "x.wav is undecodable: IndexError: list index out of range" in capsys.readouterr().err


# ---------------------------------------------------------------- the whole collection


DEADLY = """
import os, signal, sys, time
if "--multiprocessing-fork" in sys.orig_argv:
    import soundfile
    opened = soundfile.SoundFile.__init__
    def deadly(self, file, *args, **kwargs):
        opened(self, file, *args, **kwargs)
        if self.samplerate == 8001:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.samplerate == 8002:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            time.sleep(999)
    soundfile.SoundFile.__init__ = deadly
"""


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """In worker processes, a file of 8001 Hz is one that crashes its decoder, and one of 8002 Hz one that hangs it."""
    monkeypatch.setattr("pebble.common.CONSTS.term_timeout", 0.2)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")


def make_collection(folder, files):
    """Files as the clips of a collection, from track 2 on; what is callable makes its file itself."""
    write_tracks(folder, range(2, 2 + len(files)), {
        ("set", "split"): ["training", "validation", "test"], ("set", "subset"): ["small"],
        ("track", "genre_top"): ["Folk"]})
    (folder / "fma_small" / "000").mkdir(parents=True)
    for track, content in enumerate(files, 2):
        path = audio_path(folder, track)
        content(path) if callable(content) else path.write_bytes(content)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wav(rate=8000, loudness=0.3):
    return encode(sound(30.2, rate, loudness=loudness), rate, "WAV", "PCM_16")


def test_a_collection_of_such_files_is_completed(tmp_path, capfd, mp3):
    rng, short = np.random.default_rng(0), seeds(longest=1)
    odd = [encode(y, rate, "WAV", "FLOAT") for y, rate, _ in odd_sounds().values() if y.size < 10**6]
    files = [*absurd_headers(mp3, short[8]).values(), *odd, *(mutate(data, rng, short) for data in short), b"", wav(),
             os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path)]
    data = make_collection(tmp_path / "tëst \"it's\"", files)
    assert run_command(lambda: features.main(["--data-dir", str(data), "--features", "mfcc", "--workers", "2"])) == 0
    said = capfd.readouterr()
    index, array = load_index(data / "features"), np.load(data / "features" / "mfcc.npy")
    assert index["track_id"].tolist() == list(range(2, 2 + len(files))) and index["status"].isin(STATUSES).all()
    assert index["status"].value_counts()["missing"] == 4
    for row, status in enumerate(index["status"]):
        assert status == clip_features(audio_path(data, row + 2), ())[0]
        assert np.isfinite(array[row]).all() and array[row].any() == (status in USABLE)
    assert "Traceback" not in said.err and "libmpg123" not in said.err


def test_clips_that_crash_or_hang_are_undecodable_and_named(tmp_path, monkeypatch, capsys, deadly):
    good = [wav(loudness=0.01 * k) for k in range(1, 6)]
    data = make_collection(tmp_path / "data", [*good[:3], wav(8001), wav(8002), *good[3:]])
    monkeypatch.setattr(features, "in_processes", lambda rows, work, n, limit, *rest: in_processes(
        rows, work, n, 4, *rest))
    index = fill_cache(data, ["mel128"], workers=2, progress=False)     # which imports little: processes start fast
    assert index["status"].tolist() == ["ok"] * 3 + ["undecodable"] * 2 + ["ok"] * 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "undecodable" in line]
    assert lines == [f"{audio_path(data, 5)} is undecodable: it killed its process (SIGSEGV), twice",
                     f"{audio_path(data, 6)} is undecodable: it took longer than 4 s, twice"]
    for track in (5, 6):
        audio_path(data, track).write_bytes(b"no music")
    fill_cache(data, ["mel128"], features_dir=tmp_path / "plain", workers=1, progress=False)
    assert contents(data / "features") == contents(tmp_path / "plain")


def test_a_clip_that_kills_its_process_while_it_writes_leaves_zeros(tmp_path, monkeypatch):
    data = make_collection(tmp_path / "data", [wav(), wav()])

    def dies(rows, work, workers, limit, start, setup):
        start(*setup)
        yield rows[0], work(rows[0]), None
        work(rows[1])                                       # written, but it never came to say so
        yield rows[1], None, "killed its process (SIGKILL: out of memory?)"

    monkeypatch.setattr(features, "in_processes", dies)
    assert fill_cache(data, ["mfcc"], progress=False)["status"].tolist() == ["ok", "undecodable"]
    first, second = np.load(data / "features" / "mfcc.npy")
    assert first.any() and not second.any()


# ---------------------------------------------------------------- predict.py


def test_predict_names_each_in_a_line_and_goes_on(tmp_path, monkeypatch, capfd, mp3, deadly):
    monkeypatch.setattr(songs, "LIMIT", 4)
    music = tmp_path / "music"
    music.mkdir()
    for name in NAMES:
        (music / os.fsdecode(name)).write_bytes(wav())
    short = absurd_headers(mp3, encode(sound(1, 44_100), 44_100, "FLAC"))
    for k, content in enumerate([*short.values(), b""]):
        (music / f"absurd {k}.mp3").write_bytes(content)
    (music / "crashes.wav").write_bytes(wav(8001))
    (music / "hangs.wav").write_bytes(wav(8002))
    os.mkfifo(music / "pipe.mp3")
    os.symlink(music / "loop.mp3", music / "loop.mp3")
    (music / "folder.mp3").mkdir()
    shutil.copy(music / "absurd 0.mp3", music / "folder.mp3" / "inside.mp3")
    assert run_command(lambda: predict.main([str(music), "--workers", "2", "--json"])) == 0
    out, err = capfd.readouterr()
    found = {os.path.relpath(each["file"], music): each for each in json.loads(out)}
    assert len(found) == len(NAMES) + len(short) + 1 + 4 + 1 and "Traceback" not in err and "libmpg123" not in err
    assert all("genre" in found[os.fsdecode(name)] for name in NAMES)
    assert found["pipe.mp3"]["error"] == "passed over, not a file"
    assert found["loop.mp3"]["error"] == "passed over, a link to nothing"
    assert found["crashes.wav"]["error"] == "decoding it killed its process (SIGSEGV)"
    assert re.fullmatch(r"decoding it took longer than \d s", found["hangs.wav"]["error"])
    assert all(("error" in each) != ("genre" in each) for each in found.values())
    assert all(predict.as_line(each, 60, 3).isprintable() for each in found.values())


def test_a_single_file_is_one_line_whatever_its_decoder_remarks(tmp_path, mp3):
    path = tmp_path / "tags.mp3"
    path.write_bytes(absurd_headers(mp3[:9000], b"")["mp3 with a thousand tags"])
    done = subprocess.run([sys.executable, ROOT / "predict.py", path], capture_output=True, text=True)
    [network], [line] = done.stderr.splitlines(), done.stdout.splitlines()
    assert done.returncode == 1 and network.startswith("network fma: ")
    assert "tags.mp3" in line and "not classified: only 0." in line


# ---------------------------------------------------------------- fuzzing


def test_a_thousand_broken_files(tmp_path, monkeypatch):
    """The first thousand of soak/fuzz.py audio, in a process of their own: a crash is counted, and ends nothing."""
    results = in_processes(range(1000), partial(fuzz.try_file, "audio"), 1, 20, fuzz.start, ("audio", str(tmp_path)))
    found = {number: (result, reason) for number, result, reason in results}
    assert not {number: reason for number, (_, reason) in found.items() if reason}
    statuses, _, memory, wrong = zip(*(result for result, _ in found.values()), strict=True)
    assert not any(wrong)
    counts = {status: statuses.count(status) for status in set(statuses)}
    assert counts["undecodable"] > 100 and counts["short"] > 100 and counts["ok"] > 10     # some of each is tried
    assert max(memory) < fuzz.MOST["audio"]


def test_the_fuzzer_makes_the_same_files_again():
    files = seeds(longest=0.3)
    first, again = ([fuzz.fuzzed(k, files) for k in range(40)] for _ in range(2))
    assert first == again and len(set(first)) > 35
    assert all(a != b for a, b in itertools.pairwise(first))
