"""The command: whatever is named is answered, or named with a reason; what was done is not lost."""

import io
import json
import os
import subprocess
import sys

import pytest
import soundfile
from synthetic import RATE, ROOT, tone

import predict
from classifier.network import WEIGHTS, network_name
from fma import DataError, run_command

pytestmark = pytest.mark.usefixtures("one_thread")


def command(capsys, *argv):
    capsys.readouterr()
    status = run_command(lambda: predict.main([str(arg) for arg in argv]))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_printed_table(capsys, run_dir, bad, song):
    status, out, err = command(capsys, song, bad / "text.mp3", "--weights", run_dir, "--top", 2, "--course")
    lines = out.splitlines()
    assert status == 0 and len(lines) == 5 and err == ""
    assert lines[0].count("%") == 2 and lines[1].split()[0] == "0:00" and lines[3].split()[0] == "0:45"
    assert "text.mp3 " in lines[4] and "not classified: not audio that libsndfile " in lines[4]


def test_none_of_these_is_an_answer():
    found = {"file": "talk.wav", "genre": "none of these", "none": 0.973, "probabilities": {"Folk": 0.6, "Rap": 0.4}}
    assert predict.as_line(found, 8, 1) == "talk.wav  none of these 97 %  (else Folk 60 %)"
    assert predict.as_line(found | {"genre": "Folk", "note": "dull"}, 8, 2) == "talk.wav  Folk 60 %  Rap 40 %  (dull)"


def test_the_network_that_answers_is_named(capsys, monkeypatch, song):
    monkeypatch.setattr("audio.embeddings.find_musicnn", lambda: (_ for _ in ()).throw(DataError("none")))
    for given, said in (([], "network fma: Electronic, "),
                        (["--network", "allmusic"], "network allmusic_cqt: Blues, ")):
        status, out, err = command(capsys, song, "--json", *given)
        assert status == 0 and err.startswith(said) and ("pip install --no-deps musicnn" in err) == bool(given)
        assert json.loads(out)[0]["network"] == said.split()[1].rstrip(":") and "none" in json.loads(out)[0]
    with pytest.raises(SystemExit):
        command(capsys, song, "--network", "fma", "--weights", "x")


def test_a_name_that_is_not_utf8(capsys, run_dir, tmp_path, song):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(song.read_bytes())
    status, out, _ = command(capsys, path, "--weights", run_dir, "--json")
    assert status == 0 and out.isascii() and json.loads(out)[0]["file"] == str(path)
    assert command(capsys, path, "--weights", run_dir)[0] == 0


def test_json_is_json(capsys, run_dir, song):
    status, out, _ = command(capsys, song, "--weights", run_dir, "--json")
    [found] = json.loads(out)
    assert status == 0 and found["file"] == str(song) and len(found["course"]) == 3


def test_exit_status_is_1_where_nothing_could_be_classified(capsys, run_dir, bad):
    assert command(capsys, bad / "text.mp3", "--weights", run_dir)[0] == 1


def test_a_folder_says_what_it_passed_over_and_json_names_it(capsys, tmp_path, monkeypatch, run_dir, song):
    """m4a without PyAV is not passed over: each file has its reason."""
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "b.wav").write_bytes(song.read_bytes())
    for name in ("a.m4a", "c.m4a", "cover.JPG", "notes.txt", "back.jpg", "README"):
        (tmp_path / name).write_bytes(b"x" * 99)
    status, out, err = command(capsys, tmp_path, "--weights", run_dir, "--json", "--workers", 1)
    found = {os.path.basename(each["file"]): each for each in json.loads(out)}
    assert status == 0 and len(found) == 7 and "genre" in found["b.wav"]
    assert found["a.m4a"]["error"] == "m4a: install PyAV (pip install av)"
    assert all("passed over" in found[name]["error"] for name in ("cover.JPG", "notes.txt", "back.jpg", "README"))
    assert "passed over 4 files: 2 no audio: .jpg, 1 no audio: without an ending, 1 no audio: .txt" in err
    assert "2 of 3 songs not classified: 2 m4a: install PyAV (pip install av)" in err


def test_a_folder_of_links_is_read_as_collection_py_reads_it(many, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "all").symlink_to(many, target_is_directory=True)
    (many / "._0.wav").touch()                              # of macOS
    songs, passed_over = predict.find_songs([str(tmp_path / "links")])
    folder = tmp_path / "links" / "all"
    assert songs == [str(folder / f"{k}.wav") for k in range(5)]
    assert passed_over == [("hidden", str(folder / "._0.wav"))]


def test_playlists_and_lists_on_stdin(tmp_path, monkeypatch):
    for name in ("a.wav", "ü b.wav", "c.wav"):
        (tmp_path / name).touch()
    lines = ["\ufeff#EXTM3U", "#EXTINF:1,A", "a.wav", "", (tmp_path / "c.wav").as_uri(), "ü b.wav", "sub\\gone.mp3",
             "http://radio/x.mp3"]
    (tmp_path / "x.m3u8").write_text("\r\n".join(lines), encoding="utf-8")
    (tmp_path / "old.M3U").write_bytes("ü b.wav\n".encode("cp1252"))
    listed = [str(tmp_path / name) for name in ("a.wav", "c.wav", "ü b.wav", os.path.join("sub", "gone.mp3"))]
    assert predict.find_songs([str(tmp_path / "x.m3u8")]) == ([*listed, "http://radio/x.mp3"], [])
    assert predict.find_songs([str(tmp_path / "old.M3U")]) == ([str(tmp_path / "ü b.wav")], [])
    for zero in ("\n", "\0"):
        stdin = zero.join([str(tmp_path / "a.wav"), str(tmp_path / "old.M3U"), "gone.mp3"]).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        songs, _ = predict.find_songs(["-", str(tmp_path / "c.wav")])
        assert songs == [str(tmp_path / name) for name in ("a.wav", "ü b.wav")] + ["gone.mp3", str(tmp_path / "c.wav")]


def test_long_names_are_whole_in_a_pipe(capsys, tmp_path, run_dir, song):
    path = tmp_path / ("x" * 90) / "song.wav"
    path.parent.mkdir()
    path.write_bytes(song.read_bytes())
    _, out, _ = command(capsys, path, "--weights", run_dir)
    assert out.startswith(f"{path}  ") and "…" not in out


class Stopped:
    """Stands for `classify`: answers, until Ctrl-C is pressed after so many."""

    def __init__(self, monkeypatch, after):
        self.after, self.asked = after, []
        monkeypatch.setattr(predict, "classify", self)

    def __call__(self, songs, *args, **kwargs):
        self.asked.append(songs)
        for k, song in enumerate(songs):
            if k == self.after:
                raise KeyboardInterrupt
            yield {"file": song, "genre": "Rock", "probabilities": {"Rock": 1.0}, "course": []}


@pytest.fixture
def many(tmp_path):
    for k in range(5):
        (tmp_path / "music").mkdir(exist_ok=True)
        (tmp_path / "music" / f"{k}.wav").touch()
    return tmp_path / "music"


@pytest.mark.parametrize("options", [["--json"], ["--jsonl"], []])
def test_what_was_answered_before_ctrl_c_is_there(capsys, monkeypatch, many, options):
    Stopped(monkeypatch, 2)
    status, out, err = command(capsys, many, *options)
    lines = json.loads(out) if options == ["--json"] else out.splitlines()
    assert status == 130 and len(lines) == 2 and all(json.loads(line) for line in lines if options == ["--jsonl"])
    assert "interrupted after 2 of 5 songs: the next time it begins again; with --resume FILE it would go on" in err


def test_a_resumed_command_goes_on_and_prints_all(capsys, monkeypatch, many, tmp_path):
    file, stopped = tmp_path / "answers.jsonl", Stopped(monkeypatch, 2)
    status, _, err = command(capsys, many, "--json", "--resume", file)
    assert status == 130 and "the same command goes on from here" in err and file.read_text().count("\n") == 2
    with open(file, "a") as cut:
        cut.write('{"file": "x')                            # of a command that was killed while it wrote
    stopped.after = None
    status, out, _ = command(capsys, many, "--json", "--resume", file)
    assert status == 0 and stopped.asked[1] == [str(many / f"{k}.wav") for k in (2, 3, 4)]
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert json.loads(out) == kept and [each["file"] for each in kept] == [str(many / f"{k}.wav") for k in range(5)]
    file.write_text(json.dumps(kept[:4]))                   # as --json prints it
    assert command(capsys, many, "--resume", file)[1].count("Rock 100 %") == 5 and len(stopped.asked[2]) == 1


def test_a_shipped_network_has_one_name(run_dir):
    for given in ("fma", WEIGHTS / "fma", f"{WEIGHTS}/fma.safetensors"):
        assert network_name(given) == "fma"
    assert network_name("allmusic_cqt") == "allmusic_cqt" and network_name(run_dir) == str(run_dir)


@pytest.mark.parametrize("content", ["no answers\n", '{"a": 1}\n', '[1, 2]', '{"file": "x", "network": "other"}\n'])
def test_no_other_file_is_written_over(capsys, many, tmp_path, content):
    (tmp_path / "x").write_text(content)
    status, _, err = command(capsys, many, "--resume", tmp_path / "x")
    assert status == 2 and "name another file" in err and (tmp_path / "x").read_text() == content


@pytest.mark.parametrize("given, message", [
    (["nothing.mp3"], "nothing.mp3 not found"), (["."], "holds no audio file"),
    (["x.wav", "--weights", "none"], "none is neither exported weights nor the folder of a run: name one, or a shipped "
     "network (allmusic, allmusic_cqt, allmusic_musicnn, fma)"),
    (["x.wav", "--weights", ""], "--weights is empty"), (["x.wav", "--resume", ""], "--resume is empty"),
    (["--export", ""], "--export is empty"), (["--export", "."], ". is a folder: name a file in it"),
    (["--export", "x.onnx", "--weights", "allmusic_musicnn"], "for example with --weights allmusic_cqt"),
])
def test_wrong_arguments_are_one_line(capsys, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    if "x.wav" in given:
        soundfile.write("x.wav", tone(2), RATE)
    status, out, err = command(capsys, *given)
    assert status == 2 and message in err and err.count("\n") == 1 and out == ""


def test_nothing_is_imported_that_an_answer_does_not_need(song):
    """Each of these takes longer to import than a song to classify."""
    code = ("import sys, predict\n"
            f"assert predict.main([{str(song)!r}]) == 0\n"
            "slow = {'librosa', 'numba', 'scipy', 'pandas', 'sympy', 'torch._dynamo'} & set(sys.modules)\n"
            "assert not slow, slow")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
