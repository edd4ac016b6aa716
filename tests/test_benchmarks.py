"""A benchmark that compares two different things, or divides the wrong way round, backs a claim that is not true."""

import os
import re
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import commands, extraction, limits, table, timing, training
from dataset import FeatureDataset
from fma import DataError, load_tracks


@pytest.fixture
def clip(tmp_path):
    """Thirty seconds of noise as an mp3 in a data folder."""
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / "data" / "fma_small" / "000" / "000001.mp3"
    path.parent.mkdir(parents=True)
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (30 * 22050, 2)), 22050, format="MP3")
    return path


def test_a_ratio_pairs_the_turns():
    assert timing.ratio([2, 4, 60], [1, 2, 3]) == 2


def test_calls_take_turns():
    order = []
    seconds = timing.interleave({"a": lambda: order.append("a"), "b": lambda: (order.append("b"), time.sleep(0.02))}, 3)
    assert order == list("ababab")
    assert (seconds["b"] >= 0.02).all() and (seconds["a"] < 0.02).all()


def test_a_watched_process_is_measured(tmp_path):
    journal = tmp_path / "journal"
    code = (f"import time; x = bytearray(100 << 20); x[::4096] = b'x' * 25600; f = open({str(journal)!r}, 'a')\n"
            "for k in range(20): print(k, file=f, flush=True); time.sleep(0.05)")
    seconds, peak, rate = timing.watch([sys.executable, "-c", code], journal, skip=5)
    assert seconds > 1 and 100 < peak < 200             # not what this process holds
    assert 5 < rate < 20.5                      # 20 lines a second, fewer where the machine is busy


def test_a_failing_command_says_why():
    with pytest.raises(DataError, match="no such thing"):
        timing.watch([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_a_collection_of_links_is_one_that_the_commands_read(tmp_path, clip):
    extraction.lay_out(tmp_path / "many", [clip], 20)
    assert len(load_tracks(tmp_path / "many")) == 20
    assert len(extraction.find_clips(tmp_path / "many", 12)) == 12


def test_the_original_computes_what_we_compute(clip):
    cqt, chroma_cqt, chroma_cens, chroma_stft, mel = (x[0] for x in extraction.original_study([clip]))
    ours = extraction.everything(clip)
    np.testing.assert_allclose(np.maximum(20 * np.log10(cqt), -100), ours["cqt"][:, :640], atol=0.05)
    np.testing.assert_allclose(np.maximum(10 * np.log10(mel), -100), ours["mel_stft"][:, :640], atol=0.05)
    for theirs, name in ((chroma_cqt, "chroma_cqt"), (chroma_cens, "chroma_cens"), (chroma_stft, "chroma_stft")):
        np.testing.assert_allclose(theirs, ours[name][:, :640], atol=0.01, err_msg=name)


def test_clips_and_parts_are_timed(clip):
    seconds = extraction.time_clips([clip], 1)
    assert seconds["decoding"] < seconds["six features"] < seconds["original"]
    parts = {name: (ours, theirs, ratio) for name, ours, theirs, ratio in extraction.time_parts(clip, 1)}
    ours, theirs, ratio = parts["cqt"]
    assert ratio == pytest.approx(theirs / ours) and parts["mfcc"][1:] == (None, None)


def test_calls_in_processes_take_turns_and_fail_aloud():
    found = timing.in_turns({"fast": (partial, (time.sleep, 0.01)), "slow": (partial, (time.sleep, 0.1))}, 0, least=3)
    assert len(found["fast"]) == len(found["slow"]) == 3
    assert (found["slow"] >= 0.1).all() and np.median(found["fast"]) < 0.1
    with pytest.raises(ValueError, match="x"):
        timing.in_turns({"broken": (int, ("x",))}, 0)


@pytest.mark.parametrize("size", training.SIZES)
@pytest.mark.parametrize("name", training.NETWORKS)
def test_both_loops_train_the_same_function(name, size):
    ours, original = training.build(name, training.SIZES[size])
    assert all(layer.bias is not None for layer in original.modules() if isinstance(layer, torch.nn.Conv2d))
    x = torch.randn(2, *training.SIZES[size])
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), original.eval()(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in training.NETWORKS if "CRNN" not in name])    # torch counts no GRU
def test_the_least_operations_of_a_network_are_what_torch_counts(name):
    ours, _ = training.build(name, (128, 128))
    with FlopCounterMode(display=False) as counted:
        ours(torch.randn(2, 128, 128)).sum().backward()
    operations, _ = limits.least_work(ours, (128, 128), batch_size=2)
    assert operations == pytest.approx(counted.get_total_flops() / 2, rel=0.01)


def test_the_least_traffic_of_a_network_is_that_of_its_convolutions():
    ours, _ = training.build("SquareCNN")
    _, traffic = limits.least_work(ours, (84, 640), batch_size=2)
    convolved = 84 * 640 * 8 + 42 * 160 * 32 + 21 * 40 * 128 + 7 * 10 * 256
    weights = sum(p.numel() for p in ours.parameters())
    assert traffic == pytest.approx(2 * 2 * 84 * 640 + 10 * convolved + 9 * 4 * weights / 2, rel=0.01)


def test_a_rate_counts_operations_and_bytes_of_a_call(monkeypatch):
    monkeypatch.setattr(limits, "median_seconds", lambda call, device, repeats: call() is not None and 0.5)
    cpu = torch.device("cpu")
    assert limits.matrix_rate(cpu, "bfloat16", size=10) == 2 * 10**3 / 0.5
    assert limits.copy_bandwidth(cpu, n_bytes=100) == 2 * 100 / 0.5
    monkeypatch.undo()
    assert 0.01 < limits.median_seconds(lambda: time.sleep(0.01), cpu, 1) < 1


def test_training_is_compared_turn_by_turn_and_with_the_bound(monkeypatch):
    took = {"original": np.array([4.0, 5, 40]), "original, memory kept": np.array([3.0, 3, 3]),
            "ours": np.array([2.0, 1, 4])}
    environments = []

    def in_turns(calls, seconds):
        environments.append(os.environ.get("ATEN_CPU_CAPABILITY"))
        return {loop: took[loop] / (1 + (len(calls) == 2 and loop == "original")) for loop in calls}

    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(training, "in_turns", in_turns)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    row = training.compare("TemporalCNN", (128, 128), 16, 1, limits=(1e9, 1e15, 1e8))
    assert (row["ratio"], row["ratio, memory kept"], row["ours"], row["original"]) == (5, 1.5, 8, 16 / 5)
    assert row["ratio, AVX2"] == 2.5 and environments == [None, "avx2"] and "ATEN_CPU_CAPABILITY" not in os.environ
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")     # where it has been measured already
        row = training.compare("TemporalCNN", (128, 128), 16, 1, limits=(1e9, 1e15, 1e8))
        assert row["ratio, AVX2"] == row["ratio"] == 5
    assert row["bound"] == "operations" and row["share"] == pytest.approx(row["operations"] / 1e9 * 8)
    assert row["original share"] == pytest.approx(row["operations"] / 1e8 * 16 / 5)
    assert training.compare("TemporalCNN", (128, 128), 16, 1, limits=(1e15, 1e9, 1e15))["bound"] == "bytes"
    assert "| TemporalCNN | 128×128 |" in re.sub(" +", " ", training.table([row]))


@pytest.mark.parametrize("loop", training.LOOPS)
def test_a_loop_trains(loop, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(training, "keep_memory", lambda: kept.append(True))     # it cannot be taken back
    training.lay_out(tmp_path, 16, (128, 128))
    call = training.epoch_of(loop, "TemporalCNN", tmp_path, (128, 128))
    first, last = call(), [call() for _ in range(12)][-1]
    assert np.mean(last) != np.mean(first) and np.isfinite(last).all()
    assert bool(kept) == (loop != "original")


# ---- the table of all of them ------------------------------------------------------------------------------


def test_a_target_is_met_or_not_by_what_was_measured():
    found = {"seconds": {"decoding": np.array([2.0, 2]), "six features": np.array([3.0, 3.6]),
                         "original": np.array([6.0, 7.2])},
             "rates": {1: np.array([[1.0, 2]]), 2: np.array([[1.0, 3.4]])}, "memory": {1: (300, 308)},
             "parts": [("cqt", 3.0, 9.0, 3.0), ("stft", 1.0, 1.0, 1.0)]}
    rows = {row[0]: row for row in table.extraction_rows(found)}
    assert rows["all six features of a clip / decoding it"][1:4] == ("1.65", "≤ 1.7", True)
    assert "cqt, 75 %" in rows["all six features of a clip / decoding it"][4]
    assert rows["features.py, 2 processes / 1, without start-up"][1:4] == ("1.70", "≥ 1.8", False)
    assert rows["memory of features.py for each track more, MiB"][1:4] == ("0.100", "0", False)
    given = {"network": "BBNN", "size": "84×640", "ratio": 4.9, "ratio, AVX2": 6.04, "bound": "bytes", "share": 0.256,
             "original share": 0.83}
    (_, *row), (what, *avx2), (_, *other), _ = table.training_rows([given, {**given, "size": "128×128"}])
    assert what.endswith("float32 on AVX2") and avx2[:3] == ["6.0", "≥ 6", True]
    assert row == ["4.9", "≥ 5", False, "bytes; 26 % of what they allow, the original 83 % in float32"]
    assert other[1:3] == ["", None]
    text = table.table([("x", "1", "< 2", True, "y"), ("z", "3", "< 2", False, "y")])
    assert [line.split("|")[4].strip() for line in text.splitlines()[2:]] == ["yes", "no"]


def test_the_table_is_put_between_its_marks_and_nowhere_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n\n<!-- bench -->\n\nold\n\n<!-- end -->\n\nafter <!-- end -->\n")
    for text in ("new", "newer"):
        table.put(path, text)
    assert path.read_text() == "before\n\n<!-- bench -->\n\nnewer\n\n<!-- end -->\n\nafter <!-- end -->\n"
    path.write_text("no marks")
    with pytest.raises(DataError, match="README.md has no single <!-- bench -->"):
        table.put(path, "new")


def test_a_collection_on_disk_has_all_its_clips_and_splits(tmp_path):
    commands.data_of(tmp_path, 640, n_files=4)
    dataset = FeatureDataset(tmp_path, "cqt")
    assert dataset.array.shape == (640, 84, 640) and torch.equal(dataset.array[:160], dataset.array[480:])
    assert [len(dataset.rows[split]) for split in ("training", "validation", "test")] == [576, 32, 32]


def test_a_training_is_timed_in_a_process_of_its_own(tmp_path):
    commands.data_of(tmp_path, 40)
    assert 0 < commands.train("cqt_temporal", tmp_path, epochs=2) < 60
    with pytest.raises(DataError, match="^training.py failed: training.py: error: no experiment is named cqt_gone"):
        commands.train("cqt_gone", tmp_path, epochs=1)


def test_the_start_of_commands_is_measured_and_help_loads_little():
    """What a command does not use, it does not import."""
    seconds, imported = commands.start_up(1)
    assert set(seconds) == set(imported) == set(commands.COMMANDS)
    for name in ("predict", "features", "fma", "experiments"):
        assert set(imported[name]) <= {"pandas"}, name
    assert imported["predict"] == []
    assert "torch" not in imported["baselines"] + imported["study.ensembles"]
    assert "torch" in imported["training"] and "sklearn" not in imported["training"]
