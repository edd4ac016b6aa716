"""Several features of a clip go through a network together, row by row the same clips."""

import numpy as np
import pytest
import torch
from synthetic import make_collection

import training
from dataset import FeatureDataset, JointDataset
from fma import DataError
from learning import runs
from learning.augmentation import Augmentation
from learning.inference import predict
from resnet_models import Fusion

pytestmark = pytest.mark.usefixtures("one_thread")
FEATURES = ("mel", "embedding")
ROW = {"feature": FEATURES, "model": "Fusion", "args": {"width": 4}}
SHORT = {"epochs": 3, "lr": 3e-3, "batch_size": 8, "precision": "float32"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips with a spectrogram of 32 × 40 and an embedding of 16 values."""
    folder = make_collection(tmp_path_factory.mktemp("data") / "tiny", features=(("mel", 32), ("embedding", 16)),
                             frames=40)
    path = folder / "features" / "embedding.npy"
    np.save(path, np.load(path)[..., :1])
    return folder


def test_parts_are_the_features_of_the_same_clips(data):
    joint, alone = JointDataset(data, FEATURES), [FeatureDataset(data, name) for name in FEATURES]
    assert joint.shape == ([32, 16], [40, 1]) and joint.genres == alone[0].genres
    mean, std = joint.normalise()
    rows = joint.rows["test"][::-1].copy()
    parts, labels = joint.batch(rows)
    for k, dataset in enumerate(alone):
        assert dataset.normalise() == (mean[k], std[k])
        torch.testing.assert_close(parts[k], dataset.batch(rows)[0])
    assert torch.equal(labels, alone[0].batch(rows)[1])
    assert "mel 32 × 40, embedding 16 × 1" in repr(joint)


@pytest.mark.parametrize("features, message", [
    (("mel",), "two or more, each once, not mel"), ((), "not none"), (("mel", "mel"), "each once"),
    (("mel", "other"), "other.npy not found")])
def test_what_cannot_be_joined_is_one_line(data, features, message):
    with pytest.raises(DataError, match=message) as error:
        JointDataset(data, features)
    assert "\n" not in str(error.value)


def test_every_branch_counts_and_hidden_ones_only_in_training():
    network, parts = Fusion((32, 16), (40, 1), 4, width=4).eval(), [torch.randn(6, 32, 40), torch.randn(6, 16, 1)]
    with torch.no_grad():
        whole = network(parts)
        assert torch.equal(network(parts), whole)
        for k in (0, 1):
            other = [x if j != k else x.flip(0) for j, x in enumerate(parts)]
            assert not torch.allclose(network(other), whole)
    blind = Fusion((32, 16), (40, 1), 4, width=4, hide=1.0).train()     # every branch of every clip
    said = blind(parts)
    torch.testing.assert_close(said, said[:1].expand_as(said))


@pytest.mark.parametrize("sizes", [((32,), (40,)), ((32, 16), (40,)), ((8, 16), (40, 1))])
def test_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match="needs"):
        Fusion(*sizes)


def test_a_fusion_is_trained_resumed_and_read_again(data, tmp_path):
    settings = SHORT | {"roll": True, "mask_bins": 4, "mixup": 0.3, "average": 0.5}
    run_dir, _ = training.run("x", ROW, data, settings, tmp_path / "whole", device="cpu", progress=False)
    save = runs.save_state

    def cut(*args):
        save(*args)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as once, pytest.raises(KeyboardInterrupt):
        once.setattr(runs, "save_state", cut)                   # after the first epoch
        training.run("x", ROW, data, settings, tmp_path / "cut", device="cpu", progress=False)
    again, _ = training.run("x", ROW, data, settings, tmp_path / "cut", device="cpu", progress=False)
    assert (again / "model.safetensors").read_bytes() == (run_dir / "model.safetensors").read_bytes()
    config = runs.load_config(run_dir)
    assert config["feature"] == "mel+embedding" and config["model"]["args"]["n_bins"] == [32, 16]
    joint = JointDataset(data, FEATURES)
    joint.normalise(**config["normalisation"])
    network = runs.load_weights(run_dir, training.build(config))
    np.testing.assert_allclose(predict(network, joint, joint.rows["test"]).numpy(),
                               runs.load_probabilities(run_dir)["probabilities"], atol=1e-5)


def test_the_fusion_learns(data, tmp_path):
    _, history = training.run("x", ROW, data, SHORT | {"epochs": 10}, tmp_path, device="cpu", progress=False)
    assert max(epoch["validation_accuracy"] for epoch in history) > 0.6            # chance is a quarter


def test_chunks_of_features_of_different_lengths_are_refused(data, tmp_path):
    with pytest.raises(DataError, match="chunk is for one feature alone"):
        training.run("x", ROW, data, SHORT | {"chunk": 16}, tmp_path, device="cpu", progress=False)
    assert Augmentation(chunk=16).is_on()
