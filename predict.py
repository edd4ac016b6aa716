"""Genres of your own music: files in, probabilities out.

    python predict.py song.mp3
    python predict.py ~/music --json > genres.json
    python predict.py song.flac --weights runs/fma_small/mel128_square/seed0

Any format that libsndfile reads, up to a day long: a track is read in windows of 30 seconds, and their probabilities
are averaged. The shipped network knows only FMA-small's eight genres, and always answers with one of them.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from audio.cache import PART, kept_frames
from audio.transforms import SILENCE, Undecodable, extract, open_audio, read_mono, resample
from audio.workers import hush_libraries, in_processes
from fma import DataError, progress_bar, run_command

WINDOW = 30.0                   # seconds: as long as the clips that networks were trained on
FMA_RATE = 44_100               # Hz, of 19 in 20 of FMA's files: mel128's bands reach up to half the sample rate
WHOLE = 0.99                    # of a window: FMA's clips last 29.98 s or 30.0 s, and were trained on as they are
SHORTEST = 1.0                  # seconds of audio that an answer needs
LONGEST = 24                    # hours: a damaged header can claim months in a few megabytes
LIMIT = 60                      # seconds that a file may take, and 5 for each MB: ten times what is normal
ENDINGS = {".mp3", ".flac", ".ogg", ".opus", ".wav", ".aif", ".aiff", ".au", ".caf", ".w64", ".oga"}    # in folders


class Unreadable(Exception):
    """A file that cannot be classified, and why."""


def windows(path, seconds=WINDOW):
    """Read a track window by window: memory does not grow with its length.

    Parameters
    ----------
    path : path-like
    seconds : float
        Length of a window. The last one ends where the track does, overlapping the one before; a track that is
        clearly shorter is repeated until it fills one.

    Yields
    ------
    start : float
        Seconds from the beginning.
    y : ndarray, shape (samples,), float32
        Mono.
    sample_rate : int
        The file's own.
    """
    try:
        with open_audio(path) as file:
            rate, size, done, before = file.samplerate, int(seconds * file.samplerate), 0, None
            while len(y := read_mono(file, size)):
                if done > LONGEST * 3600 * rate:
                    raise Unreadable(f"longer than {LONGEST} hours: cut it")
                if len(y) < size and before is not None:
                    if len(y) >= SHORTEST * rate:           # less would be the same window again
                        yield (done + len(y)) / rate - seconds, np.concatenate([before, y])[-size:], rate
                elif len(y) < size:
                    if len(y) < SHORTEST * rate:
                        raise Unreadable(f"only {len(y) / rate:.2f} seconds of audio")
                    yield 0.0, y if len(y) >= WHOLE * size else np.resize(y, size), rate
                else:
                    yield done / rate, y, rate
                done, before = done + len(y), y
            if not done:
                raise Unreadable("no audio in it")
    except Undecodable as error:
        raise Unreadable(str(error)) from error


def usual_rate(config):
    """Sample rate (Hz) to which files are resampled for a network; None: not at all, as its cache was made.

    The bands of mel128 reach up to half the sample rate, so files of another rate would have other bands.
    """
    return FMA_RATE if config["feature"] == "mel128" and config["dataset"].startswith("fma_") else None


def clip_features(path, feature, usual=None, seconds=WINDOW):
    """The feature of each window of one track, silent windows left out.

    Parameters
    ----------
    path : path-like
    feature : str
    usual : int, optional
        See `usual_rate`.
    seconds : float
        Length of a window.

    Returns
    -------
    starts : list of float
        Seconds.
    x : ndarray, shape (windows, bins, frames), or str
        Why there are none.
    """
    n_frames = kept_frames(feature, PART | {"seconds": seconds})
    starts, found = [], []
    try:
        for start, y, rate in windows(path, seconds):
            if np.abs(y).max() < SILENCE:
                continue
            starts.append(start)
            if usual:
                y, rate = resample(y, rate, usual), usual
            found.append(extract(y, rate, [feature])[feature][:, :n_frames])
    except Unreadable as error:
        return [], str(error)
    except Exception as error:                              # a strange sample rate, too little memory
        return [], f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not found:
        return [], "silence"
    return starts, np.stack(found)


def answer(path, starts, x, classifier):
    """The result for one file.

    Returns
    -------
    dict
        ``file``; ``genre``, the most probable, and ``probabilities`` of all, or ``error``; ``course``, for each window
        its ``start`` in seconds and its ``probabilities``.
    """
    if isinstance(x, str):
        return {"file": str(path), "error": x}
    each = np.concatenate([classifier.probabilities(x[k : k + 64]) for k in range(0, len(x), 64)])
    mean = each.mean(0)

    def named(values):
        return {genre: round(float(value), 4) for genre, value in zip(classifier.genres, values, strict=True)}

    return {"file": str(path), "genre": classifier.genres[int(mean.argmax())], "probabilities": named(mean),
            "course": [{"start": round(start, 2), "probabilities": named(p)}
                       for start, p in zip(starts, each, strict=True)]}


def classify(paths, classifier=None, workers=None, progress=False):
    """Classify audio files, in their order, decoding in several processes.

    Parameters
    ----------
    paths : sequence of path-like
        Files.
    classifier : classifier.Classifier or path-like, optional
        A classifier, or what `load_classifier` takes; the shipped one by default.
    workers : int, optional
        Processes; one per core by default, none for a single file.
    progress : bool
        Show a progress bar.

    Yields
    ------
    dict
        See `answer`. A file that cannot be read has an ``error``, and the rest go on.
    """
    from classifier.network import DEFAULT, Classifier, clip_part, load_classifier, read_config

    paths, answers, following = list(paths), {}, 0
    with ThreadPoolExecutor(1) as background:               # torch is imported while the first files are decoded
        if isinstance(classifier, Classifier):
            config, load = classifier.config, lambda: classifier
        else:
            config = read_config(classifier or DEFAULT)
            load = background.submit(load_classifier, classifier or DEFAULT).result
        decode = partial(_decode, config["feature"], usual_rate(config), clip_part(config)["seconds"])
        workers = min(len(paths), workers or os.cpu_count() or 1)
        done = (in_processes(enumerate(paths), decode, workers, _limit(paths), _use_one_thread) if workers > 1 else
                ((row, decode(row), None) for row in enumerate(paths)))
        for (k, path), found, reason in progress_bar(done, total=len(paths), unit="file", show=progress):
            answers[k] = answer(path, *(found or ([], f"decoding it {reason}")), load())
            while following in answers:                     # they come as they are finished
                yield answers.pop(following)
                following += 1


def _decode(feature, usual, seconds, row):
    return clip_features(row[1], feature, usual, seconds)


def _limit(paths):
    """Seconds that a file may take: then its decoder hangs."""
    return LIMIT + 5e-6 * max((os.path.getsize(path) for path in paths if os.path.isfile(path)), default=0)


def _use_one_thread():
    """Limit linear algebra to one thread: the processes share the cores."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def audio_files(paths):
    """Files as they are, folders as the audio files in them, at any depth, sorted."""
    found = []
    if "" in paths:                     # from an unset variable: it would mean the current folder
        raise DataError("an empty name is no file: name files and folders")
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and not p.is_dir())
            if not inside:
                raise DataError(f"{path} holds no audio file ({', '.join(sorted(ENDINGS))})")
            found += inside
        elif not path.exists():
            raise DataError(f"{path} not found")
        else:
            found.append(path)
    return found


def as_line(found, width, top):
    """One line of the printed table: the file, and its most probable genres in per cent."""
    name = found["file"] if len(found["file"]) <= width else "…" + found["file"][1 - width :]
    name = "".join(c if c.isprintable() else "?" for c in name).ljust(width)
    if "error" in found:
        return f"{name}  not classified: {found['error']}"
    best = sorted(found["probabilities"].items(), key=lambda item: -item[1])[:top]
    return f"{name}  " + "  ".join(f"{genre} {100 * p:.0f} %" for genre, p in best)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Classify audio files by genre.")
    parser.add_argument("paths", nargs="+", metavar="FILE", help="audio files, and folders of them")
    parser.add_argument("--weights", help="exported weights, or the folder of a run (default: the shipped network)")
    parser.add_argument("--json", action="store_true", help="all probabilities, and their course over time, as JSON")
    parser.add_argument("--course", action="store_true", help="a line for every 30 seconds as well")
    parser.add_argument("--top", type=int, default=3, help="genres to print for each file (default 3)")
    parser.add_argument("--workers", type=int, help="processes that decode (default: one per core)")
    args = parser.parse_args(argv)
    if args.top < 1 or args.workers is not None and args.workers < 1:
        parser.error("--top and --workers must be at least 1")
    paths = audio_files(args.paths)
    found, width = [], max(min(60, len(str(path))) for path in paths)
    for each in classify(paths, args.weights, args.workers, progress=len(paths) > 1 and sys.stderr.isatty()):
        found.append(each)
        if not args.json:
            print(as_line(each, width, args.top), flush=True)
            for part in each.get("course", []) if args.course else []:
                minutes, seconds = divmod(int(part["start"]), 60)
                print(as_line({**part, "file": f"  {minutes}:{seconds:02d}"}, width, args.top))
    if args.json:
        print(json.dumps(found, indent=1))
    return 1 if all("error" in each for each in found) else 0


if __name__ == "__main__":
    hush_libraries()
    sys.exit(run_command(main))
