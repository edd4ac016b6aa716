"""None of these: sounds that are of none of the genres, and a detector that has learned them.

    python -m classifier.outside data/outside --music data/emotify

makes 40 noises, and 40 texts spoken by espeak-ng in ten languages, and links the clips of a collection, by artist, in
five folds: ``<fold>/<kind>/<name>``. Clips of a genre that a network knows are known here too: they keep the detector
from learning how a collection was encoded. No score of a network that has learned its genres alone (probability,
energy, distance to the clips that it learned) separates classical music from these (docs/results.md).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from classifier.linear import fit_linear
from classifier.songs import clip_features
from fma import DataError, audio_paths, load_tracks, progress_bar, run_command
from learning.folds import load_folds

FOLDS, EACH, RATE, SECONDS = 5, 40, 44_100, 30
VOICES = ("en-us", "en-gb", "de", "nl", "fr", "it", "es", "pt", "sv", "pl")     # two to a fold
TIMBRES = ("", "+f2", "+m3", "+f4")
THRESHOLD = 0.5     # of the detector's probability, where known and other sounds count alike


# ---------------------------------------------------------------- sounds


def noise(seed):
    """Thirty seconds of noise: white, pink or brown, whole, dull or in a band, some of it pulsating, at any level.

    Returns
    -------
    y : ndarray, shape (samples,), float32
        At `RATE`; its peak is at −60 to −3 dB.
    """
    rng, n = np.random.default_rng(seed), SECONDS * RATE
    f = np.fft.rfftfreq(n, 1 / RATE)
    spectrum = rng.normal(size=len(f)) + 1j * rng.normal(size=len(f))
    spectrum *= np.maximum(f, 20) ** (0, -0.5, -1)[seed % 3]
    if seed // 3 % 3 == 1:
        spectrum[f > rng.uniform(500, 8000)] *= 1e-3
    elif seed // 3 % 3 == 2:
        middle = rng.uniform(200, 5000)
        spectrum *= np.exp(-(((f - middle) / (middle / 3)) ** 2)) + 1e-3
    y = np.fft.irfft(spectrum, n)
    if seed % 4 == 3:
        y *= np.abs(np.sin(np.pi * np.arange(n) / RATE * rng.uniform(0.05, 3)))
    return (y / np.abs(y).max() * 10 ** (rng.uniform(-60, -3) / 20)).astype(np.float32)


def speak(path, number, text):
    """Have espeak-ng read a part of a text into a WAV file."""
    voice = VOICES[number % len(VOICES)] + TIMBRES[number // len(VOICES) % len(TIMBRES)]
    said = text[150 * number % max(1, len(text) - 1200) :][:1200]
    speed, pitch = 140 + 7 * number % 50, 30 + 13 * number % 50
    try:
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path), "--stdin"],
                       input=said.encode(), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(f"{path} cannot be spoken: install espeak-ng (apt install espeak-ng)") from error


def make(folder, music):
    """Make noise and speech, and link the music of a collection with folds; noise and speech that are there stay.

    Returns
    -------
    int
        How many tracks of the collection are left out, since they have no genre or are in no fold.
    """
    import soundfile

    tracks = load_tracks(music)
    tracks = tracks.assign(fold=load_folds(music, "small", tracks))
    used = tracks[tracks["genre"].notna() & (tracks["fold"] >= 0)]
    folder, text, linked = Path(folder), (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8"), set()
    text = " ".join(text.replace("|", " ").split())
    for number in range(EACH):
        for kind, fold in (("noise", number % FOLDS), ("speech", number % len(VOICES) // 2)):
            path = folder / str(fold) / kind / f"{number:02d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "noise" and not path.exists():
                soundfile.write(path, noise(number), RATE, subtype="FLOAT")
            elif not path.exists():
                speak(path, number, text)
    for track, file in audio_paths(music, used).items():
        link = folder / str(used["fold"][track] % FOLDS) / _kind(used["genre"][track]) / file.name
        if link in linked:                      # another file of this name, of another folder
            link = link.with_name(f"{track}-{file.name}")
        linked.add(link)
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(os.path.abspath(file))
    return len(tracks) - len(used)


def _kind(genre):
    """The folder of a genre, whose name may hold a slash."""
    return str(genre).replace("/", "-")


# ---------------------------------------------------------------- what a network would hear of them


def hear(folder, config):
    """The first window of each clip as predict.py feeds it to a network.

    Returns
    -------
    x : ndarray, shape (clips, bins, frames), float32
    kinds : ndarray of str, shape (clips,)
    folds : ndarray of int, shape (clips,)
    """
    paths, found = sorted(Path(folder).glob("*/*/*")), []
    if not paths:
        raise DataError(f"{folder} holds no clips: python -m classifier.outside {folder} --music data/emotify")
    for path in progress_bar(paths, unit="clip", leave=False):
        if not (path.parts[-3].isdecimal() and path.is_file()):
            raise DataError(f"{path} is no clip: delete it, the layout is {folder}/<fold: 0, 1, ...>/<kind>/<file>")
        _, x, _ = clip_features(path, config)
        if isinstance(x, str):
            raise DataError(f"{path}: {x}: delete it")
        found.append(x[0].astype(np.float32))
    folds, kinds = zip(*(path.parts[-3:-1] for path in paths), strict=True)
    return np.stack(found), np.array(kinds), np.array(folds, dtype=int)


# ---------------------------------------------------------------- the detector


def fit_detector(classifier, data_dir, folder, subset="small"):
    """Fit a `resnet_models.Linear` that tells clips of a network's genres from other sounds.

    The known half of the weight is that of the collection's clips in a fold and, as much, of clips outside it that are
    of the network's genres; in the other half each kind of sound counts alike.

    Parameters
    ----------
    classifier : classifier.network.Classifier
    data_dir : path-like
        The collection that it has learned, with folds; tracks in no fold are only judged.
    folder : path-like
        As `make` makes it.

    Returns
    -------
    detector : Linear
        Of normalised clips: the second of two classes is "none of these".
    judged : dict of int to float
        Probability of that for each track of the collection, by a detector that has not learned its fold.
    others : dict of str to ndarray
        The same of the clips in the folder, by kind.
    unheard : dict of str to ndarray
        The same of each kind that is of no known genre, by a detector that has not learned this kind; None of the
        only one.
    """
    import torch

    from dataset import FeatureDataset

    config = classifier.config
    dataset = FeatureDataset(data_dir, config["feature"], config["scale"], subset)
    dataset.normalise(**config["normalisation"])
    rows = np.flatnonzero(dataset.usable)
    sounds, kinds, fold_of_sound = hear(folder, config)
    x = torch.cat([dataset.normalised(dataset.raw(rows)), classifier.normalised(sounds)])
    folds = np.concatenate([load_folds(data_dir, subset, dataset.tracks)[rows], fold_of_sound])
    kind = np.concatenate([np.full(len(rows), ""), kinds])
    other = _unknown(kind, folds, config["genres"], folder)
    said, detector = np.zeros(len(x)), _fit(x, kind, other, folds >= 0)
    for fold in np.unique(folds):
        judge = _fit(x, kind, other, (folds >= 0) & (folds != fold)) if fold >= 0 else detector
        said[folds == fold] = _judge(judge, x[folds == fold])
    unheard = dict.fromkeys(np.unique(kind[other]).tolist())
    for each in unheard if len(unheard) > 1 else ():
        unheard[each] = _judge(_fit(x, kind, other, (folds >= 0) & (kind != each)), x[kind == each])
    judged = dict(zip(dataset.tracks.index[rows].tolist(), said[: len(rows)].tolist(), strict=True))
    return detector, judged, {each: said[kind == each] for each in np.unique(kinds).tolist()}, unheard


def _unknown(kind, folds, genres, folder):
    """Which sounds are of no known genre; a DataError unless each fold leaves some in the others."""
    known = {part for genre in genres for part in (_kind(genre), *genre.split("/"))}        # AllMusic's Pop/Rock
    other = ~np.isin(kind, ["", *known])
    if (count := len(np.unique(folds[other]))) < 2:
        raise DataError(f"{folder} has sounds of no known genre in {count} folds: put some into two at least")
    return other


def _fit(x, kind, other, chosen):
    """A detector of the chosen clips, with the weights that `fit_detector` describes."""
    weights, sounds = np.zeros(len(x)), [chosen & (kind == each) for each in np.unique(kind[other & chosen])]
    own = [chosen & (kind == ""), chosen & (kind != "") & ~other]
    for parts in (own, sounds):
        parts = [part for part in parts if part.any()]
        for part in parts:
            weights[part] = 1 / (len(parts) * part.sum())
    used = weights > 0
    return fit_linear(x[used], other[used].astype(int), weights[used])


def _judge(detector, x):
    """The probability of none of these for each clip."""
    import torch

    with torch.inference_mode():
        return torch.cat([detector(part).softmax(1)[:, 1] for part in x.split(256)]).numpy()


def main(argv=None):
    parser = argparse.ArgumentParser(description="Make sounds that are of none of a network's genres, in five folds.")
    parser.add_argument("folder")
    parser.add_argument("--music", required=True, help="a collection with folds, of which some genres are unknown")
    args = parser.parse_args(argv)
    out = make(args.folder, args.music)
    print(f"{args.folder}: {sum(1 for _ in Path(args.folder).glob('*/*/*'))} clips"
          + (f"; {out} tracks of {args.music} are left out: no genre, or in no fold" if out else ""))


if __name__ == "__main__":
    sys.exit(run_command(main))
