"""What is read from disk may be damaged in any way: it is read, or a `DataError` names the file and the remedy."""

import json

import numpy as np
import pytest
import torch
from hostile import peak_memory
from hostile_readers import FILES, RUN, make_files, read_dataset, read_plan, read_run, read_tracks, try_broken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import training
from audio.cache import STATUSES, load_index
from audio.filling import read_journal
from classifier.network import load_classifier
from fma import DataError, load_tracks
from learning import runs

pytestmark = pytest.mark.usefixtures("one_thread")
quick = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def broken(valid):
    """Write a file of the valid ones, and have it back as it was afterwards."""
    before = {}

    def write(name, content):
        before.setdefault(name, (valid / name).read_bytes())
        (valid / name).write_bytes(content)
        return valid

    yield write
    for name, content in before.items():
        (valid / name).write_bytes(content)


def test_whole_files_are_read(valid):
    for read in {read for read, _ in FILES.values()}:
        read(valid)


def test_a_thousand_broken_files(valid):
    """The first thousand of soak/fuzz.py readers."""
    peak_memory()
    before, outcomes = peak_memory(), {}
    for number in range(1000):
        name, outcome = try_broken(valid, number)
        outcomes.setdefault(name, set()).add(outcome)
    assert peak_memory() - before < 0.5
    # every reader refuses some, but for the journal: of that, what is damaged is left out
    assert {name for name, said in outcomes.items() if "DataError" not in said} == {"unfinished/.partial/progress.csv"}


# ---------------------------------------------------------------- hypothesis


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9), lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)), max_leaves=9)
numbers = st.floats() | st.integers() | values
configs = st.fixed_dictionaries(
    {"model": st.fixed_dictionaries({"class": st.just("SquareCNN") | values, "args": values}),
     "training": st.fixed_dictionaries({"seed": values})},
    optional={"feature": st.just("mel128") | values, "genres": values})
epochs = st.fixed_dictionaries({"validation_accuracy": numbers, "validation_loss": numbers},
                               optional={"epoch": numbers})


def ends(read, *args):
    """What a reader returns; None if it says what is wrong."""
    try:
        return read(*args)
    except DataError as error:
        assert "\n" not in str(error)


@quick
@given(configs | values)
def test_any_json_as_a_config(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    there = ends(runs.load_config, folder)
    assert there is None or "class" in there["model"]
    assert ends(load_classifier, folder) is None


@quick
@given(st.lists(epochs | values, max_size=3))
def test_any_lines_as_a_history(tmp_path_factory, history):
    folder = tmp_path_factory.mktemp("run")
    (folder / "history.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in history))
    found = ends(runs.load_history, folder)
    assert found is None or f"{runs.selected(found)['epoch']:d}"


cells = st.sampled_from(["track_id", "status", "ok", "silent", "2", "02", "-1", "1e9", "", '"', "nan", "٣"]) | st.text(
    max_size=5)
tables = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=5).map("\n".join)


@quick
@given(tables, st.sampled_from(["", "track_id,status\n"]))
def test_any_text_as_an_index(tmp_path_factory, text, header):
    folder = tmp_path_factory.mktemp("features")
    (folder / "index.csv").write_text(header + text, encoding="utf-8", errors="replace")
    found = ends(load_index, folder)
    assert found is None or (found["status"].isin(STATUSES).all() and found["track_id"].dtype.kind in "iu")


@quick
@given(tables | st.lists(st.builds("{},{}\n".format, st.integers(), st.sampled_from(STATUSES))).map("".join))
def test_any_text_as_a_journal(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("partial") / "progress.csv"
    path.write_text(text, encoding="utf-8", errors="replace")
    assert all(0 <= row < 9 and status in STATUSES for row, status in read_journal(path, 9).items())


@quick
@given(tables, st.integers(0, 4))
def test_any_text_as_tracks(tmp_path_factory, text, lines):
    folder = tmp_path_factory.mktemp("data")
    (folder / "fma_metadata").mkdir()
    header = [",set,set,track,artist", ",split,subset,genre_top,id", "track_id,,,,", "2,training,small,Jazz,18"][:lines]
    (folder / "fma_metadata" / "tracks.csv").write_text("\n".join([*header, text]), encoding="utf-8", errors="replace")
    found = ends(load_tracks, folder)
    assert found is None or (found.index.dtype.kind == "i" and len(found))


@quick
@given(st.binary(max_size=300), st.sampled_from(["config.json", "history.jsonl", "probabilities.npz",
                                                 "model.safetensors", "state.pt"]))
def test_any_bytes_as_a_file_of_a_run(tmp_path_factory, content, name):
    folder, model = tmp_path_factory.mktemp("run"), torch.nn.Linear(2, 2)
    (folder / name).write_bytes(content)
    read = {"config.json": runs.load_config, "history.jsonl": runs.load_history,
            "probabilities.npz": runs.load_probabilities, "model.safetensors": lambda at: runs.load_weights(at, model),
            "state.pt": lambda at: runs.load_state(at, model, torch.optim.SGD(model.parameters()))}[name]
    ends(read, folder)


# ---------------------------------------------------------------- what was found so


def npy(array=None, shape="(64, 128, 128)", kind="'<f2'", size=2**21):
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(size)


@pytest.mark.parametrize("content", [
    npy(shape="(500000000000000, 1, 1)"), npy(shape="(64, 1000000000000, 4)"), npy(shape="(64, 128"), npy(kind="'|O'"),
    npy(kind="'<f16'", size=2**24), npy(kind="'>f2'"), npy(shape="(64, 1, -1)"), b""])
def test_an_array_that_is_none(broken, content):
    with pytest.raises(DataError, match=r"mel128.npy .*run features.py again"):
        read_dataset(broken("tiny/features/mel128.npy", content))


def test_probabilities_of_a_petabyte_or_compressed(broken, valid):
    path, name = valid / RUN / "probabilities.npz", f"{RUN}/probabilities.npz"
    whole = path.read_bytes()
    with np.load(path) as saved:
        arrays = dict(saved)
    at = whole.find(b"'shape': (12, 4), }")
    for shape in ("(99999999999999,)", "(9999999999,)", "(9, 9)"):
        header = f"'shape': {shape}, }}".encode()
        broken(name, whole[:at] + header + whole[at + len(header) :])
        with pytest.raises(DataError, match="probabilities.npz is damaged"):
            read_run(valid)
    np.savez_compressed(path, **arrays)                     # a thousand times smaller than what it may unfold to
    with pytest.raises(DataError, match="probabilities.npz is damaged"):
        runs.load_probabilities(valid / RUN)


@pytest.mark.parametrize("change", [
    {"labels": np.full(12, 4)}, {"labels": np.full(12, -1)}, {"labels": np.zeros(11, int)},
    {"probabilities": np.full((12, 4), np.nan)}, {"probabilities": np.zeros(12)}, {"artists": np.zeros(3)}])
def test_probabilities_that_do_not_belong_together(broken, valid, change):
    path = valid / RUN / "probabilities.npz"
    with np.load(path) as saved:
        arrays = dict(saved) | {f"test_{part}": array for part, array in change.items()}
    broken(f"{RUN}/probabilities.npz", b"")
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="probabilities.npz is damaged"):
        runs.report(valid / RUN)


@pytest.mark.parametrize("name", [f"{RUN}/config.json", "weights/some.json"])
@pytest.mark.parametrize("change", [
    {"genres": ["a"]}, {"genres": [1, 2, 3, 4]}, {"genres": "abcd"}, {"feature": []}, {"feature": "cqt"},
    {"scale": None}, {"normalisation": {"mean": [0] * 127, "std": [1] * 127}},
    {"normalisation": {"mean": ["x"], "std": [1]}}, {"normalisation": {"mean": [0] * 128, "std": [0] * 128}}])
def test_a_config_that_is_not_that_of_its_weights(broken, valid, name, change):
    config = json.loads((valid / name).read_text())
    broken(name, json.dumps(config | change).encode())
    path = valid / (RUN if name.startswith("runs") else "weights/some")
    with pytest.raises(DataError, match="train again|export the run again"):
        load_classifier(path)


def test_a_config_of_terabytes_is_refused_before_they_are_taken(broken, valid, monkeypatch):
    config = json.loads((valid / "weights/some.json").read_text())
    config["model"]["args"]["n_classes"] = 2 * 10**7                # 2.6 GB in the last layer
    broken("weights/some.json", json.dumps(config).encode())
    built = []
    build = training.build
    monkeypatch.setattr(training, "build", lambda given: built.append(torch.empty(0).device.type) or build(given))
    with pytest.raises(DataError, match=r"some.safetensors does not have the [\d,]{13} bytes of the network"):
        load_classifier(valid / "weights/some")
    assert built == ["meta"]


def test_weights_that_are_not_numbers(broken, valid):
    from safetensors.torch import load, save

    weights = load((valid / "weights/some.safetensors").read_bytes())
    broken("weights/some.safetensors", save({name: x * np.nan if x.is_floating_point() else x
                                             for name, x in weights.items()}))
    with pytest.raises(DataError, match="not one probability per genre"):
        load_classifier(valid / "weights/some")


@pytest.mark.parametrize("name, content, read, message", [
    ("tiny/fma_metadata/genres.csv", b"genre_id,title,parent,top_level\n1,A,0,1\n1,B,0,1\n", read_tracks,
     "genres.csv has genre 1 twice"),
    ("unfinished/.partial/plan.json", b'{"names": [null], "ids": [], "infos": {}}', read_plan, "plan.json is damaged"),
    ("unfinished/.partial/plan.json", b'{"names": ["mfcc"], "ids": [1], "infos": "x"}', read_plan, "unfinished"),
    (f"{RUN}/history.jsonl", b'{"validation_accuracy": 0.5, "validation_loss": 1.0}\n', read_run, "history.jsonl is"),
    (f"{RUN}/history.jsonl", b'{"epoch": 1, "validation_accuracy": "5", "validation_loss": 1}\n', read_run, "history"),
])  # fmt: skip
def test_values_that_are_no_values(broken, name, content, read, message):
    with pytest.raises(DataError, match=message):
        read(broken(name, content))


def test_a_number_of_many_digits_in_the_journal(tmp_path):
    (tmp_path / "progress.csv").write_text("1,ok\n" + "9" * 5000 + ",ok\n2,short\n")
    assert read_journal(tmp_path / "progress.csv", 9) == {1: "ok", 2: "short"}
