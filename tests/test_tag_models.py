"""What tags teach: the loss is the paper's, no tag of a validation or test clip is read, encoders are taken over."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tracks
from synthetic import make_collection
from test_training import Cut, cut, outcome

import training
from dataset import FeatureDataset
from fma import DataError
from learning import runs
from study.rows import EXPERIMENTS
from tag_models import CoAligned, EncoderClassifier, contrastive_loss, training_tags

SHORT = {"epochs": 3, "batch_size": 16, "lr": 3e-3, "precision": "float32", "one_cycle": True, "average": 0.9}
SMALL = {"width": 0, "hidden": 32}
ROWS = {"aligned": {"model": "CoAligned", "args": SMALL | {"decoders": 1.0}},
        "heads": {"model": "TwoHeads", "args": SMALL},
        "tuned": {"model": "EncoderClassifier", "args": SMALL, "start": "aligned"},
        "probe": {"model": "EncoderClassifier", "args": SMALL | {"frozen": True}, "start": "aligned"}}

pytestmark = pytest.mark.usefixtures("one_thread")


def collection(folder, swapped=False):
    """64 clips, 40 / 12 / 12, of two genres; each has one of four sub-genres, which can be heard, or none.

    With `swapped` validation and test clips name other sub-genres.
    """
    data = make_collection(folder, features=(("cqt", 32),))
    (data / "fma_metadata" / "genres.csv").write_text(
        "genre_id,#tracks,parent,title,top_level\n1,9,0,Rock,1\n2,9,0,Folk,2\n"
        "11,9,1,Punk,1\n12,9,1,Surf,1\n13,9,2,Drone,2\n14,9,2,Ballad,2\n15,9,2,Shanty,2\n")
    ids = range(2, 66)
    tags = [f"[{1 + k % 4 // 2}, {11 + k % 4}]" if k % 5 else f"[{1 + k % 4 // 2}]" for k in range(64)]
    tags[40:] = ["[2, 15]"] * 24 if swapped else tags[40:]
    write_tracks(data, ids, {
        ("set", "split"): ["training"] * 40 + ["validation"] * 12 + ["test"] * 12, ("set", "subset"): ["small"],
        ("track", "genre_top"): ["Rock", "Rock", "Folk", "Folk"], ("track", "genres"): tags,
        ("artist", "id"): np.arange(64) // 4})
    return data


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    return collection(tmp_path_factory.mktemp("data") / "tagged")


def train(name, data, runs_dir, **settings):
    row = {"feature": "cqt"} | ROWS[name]
    return training.run(name, row, data, SHORT | settings, runs_dir, device="cpu", progress=False)


def test_the_contrastive_loss_by_hand():
    clips, tagged = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    # cosines: clip 0 with its tags 0.6, with clip 1 and its tags 0; clip 1 with its tags 1, with those of clip 0 0.8;
    # tags of both 0.8
    def lost(partner, *others):
        return -math.log(math.exp(partner / 0.5) / sum(math.exp(x / 0.5) for x in (partner, *others)))

    by_clip = (lost(0.6, 0, 0) + lost(0.6, 0.8, 0.8)) / 2, (lost(1, 0, 0.8) + lost(1, 0, 0.8)) / 2
    found = contrastive_loss(clips, tagged, torch.eye(2), 0.5)
    assert float(found) == pytest.approx(sum(by_clip), rel=1e-6)


def test_clips_of_the_same_tags_or_none_are_nobodys_opposite():
    clips, tagged, tags = torch.randn(2, 6, 8).unbind() + (torch.eye(6)[[0, 1, 2, 3, 0, 0]],)
    tags[5] = 0                                             # 0 and 4 have the same tags, 5 has none
    losses = [float(contrastive_loss(clips[part], tagged[part], tags[part], 0.1)) for part in
              ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] > 0
    assert float(contrastive_loss(clips[[0, 4]], tagged[[0, 4]], tags[[0, 4]], 0.1)) == 0
    clips.requires_grad_()
    contrastive_loss(clips, tagged, tags, 0.1).backward()
    assert clips.grad[5].abs().max() == 0 and clips.grad[:5].abs().amin(1).min() > 0


def test_tags_are_sub_genres_of_training_clips_alone(tagged):
    dataset = FeatureDataset(tagged, "cqt")
    names, tags = training_tags(dataset)
    assert names == ["Ballad", "Drone", "Punk", "Surf"] and tags.shape == (64, 4)       # neither Rock nor Shanty
    assert tags[40:].sum() == 0 and tags[:40].sum(1).tolist() == [float(k % 5 > 0) for k in range(40)]
    assert names[int(tags[1].argmax())] == "Surf"


@pytest.mark.parametrize("name", ["aligned", "heads"])
def test_no_tag_of_a_validation_or_test_clip_changes_what_is_learned(tagged, tmp_path, name):
    other = collection(tmp_path / "tagged", swapped=True)
    assert (other / "fma_metadata" / "tracks.csv").read_text() != (tagged / "fma_metadata" / "tracks.csv").read_text()
    one, two = (outcome(train(name, data, tmp_path / str(k))[0]) for k, data in enumerate((tagged, other)))
    assert one == two


def test_a_tag_of_a_training_clip_does(tagged, tmp_path):
    other = collection(tmp_path / "tagged")
    table = other / "fma_metadata" / "tracks.csv"
    table.write_text(table.read_text().replace('"[1, 12]"', '"[1, 11]"', 1))
    one, two = (train("heads", data, tmp_path / str(k))[0] for k, data in enumerate((tagged, other)))
    assert outcome(one)[0] != outcome(two)[0]
    with pytest.raises(DataError, match=r"begun with other data \(tags\)"):
        train("heads", other, tmp_path / "0")


@pytest.mark.parametrize("name", ROWS)
def test_a_run_cut_off_ends_in_the_same_bytes(tagged, tmp_path, name):
    for folder in ("whole", "cut"):
        if "start" in ROWS[name]:
            train("aligned", tagged, tmp_path / folder)
    whole, _ = train(name, tagged, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as once, pytest.raises(Cut):
        cut(once, runs, "save_state", 2)
        train(name, tagged, tmp_path / "cut")
    assert outcome(train(name, tagged, tmp_path / "cut")[0]) == outcome(whole)


def test_an_encoder_that_is_taken_over_is_that_of_the_same_seed_and_data(tagged, tmp_path):
    with pytest.raises(DataError, match="aligned.seed1 is not finished: train aligned with the same seed"):
        train("tuned", tagged, tmp_path, seed=1)
    begun, _ = train("aligned", tagged, tmp_path, seed=1)
    run_dir, _ = train("probe", tagged, tmp_path, seed=1)
    one, two = (runs.load_weights(run, training.build(runs.load_config(run))) for run in (begun, run_dir))
    kept = one.encode.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in two.encode.state_dict().items())    # norms included
    assert not torch.equal(one.classify.weight, two.classify.weight)
    tuned, _ = train("tuned", tagged, tmp_path, seed=1)
    assert not torch.equal(runs.load_weights(tuned, EncoderClassifier(**runs.load_config(tuned)["model"]["args"]))
                           .encode[0].dense[2].weight, kept["0.dense.2.weight"])
    config = json.loads((begun / "config.json").read_text())
    (begun / "config.json").write_text(json.dumps(config | {"data": config["data"] | {"tracks.csv": "another split"}}))
    assert train("tuned", tagged, tmp_path, seed=1)[0] == tuned             # finished: nothing is taken over any more
    Path(tuned / "probabilities.npz").unlink()
    with pytest.raises(DataError, match="aligned.seed1 was trained on other data"):
        train("tuned", tagged, tmp_path, seed=1)


def test_alignment_learns_genre_and_tags_from_tags_alone(tagged, tmp_path):
    """A linear probe of the encoder, which no genre has reached, and the tag nearest to each test clip."""
    settings = {"epochs": 30, "average": 0.0}
    run_dir, _ = train("aligned", tagged, tmp_path, **settings)
    probe, _ = train("probe", tagged, tmp_path, **settings)
    said = runs.load_probabilities(probe)
    assert (said["probabilities"].argmax(1) == said["labels"]).mean() >= 0.9            # chance: 0.5
    dataset = FeatureDataset(tagged, "cqt")
    config = runs.load_config(run_dir)
    dataset.normalise(config["normalisation"]["mean"], config["normalisation"]["std"])
    network = runs.load_weights(run_dir, training.build(config)).eval()
    nearest = network.tag_cosines(dataset.batch(dataset.rows["test"])[0]).argmax(1)
    truth = [("Punk", "Surf", "Drone", "Ballad")[k % 4] for k in dataset.rows["test"]]
    assert np.mean([training_tags(dataset)[0][k] == tag for k, tag in zip(nearest, truth, strict=True)]) > 0.5


def test_genres_reach_no_encoder_in_alignment():
    torch.manual_seed(0)
    network = CoAligned(32, 64, 2, n_tags=3, **SMALL)
    logits, loss = network(torch.randn(4, 32, 64), torch.eye(3)[[0, 1, 2, 0]])
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1])).backward(retain_graph=True)
    assert all(weight.grad is None for weight in network.encode.parameters())
    assert network.classify.weight.grad.abs().sum() > 0
    loss.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in network.encode.parameters())


def test_a_collection_without_tags_is_named(tiny, tmp_path):
    with pytest.raises(DataError, match="tiny/fma_metadata names no sub-genre of a training clip"):
        train("heads", tiny, tmp_path)


def test_clips_with_tags_are_not_mixed(tagged, tmp_path):
    with pytest.raises(DataError, match="leave out mixup"):
        train("heads", tagged, tmp_path, mixup=0.3)


def test_what_is_taken_over_is_a_row_with_tags():
    started = {name: EXPERIMENTS[row["start"]] for name, row in EXPERIMENTS.items() if "start" in row}
    assert started and all(row["model"] == "CoAligned" for row in started.values())
