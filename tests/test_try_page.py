"""The page in docs/try answers as predict.py does, in a browser, and sends nothing anywhere.

Its numbers are compared in Node.js, the page itself in Chromium where `make page` has built it; else they are skipped.
"""

# ruff: noqa: F811 - fixtures are arguments of the same name

import http.server
import json
import shutil
import subprocess
import threading
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from hostile import encode
from synthetic import ROOT, encode_with_av, tone
from test_browser import page  # noqa: F401 - a fixture

import demo as corpus
from audio.transforms import mel128, resample
from classifier import outside
from classifier.songs import NONE, classify, windows
from fma import DataError

TRY = ROOT / "docs" / "try"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(not NODE, reason="no Node.js here")
built = pytest.mark.skipif(not (TRY / "built" / "about.js").exists(), reason="docs/try is not built: make page")
SCRIPT = """
const fs = require("fs"), vm = require("vm"), [folder, asked, ...files] = process.argv.slice(1);
for (const name of ["spectrogram", "resample", "decode"]) {
  vm.runInThisContext(fs.readFileSync(`${folder}/${name}.js`, "utf8"));
}
const [given, read] = [JSON.parse(asked), name => new Uint8Array(fs.readFileSync(name))];
console.log(JSON.stringify(vm.runInThisContext("(" + given.run + ")")(files, read, given)));
"""


def in_node(run, *files, **given):
    """What a JavaScript function (files, read, given) returns."""
    command = [NODE, "-e", SCRIPT, str(TRY), json.dumps(given | {"run": run}), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def clips(demo):
    """Ten clips of the demo corpus: both sample rates, mono and stereo."""
    kinds = {}
    for track in corpus.TRACKS.values():
        if not track["fault"]:
            info = soundfile.info(demo / track["path"])
            kinds.setdefault((info.samplerate, info.channels), []).append(demo / track["path"])
    assert {rate for rate, _ in kinds} == {44_100, 48_000}
    return [path for paths in kinds.values() for path in paths[:-(-10 // len(kinds))]][:10]


@needs_node
def test_the_spectrogram_is_that_of_python(clips, tmp_path):
    for path in clips[::3]:                     # of each kind
        y, rate = soundfile.read(path, dtype="float32", always_2d=True)
        y = y.mean(1)
        y.tofile(tmp_path / "y")
        found = in_node("""([file], read, { rate, mel }) => Array.from(Spectrogram.mel128(Resample.resample(
            new Float32Array(read(file).buffer), rate, 44100), 44100, mel))""", tmp_path / "y", rate=rate,
            mel={"n_fft": 2048, "hop_length": 512, "n_mels": 128, "frames_kept": 128, "top_db": 80})
        assert np.abs(np.reshape(found, (128, 128)) - mel128(resample(y, rate, 44_100), 44_100)).max() < 1e-3, path


@needs_node
@pytest.mark.parametrize("rate, kind, subtype", [
    (22_050, "WAV", None), (44_100, "FLAC", None), (32_000, "OGG", "VORBIS"), (48_000, "OGG", "OPUS"),
    (96_000, "AIFF", None), (48_000, "MP3", None), (22_050, "MP3", None), (11_025, "MP3", None)])
def test_the_sample_rate_is_read_from_the_header(tmp_path, rate, kind, subtype):
    data = encode(tone(2, rate), rate, kind, subtype)
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "tagged").write_bytes(b"ID3\x04\0\0\0\0\x01\x00" + b"\xff\xfb\x90\0" * 32 + data)
    for name in ("plain", "tagged") if kind == "MP3" else ("plain",):
        assert in_node("([file], read) => Decode.headerRate(read(file))", tmp_path / name) == rate


@needs_node
def test_a_track_is_cut_into_the_windows_of_python():
    rate = 1000
    for seconds in (1, 29.9, 30, 30.5, 60, 61, 95.25):
        y = np.arange(int(seconds * rate), dtype=np.float32)
        found = in_node("(files, read, { length }) => Decode.windows(length, 1000, 30)", length=len(y))
        assert [(start / rate, end - 1) for start, end in found] == [
            (start, part.max()) for start, part, _ in windows((y / 1e3, rate)) for part in [np.round(1e3 * part)]]


def choose(page, address, files, control="#files"):
    """Open the page, give it files, and return its answers by their names, and the hosts that it asked anything of."""
    hosts = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url.removeprefix("blob:")).netloc))
    page.goto(address)
    page.set_input_files(control, files)
    page.get_by_role("button", name="Save the answers").wait_for()
    page.wait_for_selector("article[aria-busy]", state="detached")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the answers").click()
    return {found.pop("file"): found for found in json.loads(Path(download.value.path()).read_text())}, hosts


@pytest.fixture
def served():
    """The address of the page in a folder of a plain server, and its host."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=ROOT)
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        host = f"127.0.0.1:{server.server_port}"
        yield f"http://{host}/docs/try/", host
        server.shutdown()


@built
def test_the_page_answers_as_python_does(page, clips, tmp_path):
    noise, both = outside.noise(5), tmp_path / "both.wav"
    music, rate = soundfile.read(clips[0], dtype="float32", always_2d=True)
    soundfile.write(tmp_path / "noise.wav", noise, outside.RATE)
    soundfile.write(both, np.concatenate([resample(music.mean(1), rate, outside.RATE), noise, noise]), outside.RATE)
    clips = [*clips, tmp_path / "noise.wav", both]
    found, hosts = choose(page, (TRY / "index.html").as_uri(), clips)
    assert hosts <= {"", "null"}
    for path, answer in zip(clips, classify(clips, workers=1), strict=True):
        own = found[path.name]
        for mine, part in zip([own, *own["course"]], [answer, *answer["course"]], strict=True):
            assert mine["probabilities"] == pytest.approx(part["probabilities"], abs=0.01), path
            assert mine["none"] == pytest.approx(part["none"], abs=0.01) and mine.get("start") == part.get("start")
            assert (mine["genre"] == NONE) == (part["genre"] == NONE) == (part["none"] > 0.5)
    assert answer["genre"] == NONE != answer["course"][0]["genre"]          # the mean decides
    card = page.locator("article", has_text="both.wav")
    best = max(answer["probabilities"], key=answer["probabilities"].get)
    assert card.locator("p.answer").inner_text().startswith(f"{NONE} {100 * answer['none']:.0f}\xa0% (else {best}\xa0")
    assert card.locator("rect.refused").count() == 2 * 8


@built
def test_a_folder_of_odd_files_from_a_server(page, served, tmp_path):
    """Each file has an answer or a reason, and nothing is asked of another host."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, data in {"noise.mp3": rng.bytes(50_000), "empty.mp3": b"", "cover.jpg": b"\xff\xd8\xff",
                       "short.wav": encode(tone(0.5), 22_050, "WAV"),
                       "silence.flac": encode(np.zeros(44_100), 44_100, "FLAC"),
                       "long.mp3": encode(tone(95, 44_100), 44_100, "MP3")}.items():
        (folder / name).write_bytes(data)
    if find_spec("av"):
        encode_with_av(folder / "song.m4a", tone(31, 44_100, channels=2), 44_100, "ipod", "aac")
    address, host = served
    found, hosts = choose(page, address, folder, "#folder")
    assert hosts == {host}
    assert {name.removeprefix("mine/"): answer["error"] for name, answer in found.items() if "error" in answer} == {
        "noise.mp3": "not audio that this browser can read, or damaged", "empty.mp3": "the file is empty",
        "short.wav": "only 0.50 seconds of audio", "silence.flac": "silence"}
    for path in folder.glob("*.m4a"):
        [answer] = classify(path)
        assert found["mine/song.m4a"]["probabilities"] == pytest.approx(answer["probabilities"], abs=0.01)
    assert page.locator("#passed").inner_text() == "Passed over, no audio: mine/cover.jpg"
    assert len(found["mine/long.mp3"]["course"]) == 4
    card = page.locator("article", has_text="long.mp3")
    assert card.locator("audio").evaluate("player => player.duration") == pytest.approx(95, abs=0.1)
    assert card.locator("rect").count() == 4 * 8


@built
def test_a_network_without_a_detector_always_answers_with_a_genre(page, tmp_path):
    soundfile.write(tmp_path / "noise.wav", outside.noise(5), outside.RATE)
    page.goto((TRY / "index.html").as_uri())
    assert f"Other sounds are “{NONE}” if" in page.locator("#network").inner_text()
    page.evaluate("delete ABOUT.threshold; begin()")
    assert "It always answers with one of them" in page.locator("#network").inner_text()
    page.set_input_files("#files", tmp_path / "noise.wav")
    assert page.locator("p.answer strong").inner_text() in page.evaluate("ABOUT.labels")
    assert NONE not in page.locator("article").inner_text()


def test_a_package_of_npm_is_what_it_was(tmp_path, monkeypatch):
    spec = spec_from_file_location("build", TRY / "build.py")
    spec.loader.exec_module(build := module_from_spec(spec))
    package = next(iter(build.PACKAGES))
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\necho other > '{tmp_path / package.replace('@', '-')}.tgz'\n")
    npm.chmod(0o755)
    for path, message in ((tmp_path, "another checksum"), (tmp_path / "nothing", "install Node.js")):
        monkeypatch.setenv("PATH", str(path))
        with pytest.raises(DataError, match=message):
            build.fetch(package, tmp_path)


def test_a_page_that_is_not_built_says_so(page, tmp_path):
    shutil.copytree(TRY, tmp_path / "try", ignore=shutil.ignore_patterns("built"))
    page.goto((tmp_path / "try" / "index.html").as_uri())
    page.get_by_text("run make page in a clone").wait_for()
    assert not page.get_by_text("choose songs").is_visible()
