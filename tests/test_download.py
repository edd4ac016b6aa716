"""download_data.sh against a local server that does what networks do: cut, stall, ignore, refuse."""

import hashlib
import http.server
import io
import os
import random
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "download_data.sh"
METADATA = {f"fma_metadata/{name}.csv": name.encode() * 999 for name in ("tracks", "genres", "features")}
TRACKS = {f"fma_small/{i // 5:03d}/{i:06d}.mp3": random.Random(i).randbytes(30_000) for i in range(10)}
CHECKSUMS = "".join(f"{hashlib.sha1(data).hexdigest()}  {name[10:]}\n" for name, data in TRACKS.items())
AUDIO = {"fma_small/README.txt": b"clips", "fma_small/checksums": CHECKSUMS.encode(), **TRACKS}

needed = ("bash", "python3")
pytestmark = pytest.mark.skipif(not all(map(shutil.which, needed)), reason=f"needs {' and '.join(needed)}")


def packed(files, link=None):
    """An archive like FMA's: bzip2; its first entry is zip64, as in its larger archives."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_BZIP2
            entry.external_attr = (0o120777 if name == link else 0o100444) << 16
            with archive.open(entry, "w", force_zip64=not archive.filelist) as file:
                file.write(data)
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, name, asked = self.server, self.path.rsplit("/", 1)[-1], self.headers.get("Range")
        server.requests.append((name, asked))
        trouble = server.trouble.pop(0) if name == "fma_small.zip" and server.trouble else None
        if trouble == "503" or name not in server.archives:
            return self.send_error(503 if trouble else 404)
        data, start = server.archives[name], 0
        if asked and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(data):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = (start + len(data)) // 2 if trouble else len(data)
        self.wfile.write(data[start:end])
        if trouble == "stall":
            server.go_on.wait(20)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/fma"
        self.archives = {"fma_metadata.zip": packed(METADATA), "fma_small.zip": packed(AUDIO)}
        self.requests = []          # (archive, Range header or None)
        self.trouble = []           # what happens to each request for audio, in turn: cut, stall or 503
        self.ranges = True          # whether it knows them
        self.go_on = threading.Event()

    def handle_error(self, request, client_address):
        pass                        # clients are killed here


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "my [new] data"


def listed(archives, gib=0.001):
    """The table of archives that the script is to expect."""
    return "".join(f"{name} {hashlib.sha1(data).hexdigest()} {gib} {gib} {10 * ('small' in name)}\n"
                   for name, data in archives.items())


def start(server, folder, *arguments, inject="", table=None, **env):
    """Start the script. `inject` is Python that runs in it first; pauses between tries are short."""
    arguments = arguments or ("small", str(folder))
    hooks = folder.parent / "hooks"
    hooks.mkdir(exist_ok=True)
    quick = "import time; sleep = time.sleep; time.sleep = lambda seconds: sleep(0.01)\n"
    (hooks / "sitecustomize.py").write_text(quick + inject)
    (hooks / "archives").write_text(table or listed(server.archives))
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env = {**kept, "PYTHONPATH": str(hooks), "FMA_ARCHIVES": str(hooks / "archives"), "FMA_URL": server.url,
           "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "no_proxy": "*", **env}
    return subprocess.Popen(["bash", SCRIPT, *arguments], cwd=folder.parent, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def fetch(*args, **kwargs):
    """Run the script; return its exit status and what it said."""
    process = start(*args, **kwargs)
    try:
        out, err = process.communicate(timeout=25)
    finally:
        process.kill()
    return process.returncode, out + err


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file() and path.name != ".download.lock"}


def test_cut_connection_resumes_where_it_ended(server, folder):
    server.trouble = ["cut", "cut"]
    status, said = fetch(server, folder, KEEP_ARCHIVES="1")
    assert status == 0, said
    size = len(server.archives["fma_small.zip"])
    half = size // 2
    ranges = [asked for name, asked in server.requests if name == "fma_small.zip"]
    assert ranges == [None, f"bytes={half}-", f"bytes={(half + size) // 2}-"]
    assert content(folder) == {**METADATA, **AUDIO, **server.archives}


def test_server_without_ranges(server, folder):
    server.trouble, server.ranges = ["cut"], False
    status, said = fetch(server, folder, KEEP_ARCHIVES="1")
    assert status == 0, said
    assert server.requests[-1] == ("fma_small.zip", f"bytes={len(server.archives['fma_small.zip']) // 2}-")
    assert content(folder) == {**METADATA, **AUDIO, **server.archives}


@pytest.mark.parametrize("trouble, ranges", [("503", True), ("cut", False)])
def test_gives_up_on_a_server_that_never_delivers(server, folder, trouble, ranges):
    server.trouble, server.ranges = [trouble] * 99, ranges
    status, said = fetch(server, folder)
    assert status == 1 and "try the same command later" in said
    assert len(server.requests) < 10 and not (folder / "fma_small").exists()
    server.trouble, before = [], len(server.requests)
    status, said = fetch(server, folder)
    assert status == 0, said
    assert [name for name, _ in server.requests[before:]] == ["fma_small.zip"]      # metadata was done


def test_absent_archive_is_asked_for_once(server, folder):
    table = "fma_metadata.zip 0 0 0 0\nfma_small.zip 0 0 0 0\n"
    server.archives.clear()
    status, said = fetch(server, folder, table=table)
    assert status == 1 and "404" in said and "FMA_URL" in said
    assert len(server.requests) == 1


def test_download_that_was_whole_when_stopped(server, folder):
    folder.mkdir()
    (folder / "fma_small.zip.part").write_bytes(server.archives["fma_small.zip"])
    status, said = fetch(server, folder)
    assert status == 0, said
    assert content(folder) == {**METADATA, **AUDIO}


def test_wrong_checksum(server, folder):
    whole, table = server.archives["fma_small.zip"], listed(server.archives)
    server.archives["fma_small.zip"] = broken = whole[:999] + b"?" + whole[1000:]
    status, said = fetch(server, folder, table=table)
    assert status == 1 and said.splitlines()[-1].count("fma_small.zip.broken") == 1 and "delete it" in said
    assert content(folder) == {**METADATA, "fma_small.zip.broken": broken}
    server.archives["fma_small.zip"] = whole
    status, said = fetch(server, folder, table=table)
    assert status == 0, said
    assert content(folder) == {**METADATA, **AUDIO, "fma_small.zip.broken": broken}


def test_archive_put_there_by_hand_is_checked_too(server, folder):
    folder.mkdir()
    (folder / "fma_small.zip").write_bytes(server.archives["fma_small.zip"])
    status, said = fetch(server, folder)
    assert status == 0, said
    assert [name for name, _ in server.requests] == ["fma_metadata.zip"]
    shutil.rmtree(folder / "fma_small")
    (folder / "fma_small.zip").write_bytes(packed({**AUDIO, "fma_small/000/000001.mp3": b"other music"}))
    status, said = fetch(server, folder)
    assert status == 1 and "fma_small.zip.broken" in said and not (folder / "fma_small").exists()


def test_an_archive_that_a_killed_process_left_goes(server, folder):
    """It was killed when all was extracted, and the archive not yet deleted."""
    whole = {**METADATA, **AUDIO}
    assert fetch(server, folder)[0] == 0
    asked, kept = len(server.requests), folder / "fma_small.zip"
    kept.write_bytes(server.archives["fma_small.zip"])
    status, said = fetch(server, folder, KEEP_ARCHIVES="1")
    assert status == 0 and "nothing to do" in said and kept.exists()
    (folder / "fma_small" / "000" / "000001.mp3").unlink()                  # what the archive is still needed for
    assert fetch(server, folder, KEEP_ARCHIVES="1")[0] == 0 and kept.exists() and content(folder).keys() > whole.keys()
    status, said = fetch(server, folder)
    assert status == 0 and "fma_small.zip deleted: its files are all there" in said, said
    assert content(folder) == whole and len(server.requests) == asked


@pytest.mark.parametrize("name", [
    "../evil", "fma_small/../../evil", "fma_small/000/..", "/absolute/evil", "C:/evil", "evil",
    "fma_small/..\\..\\evil", "fma_small/C:evil", "fma_small/link",
])
def test_archive_that_reaches_outside_is_refused_before_anything_is_written(server, folder, name):
    name = name.replace("/absolute", str(folder.parent))
    server.archives["fma_small.zip"] = packed({**AUDIO, name: b"/etc/passwd"}, link="fma_small/link")
    status, said = fetch(server, folder)
    assert status == 1 and "nothing extracted" in said
    assert set(content(folder)) == {*METADATA, "fma_small.zip"}
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, "hooks"}


def test_second_run_does_nothing(server, folder):
    assert fetch(server, folder)[0] == 0
    requests, before = len(server.requests), content(folder)
    assert before == {**METADATA, **AUDIO}      # the archives are gone
    status, said = fetch(server, folder)
    assert status == 0 and "nothing to do" in said
    assert len(server.requests) == requests and content(folder) == before


def test_disk_space_is_checked_before_any_request(server, folder):
    table = "fma_metadata.zip 0 1 1 0\nfma_small.zip 0 2e6 1e6 10\n"
    status, said = fetch(server, folder, table=table)
    assert status == 1
    assert re.search(r"not enough disk space in .*: 3,000,002.0 GiB needed, [\d,.]+ .iB available", said)
    assert not server.requests and content(folder) == {}


def test_disk_space_is_checked_before_extraction(server, folder):
    """Archive sizes in the table are estimates; what extraction needs is known once the archive is here."""
    full = "import shutil, types; shutil.disk_usage = lambda path: types.SimpleNamespace(free=2e5)\n"
    table = listed(server.archives, gib=0)
    status, said = fetch(server, folder, table=table, inject=full)
    assert status == 1 and "not enough disk space" in said
    assert set(content(folder)) == {*METADATA, "fma_small.zip"}
    requests = len(server.requests)
    assert fetch(server, folder, table=table)[0] == 0
    assert len(server.requests) == requests and content(folder) == {**METADATA, **AUDIO}


def test_killed_while_downloading_and_one_download_at_a_time(server, folder):
    server.trouble = ["stall"]
    half = len(server.archives["fma_small.zip"]) // 2
    first, part, deadline = start(server, folder), folder / "fma_small.zip.part", time.monotonic() + 15
    try:
        while not (part.exists() and part.stat().st_size > half - 8192):    # the rest may be in its buffer
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.01)
        requests = len(server.requests)
        status, said = fetch(server, folder)
        assert status == 1 and "another download into" in said and len(server.requests) == requests
    finally:
        first.kill()
        first.communicate()
    have = part.stat().st_size
    status, said = fetch(server, folder)        # the dead process holds no lock
    assert status == 0, said
    assert server.requests[requests:] == [("fma_small.zip", f"bytes={have}-")]
    assert content(folder) == {**METADATA, **AUDIO}


def test_killed_while_extracting(server, folder):
    die = """
import os, signal, zipfile
read = zipfile.ZipExtFile.read
def dying(file, n=-1):
    if file.name.endswith("000002.mp3"):
        if file.tell():
            os.kill(os.getpid(), signal.SIGKILL)
        n = 20_000
    return read(file, n)
zipfile.ZipExtFile.read = dying
"""
    first = start(server, folder, inject=die)
    first.communicate(timeout=25)
    assert first.returncode == -9
    cut = content(folder)
    assert len(cut.pop("fma_small/000/000002.mp3.part")) == 20_000
    assert "fma_small/000/000001.mp3" in cut and "fma_small/000/000002.mp3" not in cut
    everything = {**METADATA, **AUDIO, **server.archives}
    assert all(everything[name] == data for name, data in cut.items())      # what has its name is whole
    done, requests = (folder / "fma_small/000/000001.mp3").stat().st_mtime_ns, len(server.requests)
    status, said = fetch(server, folder)
    assert status == 0, said
    assert len(server.requests) == requests and content(folder) == {**METADATA, **AUDIO}
    assert (folder / "fma_small/000/000001.mp3").stat().st_mtime_ns == done


def test_archive_without_all_files_names_them(server, folder):
    lost = "fma_small/001/000007.mp3"
    server.archives["fma_small.zip"] = packed({name: data for name, data in AUDIO.items() if name != lost})
    status, said = fetch(server, folder)
    assert status == 1 and "has 9 of 10 mp3 files, missing: 001/000007.mp3" in said
    server.archives["fma_metadata.zip"] = packed({name: METADATA[name] for name in list(METADATA)[:2]})
    shutil.rmtree(folder)
    status, said = fetch(server, folder)
    assert status == 1 and "fma_metadata is incomplete, missing: features.csv" in said


def test_deleted_files_are_named_and_fetched_again(server, folder):
    assert fetch(server, folder)[0] == 0
    (folder / "fma_small/000/000003.mp3").unlink()
    status, said = fetch(server, folder)
    assert status == 0 and "has 9 of 10 mp3 files, missing: 000/000003.mp3" in said
    assert content(folder) == {**METADATA, **AUDIO}


@pytest.mark.parametrize("arguments", ["tiny", "small,data,more", "small,", "--force", "small,-f"])
def test_wrong_arguments(server, folder, arguments):
    status, said = fetch(server, folder, *arguments.split(","))
    assert status == 2 and said.count("\n") == 1 and "usage: download_data.sh [small|" in said
    assert not server.requests and [path.name for path in folder.parent.iterdir()] == ["hooks"]


def test_default_folder_and_help(server, folder):
    status, said = fetch(server, folder, "small")
    assert status == 0, said
    assert content(folder.parent / "data") == {**METADATA, **AUDIO}
    status, said = fetch(server, folder, "--help")
    assert status == 0 and all(word in said for word in ("FMA_URL", "KEEP_ARCHIVES", "FMA_ARCHIVES"))


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl, to make a certificate")
def test_certificates_are_verified(server, folder):
    folder.mkdir()
    key, certificate = folder.parent / "key.pem", folder.parent / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
                   check=True, timeout=20, stderr=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    status, said = fetch(server, folder, FMA_URL=url)
    assert status == 1 and "CERTIFICATE_VERIFY_FAILED" in said and said.count("\n") == 1
    assert not server.requests and content(folder) == {}
    assert fetch(server, folder, FMA_URL=url, SSL_CERT_FILE=str(certificate))[0] == 0
