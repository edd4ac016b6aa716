"""What features cost: beside decoding alone, librosa's own calls, and the original study's procedure.

    python benchmarks/extraction.py --data-dir data

All times are taken in turns and given as medians, ratios turn by turn. docs/speed.md explains the table.
"""

import argparse
import sys
import tempfile
from itertools import islice
from pathlib import Path

import librosa
import numpy as np
import soundfile
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))    # for the modules of the repository

from audio import transforms  # noqa: E402
from audio.clips import clip_features  # noqa: E402
from audio.transforms import HOP_LENGTH, N_FFT, N_FRAMES, SAMPLE_RATE  # noqa: E402
from benchmarks.timing import interleave, machine, ratio, watch, write_tracks  # noqa: E402
from fma import DataError, audio_path, audio_paths, find_data, load_tracks, run_command  # noqa: E402
from study.tables import format_table  # noqa: E402

CLIPS, REPEATS = 8, 5       # files to measure on, turns of each clip and part
TRACKS, ROUNDS = 80, 3      # of a collection, links to the clips; turns of one and two processes


def find_clips(data_dir, n):
    """The first n files of a data folder that can be used: not short, not silent."""
    files = audio_paths(data_dir, load_tracks(data_dir)).values()
    clips = list(islice((path for path in files if clip_features(path, ())[0] == "ok"), n))
    if not clips:
        raise DataError(f"{data_dir} holds no clip of 30 s that can be used: python fma.py says why")
    return [path.resolve() for path in clips]


def describe(clips):
    """Sample rates, channels and bit rates of files, in a line."""
    infos = [soundfile.info(path) for path in clips]
    kbits = [path.stat().st_size * 8 / 1000 / info.duration for path, info in zip(clips, infos, strict=True)]
    rates = " and ".join(f"{rate / 1000:g} kHz" for rate in sorted({info.samplerate for info in infos}))
    stereo = sum(info.channels == 2 for info in infos)
    return (f"{len(clips)} mp3 files, {rates}, {stereo} of them stereo, "
            f"{min(kbits):.0f} to {max(kbits):.0f} kb/s (median {np.median(kbits):.0f})")


def original_study(paths):
    """Make the features of the original study in its own way: a decode per transform, float64, arrays that grow."""
    cqts = np.empty((0, 84, N_FRAMES))
    chroma_cqts, chroma_censes, chroma_stfts = (np.empty((0, 12, N_FRAMES)) for _ in range(3))
    mels = np.empty((0, 128, N_FRAMES))
    for path in paths:
        y, sr = librosa.load(path, sr=22050, mono=True)
        cqt = np.abs(librosa.cqt(y, sr=sr, hop_length=1024, bins_per_octave=12, n_bins=84))
        chroma_cqt = librosa.feature.chroma_cqt(C=cqt, sr=sr)
        chroma_cens = librosa.feature.chroma_cens(C=cqt, sr=sr)
        y, sr = librosa.load(path, sr=22050, mono=True)
        stft = np.abs(librosa.stft(y, n_fft=1024, hop_length=1024))
        chroma_stft = librosa.feature.chroma_stft(S=stft**2, sr=sr, n_fft=1024, hop_length=1024, n_chroma=12)
        mel = librosa.feature.melspectrogram(S=stft**2, sr=sr, n_fft=1024, hop_length=1024)
        cqts = np.append(cqts, cqt[None, :, :640], axis=0)
        chroma_cqts = np.append(chroma_cqts, chroma_cqt[None, :, :640], axis=0)
        chroma_censes = np.append(chroma_censes, chroma_cens[None, :, :640], axis=0)
        chroma_stfts = np.append(chroma_stfts, chroma_stft[None, :, :640], axis=0)
        mels = np.append(mels, mel[None, :, :640], axis=0)
    return cqts, chroma_cqts, chroma_censes, chroma_stfts, mels


# ---------------------------------------------------------------- one clip


def everything(path):
    """Decode a clip and make the six features."""
    return transforms.extract(*transforms.read_audio(path))


def time_clips(clips, repeats):
    """Seconds per clip of decoding, of all six features, and of the original's procedure; a value a turn."""
    calls = {"decoding": transforms.read_audio, "six features": everything,
             "original": lambda path: original_study([path])}       # without what its growing arrays add
    for call in calls.values():
        call(clips[0])                              # filters are built, numba compiles
    seconds = interleave({name: lambda call=call: [call(path) for path in clips] for name, call in calls.items()},
                         repeats)
    return {name: values / len(clips) for name, values in seconds.items()}


def time_parts(clip, repeats):
    """Milliseconds of each part of `transforms.extract`, and of librosa's call that gives the same.

    Returns
    -------
    rows : list of (name, ours, librosa's, their ratio); the last two are None where ours is librosa's call.
    """
    audio, rate = transforms.read_audio(clip)
    y = transforms.resample(audio, rate)
    C, S = transforms.cqt(y), transforms.stft_power(y)
    mel, floor = transforms.extract(y, SAMPLE_RATE, ["mel_stft"])["mel_stft"], 10 ** (transforms.FLOOR_DB / 10)
    stft = {"sr": SAMPLE_RATE, "n_fft": N_FFT, "hop_length": HOP_LENGTH}
    parts = {
        "resample": (lambda: transforms.resample(audio, rate),
                     lambda: librosa.resample(audio, orig_sr=rate, target_sr=SAMPLE_RATE)),
        "cqt": (lambda: transforms.cqt(y), lambda: np.abs(librosa.cqt(y, sr=SAMPLE_RATE, hop_length=HOP_LENGTH))),
        "chroma_cqt": (lambda: librosa.feature.chroma_cqt(C=C), None),
        "chroma_cens": (lambda: librosa.feature.chroma_cens(C=C), None),
        "stft": (lambda: transforms.stft_power(y),
                 lambda: np.abs(librosa.stft(y, n_fft=N_FFT, hop_length=HOP_LENGTH)) ** 2),
        "chroma_stft": (lambda: librosa.util.normalize(
            transforms._chroma_filter(transforms.estimate_tuning(S)) @ S, norm=np.inf, axis=0),
            lambda: librosa.feature.chroma_stft(S=S, **stft)),
        "mel_stft": (lambda: 10 * np.log10(np.maximum(transforms.mel_filter(SAMPLE_RATE, N_FFT) @ S, floor)),
                     lambda: librosa.power_to_db(librosa.feature.melspectrogram(S=S, **stft), amin=floor, top_db=None)),
        "mfcc": (lambda: librosa.feature.mfcc(S=mel, n_mfcc=transforms.N_MFCC), None),
    }
    calls = {(name, k): call for name, pair in parts.items() for k, call in enumerate(pair) if call}
    for call in calls.values():
        call()
    ms = {key: 1000 * values for key, values in interleave(calls, repeats).items()}
    return [(name, np.median(ms[name, 0]), np.median(ms[name, 1]) if pair[1] else None,
             ratio(ms[name, 1], ms[name, 0]) if pair[1] else None) for name, pair in parts.items()]


# ---------------------------------------------------------------- a collection


def lay_out(data_dir, clips, n_tracks):
    """A collection of n tracks that are links to a few clips."""
    write_tracks(data_dir, n_tracks)
    for k in range(n_tracks):
        path = audio_path(data_dir, k + 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(clips[k % len(clips)])


ORIGINAL = "import sys; from benchmarks.extraction import original_study; original_study(sys.argv[1:])"


def run_collection(who, clips, n_tracks):
    """Seconds, peak memory (MiB) and tracks per second without start-up of a fresh process on n tracks.

    Parameters
    ----------
    who : int or "original"
        Number of processes of ``features.py``, or the original's procedure.
    """
    with tempfile.TemporaryDirectory() as folder:
        lay_out(folder, clips, n_tracks)
        if who == "original":
            paths = [str(audio_path(folder, k + 1)) for k in range(n_tracks)]
            return watch([sys.executable, "-c", ORIGINAL, *paths])
        journal = Path(folder) / "features" / ".partial" / "progress.csv"
        return watch([sys.executable, "features.py", "--data-dir", folder, "--workers", str(who)], journal, skip=16)


def time_collections(clips):
    """Tracks per second of features.py with one and with two processes, in turns.

    Returns
    -------
    found : dict of int to ndarray, shape (rounds, 2)
        Number of processes to tracks per second, with start-up and without.
    """
    found = {1: [], 2: []}
    for _ in range(ROUNDS):
        for workers, values in found.items():
            seconds, _, rate = run_collection(workers, clips, TRACKS)
            values.append((TRACKS / seconds, rate))
    return {workers: np.array(values) for workers, values in found.items()}


def peak_memory(clips):
    """Peak memory (MiB) of features.py with one process, and of the original's procedure, on n and 2 n tracks."""
    return {who: [run_collection(who, clips, n)[1] for n in (TRACKS, 2 * TRACKS)] for who in (1, "original")}


# ---------------------------------------------------------------- the command


def measure(data_dir):
    """All that this benchmark measures.

    Returns
    -------
    dict
        ``seconds``, ``parts``, ``rates`` and ``memory``, as the functions above give them, and ``clips``, in a line.
    """
    clips = find_clips(data_dir, CLIPS)
    with threadpool_limits(1):
        seconds, parts = time_clips(clips, REPEATS), time_parts(clips[0], REPEATS)
    return {"clips": describe(clips), "seconds": seconds, "parts": parts, "rates": time_collections(clips),
            "memory": peak_memory(clips)}


def report(found):
    """What `measure` found, as four tables."""
    seconds, rates = found["seconds"], found["rates"]
    rows = [(name, f"{1000 * np.median(values):.0f}", f"{ratio(values, seconds['decoding']):.2f}",
             f"{ratio(values, seconds['six features']):.2f}") for name, values in seconds.items()]
    tables = [format_table(rows, ["one clip, one thread", "ms", "/ decoding", "/ six features"])]
    rows = [(name, *(None if value is None else f"{value:.1f}" for value in parts)) for name, *parts in found["parts"]]
    tables.append(format_table(rows, ["part of the six features", "ms", "librosa's call, ms", "librosa / ours"]))
    rows = [(f"features.py, {workers} process{'es' if workers > 1 else ''}",
             *(f"{x:.2f}" for x in np.median(rates[workers], axis=0)),
             *(f"{ratio(x, x1):.2f}" for x, x1 in zip(rates[workers].T, rates[1].T, strict=True))) for workers in rates]
    tables.append(format_table(rows, [f"tracks/s over {TRACKS} tracks", "from start to end", "without start-up",
                                      "/ 1 process", "/ 1 process, without start-up"]))
    rows = [("original" if who == "original" else "features.py, 1 process", f"{small:.0f}", f"{large:.0f}",
             f"{(large - small) / TRACKS:+.2f}") for who, (small, large) in found["memory"].items()]
    tables.append(format_table(rows, ["peak memory", f"MiB, {TRACKS} tracks", f"MiB, {2 * TRACKS} tracks",
                                      "MiB per track more"]))
    return "\n\n".join(tables)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Measure what features cost, in one thread but for two processes.")
    parser.add_argument("--data-dir", help="in FMA's layout (default: $DATA_DIR, data, or the demo corpus)")
    args = parser.parse_args(argv)
    print(machine("librosa", "numpy", "soxr", "soundfile") + f", libsndfile {soundfile.__libsndfile_version__}",
          flush=True)
    found = measure(find_data(args.data_dir))
    print(f"{found['clips']}\n\n{report(found)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
