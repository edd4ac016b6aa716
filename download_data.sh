#!/usr/bin/env bash
# Fetch the Free Music Archive dataset: see --help. Bash only starts Python, whose standard library does the
# rest the same way on Linux, macOS and Colab; curl differs between them, and unzip often fails on FMA.
command -v python3 >/dev/null || { echo "download_data.sh: python3 (3.8 or later) is needed" >&2; exit 1; }
exec python3 - "$@" <<'PYTHON'
import glob, hashlib, http.client, os, re, shutil, ssl, stat, sys, time, zipfile
from urllib.error import HTTPError
from urllib.request import Request, urlopen

TABLE = """\
fma_metadata.zip  f0df49ffe5f2a6008d7dc83c6915b31835dfe733  0.34  1.7       0
fma_small.zip     ade154f733639d52e35e32f5593efe5be76c6d70   7.2  7.6    8000
fma_medium.zip    c67b69ea232021025fca9231fc1c7c1a063ab50b    22   24   25000
fma_large.zip     497109f4dd721066b5ce5e5f250ec604dc78939e    93   98  106574
fma_full.zip      0f0ace23fbe9ba30ecb7e95f763e435ea802b8ab   879  917  106574
"""
USAGE = "usage: download_data.sh [small|medium|large|full] [folder]"
HELP = f"""{USAGE}      (default: small data)

Download FMA's metadata and audio, check them, and extract them to folder/fma_metadata and folder/fma_<size>.
After an interruption the same command goes on where it stopped; once everything is there it downloads nothing.

FMA_URL=URL        a mirror of https://os.unil.cloud.switch.ch/fma
KEEP_ARCHIVES=1    keep the archives; otherwise each that is there is deleted once its files are extracted
FMA_ARCHIVES=FILE  other lines in place of these, for a mirror with other content:
                   archive, SHA-1, GiB, GiB extracted (estimated), number of mp3 files

{TABLE}"""
URL = (os.environ.get("FMA_URL") or "https://os.unil.cloud.switch.ch/fma").rstrip("/")
GIB = 2**30
TERMINAL = sys.stderr.isatty()

def say(text, end="\n"):
    # Padded on a terminal, so that it covers the progress line before it.
    print(text.ljust(79) if TERMINAL else text, end=end, file=sys.stderr, flush=True)

def stop(text, status=1):
    say(f"download_data.sh: {text}")
    sys.exit(status)

try:
    import fcntl
except ImportError:
    stop("it needs Linux or macOS: on Windows run it in WSL")

def human(n):
    return f"{n / GIB:,.1f} GiB" if n >= GIB else f"{n / 2**20:,.1f} MiB"

def size(path):
    return os.path.getsize(path) if os.path.isfile(path) else -1

def room(folder, needed):
    free = shutil.disk_usage(folder).free
    if needed > free:
        stop(f"not enough disk space in {folder}: {human(needed)} needed, {human(free)} available")

def progress(what, total, done=0):
    """Return a function to call with each number of bytes: a moving line, or one per half minute in a log."""
    start, first, shown = time.monotonic(), done, float("-inf")
    def add(n):
        nonlocal done, shown
        done, now = done + n, time.monotonic()
        if done == total or now - shown > (0.2 if TERMINAL else 30):
            shown, speed = now, human((done - first) / max(now - start, 0.1))
            say(f"{what}: {human(done)}{f' of {human(total)}' if total else ''}, {speed}/s",
                end="\r" if TERMINAL and done != total else "\n")
    return add

def download(url, part):
    """Append to `part` what it lacks of `url`, over several connections as long as they bring more."""
    best = failures = 0
    while True:
        have = max(size(part), 0)
        try:
            rest = {"Range": f"bytes={have}-"} if have else {}
            with urlopen(Request(url, headers=rest), timeout=60) as reply:
                if reply.status != 206:
                    have = 0                # a server without ranges sends everything again
                elif not reply.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    raise OSError("the server sent another range than the one asked for")
                length = reply.headers.get("Content-Length")
                total = have + int(length) if length else None
                add = progress(os.path.basename(url), total, have)
                with open(part, "ab" if have else "wb") as file:
                    for chunk in iter(lambda: reply.read1(2**20), b""):
                        try:
                            file.write(chunk)
                        except OSError as error:    # no matter of the network: trying again is of no use
                            stop(f"{part} cannot be written ({error.strerror}): make room, the same command goes on")
                        add(len(chunk))
            if total in (None, size(part)):
                return
            problem = "the connection broke"
        except HTTPError as error:
            if error.code == 416:           # nothing follows what is here; the checksum will tell
                return
            if error.code < 500 and error.code not in (408, 429):
                stop(f"{url}: {error}: is FMA_URL right?")
            problem = error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
                stop(f"{url}: {error.reason}: on macOS run Python's 'Install Certificates.command'")
            problem = error
        failures = 1 if size(part) > best else failures + 1
        best = max(best, size(part))
        if failures > 5:
            stop(f"{url}: {problem}: try the same command later, it goes on from here")
        say(f"{problem}: trying again in {2 ** (failures - 1)} s")
        time.sleep(2 ** (failures - 1))

def check(path, expected):
    """Move a file whose SHA-1 is not the expected one out of the way."""
    sha1, add = hashlib.sha1(), progress(f"checking {os.path.basename(path)}", size(path))
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(2**20), b""):
            sha1.update(chunk)
            add(len(chunk))
    if sha1.hexdigest() != expected:
        broken = re.sub(r"(\.part)?$", ".broken", path, count=1)
        os.replace(path, broken)
        stop(f"{broken} has SHA-1 {sha1.hexdigest()}, not {expected}: delete it and run this again")

def unextracted(archive, folder):
    return [entry for entry in archive.infolist()
            if not entry.is_dir() and size(os.path.join(folder, entry.filename)) != entry.file_size]

def extract(path, folder):
    """Extract what is not there yet. Each file gets its name when it is whole, never before."""
    top = os.path.basename(path)[:-4]
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():    # every name is looked at before anything is written
            parts, kind = entry.filename.split("/"), stat.S_IFMT(entry.external_attr >> 16)
            if (parts[0] != top or ".." in parts or re.search(r"[\\:]", entry.filename)
                    or kind not in (0, stat.S_IFREG, stat.S_IFDIR)):
                stop(f"{path} holds {entry.filename!r}, a link or outside {top}/: nothing extracted")
        entries = unextracted(archive, folder)
        total = sum(entry.file_size for entry in entries)
        room(folder, total)
        add = progress(f"extracting {top}", total)
        for entry in entries:
            target = os.path.join(folder, entry.filename)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(entry) as source, open(target + ".part", "wb") as file:
                shutil.copyfileobj(source, file, 2**20)     # compares the CRC, too
            os.replace(target + ".part", target)
            add(entry.file_size)

def missing(path, mp3s):
    """Say what of an archive's content is not in the folder, "" if all is. Reads names and sizes only."""
    top, names = path[:-4], []
    count = len(glob.glob(os.path.join(glob.escape(top), "*", "[0-9]*.mp3")))
    if os.path.isfile(path):    # as long as the archive is there, its extraction may be unfinished
        try:
            with zipfile.ZipFile(path) as archive:
                names = [entry.filename for entry in unextracted(archive, os.path.dirname(path))]
        except zipfile.BadZipFile:
            names = [os.path.basename(path)]
    if not names:
        listed = ["tracks.csv", "genres.csv", "features.csv"] if top.endswith("fma_metadata") else []
        if count < mp3s and os.path.isfile(f"{top}/checksums"):     # FMA's own list: "sha1  000/000002.mp3"
            with open(f"{top}/checksums", encoding="utf-8") as lines:
                listed = [line.split(None, 1)[1].strip() for line in lines if line.rstrip().endswith(".mp3")]
        names = [name for name in listed if size(os.path.join(top, name)) < 0]
    if not names and count >= mp3s:
        return ""
    found = f"has {count:,} of {mp3s:,} mp3 files" if mp3s else "is incomplete"
    more = f" and {len(names) - 5:,} more" * (len(names) > 5)
    return f"{top} {found}" + f", missing: {', '.join(names[:5])}{more}" * bool(names)

def done_with(path):
    """Whether an archive is there that is not to be kept once its files are."""
    return os.path.isfile(path) and os.environ.get("KEEP_ARCHIVES") != "1"

def main(arguments):
    if {"-h", "--help"} & set(arguments):
        sys.exit(print(HELP))
    chosen, folder = (arguments + ["small", "data"][len(arguments):])[:2]
    if len(arguments) > 2 or chosen not in ("small", "medium", "large", "full") or folder[:1] in ("", "-"):
        stop(f"{USAGE}, not {' '.join(arguments)}", 2)
    table = open(os.environ["FMA_ARCHIVES"]).read() if os.environ.get("FMA_ARCHIVES") else TABLE
    table = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.strip()}
    rows = []
    for name in ("fma_metadata.zip", f"fma_{chosen}.zip"):
        if len(table.get(name, ())) != 4:
            stop(f"{os.environ['FMA_ARCHIVES']} has no line of five fields for {name}, see --help")
        sha1, packed, unpacked, mp3s = table[name]
        rows.append((os.path.join(folder, name), sha1, float(packed) * GIB, float(unpacked) * GIB, int(mp3s)))
    if not any(missing(path, mp3s) or done_with(path) for path, *_, mp3s in rows):
        return say(f"{folder} already has fma_metadata and fma_{chosen}: nothing to do")

    os.makedirs(folder, exist_ok=True)
    lock = open(os.path.join(folder, ".download.lock"), "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)    # the system frees it however this process ends
    except BlockingIOError:
        stop(f"another download into {folder} is running: wait for it, or stop it")
    except OSError:
        pass                                                # a file system without locks
    for path, *_, mp3s in rows:
        if done_with(path) and not missing(path, mp3s):     # a process that was killed got no further
            os.remove(path)
            say(f"{path} deleted: its files are all there")
    rows = [row for row in rows if missing(row[0], row[-1])]
    needed = 0
    for path, _, packed, unpacked, _ in rows:
        if not os.path.isfile(path):                        # if it is, extract() knows the exact need
            there = sum(size(f"{root}/{name}") for root, _, files in os.walk(path[:-4]) for name in files)
            needed += max(packed - max(size(path + ".part"), 0), 0) + max(unpacked - there, 0)
    room(folder, needed)
    for path, sha1, _, _, mp3s in rows:
        if os.path.isdir(path[:-4]):
            say(missing(path, mp3s))
        if os.path.isfile(path):
            check(path, sha1)
        else:
            download(f"{URL}/{os.path.basename(path)}", path + ".part")
            check(path + ".part", sha1)
            os.replace(path + ".part", path)
        extract(path, folder)
        if missing(path, mp3s):
            stop(f"{missing(path, mp3s)}, although {path} is whole: is its line in FMA_ARCHIVES right?")
        if done_with(path):
            os.remove(path)
    say(f"{folder} has fma_metadata and fma_{chosen}: complete")

try:
    main(sys.argv[1:])
except KeyboardInterrupt:
    stop("interrupted: the same command goes on from here", 130)
except (OSError, ValueError, zipfile.BadZipFile) as error:
    stop(f"{type(error).__name__}: {error}")
PYTHON
