"""What is said to matter does matter, adds up, and can be heard: nothing else is let through."""

from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from traitlets import Bunch

from audio.transforms import mel128
from classifier import explain
from classifier.network import Classifier
from cnn_models import SquareCNN
from fma import DataError
from plots import features as feature_figures
from plots import players
from plots import predictions as prediction_figures
from resnet_models import ResNet, StatisticsResNet

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 22_050
CONFIG = {"genres": list("abcd"), "scale": "db", "training": {}, "normalisation": {"mean": [-40.0], "std": [20.0]}}


@pytest.fixture(scope="module")
def network():
    """A ResNet in double precision, with statistics in its batch norms as after a training."""
    torch.manual_seed(0)
    network = ResNet(64, 64, n_classes=4, width=4).double()
    for _ in range(20):
        network(torch.randn(8, 64, 64).double())
    return network.eval()


@pytest.fixture(scope="module")
def clips():
    return torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1)).double()


def noise(seconds, rate=RATE, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate)).astype(np.float32)


# ---- integrated gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_contributions_sum_to_the_rise_of_the_logit(network, clips, dtype):
    x, classes = clips.to(dtype), torch.tensor([0, 3, 1])
    network = network.to(dtype)
    found = explain.integrated_gradients(network, x, classes, steps=256)
    network.double()
    assert found.shape == x.shape and found.dtype == dtype and not found.requires_grad
    rise = (network(clips) - network(0 * clips)).gather(1, classes[:, None])[:, 0].detach()
    torch.testing.assert_close(found.sum((1, 2)).double(), rise, rtol=0.01, atol=0.001)


def test_contributions_pass_through_the_statistics_of_a_clip(clips):
    torch.manual_seed(0)
    network, x = StatisticsResNet(64, 64, n_classes=4, width=4), clips.float()
    for _ in range(20):
        network(torch.randn(8, 64, 64))
    network.eval()
    found = explain.integrated_gradients(network, x, 1, steps=256)
    rise = (network(x) - network(0 * x))[:, 1].detach()
    torch.testing.assert_close(found.sum((1, 2)), rise, rtol=0.05, atol=0.02)
    assert explain.grad_cam(network, x, 1).amax((1, 2)).allclose(torch.ones(3))


def test_more_steps_come_closer(network, clips):
    rise = (network(clips) - network(0 * clips))[:, 2].detach()
    errors = [(explain.integrated_gradients(network, clips, 2, steps).sum((1, 2)) - rise).abs().mean()
              for steps in (4, 32, 256)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01 * rise.abs().mean()


def test_a_linear_network_gives_each_cell_its_product(clips):
    weights = torch.randn(64, 64, 4, generator=torch.Generator().manual_seed(2)).double()
    found = explain.integrated_gradients(lambda x: torch.einsum("bij,ijk->bk", x, weights) + 5, clips, 1)
    torch.testing.assert_close(found, clips * weights[..., 1])


def test_a_clip_is_explained_as_if_it_were_alone(network, clips):
    together = explain.integrated_gradients(network, clips, [0, 3, 1])
    for clip, k, found in zip(clips, (0, 3, 1), together, strict=True):
        torch.testing.assert_close(explain.integrated_gradients(network, clip[None], k)[0], found)


# ---- Grad-CAM ------------------------------------------------------------------------------------------------


def test_grad_cam_weighs_channels_by_their_mean_gradient(network, clips):
    """Through the mean and the maximum of the head, the gradients of a map of n cells sum to its two weights."""
    found = explain.grad_cam(network, clips, 2)
    maps = network.stages(network.stem(clips.unsqueeze(1))).detach()            # (3, 32, 4, 4)
    weights = network.classify[1].weight[2].detach()
    expected = ((weights[:32] + weights[32:]).view(-1, 1, 1) * maps).sum(1).relu()
    assert found.shape == clips.shape and not found.requires_grad
    for cam, small in zip(found, expected, strict=True):
        assert small.max() > 0
        large = zoom(small.numpy(), 16, order=1, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(cam, large / large.max(), atol=1e-9)


def test_grad_cam_leaves_network_and_clips_as_they_were(network, clips):
    before = network(clips)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    explain.grad_cam(network, clips, 0)
    assert not network.stages._forward_hooks and not clips.requires_grad
    assert torch.equal(network(clips), before)


def test_where_nothing_is_for_a_class_the_map_is_empty(network, clips):
    network = ResNet(64, 64, n_classes=2, width=4).double().eval()
    torch.nn.init.constant_(network.classify[1].weight, -1)
    assert not explain.grad_cam(network, clips, 0).any()


def test_grad_cam_of_another_network_is_one_line(clips):
    with pytest.raises(DataError, match="SquareCNN has none: use") as error:
        explain.grad_cam(SquareCNN(64, 64, 4), clips.float(), 0)
    assert "\n" not in str(error.value)


# ---- regions -------------------------------------------------------------------------------------------------


def test_regions_are_the_share_that_speaks_most_for_a_class():
    relevance = np.random.default_rng(0).normal(size=(5, 64, 64))
    found = explain.relevant_regions(relevance, share=0.1)
    assert found.shape == relevance.shape and set(np.unique(found)) == {0, 1}
    for mask, values in zip(found, relevance, strict=True):
        assert mask.sum() == round(0.1 * 64 * 64)
        assert values[mask == 1].min() > values[mask == 0].max()


def test_what_speaks_against_a_class_is_in_no_region():
    relevance = -np.ones((1, 8, 8))
    relevance[0, 2, 3] = 1
    assert np.argwhere(explain.relevant_regions(relevance, share=0.5)).tolist() == [[0, 2, 3]]


def test_smoothing_stays_within_a_clip_and_keeps_the_sum():
    relevance = np.zeros((2, 31, 31))
    relevance[0, 15, 15] = 1
    found = explain.smoothed(relevance)
    assert not found[1].any() and found[0].sum() == pytest.approx(1) and 0.1 < found[0].max() < 0.3


def test_taking_cells_out_sets_them_to_the_training_mean(network):
    classifier = Classifier(network.float(), CONFIG, temperature=2.0)
    values = np.random.default_rng(0).normal(-40, 20, (3, 64, 64)).astype(np.float32)
    x, classes = classifier.normalised(values), [1, 0, 2]
    for mask, fed in ((np.zeros(x.shape), values), (np.ones(x.shape), np.full_like(values, -40))):
        found = explain.probabilities_without(classifier, x, classes, mask)
        np.testing.assert_allclose(found, classifier.probabilities(fed)[range(3), classes], rtol=1e-5)
    network.double()


# ---- sound ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [3, 4.321])
def test_a_mask_of_ones_gives_the_audio_back(rate, seconds):
    y = noise(seconds, rate)
    found = explain.masked_audio(y, rate, np.ones((128, 128)))
    assert found.shape == y.shape and np.abs(found - y).max() < 1e-4


def test_a_mask_of_zeros_is_silence():
    assert not explain.masked_audio(noise(2), RATE, np.zeros((128, 128))).any()


@pytest.mark.parametrize("band", [3, 40, 90, 126])
def test_a_mask_of_one_band_keeps_only_what_is_near_it(band):
    import librosa

    y, mask = noise(5), np.zeros((128, 128))
    mask[band] = 1
    power = np.abs(np.fft.rfft(explain.masked_audio(y, RATE, mask))) ** 2
    hertz = np.fft.rfftfreq(len(y), 1 / RATE)
    low, centre, high = librosa.mel_frequencies(130, fmax=RATE / 2)[band:band + 3]
    leak = 2 * RATE / explain.N_FFT                             # of the window: two bins
    near = (hertz > low - leak) & (hertz < high + leak)
    assert power[near].sum() > 0.99 * power.sum()
    assert abs((hertz * power).sum() / power.sum() - centre) < (high - low) / 4
    assert power.sum() > 0.1 * (np.abs(np.fft.rfft(y))[(hertz > low) & (hertz < high)] ** 2).sum()


def test_a_mask_of_some_frames_keeps_only_their_time():
    y, mask = noise(6), np.zeros((128, 128))
    mask[:, 32:64] = 1                                          # of 6 s: 1.5 to 3
    energy = explain.masked_audio(y, RATE, mask) ** 2
    assert energy[int(1.4 * RATE):int(3.1 * RATE)].sum() > 0.99 * energy.sum()
    assert energy[int(1.6 * RATE):int(2.9 * RATE)].sum() > 0.99 * (y[int(1.6 * RATE):int(2.9 * RATE)] ** 2).sum()


def test_what_is_let_through_stands_in_the_same_cells_of_mel128():
    y, mask = noise(6), np.zeros((128, 128))
    mask[50:60, 70:90] = 1
    heard = mel128(explain.masked_audio(y, RATE, mask), RATE)
    assert heard[52:58, 72:88].min() > -30
    heard[48:62, 66:94] = -80
    assert heard.max() < -40


def test_masks_are_interpolated_between_bands_and_frames():
    ramp = np.linspace(0, 1, 128)
    by_band = explain.stft_mask(np.repeat(ramp[:, None], 128, 1), 300, 44_100)
    assert by_band.shape == (1025, 300) and np.ptp(by_band, axis=1).max() < 1e-9 and (np.diff(by_band[:, 0]) >= 0).all()
    by_frame = explain.stft_mask(np.repeat(ramp[None], 128, 0), 300, 44_100)
    kept = ((np.arange(128) + 0.5) / 128 * 300).astype(int)     # as transforms.mel128 picks them
    np.testing.assert_allclose(by_frame[500, kept], ramp)
    assert explain.stft_mask(np.ones((128, 128)), 300, 44_100) == pytest.approx(1)


# ---- figures, and the button ---------------------------------------------------------------------------------


def test_relevance_is_drawn_over_the_clip():
    values, signed = np.random.default_rng(0).normal((-40, 0), (10, 1), (128, 128, 2)).transpose(2, 0, 1)
    figure = feature_figures.plot_relevance(values, {"both": signed, "for": abs(signed)}, "mel128", 44_100, 10_000)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["mel128", "both", "for"]
    for name, relevance in (("both", signed), ("for", abs(signed))):
        grey, colours = panels[name].images
        assert np.array_equal(grey.get_array(), values) and np.array_equal(colours.get_array(), relevance)
        assert colours.get_clim()[0] == -colours.get_clim()[1] and grey.get_extent() == colours.get_extent()


def test_probabilities_and_their_course():
    said = {"Folk": 0.25, "Rock": 0.75}
    bars = prediction_figures.plot_probabilities(said, "a song").axes[0]
    assert [bar.get_width() for bar in bars.patches] == [25, 75]
    course = [{"start": 0.0, "probabilities": said}, {"start": 30.0, "probabilities": {"Folk": 1.0, "Rock": 0.0}}]
    axes = prediction_figures.plot_course(course, 45, [(30, "second")]).axes[0]
    assert [(b.get_x(), b.get_width(), b.get_y(), b.get_height()) for b in axes.patches] == [
        (0, 30, 0, 25), (30, 15, 0, 100), (0, 30, 25, 75), (30, 15, 100, 0)]
    assert any("second" in text.get_text() for text in axes.texts)


def test_calibration_counts_clips_and_how_many_are_right():
    probabilities = np.array([[0.95, 0.05], [0.05, 0.95], [0.6, 0.4], [0.6, 0.4], [0.97, 0.03]])
    upper, lower = prediction_figures.plot_calibration(probabilities, [0, 1, 0, 1, -1]).axes
    points = upper.lines[1]
    np.testing.assert_allclose(points.get_xydata(), [[60, 50], [100 * (0.95 + 0.95 + 0.97) / 3, 200 / 3]])
    assert [bar.get_height() for bar in lower.patches] == [0] * 6 + [2, 0, 0, 3]


def test_an_uploaded_file_is_written_and_answered(monkeypatch):
    monkeypatch.delenv("PUBLISH", raising=False)
    seen = []
    box = players.upload_button(lambda path: seen.append((path.name, path.read_bytes())))
    button = box.children[0]
    button.value = ({"name": "../a song.wav", "type": "audio/wav", "size": 3, "content": memoryview(b"abc"),
                     "last_modified": datetime.now(UTC)},)
    older = {"b.wav": {"metadata": {}, "content": b"de"}}       # as ipywidgets 7 has it
    button.notify_change(Bunch(name="value", old=(), new=older, owner=button, type="change"))
    assert seen == [("a song.wav", b"abc"), ("b.wav", b"de")]


def test_what_is_published_has_no_button(monkeypatch):
    monkeypatch.setenv("PUBLISH", "1")
    assert "Run this notebook" in players.upload_button(print).data
