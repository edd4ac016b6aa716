"""What a GPU computes of many clips at a time is what transforms.py computes of each, up to rounding."""

import json

import numpy as np
import pytest
import soxr
import torch
from test_transforms import sounds

import features
from audio import clips, transforms
from audio.cache import load_index
from audio.gpu import estimate_tuning, extract_batch, extract_stream, halve, stft_power
from audio.transforms import SAMPLE_RATE, STUDY_FEATURES
from features import fill_cache
from fma import DataError, audio_path, run_command

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
NO_GPU = not torch.cuda.is_available()
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.skipif(NO_GPU, reason="no GPU")))


def stack(clips, rest=0.0):
    """Clips as one tensor, what follows a clip's end filled with `rest`, and their lengths."""
    y = torch.full((len(clips), max(map(len, clips))), rest)
    for row, clip in zip(y, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    return y, [len(clip) for clip in clips]


def decided(feature, expected):
    """Frames of a chroma feature that are more than rounding: see `extract_batch`."""
    loud = expected["cqt"].max(axis=0) > expected["cqt"].max() - 60
    if feature != "chroma_cens":
        return loud if feature == "chroma_cqt" else np.ones_like(loud)
    share = expected["chroma_cqt"] / np.maximum(expected["chroma_cqt"].sum(axis=0), 1e-30)
    clear = np.abs(share[..., None] - [0.4, 0.2, 0.1, 0.05]).min(axis=(0, 2)) > 1e-5
    return np.convolve(~(loud & clear), np.ones(43))[21:-21] < 0.5      # each reaches 21 frames


def assert_alike(found, expected, name=""):
    """Within the tolerances that `extract_batch` states; silence where nothing is decided is skipped."""
    level = expected["cqt"]
    amplitude, wanted = 10 ** (found["cqt"].astype(float) / 20), 10 ** (level.astype(float) / 20)
    off = np.abs(found["cqt"] - level)
    assert off[level > level.max() - 90].max() < 0.05, name
    assert (np.abs(amplitude - wanted) < 0.006 * wanted + 3e-7 * wanted.max()).all(), name
    assert np.abs(found["mel_stft"] - expected["mel_stft"]).max() < 0.05, name
    assert np.abs(found["mfcc"] - expected["mfcc"]).max() < 0.05, name
    for feature in ("chroma_cqt", "chroma_cens", "chroma_stft"):
        frames = decided(feature, expected)
        assert np.abs(found[feature] - expected[feature])[:, frames].max(initial=0) < 1e-3, (name, feature)


# ---------------------------------------------------------------- against transforms.py, and so librosa


def test_halving_is_soxrs_to_its_own_rounding():
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 0.3, n).astype(np.float32) for n in (30_000, 29_999, 7, 1, 20_001)]
    y, lengths = stack(clips)
    for _ in range(2):
        y, lengths = halve(y.double(), torch.as_tensor(lengths))
        clips = [soxr.resample(clip, 2, 1, quality="HQ") for clip in clips]
        assert lengths.tolist() == [len(clip) for clip in clips]
        for row, clip in zip(y.numpy(), clips, strict=True):
            np.testing.assert_allclose(row[: len(clip)], clip, atol=1e-6)
            assert not row[len(clip):].any()            # soxr ends with the clip; a filter alone would ring on


@pytest.mark.parametrize("device", DEVICES)
def test_sounds_of_unequal_lengths_are_as_each_alone(device):
    short = {"sine": 20_000, "noise": 640 * 1024, "detuned chord": 1023, "faint": 660_999}      # samples
    clips = {name: y.astype(np.float32)[: short.get(name)] for name, y in sounds(SAMPLE_RATE).items()}
    y, lengths = stack(list(clips.values()), rest=torch.nan)        # what is past a clip's end must not be looked at
    found = {name: x.cpu() for name, x in extract_batch(y.to(device), STUDY_FEATURES, lengths).items()}
    assert list(found) == list(STUDY_FEATURES)
    for k, (name, clip) in enumerate(clips.items()):
        expected = transforms.extract(clip, SAMPLE_RATE)
        n = 1 + len(clip) // 1024
        assert_alike({feature: x[k, :, :n].numpy() for feature, x in found.items()}, expected, name)
        assert all(not x[k, :, n:].any() and x.dtype == torch.float32 for x in found.values())


def test_most_frames_of_sound_are_compared():
    for name in ("sine", "noise", "detuned chord"):
        expected = transforms.extract(sounds(SAMPLE_RATE)[name].astype(np.float32), SAMPLE_RATE)
        assert all(decided(feature, expected).mean() > 0.5 for feature in ("chroma_cqt", "chroma_cens")), name


def test_the_demo_corpus_is_alike(small, cache):
    ids = load_index(cache).query("status == 'ok'")["track_id"]
    clips = [transforms.resample(*transforms.read_audio(audio_path(small, i))) for i in ids]
    for i, clip, (key, found) in zip(ids, clips, extract_stream(zip(ids, clips, strict=True), CPU),
                                     strict=True):
        assert key == i
        assert_alike(found, transforms.extract(clip, SAMPLE_RATE), i)


def test_silence_is_the_floor_and_no_number_is_missing():
    found = {name: x[0].numpy() for name, x in extract_batch(torch.zeros(1, 40_000)).items()}
    assert_alike(found, transforms.extract(np.zeros(40_000, np.float32), SAMPLE_RATE))
    assert all(np.isfinite(x).all() for x in found.values())
    assert (found["cqt"] == -100).all() and not found["chroma_cens"].any()


def test_tuning_is_estimated_of_a_clips_own_frames():
    rng, t = np.random.default_rng(0), np.arange(20_000) / SAMPLE_RATE
    chords = [sum(np.sin(2 * np.pi * 440 * 2 ** ((k + cents / 100) / 12) * t) for k in (-9, -5, -2, 3))
              + rng.normal(0, 1e-3, len(t)) for cents in range(-50, 50, 7)]
    clicks = np.where(np.arange(20_000) % 1024 == 300, 0.5, 0)      # flat: which bin is a peak is up to float32
    y = np.stack([*chords, clicks, np.zeros(20_000)]).astype(np.float32)
    S = np.stack([transforms.stft_power(clip) for clip in y])
    counts = torch.full((len(S),), S.shape[2])
    found = estimate_tuning(stft_power(torch.from_numpy(y)), counts)
    expected = [transforms.estimate_tuning(x) for x in S]
    assert len(set(expected)) > 8
    np.testing.assert_allclose((found.numpy() - 50) / 100, expected, atol=1e-9)
    longer = np.concatenate([S, 1e6 * np.roll(S, 1, axis=0)], axis=2)       # another chord, louder, past the end
    assert torch.equal(estimate_tuning(torch.from_numpy(longer), counts), found)


@pytest.mark.parametrize("name", STUDY_FEATURES)
def test_a_feature_is_alike_alone_and_in_company(name):
    y = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, 50_000)).astype(np.float32))
    alone = extract_batch(y, [name])
    assert list(alone) == [name] and torch.equal(alone[name], extract_batch(y)[name])


def test_mel128_is_not_made_in_batches():
    with pytest.raises(ValueError, match="mel128"):
        extract_batch(torch.zeros(1, 2048), ["mel128"])


def test_a_stream_keeps_order_and_forgets_the_clip_before():
    rng = np.random.default_rng(0)
    clips = {n: rng.normal(0, 0.1, n).astype(np.float32) for n in (90_000, 80_000, 30_000, 20_000, 5_000)}
    given = [("a", "short"), *clips.items(), ("z", "silent")]
    found = dict(extract_stream(given, CPU, ["mel_stft", "chroma_cens"], size=2))
    assert (found.pop("a"), found.pop("z")) == ("short", "silent")
    assert list(found) == list(clips)
    for n, values in found.items():
        for name, x in extract_batch(torch.from_numpy(clips[n])[None], list(values)).items():
            np.testing.assert_allclose(values[name], x[0], atol=1e-4)
    assert list(extract_stream([], CPU)) == []


def test_a_batch_is_left_alone_until_it_has_been_computed(monkeypatch):
    monkeypatch.setattr("audio.gpu.extract_batch", lambda y, *_: {"y": y[:, None]})  # reads late, as a GPU
    clips = {k: np.full(2048, k, np.float32) for k in range(7)}
    for k, found in extract_stream(clips.items(), CPU, size=2):
        assert (found["y"] == k).all()


def test_too_little_memory_is_said_in_a_line(monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr("audio.gpu.extract_batch", full)
    with pytest.raises(DataError, match="memory of cpu is too small for 1 clips .* without --device"):
        list(extract_stream([(0, np.ones(2048, np.float32))], CPU))


# ---------------------------------------------------------------- the cache


def assert_same_cache(folder, cache, names):
    """The same index, and values a step of float16 apart at most where rounding does not decide."""
    assert (folder / "index.csv").read_bytes() == (cache / "index.csv").read_bytes()
    for name in names:
        found, expected = (np.load(x / f"{name}.npy").astype(float) for x in (folder, cache))
        off = np.abs(found - expected)
        assert (off > (0.07 if name in ("cqt", "mel_stft", "mfcc") else 2e-3)).mean() < 0.01, name
        assert off.max() < 1 if name in ("cqt", "mel_stft", "mfcc", "chroma_stft") else True, name
        assert not found[load_index(folder)["status"] != "ok"].any(), name


def test_a_cache_made_in_batches_says_so_and_is_as_good_as_another(small, cache, tmp_path):
    fill_cache(small, features_dir=tmp_path, workers=2, progress=False, device=CPU)
    assert_same_cache(tmp_path, cache, STUDY_FEATURES)
    infos = [json.loads((folder / "cqt.json").read_text()) for folder in (tmp_path, cache)]
    assert infos[0].pop("computed_by") == "audio/gpu.py on cpu" and infos[0]["versions"].pop("torch")
    assert infos[0] == infos[1]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for device in (None, CPU):
        fill_cache(small, features_dir=tmp_path, progress=False, device=device)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    fill_cache(small, features_dir=cache, progress=False, device=CPU)           # nor is the other made again


def cut_off(small, folder, device):
    """A run that died after it wrote three clips."""
    rows, write = iter(range(3)), features.write_values

    def dies(row, values):
        if next(rows, None) is None:
            raise KeyboardInterrupt
        write(row, values)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for module in (clips, features):            # which of them writes depends on the device
            patch.setattr(module, "write_values", dies)
        fill_cache(small, ("mel_stft", "mfcc"), features_dir=folder, workers=1, progress=False, device=device)
    return folder


def test_a_run_goes_on_where_it_began_and_nowhere_else(small, cache, tmp_path, monkeypatch):
    names, seen = ("mel_stft", "mfcc"), []
    for device, other in ((CPU, None), (None, CPU)):
        folder = cut_off(small, tmp_path / str(device), device)
        with pytest.raises(DataError, match="unfinished run .*--device"):
            fill_cache(small, names, features_dir=folder, progress=False, device=other)
        monkeypatch.setattr("audio.clips.open_clip", lambda *given, open_clip=clips.open_clip:
                            seen.append(given) or open_clip(*given))
        done = len((folder / ".partial" / "progress.csv").read_text().splitlines())
        seen.clear()
        fill_cache(small, names, features_dir=folder, workers=1, progress=False, device=device)
        monkeypatch.undo()
        assert done >= 3 and len(seen) == len(load_index(cache)) - done
        assert_same_cache(folder, cache, names)


def test_what_cannot_be_made_on_a_gpu_is_said(small, tmp_path, capsys):
    for name in ("statistics", "mel128", "cqt_pitch+1"):
        with pytest.raises(DataError, match=name.replace("+", r"\+")):
            fill_cache(small, ["cqt", name], features_dir=tmp_path, device=CPU)
    if NO_GPU:
        args = ["--data-dir", str(small), "--features-dir", str(tmp_path), "--device", "cuda"]
        assert run_command(lambda: features.main(args)) == 2
        assert "--device cuda cannot be used" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
