"""One seed gives one result, and every result says on what data, with which code and where it was made.

That a resumed run ends in the same bytes is test_training.py's to show, that features do not depend on the number of
workers test_features.py's.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, copy_code
from synthetic import make_collection
from test_training import outcome, train

import training
from classifier import network as classifier
from dataset import open_dataset
from fma import DataError
from learning import runs
from study import result_files, runner

pytestmark = pytest.mark.usefixtures("one_thread")


def with_threads(count, *args, **kwargs):
    """A short run with so many threads for torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return train(*args, **kwargs)[0]
    finally:
        torch.set_num_threads(before)


def test_one_seed_gives_one_result_with_one_number_of_threads(tiny, tmp_path):
    """With another number, sums are rounded in another order: near, and not the same. So the number is noted."""
    one, two, again = (with_threads(count, tiny, tmp_path / name, "FrequencyCNN", "cqt", epochs=1)
                       for count, name in ((1, "one"), (2, "two"), (2, "again")))
    assert outcome(two) == outcome(again)
    said = [runs.load_probabilities(run)["probabilities"] for run in (one, two)]
    np.testing.assert_allclose(*said, atol=0.02)
    assert [runs.load_config(run)["threads"] for run in (one, two)] == [1, 2]


# ---- what a run and a result say of themselves -----------------------------------------------------------------


@pytest.fixture(scope="module")
def result(tiny, tmp_path_factory):
    """Folder and result of two seeds."""
    folder = tmp_path_factory.mktemp("result")
    made = runner.run_experiment("chroma_cqt_square", tiny, 2, {"epochs": 1}, folder / "results", progress=False,
                                      runs_dir=folder / "runs", device="cpu")
    return folder, made


def test_runs_and_results_say_versions_commit_data_and_device(result):
    folder, made = result
    kept = json.loads((folder / "results" / "tiny" / "chroma_cqt_square.json").read_text())
    config = runs.load_config(folder / "runs" / "tiny" / "chroma_cqt_square" / "seed1")
    for said in (kept, made, config):
        assert set(said["versions"]) >= {"python", "torch", "numpy"} and said["device"]
        assert said["data"] == config["data"] and said["commit"] == runs.commit()
    assert set(config["data"]) == {"tracks.csv", "index.csv", "chroma_cqt.npy"}
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in config["data"].values())


def test_seeds_of_different_data_are_not_averaged(result, tmp_path):
    folder, _ = result
    copies = [Path(shutil.copytree(folder / "runs" / "tiny" / "chroma_cqt_square" / seed, tmp_path / seed))
              for seed in ("seed0", "seed1")]
    result_files.summarise_runs("chroma_cqt_square", copies)
    config = runs.load_config(copies[1])
    config["data"]["chroma_cqt.npy"] = "0" * 16
    (copies[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="its runs were trained on different data: delete them"):
        result_files.summarise_runs("chroma_cqt_square", copies)


def test_runs_of_two_commits_name_both_and_old_ones_none(result, tmp_path):
    folder, _ = result
    copies = [Path(shutil.copytree(folder / "runs" / "tiny" / "chroma_cqt_square" / seed, tmp_path / seed))
              for seed in ("seed0", "seed1")]
    for run, commit in zip(copies, ("b" * 40, "a" * 40 + "+changes"), strict=True):
        (run / "config.json").write_text(json.dumps(runs.load_config(run) | {"commit": commit}))
    assert result_files.summarise_runs("x", copies)["commit"] == f"{'a' * 40}+changes, {'b' * 40}"
    for run in copies:
        config = runs.load_config(run)
        for part in ("commit", "data"):
            del config[part]
        (run / "config.json").write_text(json.dumps(config))
    old = result_files.summarise_runs("x", copies)
    assert old["commit"] is None and old["data"] is None


def test_a_run_from_before_the_fingerprint_still_goes_on(tiny, tmp_path, monkeypatch):
    run_dir, _ = train(tiny, tmp_path, epochs=2)
    config = runs.load_config(run_dir)
    for part in ("data", "commit", "threads"):
        del config[part]
    (run_dir / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(training, "train_epoch", lambda *args: pytest.fail("trained again"))
    assert train(tiny, tmp_path, epochs=2)[0] == run_dir
    assert "data" not in runs.load_config(run_dir)              # nothing is claimed afterwards


def test_another_commit_is_no_hindrance_to_going_on(tiny, tmp_path, monkeypatch):
    train(tiny, tmp_path, epochs=1)
    monkeypatch.setattr(runs, "commit", lambda: "f" * 40)
    train(tiny, tmp_path, epochs=1)


def test_weights_and_results_from_before_are_read():
    shipped = classifier.load_classifier()
    assert "data" not in shipped.config or shipped.config["data"]
    for folder in ("fma_small", "emotify"):
        assert result_files.load_results(ROOT / "results" / folder)


# ---- the fingerprint and the commit -----------------------------------------------------------------------------


@pytest.mark.parametrize("feature, names", [
    ("cqt", {"cqt.npy"}), (("cqt", "chroma_cqt"), {"cqt.npy", "chroma_cqt.npy"})])
@pytest.mark.parametrize("hold", [True, False])
def test_the_fingerprint_is_of_each_file_that_is_read_wherever_it_is_held(tiny, tmp_path, feature, names, hold):
    elsewhere = make_collection(tmp_path / "the same elsewhere")
    one, other = (runs.data_fingerprints(open_dataset(data, feature, hold=held))
                  for data, held in ((tiny, hold), (elsewhere, True)))
    assert one == other and set(one) == names | {"tracks.csv", "index.csv"}


def test_a_change_of_title_is_no_change_of_data(tiny, tmp_path):
    data = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    path = data / "fma_metadata" / "tracks.csv"
    lines = path.read_text().splitlines()
    lines = [line + extra for line, extra in zip(lines, [",track", ",title", ","] + [",Song"] * 99, strict=False)]
    before = runs.data_fingerprints(open_dataset(data, "cqt"))
    path.write_text("\n".join(lines) + "\n")
    assert runs.data_fingerprints(open_dataset(data, "cqt")) == before


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_is_that_of_the_code_and_says_whether_it_was_changed(tmp_path):
    code = tmp_path / "outer" / "code"
    copy_code(code)

    def git(folder, *words):
        line = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", folder, *words]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()

    def commit():
        line = [sys.executable, "-c", "from learning import runs; print(runs.commit())"]
        return subprocess.run(line, cwd=code, capture_output=True, text=True, check=True).stdout.strip()

    git(tmp_path / "outer", "init", "-q")
    git(tmp_path / "outer", "commit", "-q", "--allow-empty", "-m", "not ours")
    assert commit() == "None"                                   # a copy inside another repository
    git(code, "init", "-q")
    git(code, "add", ".")
    git(code, "commit", "-q", "-m", "ours")
    head = git(code, "rev-parse", "HEAD")
    (code / "notes.txt").touch()                                # no file of ours
    assert commit() == head
    (code / "fma.py").write_text((code / "fma.py").read_text() + "\n")
    assert commit() == f"{head}+changes"
