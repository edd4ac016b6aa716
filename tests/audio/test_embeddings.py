"""Pretrained encoders give what their authors' code gives, and are arrays of the cache like others."""

import hashlib
import json
import os
import struct
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import write_tracks

import features
from audio import embeddings, musicnn
from audio.cache import describe
from audio.embeddings import cut, embed, load_encoder
from audio.musicnn import MAGIC, SAMPLES, Musicnn, load_musicnn, read_checkpoint
from audio.transforms import resample
from fma import DataError, run_command
from study.statistics import Statistics

try:
    CHECKPOINT = embeddings.find_musicnn()
except DataError:
    CHECKPOINT = None
installed = pytest.mark.skipif(CHECKPOINT is None, reason="needs pip install --no-deps musicnn, or ENCODERS_DIR")


# ---------------------------------------------------------------- a checkpoint, written as TensorFlow does


def varint(value):
    """As `musicnn._varint` reads it."""
    head = b""
    while value > 127:
        head, value = head + bytes([value & 127 | 128]), value >> 7
    return head + bytes([value])


def block(entries):
    """A block of a table: keys share what they have in common with the one before; one restart; no compression."""
    text, before = b"", b""
    for key, value in entries:
        shared = len(os.path.commonprefix([key, before]))
        text += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return text + struct.pack("<II", 0, 1), b"\0" + b"crc?"


def write_checkpoint(folder, arrays):
    """Index and data of float32 arrays, in two blocks, with one of another type between."""
    folder.mkdir(parents=True, exist_ok=True)
    data, entries = b"", [(b"", b"\x08\x01")]
    for name in sorted(arrays):
        value, dims = arrays[name], b""
        for n in value.shape:
            dims += b"\x12" + varint(len(varint(n)) + 1) + b"\x08" + varint(n)
        offset = b"\x20" + varint(len(data)) if data else b""
        kind = 1 if value.dtype == np.float32 else 9
        message = b"\x08" + bytes([kind]) + b"\x12" + varint(len(dims)) + dims + offset
        entries.append((name.encode(), message + b"\x28" + varint(value.nbytes) + b"\x35abcd"))
        data += value.tobytes()
    index, handles = b"", []
    for part in (entries[: len(entries) // 2], entries[len(entries) // 2 :]):
        text, trailer = block(part)
        handles.append((part[-1][0], varint(len(index)) + varint(len(text))))
        index += text + trailer
    places = b""
    for text, trailer in (block([]), block(handles)):
        places += varint(len(index)) + varint(len(text))
        index += text + trailer
    (folder / ".index").write_bytes(index + places.ljust(40, b"\0") + MAGIC)
    (folder / ".data-00000-of-00001").write_bytes(data)


def random_arrays(seed=0):
    """Weights of a musicnn under TensorFlow's names, in TensorFlow's order of axes."""
    rng, shapes = np.random.default_rng(seed), {}
    kernels = [(7, 38, 1, 204), (7, 67, 1, 204), *((n, 1, 1, 51) for n in (128, 64, 32)),
               *((7, n, 1, 64) for n in (561, 64, 64))]
    norms = [1, 204, 204, 51, 51, 51, 64, 64, 64, 1506, 200]
    for kind, all_shapes in (("conv2d", kernels), ("dense", [(1506, 200), (200, 50)])):
        for k, shape in enumerate(all_shapes):
            shapes |= {f"{kind}{f'_{k}' * (k > 0)}/kernel": shape, f"{kind}{f'_{k}' * (k > 0)}/bias": shape[-1:]}
    for k, n in enumerate(norms):
        shapes |= {f"batch_normalization{f'_{k}' * (k > 0)}/{part}": (n,)
                   for part in ("gamma", "beta", "moving_mean", "moving_variance")}
    return {name: rng.uniform(0.01, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(autouse=True)
def nothing_loaded():
    load_encoder.cache_clear()
    yield
    load_encoder.cache_clear()


@pytest.fixture(scope="module")
def random_musicnn(tmp_path_factory):
    """A folder for ENCODERS_DIR with a musicnn of random weights."""
    folder = tmp_path_factory.mktemp("encoders")
    write_checkpoint(folder / "musicnn" / "MSD_musicnn", random_arrays())
    return folder


@pytest.fixture
def own(random_musicnn, monkeypatch):
    monkeypatch.setenv("ENCODERS_DIR", str(random_musicnn))
    return random_musicnn


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    arrays = {"a/kernel": np.arange(300, dtype=np.float32).reshape(3, 100), "a/kernel/Adam": np.ones(2, np.float32),
              "b": np.float32(7).reshape(()), "step": np.array([3], np.int64), "z": np.zeros((0, 4), np.float32)}
    write_checkpoint(tmp_path, arrays)
    found = read_checkpoint(tmp_path)
    assert set(found) == set(arrays) - {"step"}
    for name, value in found.items():
        assert value.shape == arrays[name].shape
        np.testing.assert_array_equal(value, arrays[name])


@pytest.mark.parametrize("fault", ["no index", "cut index", "cut data", "text", "other network"])
def test_a_checkpoint_that_cannot_be_used_is_one_line(tmp_path, fault):
    write_checkpoint(tmp_path, {"conv2d/kernel": np.ones((7, 38, 1, 204), np.float32)})
    index, data = tmp_path / ".index", tmp_path / ".data-00000-of-00001"
    if fault == "no index":
        index.unlink()
    elif fault == "text":
        index.write_text("not a checkpoint\n" * 9)
    elif fault != "other network":
        path = {"cut index": index, "cut data": data}[fault]
        path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match="of another network" if fault == "other network" else "install musicnn again"
                       ) as error:
        load_musicnn(tmp_path)
    assert "\n" not in str(error.value)


def test_every_weight_has_its_place(random_musicnn):
    """Layer by layer with NumPy, in TensorFlow's order of axes: a transposed kernel would not be seen by its shape."""
    network, arrays = load_musicnn(random_musicnn / "musicnn" / "MSD_musicnn"), random_arrays()
    x = np.random.default_rng(1).normal(size=(1, 6, 561)).astype(np.float32)
    padded = np.pad(x, [(0, 0), (3, 3), (0, 0)])
    kernel = arrays["conv2d_5/kernel"][:, :, 0]                                             # (7, 561, 64)
    y = np.stack([np.einsum("fc,fco->o", padded[0, k : k + 7], kernel) for k in range(6)]) + arrays["conv2d_5/bias"]
    norm = [arrays[f"batch_normalization_6/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance")]
    y = norm[0] * (y.clip(0) - norm[2]) / np.sqrt(norm[3] + 1e-3) + norm[1]
    with torch.inference_mode():
        np.testing.assert_allclose(network.middle[0](torch.from_numpy(x).transpose(1, 2))[0].T, y, rtol=1e-3, atol=1e-4)
    for layer, name in ((network.timbral[1][0], "conv2d_1"), (network.temporal[0][1], "conv2d_2")):
        np.testing.assert_array_equal(layer.weight.detach()[5, 0], arrays[f"{name}/kernel"][:, :, 0, 5])
    np.testing.assert_array_equal(network.tags.weight.detach().T, arrays["dense_1/kernel"])


def synthetic():
    """Two windows of beats at 220 Hz under a quiet tone of 3 kHz."""
    t = np.arange(2 * SAMPLES) / musicnn.SAMPLE_RATE
    y = 0.3 * np.sin(2 * np.pi * 220 * t) * (np.sin(4 * np.pi * t) > 0) + 0.05 * np.sin(6000 * np.pi * t)
    return y.astype(np.float32).reshape(2, -1)


def test_the_front_end_is_librosas(one_thread):
    import librosa

    ours = Musicnn().log_mel(torch.from_numpy(synthetic())).numpy()
    power = librosa.feature.melspectrogram(y=synthetic(), sr=16_000, n_fft=512, hop_length=256, n_mels=96, center=False)
    assert ours.shape == (2, 187, 96)
    np.testing.assert_allclose(ours, np.log10(1 + 10_000 * power).transpose(0, 2, 1), atol=2e-5)


@installed
def test_the_weights_are_those_that_tensorflow_reads():
    """Hash of all arrays by name, computed with tf.compat.v1.train.NewCheckpointReader of TensorFlow 2.21."""
    code, arrays = hashlib.sha256(), read_checkpoint(CHECKPOINT)
    for name in sorted(arrays):
        code.update(name.encode() + arrays[name].tobytes())
    assert len(arrays) == 150
    assert code.hexdigest() == "eaf330ba9154ff04e84e0330910cd51fe0f22734e2ba924f0a58ab28f706b0a9"


@installed
def test_tags_are_those_of_the_original(one_thread):
    """The package's own network in TensorFlow 2.21 was the oracle: there, all 50 tags were within 3e-6."""
    expected = [[0.651111, 0.212791, 0.168531], [0.655358, 0.213655, 0.172151]]     # electronic, electro, indie
    penultimate = [[3.731160, 3.664570, 3.639690, 3.610420], [3.813690, 3.731000, 3.690450, 3.645080]]
    with torch.inference_mode():
        values, tags = load_musicnn(CHECKPOINT)(torch.from_numpy(synthetic()))
    for row in (0, 1):
        best = tags[row].topk(3)
        assert best.indices.tolist() == [4, 41, 3]
        np.testing.assert_allclose(best.values, expected[row], atol=1e-4)
    np.testing.assert_allclose(values[:, [159, 119, 149, 73]], penultimate, atol=1e-3)


# ---------------------------------------------------------------- windows, and the cache


def test_windows_reach_from_the_first_sample_to_the_last():
    y = np.arange(27 * 16_000)
    windows = cut(y, SAMPLES)
    assert windows.shape == (9, SAMPLES) and windows[0, 0] == 0 and windows[-1, -1] == y[-1]
    assert np.diff(windows[:, 0]).max() < SAMPLES               # none is left out between two
    assert cut(y[:5], 12).tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]]        # repeated


def test_mean_and_deviation_over_windows(own, one_thread):
    y = np.random.default_rng(0).normal(0, 0.1, 6 * 22_050).astype(np.float32)
    found, encoder = embed(y, 22_050, "musicnn"), load_encoder("musicnn")
    with torch.inference_mode():
        network = load_musicnn(own / "musicnn" / "MSD_musicnn")
        each = network(torch.from_numpy(cut(resample(y, 22_050, 16_000), SAMPLES)))[0].numpy()
    assert found.shape == (400, 1) and each.shape == (2, 200) and encoder.dimensions == 200
    np.testing.assert_allclose(found[:, 0], np.concatenate([each.mean(0), each.std(0)]), atol=1e-5)


@pytest.fixture
def songs(tmp_path):
    """Ten clips of 4 s by ten artists in two genres, six of them in training, and an eleventh that is too short."""
    data, rng = tmp_path / "songs", np.random.default_rng(0)
    (data / "fma_small" / "000").mkdir(parents=True)
    for i in range(1, 12):
        y = 0.3 * np.sin(np.arange(4 * 16_000) * 0.05 * i) + rng.normal(0, 0.01, 4 * 16_000)
        y = y[:16_000] if i == 11 else y
        soundfile.write(data / "fma_small" / "000" / f"{i:06d}.mp3", y, 16_000, format="WAV")
    write_tracks(data, range(1, 12), {
        ("set", "split"): ["training"] * 6 + ["validation"] * 2 + ["test"] * 2 + ["training"],
        ("set", "subset"): "small", ("track", "genre_top"): ["A", "B"], ("artist", "id"): range(11)})
    return data


@pytest.fixture
def interrupted(monkeypatch):
    """Rows that are begun; the fourth is interrupted."""
    begun, real = [], features.process_row

    def process_row(row):
        begun.append(row)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return real(row)

    monkeypatch.setattr(features._results, "__defaults__", (process_row, None))
    return begun


def fill(data, *more):
    return run_command(lambda: features.main(["--features", "musicnn", "--data-dir", str(data), "--seconds", "4",
                                              "--workers", "1", *more]))


def test_an_embedding_is_an_array_of_the_cache(songs, own, one_thread):
    whole = songs / "whole"
    assert not fill(songs, "--features-dir", str(whole))
    array, info = np.load(whole / "musicnn.npy"), json.loads((whole / "musicnn.json").read_text())
    assert array.shape == tuple(info["shape"]) == (11, 400, 1) and array.dtype == "float32"
    assert not array[10].any() and (np.ptp(array[:10, :200], axis=0) > 0).mean() > 0.9
    assert info["weights_sha256"] == load_encoder("musicnn").weights and "torch" in info["versions"]
    assert pd.read_csv(whole / "index.csv")["status"].tolist() == ["ok"] * 10 + ["short"]
    statistics = Statistics(songs, features=["musicnn"], features_dir=whole)
    np.testing.assert_allclose(statistics.values[2], array[2, :, 0], rtol=1e-6)


def test_an_interrupted_run_continues_to_the_same_bytes(songs, own, one_thread, interrupted):
    part = {"names": ["musicnn"], "features_dir": songs / "cut", "workers": 1, "progress": False, "seconds": 4}
    with pytest.raises(KeyboardInterrupt):
        features.fill_cache(songs, **part)
    assert not (songs / "cut" / "musicnn.npy").exists()
    features.fill_cache(songs, **part)
    assert interrupted == [0, 1, 2, 3, 3, *range(4, 11)]
    interrupted.extend(range(9))
    features.fill_cache(songs, **part | {"features_dir": songs / "whole"})
    assert (songs / "cut" / "musicnn.npy").read_bytes() == (songs / "whole" / "musicnn.npy").read_bytes()


def test_a_device_computes_what_processes_decode(songs, own, one_thread, tmp_path):
    names = {"names": ["musicnn"], "features_dir": tmp_path / "cache", "progress": False, "seconds": 4}
    features.fill_cache(songs, workers=1, device=torch.device("cpu"), **names)
    info = json.loads((tmp_path / "cache" / "musicnn.json").read_text())
    assert info["computed_by"] == "audio/embeddings.py on cpu"
    array = np.load(tmp_path / "cache" / "musicnn.npy")
    features.fill_cache(songs, workers=1, **names | {"features_dir": tmp_path / "other"})
    np.testing.assert_array_equal(array, np.load(tmp_path / "other" / "musicnn.npy"))
    with pytest.raises(DataError, match="musicnn: not made on a GPU beside others"):
        features.fill_cache(songs, ["cqt", "musicnn"], device=torch.device("cpu"))


def test_other_weights_are_not_mixed_in(songs, own, tmp_path, monkeypatch, capsys):
    assert not fill(songs)
    write_checkpoint(tmp_path / "musicnn" / "MSD_musicnn", random_arrays(seed=1))
    monkeypatch.setenv("ENCODERS_DIR", str(tmp_path))
    load_encoder.cache_clear()              # as in another process
    capsys.readouterr()
    assert fill(songs) == 2
    said = capsys.readouterr().err.strip()
    assert "musicnn.json was made with weights_sha256" in said and "\n" not in said


def test_without_the_weights_a_line_says_what_to_install(songs, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ENCODERS_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(embeddings.importlib.util, "find_spec", lambda name: None)
    assert fill(songs) == 2
    assert capsys.readouterr().err.strip().endswith("pip install --no-deps musicnn")
    assert not (songs / "features" / "index.csv").exists()


def test_copies_shifted_in_pitch_are_not_made_of_it(capsys):
    with pytest.raises(SystemExit):
        features.main(["--features", "musicnn", "--pitch-shift", "1"])
    assert "not of statistics, recurrence or embeddings" in capsys.readouterr().err


# ---------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def tiny_encoders(tmp_path_factory):
    """CLAP, AST and a HuBERT like MERT, of the real classes, with few random weights and their preprocessors."""
    hub = pytest.importorskip("transformers")
    folder, small = tmp_path_factory.mktemp("tiny"), {"num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    networks = {
        "clap": hub.ClapAudioModelWithProjection(hub.ClapAudioConfig(
            patch_embeds_hidden_size=16, depths=[1, 1], num_attention_heads=[2, 2], hidden_size=32, projection_dim=24)),
        "ast": hub.ASTModel(hub.ASTConfig(hidden_size=32, intermediate_size=64, **small)),
        "mert": hub.HubertModel(hub.HubertConfig(hidden_size=32, intermediate_size=64, conv_dim=[16] * 7,
                                                 num_conv_pos_embedding_groups=4, num_conv_pos_embeddings=16, **small))}
    prepare = {"clap": hub.ClapFeatureExtractor(truncation="rand_trunc"), "ast": hub.ASTFeatureExtractor(),
               "mert": hub.Wav2Vec2FeatureExtractor(sampling_rate=24_000)}
    for name, network in networks.items():
        network.save_pretrained(folder / name)
        prepare[name].save_pretrained(folder / name)
    return folder, networks


@pytest.mark.parametrize("name, dimensions, rate, seconds", [("clap", 24, 48_000, 10), ("ast", 32, 16_000, 10.24),
                                                             ("mert", 32, 24_000, 5)])
def test_encoders_of_the_hub(tiny_encoders, monkeypatch, one_thread, name, dimensions, rate, seconds):
    folder, networks = tiny_encoders
    monkeypatch.setenv("ENCODERS_DIR", str(folder))
    y = np.random.default_rng(0).normal(0, 0.1, int(2 * seconds * 22_050)).astype(np.float32)
    y[: len(y) // 2] *= 0.1
    found, told = embed(y, 22_050, name), describe(name, 3)
    assert found.shape == (2 * dimensions, 1) and np.isfinite(found).all() and (found[dimensions:] > 0).all()
    assert told["shape"] == [3, 2 * dimensions, 1] and told["sample_rate"] == rate
    assert "transformers" in told["versions"]
    assert told["window"].startswith(f"{int(seconds * rate)} samples")
    assert told["weights_sha256"] == embeddings._hash(networks[name]) == load_encoder(name).weights
    windows = cut(resample(y, 22_050, rate), int(seconds * rate))
    first, second = (load_encoder(name).encode(part[None])[0] for part in windows)
    np.testing.assert_allclose(found[:dimensions, 0], (first + second) / 2, atol=2e-4)      # whatever the batch


def test_an_offline_machine_says_what_to_download(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "ast").mkdir()
    monkeypatch.setenv("ENCODERS_DIR", str(tmp_path))
    with pytest.raises(DataError, match="hf download MIT/ast-finetuned.* --local-dir encoders/ast; copy") as error:
        load_encoder("ast")
    assert "\n" not in str(error.value)


def test_a_mert_of_another_kind_is_refused(tiny_encoders, monkeypatch, tmp_path):
    """Its code would come from the hub, and is not run; nor is a network used if some weights were not there."""
    folder, networks = tiny_encoders
    networks["mert"].save_pretrained(tmp_path / "mert")
    for fault in ({"feature_extractor_cqt": True}, {"num_hidden_layers": 3}):
        for path in (folder / "mert").glob("*.json"):
            text = json.loads(path.read_text()) | (fault if path.name == "config.json" else {})
            (tmp_path / "mert" / path.name).write_text(json.dumps(text))
        monkeypatch.setenv("ENCODERS_DIR", str(tmp_path))
        load_encoder.cache_clear()
        with pytest.raises(DataError, match="mert: .* is not a network like m-a-p/MERT-v1-95M"):
            load_encoder("mert")


def test_without_transformers_a_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match="pip install transformers"):
        load_encoder("clap")
