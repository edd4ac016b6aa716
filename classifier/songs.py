"""Songs in, probabilities out: a track is read in windows as long as the clips that a network learned, and the
probabilities of its windows are averaged.

    from predict import classify
    for found in classify(["song.mp3", "other.flac"]):                  # or classify(..., "allmusic")
        print(found["file"], found.get("genre"), found.get("error"))    # the genre may be "none of these"
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import current_process
from numbers import Real

import numpy as np

from audio.cache import kept_frames
from audio.decoding import Undecodable, open_audio
from audio.embeddings import EMBEDDINGS, embed, load_encoder
from audio.transforms import FEATURES, SAMPLE_RATE, SILENCE, extract, resample
from audio.workers import in_processes
from classifier.network import DEFAULT, Classifier, clip_part, load_classifier, read_config
from fma import progress_bar

WINDOW = 30.0                   # seconds: as long as the clips that networks were trained on
FMA_RATE = 44_100               # Hz, of 19 in 20 of FMA's files: mel128's bands reach up to half the sample rate
WHOLE = 0.99                    # of a window: FMA's clips last 29.98 s or 30.0 s, and were trained on as they are
SHORTEST = 1.0                  # seconds of audio that an answer needs
LONGEST = 24                    # hours: a damaged header can claim months in a few megabytes
LIMIT = 60                      # seconds that a file may take, and 5 for each MB: ten times what is normal
NARROW = 0.6                    # of the range of a feature: with less, the highs are missing; mp3 of 64 kb/s has 0.5
NONE = "none of these"          # the answer to what is of none of the genres
NOTHING = 1e-10                 # of the strongest frequency's power (-100 dB): what a low-pass leaves is below


def windows(source, seconds=WINDOW, notes=None):
    """Read a track window by window: memory does not grow with its length.

    Parameters
    ----------
    source : path-like, bytes or (array, int)
        See `decoding.open_audio`.
    seconds : float
        Length of a window. The last one ends where the track does, overlapping the one before; a track that is
        clearly shorter is repeated until it fills one.
    notes : list, optional
        Gets a line if the file could not be read to its end.

    Yields
    ------
    start : float
        Seconds from the beginning.
    y : ndarray, shape (samples,), float32
        Mono.
    sample_rate : int
        The file's own.

    Raises
    ------
    Undecodable
        If there is no audio, too little or too much of it.
    """
    with open_audio(source) as file:
        rate, size, done, before = file.sample_rate, int(seconds * file.sample_rate), 0, None
        while len(y := file.read(size)):
            if done > LONGEST * 3600 * rate:
                raise Undecodable(f"longer than {LONGEST} hours: cut it")
            if len(y) < size and before is not None:
                if len(y) >= SHORTEST * rate:           # less would be the same window again
                    yield (done + len(y)) / rate - seconds, np.concatenate([before, y])[-size:], rate
            elif len(y) < size:
                if len(y) < SHORTEST * rate:
                    raise Undecodable(f"only {len(y) / rate:.2f} seconds of audio")
                yield 0.0, y if len(y) >= WHOLE * size else np.resize(y, size), rate
            else:
                yield done / rate, y, rate
            done, before = done + len(y), y
        if not done:
            raise Undecodable("no audio in it")
        if file.unread and notes is not None:
            notes.append(f"its last {100 * file.unread:.0f} % were not read: PyAV (pip install av) may read on")


def usual_rate(config):
    """Sample rate (Hz) to which files are resampled for a network; None: not at all, as its cache was made.

    The bands of mel128 reach up to half the sample rate, so files of another rate would have other bands.
    """
    return FMA_RATE if config["feature"] == "mel128" and config["dataset"].startswith("fma_") else None


def bandwidth(y, sample_rate):
    """The highest frequency (Hz) of a waveform that has any power, `NOTHING` of the strongest.

    >>> noise = np.random.default_rng(0).normal(0, 0.1, 88_200).astype(np.float32)
    >>> round(bandwidth(resample(noise, 22_050, 44_100), 44_100), -3)
    11000.0
    """
    n_fft = min(2048, len(y))
    frames = y[: len(y) // n_fft * n_fft].reshape(-1, n_fft)[::4] * np.hanning(n_fft).astype(np.float32)
    power = (np.abs(np.fft.rfft(frames)) ** 2).mean(0)
    heard = np.nonzero(power > NOTHING * power.max())[0]
    return float(heard[-1] * sample_rate / n_fft) if len(heard) else sample_rate / 2


def highest(feature, sample_rate):
    """The highest frequency (Hz) that a feature shows, of clips of a sample rate."""
    if feature in EMBEDDINGS:
        return load_encoder(feature).sample_rate / 2
    given = FEATURES[feature]
    if isinstance(given.get("fmin"), str):          # a note
        import librosa

        octaves = given.get("n_bins", given["bins"]) / given.get("bins_per_octave", 12)
        return float(librosa.note_to_hz(given["fmin"])) * 2**octaves
    return given.get("fmax", (sample_rate if feature == "mel128" else SAMPLE_RATE) / 2)


def clip_features(source, config):
    """The feature of each window of one track, silent windows left out.

    Parameters
    ----------
    source : path-like, bytes or (array, int)
        See `decoding.open_audio`.
    config : dict
        Of a network: its feature, the length of the clips that it learned, and `usual_rate`.

    Returns
    -------
    starts : list of float
        Seconds.
    x : ndarray, shape (windows, bins, frames), or str
        Why there are none.
    notes : list of str
        What makes the answer doubtful: highs that are missing, an end that was not read.
    """
    feature, usual, part = config["feature"], usual_rate(config), clip_part(config)
    n_frames = kept_frames(feature, part)
    starts, found, notes, widest, reach = [], [], [], 0.0, 0.0
    try:
        for start, y, rate in windows(source, part["seconds"], notes):
            if np.abs(y).max() < SILENCE:
                continue
            starts.append(start)
            widest, reach = max(widest, bandwidth(y, rate)), highest(feature, usual or rate)
            if usual:
                y, rate = resample(y, rate, usual), usual
            found.append(embed(y, rate, feature) if feature in EMBEDDINGS else
                         extract(y, rate, [feature])[feature][:, :n_frames])
    except Undecodable as error:
        return [], str(error), []
    except Exception as error:                              # a strange sample rate, too little memory
        return [], f"{type(error).__name__}: {' '.join(str(error).split())}", []
    if not found:
        return [], "silence", []
    if widest < NARROW * reach:
        notes.append(f"nothing above {widest / 1000:.1f} kHz, and the network learned clips with up to "
                     f"{reach / 1000:.0f} kHz: it may err more")
    return starts, np.stack(found), notes


def answer(name, starts, x, notes, classifier):
    """The result for one file.

    Returns
    -------
    dict
        ``file``; ``genre``, the most probable or `NONE`, and ``probabilities`` of all, or ``error``; ``none``, the
        probability that it is none of them, if the network has a detector; ``course``, the same of each window with
        its ``start`` in seconds; ``note``, if something makes the answer doubtful.
    """
    if isinstance(x, str):
        return {"file": name, "error": x}
    parts = (classifier.answers(x[k : k + 64]) for k in range(0, len(x), 64))
    each, none = (np.concatenate(part) for part in zip(*parts, strict=True))

    def named(values, none):
        said = {genre: round(float(value), 4) for genre, value in zip(classifier.genres, values, strict=True)}
        genre = NONE if none > classifier.threshold else classifier.genres[int(values.argmax())]
        return {"genre": genre, "probabilities": said} | (
            {"none": round(float(none), 4)} if classifier.detector else {})

    course = [{"start": round(start, 2)} | named(*both) for start, *both in zip(starts, each, none, strict=True)]
    return {"file": name, **named(each.mean(0), none.mean()), "course": course} | (
        {"note": "; ".join(notes)} if notes else {})


def classify(songs, classifier=None, workers=None, progress=False):
    """Classify songs, in their order, decoding in several processes. No main guard is needed.

    Parameters
    ----------
    songs : sequence, or one of them
        Each a path, the content of a file as bytes, an open binary file, or (samples, sample rate), where samples
        have the shape (samples,), or channels as one of two axes.
    classifier : classifier.network.Classifier or path-like, optional
        A classifier, or what `load_classifier` takes; the shipped one of FMA's genres by default.
    workers : int, optional
        Processes; one per core by default, none for a single file.
    progress : bool
        Show a progress bar.

    Yields
    ------
    dict
        See `answer`; ``file`` is the path, or "song 3" for the third if it is none. A file that cannot be read has an
        ``error``, and the rest go on.
    """
    songs, answers, following = _as_list(songs), {}, 0
    with ThreadPoolExecutor(1) as background:               # torch is imported while the first files are decoded
        if isinstance(classifier, Classifier):
            config, load = classifier.config, lambda: classifier
        else:
            config = read_config(classifier or DEFAULT)
            load = background.submit(load_classifier, classifier or DEFAULT).result
        decode = partial(_decode, config)
        workers = 1 if current_process().daemon else min(len(songs), workers or os.cpu_count() or 1)
        rows = ((k, song.read() if hasattr(song, "read") else song) for k, song in enumerate(songs))
        done = (in_processes(rows, decode, workers, _limit(songs), _use_one_thread, (config["feature"],))
                if workers > 1 else ((row, decode(row), None) for row in rows))
        for (k, song), found, reason in progress_bar(done, total=len(songs), unit="file", show=progress):
            name = os.fspath(song) if isinstance(song, (str, os.PathLike)) else f"song {k + 1}"
            answers[k] = answer(name, *(found or ([], f"decoding it {reason}", [])), load())
            while following in answers:                     # they come as they are finished
                yield answers.pop(following)
                following += 1


def _as_list(songs):
    """Several songs as a list, also one alone, which may be a text, bytes or a pair."""
    one = isinstance(songs, (str, bytes, os.PathLike)) or hasattr(songs, "read") or (
        isinstance(songs, tuple) and len(songs) == 2 and isinstance(songs[1], Real))
    return [songs] if one else list(songs)


def _decode(config, row):
    return clip_features(row[1], config)


def _limit(songs):
    """Seconds that a file may take: then its decoder hangs."""
    paths = (song for song in songs if isinstance(song, (str, os.PathLike)))
    return LIMIT + 5e-6 * max((os.path.getsize(path) for path in paths if os.path.isfile(path)), default=0)


def _use_one_thread(feature):
    """Limit linear algebra, and torch for an embedding, to one thread: the processes share the cores."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    if feature in EMBEDDINGS:
        import torch

        torch.set_num_threads(1)
