"""A benchmark that compares two different things, or divides the wrong way round, backs a claim that is not true."""

import resource
import sys
import time

import numpy as np
import pytest
import torch

from benchmarks import extraction, timing, training
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
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    assert seconds > 1 and 100 < peak < 300 + ours      # Linux counts what this process held when it began the other
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


@pytest.mark.parametrize("name", ["FrequencyCNN", "TemporalCNN", "SquareCNN", "SequentialCRNN", "BBNN"])
def test_both_loops_train_the_same_function(name):
    ours, original = training.build(name)
    assert all(layer.bias is not None for layer in original.modules() if isinstance(layer, torch.nn.Conv2d))
    x = torch.randn(2, 84, 640)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), original.eval()(x))


def test_training_is_compared(capsys):
    training.main(["--model", "TemporalCNN", "--clips", "16", "--steps", "1"])
    *_, row = capsys.readouterr().out.strip().splitlines()
    _, name, original, ours, ratio, _ = (cell.strip() for cell in row.split("|"))
    assert name == "TemporalCNN"
    assert float(ratio) == pytest.approx(float(ours) / float(original), rel=0.05)
