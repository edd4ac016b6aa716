"""Augmentation changes what it should, leaves alone what it must not, and never touches validation or test."""

import numpy as np
import pytest
import torch
from synthetic import make_collection

import training
from dataset import FeatureDataset
from fma import DataError
from learning import augmentation as aug
from learning import runs, steps
from learning.augmentation import Augmentation, augment
from learning.inference import clip_logits, predict
from training import Training

pytestmark = pytest.mark.usefixtures("one_thread")
BINS, FRAMES = 12, 40


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def clips():
    """Eight clips, no two values of which are equal."""
    return torch.randperm(8 * BINS * FRAMES, generator=seeded(9)).reshape(8, BINS, FRAMES).float()


CALLS = {
    "roll": lambda x, g: aug.roll(x, g),
    "random_chunks": lambda x, g: aug.random_chunks(x, 15, g),
    "shift_bins": lambda x, g: aug.shift_bins(x, 3, g),
    "equalise": lambda x, g: aug.equalise(x, 6.0, g),
    "low_pass": lambda x, g: aug.low_pass(x, 0.9, g),
    "mix_style": lambda x, g: aug.mix_style(x, 0.4, g),
    "mask bins": lambda x, g: aug.mask(x, 5, 1, g),
    "mask frames": lambda x, g: aug.mask(x, 15, 2, g),
    "mixup": lambda x, g: aug.mixup([x], torch.eye(8), 0.4, g)[0][0],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_each_is_seeded_changes_clips_apart_and_leaves_what_it_was_given(clips, call):
    before = clips.clone()
    first = call(clips, seeded(1))
    assert torch.equal(first, call(clips, seeded(1))) and torch.equal(clips, before)
    assert not torch.equal(first, call(clips, seeded(2)))
    mixes = call in (CALLS["mixup"], CALLS["mix_style"])            # of equal clips there is nothing to mix
    same = call(clips if mixes else clips[:1].expand(8, -1, -1).contiguous(), seeded(1))
    assert len({clip.numpy().tobytes() for clip in same}) > 2          # each clip draws for itself


def test_roll_keeps_every_frame_and_their_order(clips):
    rolled = aug.roll(clips, seeded())
    for clip, other in zip(clips, rolled, strict=True):
        start = (clip[0] == other[0, 0]).nonzero().item()
        assert torch.equal(other, torch.roll(clip, -start, 1))


def test_low_pass_leaves_what_is_below_and_silences_the_rest(clips):
    clips = clips / 50                                              # all within 80 dB
    dull = aug.low_pass(clips, 0.6, seeded(3))
    kept = (dull == clips).all(2)                                   # (clips, bins)
    assert torch.equal(kept, kept.cummin(1).values) and kept[:, : round(0.4 * BINS) + 1].all()
    silence = (clips.amax((1, 2)) - 80)[:, None, None].expand_as(clips)
    assert torch.equal(dull[~kept], silence[~kept])
    assert 0 < kept.all(1).sum() < len(clips)                       # some clips stay as they are, some do not
    assert torch.equal(aug.low_pass(clips, 0.0, seeded()), clips)
    softer = clips * 3                                              # what lies below silence is not raised to it
    assert (aug.low_pass(softer, 1.0, seeded()) <= softer).all()


def test_mix_style_moves_level_and_spread_of_each_bin_and_keeps_the_course(clips):
    styled = aug.mix_style(clips, 5.0, seeded(1))
    same = (styled == clips).flatten(1).all(1)
    assert 0 < same.sum() < len(clips)                              # about half of them, to the last bit

    def course(x):
        return (x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True)

    assert torch.allclose(course(styled), course(clips), atol=1e-3)
    mean, own = styled.mean(2), clips.mean(2)
    low, high = own.amin(0), own.amax(0)
    assert ((mean >= low - 0.1) & (mean <= high + 0.1)).all()       # between the clip's own mean and another's


def test_chunks_are_pieces_of_their_own_clip(clips):
    places = set()
    for seed in range(40):
        for clip, piece in zip(clips, aug.random_chunks(clips, 15, seeded(seed)), strict=True):
            start = (clip[0] == piece[0, 0]).nonzero().item()
            assert torch.equal(piece, clip[:, start : start + 15])
            places.add(start)
    assert places == set(range(FRAMES - 15 + 1))                        # first and last place included


@pytest.mark.parametrize("frames, count", [(15, 3), (40, 1), (20, 2), (39, 2), (1, 40)])
def test_evenly_spaced_chunks_cover_the_clip(frames, count):
    x = torch.arange(FRAMES).float().expand(2, BINS, FRAMES)
    chunks = aug.evenly_spaced_chunks(x, frames)
    assert chunks.shape == (2, count, BINS, frames)
    assert set(chunks.flatten().tolist()) == set(range(FRAMES))
    assert chunks[0, 0, 0, 0] == 0 and chunks[0, -1, 0, -1] == FRAMES - 1


@pytest.mark.parametrize("frames", [0, -1, FRAMES + 1])
def test_a_chunk_that_does_not_fit_is_one_line(clips, frames):
    for cut in (lambda: aug.random_chunks(clips, frames, seeded()), lambda: aug.evenly_spaced_chunks(clips, frames)):
        with pytest.raises(DataError, match=f"a chunk of {frames} frames cannot be cut from clips of 40"):
            cut()


def test_a_shift_moves_bins_and_repeats_the_edge(clips):
    steps = set()
    for seed in range(20):
        for clip, other in zip(clips, aug.shift_bins(clips, 2, seeded(seed)), strict=True):
            step = next(s for s in range(-2, 3) if torch.equal(other[5], clip[5 - s]))
            steps.add(step)
            for k in range(BINS):
                assert torch.equal(other[k], clip[min(max(k - step, 0), BINS - 1)])
    assert steps == {-2, -1, 0, 1, 2}


def test_an_equaliser_is_smooth_over_bins_and_the_same_for_all_frames(clips):
    curves = torch.stack([aug.equalise(clips, 6.0, seeded(seed)) - clips for seed in range(20)])
    assert curves.std(3).max() < 1e-3 and curves.abs().max() <= 6.001
    assert curves.std(2).mean() > 1                                     # it is not a gain
    assert curves[..., 0].diff(dim=2).diff(dim=2).abs().max() < 12 / 2.75 * 2


@pytest.mark.parametrize("dim, most", [(1, 5), (2, 15), (2, 400)])
def test_masks_hide_stretches_and_nothing_else(clips, dim, most):
    fill = torch.full((BINS, 1), -7.5)
    hidden = torch.stack([aug.mask(clips, most, dim, seeded(seed), fill) for seed in range(20)])
    touched = hidden != clips
    assert (hidden[touched] == -7.5).all()
    lines = touched.any(4 - dim)                                    # along the other axis: (seeds, clips, size)
    assert torch.equal(touched, lines.unsqueeze(4 - dim).expand_as(touched))   # whole rows, or whole frames
    assert 0 < lines.sum(-1).float().mean() and lines.sum(-1).max() <= 2 * most
    runs_of_ones = (lines.int().diff(dim=-1, prepend=torch.zeros(20, 8, 1, dtype=torch.int)) == 1).sum(-1)
    assert runs_of_ones.max() == 2 if most < 20 else runs_of_ones.max() <= 2


def test_mixup_mixes_labels_in_the_shares_of_the_clips(clips):
    targets = torch.eye(8)
    shares = []
    for seed in range(50):
        (mixed, other), labels = aug.mixup([clips, -clips[:, :3, :1]], targets, 0.4, seeded(seed))
        assert torch.equal(other, -mixed[:, :3, :1])                    # another feature of the same clips
        torch.testing.assert_close(labels.sum(1), torch.ones(8))
        torch.testing.assert_close(mixed, torch.einsum("ij,jbf->ibf", labels, clips), rtol=1e-4, atol=1e-2)
        shares.append(labels.diagonal())
    shares = torch.stack(shares)
    assert shares.min() >= 0.5 - 1e-6                                   # its own label stays the likelier one
    drawn = torch.distributions.Beta(0.4, 0.4).sample((200_000,))
    expected = torch.maximum(drawn, 1 - drawn).mean() * 7 / 8 + 1 / 8   # one in eight meets itself
    assert shares.mean() == pytest.approx(expected.item(), abs=0.03)


def test_nothing_is_on_by_default(clips):
    assert not Augmentation().is_on() and not Training().is_on()
    [x], targets = augment([clips], torch.eye(8), Augmentation(), seeded(), [0.0], [True])
    assert x is clips and torch.equal(targets, torch.eye(8))
    with pytest.raises(DataError, match="mask_bins must be 0 or more, not -1"):
        Augmentation(mask_bins=-1)


def test_all_of_it_together_is_seeded_and_has_the_chunk_s_shape(clips):
    everything = Augmentation(roll=True, chunk=16, shift_bins=2, equaliser_db=3, low_pass=0.5, mix_style=0.4,
                              mask_bins=3, mask_frames=4, mixup=0.3)
    one, two = (augment([clips], torch.eye(8), everything, seeded(3), [0.0], [True]) for _ in range(2))
    assert one[0][0].shape == (8, BINS, 16) and torch.equal(one[0][0], two[0][0]) and torch.equal(one[1], two[1])
    embeddings = clips[..., :1]
    assert aug.alter(embeddings, everything, seeded(), 0.0, True) is embeddings    # a single frame has no time to roll


# ---- in training -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """Clips twice as long as SquareCNN's least."""
    return make_collection(tmp_path_factory.mktemp("data") / "longer", features=(("chroma_cqt", 12),), frames=150)


def test_only_training_clips_are_altered(longer, tmp_path, monkeypatch):
    seen, raw = [], FeatureDataset.raw
    monkeypatch.setattr(steps, "augment", lambda parts, *rest: (
        seen.append(parts[0].clone()) or augment(parts, *rest)))
    dataset = FeatureDataset(longer, "chroma_cqt")
    training.run("x", {"feature": "chroma_cqt", "model": "SquareCNN"}, longer,
                 {"epochs": 2, "roll": True, "mask_bins": 4, "mixup": 0.3, "precision": "float32"}, tmp_path,
                 device="cpu", progress=False)
    learned = {clip.numpy().tobytes() for clip in torch.cat(seen)}
    assert learned == {clip.numpy().tobytes() for clip in raw(dataset, dataset.rows["training"])}


def test_a_run_with_augmentation_says_what_it_scored_on_unaltered_clips(longer, tmp_path):
    settings = {"epochs": 6, "roll": True, "chunk": 64, "mask_frames": 9, "mixup": 0.3, "average": 0.5, "lr": 3e-3,
                "precision": "float32", "batch_size": 8}
    run_dir, _ = training.run("x", {"feature": "chroma_cqt", "model": "SquareCNN"}, longer, settings, tmp_path,
                              device="cpu", progress=False)
    config = runs.load_config(run_dir)
    assert config["model"]["args"]["n_frames"] == 64 and config["training"]["chunk"] == 64
    network = runs.load_weights(run_dir, training.build(config)).eval()
    dataset = FeatureDataset(longer, "chroma_cqt")
    dataset.normalise(**config["normalisation"])
    x = dataset.batch(dataset.rows["test"])[0]
    with torch.no_grad():
        by_hand = torch.stack([network(x[..., s : s + 64]) for s in (0, 43, 86)]).mean(0).softmax(1)
    said = runs.load_probabilities(run_dir)["probabilities"]
    np.testing.assert_allclose(said, by_hand.numpy(), atol=1e-5)
    assert (said.argmax(1) == runs.load_probabilities(run_dir)["labels"]).mean() > 0.5     # chance is a quarter
    torch.testing.assert_close(predict(network, dataset, dataset.rows["test"], chunk=64), by_hand)
    torch.testing.assert_close(clip_logits(network, x[..., :64], 0), network(x[..., :64]))


def test_linear_values_are_not_taken_for_decibels(longer, monkeypatch):
    asked = []
    monkeypatch.setattr(steps, "augment", lambda parts, targets, settings, generator, fills, in_db: (
        asked.append(in_db) or (parts, targets)))
    for scale in ("db", "linear"):
        dataset = FeatureDataset(longer, "chroma_cqt", scale)
        rows = torch.from_numpy(dataset.rows["training"][:4])
        steps.training_batch(dataset, rows, Training(equaliser_db=6), seeded())
    assert asked == [[True], [False]]


@pytest.mark.parametrize("settings", [{"low_pass": 7.0}, {"mixup": float("nan")}, {"equaliser_db": -1.0}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(DataError, match=next(iter(settings))):
        Augmentation(**settings)


def test_what_is_not_in_decibels_has_no_level(clips):
    settings = Augmentation(equaliser_db=6, low_pass=1.0)
    parts, _ = augment([clips, clips], torch.eye(8), settings, seeded(), [0.0, 0.0], [True, False])
    assert not torch.equal(parts[0], clips) and torch.equal(parts[1], clips)


def test_masks_leave_half_of_a_small_feature(clips):
    x = aug.alter(clips, Augmentation(mask_bins=100), seeded(1), -1.0, True)
    assert (x == -1).any() and ((x == -1).all(2).sum(1) <= 2 * (BINS // 4)).all()


def test_the_mean_of_the_weights_is_what_is_kept(longer, tmp_path):
    """The decay, 0.5 here, is at most (1 + n) / (10 + n) after n steps: 2 / 11, then a quarter."""
    steps, step = [], torch.optim.Adam.step

    class Watched(torch.optim.Adam):
        def step(self):
            step(self)
            steps.append([p.detach().clone() for group in self.param_groups for p in group["params"]])

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(training.OPTIMIZERS, "adam", Watched)
        run_dir, _ = training.run("x", {"feature": "chroma_cqt", "model": "SquareCNN"}, longer,
                                  {"epochs": 1, "average": 0.5, "batch_size": 16, "precision": "float32"}, tmp_path,
                                  device="cpu", progress=False)
    kept = list(runs.load_weights(run_dir, training.build(runs.load_config(run_dir))).parameters())
    assert len(steps) == 3
    for found, first, second, third in zip(kept, *steps, strict=True):
        torch.testing.assert_close(found, (first * 2 / 11 + second * 9 / 11) / 4 + third * 3 / 4)


@pytest.mark.parametrize("setting", [{"label_smoothing": 1.0}, {"average": 1.0}, {"average": -0.1}])
def test_shares_are_below_one(setting):
    with pytest.raises(DataError, match=f"{next(iter(setting))} must be from 0 to 1"):
        Training(**setting)


def test_an_augmentation_that_is_off_does_not_make_old_runs_other_runs():
    assert not set(training.as_config(Training())) & {*aug.AUGMENTATIONS, "average", "label_smoothing"}
    assert training.as_config(Training(mixup=0.3))["mixup"] == 0.3
