"""Synthetic inputs of tests: a collection of random features, a result, an environment with only training's needs."""

import json
import os
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RATE = 22_050         # Hz, of `tone`
GENRES = ("Folk", "Hip-Hop", "Metal", "Rock")
NOT_NEEDED = ("librosa", "soundfile", "soxr", "scipy", "sklearn", "matplotlib", "numba")


def make_collection(folder, features=(("chroma_cqt", 12), ("cqt", 84)), frames=64):
    """64 clips of 4 genres in FMA's layout, 40 / 12 / 12, two of each artist; each genre is loud in its own bins."""
    rng, clips = np.random.default_rng(0), 16 * len(GENRES)
    (folder / "fma_metadata").mkdir(parents=True)
    (folder / "features").mkdir()
    tracks = [",set,set,track,artist", ",split,subset,genre_top,id", "track_id,,,,"]
    for clip in range(clips):
        split = "training" if clip < 40 else "validation" if clip < 52 else "test"
        tracks.append(f"{clip + 2},{split},small,{GENRES[clip % 4]},{100 + clip // 2}")
    (folder / "fma_metadata" / "tracks.csv").write_text("\n".join(tracks) + "\n")
    index = ["track_id,status"] + [f"{clip + 2},ok" for clip in range(clips)]
    (folder / "features" / "index.csv").write_text("\n".join(index) + "\n")
    for name, bins in features:
        values = rng.normal(-60, 12, (clips, bins, frames))
        for clip in range(clips):
            values[clip, clip % 4 * bins // 4:(clip % 4 + 1) * bins // 4] += 9
        np.save(folder / "features" / f"{name}.npy", values.astype(np.float16))
        info = {"scale": 1.0, "offset": 0.0, "unit": "dB", "axes": ["track", "bin", "frame"], "power": 1,
                "parameters": {"hop_length": 1024}}
        (folder / "features" / f"{name}.json").write_text(json.dumps(info))
    return folder


def tone(seconds, rate=RATE, pitch=440.0, channels=1):
    """A tone with a little noise that slowly becomes brighter, so that no two windows are alike."""
    t = np.arange(int(seconds * rate)) / rate
    y = 0.3 * np.sin(2 * np.pi * pitch * (1 + t / 100) * t) + 0.01 * np.random.default_rng(0).normal(size=len(t))
    return np.repeat(y[:, None], channels, 1).astype(np.float32)


def encode_with_av(path, y, rate, container, codec):
    """Write samples, of shape (samples, 2), in a format that libsndfile does not know."""
    import av

    with av.open(path, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo")
        stream.bit_rate = 192_000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(y.T), format="fltp", layout="stereo")
        frame.sample_rate = rate
        size = stream.codec_context.frame_size or 1024
        convert = av.AudioResampler(stream.codec_context.format.name, "stereo", rate, frame_size=size)
        for part in (*convert.resample(frame), *convert.resample(None), None):
            file.mux(stream.encode(part))


def quiet_environment(folder):
    """Environment of a subprocess: one thread, no GPU, and as if what training should not need were not installed."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def find_if_needed(name, *args, **kwargs):\n"
        f"    return None if name.partition('.')[0] in {NOT_NEEDED} else find(name, *args, **kwargs)\n"
        "PathFinder.find_spec = find_if_needed\n")
    paths = os.pathsep.join(map(str, (folder, ROOT, ROOT / "tests")))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                         "CUDA_VISIBLE_DEVICES": ""}


def made_up(name, seed, accuracy, folder):
    """A result of one seed on 40 clips of 20 artists, right on the share given, and its predictions."""
    from evaluation import summarise
    from study.result_files import save_result

    labels = np.arange(40) % 2
    right = np.random.default_rng(0).permutation(40) < round(accuracy * 40)     # the better one wherever the worse is
    test = {"probabilities": np.eye(2)[np.where(right, labels, 1 - labels)], "labels": labels, "tracks": np.arange(40),
            "artists": np.arange(40) // 2, "genres": np.array(["Folk", "Rock"])}
    summary = summarise(labels, test["probabilities"], test["artists"], ["Folk", "Rock"])
    seeds = [{"seed": seed, "epoch": 1, "epochs": 1, "validation": 0.5, "test": accuracy, "test_max": None,
              "seconds": 1.0}]
    result = {"experiment": name, "dataset": folder.name, "seeds": seeds, "test": summary, "parameters": 10,
              "config": {"model": {"class": "SquareCNN", "args": {}}, "feature": "cqt", "training": {},
                         "feature_parameters": {}}}
    save_result(folder / f"{name}.json", result, [test])
