"""Attacks, each tried: code in data files, names that lead elsewhere, text that a table would act upon.

Archives that reach outside, checksums and certificates are attacked in test_download.py, caches and the state of a
run in test_dataset.py and test_training_errors.py.
"""

import ast
import json
import pickle
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import test_download
import torch
from conftest import ROOT, write_cache, write_tracks

import fma
import training
from classifier.card import model_card
from classifier.network import load_classifier
from dataset import FeatureDataset
from fma import DataError
from learning import pitch_copies, runs
from study.predictions import load_predictions
from study.result_files import save_result
from study.tables import format_table

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- no file runs code ----------------------------------------------------------------------------------------


class Bomb:
    """What unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def bomb(tmp_path):
    """A bomb, and after the test a look whether it went off; it does where it is unpickled."""
    made = Bomb(tmp_path / "exploded")
    pickle.loads(pickle.dumps(made))
    (tmp_path / "exploded").unlink()
    yield made
    assert not (tmp_path / "exploded").exists(), "a file from a stranger ran code"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on features of mel128's shape, as predict.py takes it."""
    from synthetic import make_collection

    folder = tmp_path_factory.mktemp("finished")
    data = make_collection(folder / "tiny", features=(("mel128", 128),), frames=128)
    return training.run("x", {"feature": "mel128", "model": "SquareCNN"}, data, {"epochs": 1, "precision": "float32"},
                        folder / "runs", device="cpu", progress=False)[0]


WAYS = {
    "pickle": lambda thing, path: path.write_bytes(pickle.dumps(thing)),
    "torch": lambda thing, path: torch.save({"weights": thing}, path),
    "object array": lambda thing, path: np.save(open(path, "wb"), np.array([thing], dtype=object), allow_pickle=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_really_a_pickle_run_nothing(finished, tmp_path, bomb, way):
    run_dir = Path(shutil.copytree(finished, tmp_path / "seed0"))
    WAYS[way](bomb, run_dir / "model.safetensors")
    with pytest.raises(DataError, match="seed0"):
        load_classifier(run_dir)
    for ending in (".json", ".safetensors"):
        shutil.copy(ROOT / "weights" / f"fma{ending}", tmp_path / f"mine{ending}")
    WAYS[way](bomb, tmp_path / "mine.safetensors")
    with pytest.raises(DataError, match="mine"):
        load_classifier(tmp_path / "mine")


@pytest.mark.parametrize("way", ["pickle", "object array", "members"])
def test_probabilities_that_are_really_pickles_run_nothing(finished, tmp_path, bomb, way):
    run_dir = Path(shutil.copytree(finished, tmp_path / "seed0"))
    path = run_dir / "probabilities.npz"
    if way == "members":
        whole = dict(np.load(path))
        np.savez(path, **{name: np.array([bomb], dtype=object) for name in whole})
    else:
        WAYS[way](bomb, path)
    for read in (runs.load_probabilities, runs.report, load_classifier):
        with pytest.raises(DataError, match="probabilities.npz is damaged"):
            read(run_dir)


@pytest.mark.parametrize("way", ["pickle", "object array"])
def test_pitch_shifted_copies_that_are_really_pickles_run_nothing(tiny, tmp_path, bomb, way):
    data = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    WAYS[way](bomb, data / "features" / "cqt_pitch+1.npy")
    shutil.copy(data / "features" / "cqt.json", data / "features" / "cqt_pitch+1.json")
    with pytest.raises(DataError, match=r"cqt_pitch\+1.npy or its .json is damaged"):
        pitch_copies.pitch_shifts(FeatureDataset(data, "cqt"))


def test_a_configuration_names_no_code_but_ours(finished, tmp_path, bomb):
    run_dir = Path(shutil.copytree(finished, tmp_path / "seed0"))
    config = json.loads((run_dir / "config.json").read_text())
    for name in ("os.system", "__import__('os').system", "nn.Linear", "Training"):
        config["model"]["class"] = name
        (run_dir / "config.json").write_text(json.dumps(config))
        with pytest.raises(DataError, match="no network is named"):
            load_classifier(run_dir)


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "imp"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pd.read_pickle", "yaml.load", "pickle.load",
    "pickle.loads", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp", "shutil.unpack_archive",
    "ssl._create_unverified_context", "to_pickle", "extractall", "runpy.run_path",
}


# A scheduler and its workers trust each other: what is pickled there was made in the same run, and no file is read.
ALLOWED = {"audio/cluster.py": {"imports pickle", "imports cloudpickle", "calls pickle.loads"}}


def python_code():
    """Name to text of all Python that users run: modules, scripts, what bash starts, and code cells."""
    for path in sorted({*ROOT.glob("*.py"), *ROOT.glob("[!.t]*/*.py")}):
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    script = (ROOT / "download_data.sh").read_text(encoding="utf-8")
    yield "download_data.sh", script.split("<<'PYTHON'\n")[1].split("\nPYTHON\n")[0]
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        yield f"notebooks/{path.name}", re.sub(r"^[%!].*$", "", code, flags=re.M)


def faults_of(text):
    """What of a module would run what a file or a user says, or trust what it should not."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"imports {name}" for name in names if (name or "").split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in FORBIDDEN_CALLS or name.rsplit(".", 1)[-1] in {"extractall", "to_pickle", "read_pickle"}:
            found.append(f"calls {name}")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append("calls torch.load without weights_only=True")
        if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
            found.append(f"calls {name} with allow_pickle or shell")
        if given.get("verify") == "False" or given.get("escape") == "False":
            found.append(f"calls {name} with verify or escape False")
    return found


@pytest.mark.parametrize("name, text", [pytest.param(*each, id=each[0]) for each in python_code()])
def test_no_code_of_ours_runs_what_data_say(name, text):
    assert set(faults_of(text)) <= ALLOWED.get(name, set())


@pytest.mark.parametrize("text", [
    "import pickle", "from joblib import load", "torch.load(path)", "torch.load(path, weights_only=False)",
    "np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=flag)", "eval(text)", "os.system(line)",
    "subprocess.run(line, shell=True)", "archive.extractall(folder)", "requests.get(url, verify=False)",
    "table.to_html(escape=False)",
])
def test_what_is_looked_for_is_found(text):
    assert faults_of(text) and not faults_of("torch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)")


def test_shell_scripts_quote_what_users_name_and_verify_certificates():
    for name in ("download_data.sh", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"--insecure|--no-check-certificate|curl .*-k\b|CERT_NONE|check_hostname = False|\beval ",
                             text), name
        assert "unverified" not in text, name
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    unquoted = re.sub(r'"[^"]*"', "", text).replace("$(if $(DATA_DIR),", "")
    assert '"$(DATA_DIR)"' in text and not re.search(r"\$\((DATA_DIR|REPO)\)", unquoted)


# ---- names and addresses lead nowhere else --------------------------------------------------------------------


@pytest.fixture
def server():
    made = test_download.Server()
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_folder_whose_name_is_a_command_is_a_folder(server, tmp_path):
    name = "$(touch pwned);touch pwned `touch pwned`"
    status, said = test_download.fetch(server, tmp_path / name)
    assert status == 0, said
    assert {path.name for path in tmp_path.iterdir()} == {"hooks", name}


def test_a_server_cannot_lead_to_a_file_of_this_machine(server, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("secret")

    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", secret.as_uri())
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(test_download.Handler, "do_GET", redirect)
    status, said = test_download.fetch(server, tmp_path / "data")
    assert status == 1 and "Traceback" not in said
    assert not any(b"secret" in content for content in test_download.content(tmp_path / "data").values())


@pytest.mark.parametrize("track_id", ["../../x", "/etc/passwd", "2; touch pwned", "1e3", "0x10"])
def test_a_track_id_that_is_a_path_or_a_command_is_refused(tmp_path, track_id):
    data = tmp_path / "data"
    columns = {("set", "split"): ["training", "validation", "test"], ("set", "subset"): ["small"],
               ("track", "genre_top"): ["Folk"]}
    write_tracks(data, [1, 2, track_id], columns)
    with pytest.raises(DataError, match="track ids that are not whole numbers"):
        fma.load_tracks(data)
    write_tracks(data, [1, 2, 3], columns)
    write_cache(data, "cqt", np.zeros((3, 4, 5), np.float16), ids=[1, 2, track_id])
    with pytest.raises(DataError, match="index.csv "):
        FeatureDataset(data, "cqt")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


@pytest.mark.parametrize("track_id", [0, -1, -2**62, 2**62, 999_999, 1_000_000])
def test_no_track_id_leads_out_of_the_audio_folder(tmp_path, track_id):
    root = (tmp_path / "fma_small").resolve()
    assert fma.audio_path(tmp_path, track_id).resolve().parent.parent == root


# ---- names of genres are text, whatever they hold --------------------------------------------------------------


EVIL = ["=HYPERLINK(\"http://x\")", "<script>alert(1)</script>", "[free](javascript:alert(1))", "a|b", "c\n| d |",
        "<img src=x onerror=alert(1)>", "![](http://x/track.png)", "<!-- end -->"]


def assert_plain(markdown, columns=None):
    assert not re.search(r"<[a-zA-Z/!]", markdown), "HTML"
    assert not re.search(r"(?<!\\)\[[^\]]*\]\((?!\.\./|https://github\.com/mdeff)", markdown), "a link or an image"
    for line in markdown.splitlines() if columns else ():
        assert len(re.findall(r"(?<!\\)\|", line)) == columns + 1, line


def test_a_table_shows_names_and_acts_upon_none():
    text = format_table([[name, 0.5] for name in EVIL], ["genre", "right %"])
    assert len(text.splitlines()) == 2 + len(EVIL)
    assert_plain(text, columns=2)


def test_a_model_card_shows_names_and_acts_upon_none():
    card = json.loads((ROOT / "weights" / "fma.json").read_text(encoding="utf-8"))
    card["test"]["genres"] = dict(zip(EVIL, card["test"]["genres"].values(), strict=True))
    card["genres"] = EVIL
    assert_plain(model_card("mine", card))


def test_predictions_of_such_genres_are_read_as_they_were_written(tmp_path):
    clips = np.arange(len(EVIL))
    test = {"probabilities": np.eye(len(EVIL)), "labels": clips, "tracks": clips, "artists": clips,
            "genres": np.array(EVIL)}
    save_result(tmp_path / "x.json", {"seeds": [{"seed": 0}]}, [test])
    assert load_predictions(tmp_path / "x.csv")["genre"].tolist() == EVIL
