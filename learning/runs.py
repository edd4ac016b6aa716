"""What a run leaves on disk, ``runs/<dataset>/<experiment>/seed<k>/``, and how to read it again.

The runs of a cross-validated seed are in ``seed<k>_folds/fold0/``, ``fold1/``, ...; `load_probabilities` and
`load_history` take ``seed<k>_folds`` for one run that was tested on the clips of all folds.

    config.json             all that is needed to rebuild the network and to feed it
    model.safetensors       weights of the epoch chosen on validation
    history.jsonl           a line for each epoch
    probabilities.npz       of that epoch, on validation and test, with labels, tracks and artists
    state.pt                where an unfinished run continues
"""

import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from audio.cache import copy_name, save_text, save_whole
from evaluation import bootstrap_interval, format_interval
from fma import DataError

WATCHED = ("model", "feature", "feature_parameters", "scale", "normalisation", "genres", "training", "pitch_shifts",
           "data", "start")


def versions():
    """Versions of Python and of the packages that training uses."""
    return {"python": platform.python_version(),
            **{lib: importlib.metadata.version(lib) for lib in ("torch", "numpy", "pandas", "safetensors")}}


def commit():
    """The commit of this code, followed by ``+changes`` if files differ from it; None outside a git repository."""
    folder = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(["git", "--no-optional-locks", "describe", "--always", "--abbrev=40", "--exclude=*",
                               "--dirty=+changes"], cwd=folder, capture_output=True, text=True, timeout=20,
                              env=os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)})   # not a parent's
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def run_folder(runs_dir, dataset, experiment, seed, fold=None):
    """Where a run is kept: ``<runs_dir>/<dataset>/<experiment>/seed<k>``, or ``seed<k>_folds/fold<fold>``."""
    folder = Path(runs_dir) / dataset / experiment
    return folder / f"seed{seed}" if fold is None else folder / f"seed{seed}_folds" / f"fold{fold}"


def fold_runs(run_dir):
    """The runs of all folds in the folder of a cross-validated seed, finished or not; of any other folder none."""
    begun = next(Path(run_dir).glob("fold*/config.json"), None)
    return [Path(run_dir) / f"fold{k}" for k in range(load_config(begun.parent).get("folds", 0))] if begun else []


def fingerprint(model):
    """Identify what a network computes by its layers and the source of its forward methods: twelve letters."""
    ours = {type(part) for part in model.modules() if not type(part).forward.__module__.startswith("torch.")}
    forwards = [inspect.getsource(kind.forward) for kind in sorted(ours, key=lambda kind: kind.__name__)]
    return hashlib.sha256("".join([repr(model), *forwards]).encode()).hexdigest()[:12]


def data_fingerprints(dataset, split="split"):
    """Hash the data of a run: sixteen hexadecimal digits for each file.

    These are ``tracks.csv``, its genres, artists, and splits or folds (the column `split`); ``index.csv``; each array
    that is read, with its pitch-shifted copies if they are open; and ``tags``, if a network learns from them. Every
    byte counts, 0.1 s for FMA-small's 131 MB of mel128; later runs on the same dataset do not read the files again.
    """
    used = dataset.tracks[["genre", split]].assign(artist=dataset.artists).sort_index()
    found = {name: hashlib.sha256(table.to_csv(lineterminator="\n").encode()).hexdigest()[:16]
             for name, table in (("tracks.csv", used), ("index.csv", dataset.tracks["status"]))}
    for part in dataset.parts:
        for name in (part.feature, *(copy_name(part.feature, semitones) for semitones in part.copies or ())):
            if name not in part.hashes:
                with open(part.features_dir / f"{name}.npy", "rb") as file:
                    part.hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            found[f"{name}.npy"] = part.hashes[name]
    if dataset.tags is not None:
        found["tags"] = hashlib.sha256(dataset.tags.bool().cpu().numpy().tobytes()).hexdigest()[:16]
    return found


@contextmanager
def lock(run_dir, write=True):
    """Keep a second process from training the same run, with a DataError; the lock ends with its process.

    Of the processes that share a training the first locks (`write`). A finished run is only read, and not locked.
    """
    if not write or is_finished(run_dir):
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:                         # Windows, which cannot lock a folder
        yield
        return
    folder = os.open(run_dir, os.O_RDONLY)      # the folder itself, so no lock file remains
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise DataError(f"{run_dir} is being trained by another process: wait for it, or stop it") from error
    except OSError:
        pass                                    # the file system has no locks
    try:
        yield
    finally:
        os.close(folder)


def start_run(run_dir, config, write=True):
    """Make the folder of a run and its config.json; a DataError if another network, feature, ... was begun there."""
    path, config = run_dir / "config.json", json.loads(json.dumps(config))
    if not path.is_file():
        if write:
            run_dir.mkdir(parents=True, exist_ok=True)
            save_text(path, json.dumps(config, indent=1))
        return
    there = load_config(run_dir)
    for part in WATCHED:
        old, new = there.get(part), config.get(part)
        if (old == new or (part == "data" and part not in there)        # started before data were hashed
                or (part == "normalisation" and same_numbers(old, new))
                or (part == "model" and _same_model(there, config))):
            continue
        keys = [k for k in new if old.get(k) != new[k]] if isinstance(old, dict) and isinstance(new, dict) else []
        what = f"{part} ({', '.join(keys)})" if keys else part
        raise DataError(f"{run_dir} was begun with {'other' if part == 'data' else 'another'} {what}: "
                        "delete it or pass another --runs-dir")


def _same_model(there, config):
    """Whether two configs have one network, whose fingerprint differs only because another torch prints its layers."""
    old, new = ({**one["model"], "fingerprint": None} for one in (there, config))
    before, now = (one.get("versions", {}).get("torch") for one in (there, config))
    return old == new and before != now


def same_numbers(a, b):
    """Whether nested dicts and lists hold the same numbers up to rounding: sums differ from processor to processor."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_numbers(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_numbers, a, b))
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return numbers and abs(a - b) <= 1e-6 * max(1.0, abs(a), abs(b))


def is_finished(run_dir):
    """Whether the run is complete: its probabilities are written last."""
    return (run_dir / "probabilities.npz").is_file()


def save_state(run_dir, model, optimizer, history, mean=None, scaler=None):
    """Write what an interrupted run needs to continue after this epoch, with the mean of its weights and its scaler."""
    import torch  # here, as in load_state: reading results needs no torch

    state = {name: part.state_dict() for name, part in _stateful(model, optimizer, mean, scaler).items()}
    save_history(run_dir, history)
    save_whole(run_dir / "state.pt", lambda path: torch.save(state | {"history": history}, path))


def _stateful(model, optimizer, mean, scaler):
    """The parts of a training that state.pt holds."""
    parts = {"model": model, "optimizer": optimizer, "mean": mean,
             "scaler": scaler if scaler and scaler.is_enabled() else None}
    return {name: part for name, part in parts.items() if part is not None}


def save_history(run_dir, history):
    """Write history.jsonl."""
    save_text(run_dir / "history.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in history))


def load_state(run_dir, model, optimizer, mean=None, scaler=None):
    """Set model, optimizer, mean of the weights and scaler to the last saved epoch of an interrupted run.

    Returns its history, a list of dict for each epoch so far: empty if there is no such run.
    """
    path = run_dir / "state.pt"
    if not path.is_file():
        return []
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # parts copy it to where they are
        for name, part in _stateful(model, optimizer, mean, scaler).items():
            part.load_state_dict(state[name])
        return state["history"]
    except Exception as error:      # torch raises half a dozen kinds for a damaged file
        raise DataError(f"{path} is damaged or of another network: delete {run_dir} to start again") from error


def save_weights(run_dir, weights):
    """Write model.safetensors: a network's ``state_dict()``."""
    from safetensors.torch import save

    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_whole(run_dir / "model.safetensors", lambda path: path.write_bytes(save(weights)))


def load_weights(run_dir, model):
    """Set a network to the weights of the run's chosen epoch."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(run_dir) / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be loaded ({reason}): delete {run_dir} and train again") from error
    return model


def load_history(run_dir):
    """The epochs of a run, as a list of dict; of a cross-validated seed, the means over its folds."""
    if folds := [load_history(part) for part in fold_runs(run_dir)]:
        return [{key: type(value)(np.mean([epoch[key] for epoch in epochs])) for key, value in epochs[0].items()}
                for epochs in zip(*folds, strict=False)]        # as many as the shortest has
    path = Path(run_dir) / "history.jsonl"
    try:
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        "{validation_accuracy:f} {validation_loss:f} {epoch:d}".format(**selected(history))     # they are numbers
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is missing or damaged: delete {run_dir} and train again") from error
    return history


def load_config(run_dir):
    """The run's config.json."""
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        raise DataError(f"{path} not found: {run_dir} is not the folder of a run")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model"]["class"], config["model"]["args"], config["training"]["seed"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: delete {run_dir} and train again") from error
    return config


def selected(history):
    """The epoch of highest validation accuracy; of several, the one of lowest validation loss."""
    return max(history, key=lambda epoch: (epoch["validation_accuracy"], -epoch["validation_loss"]))


def save_probabilities(run_dir, dataset, probabilities):
    """Write probabilities.npz: all that evaluation needs, and the mark of a finished run.

    `probabilities` are a Tensor (clips, classes) for each split, in the order of ``dataset.rows``.
    """
    arrays = {"genres": np.array(dataset.genres)}
    for split, values in probabilities.items():
        rows = dataset.rows[split]
        arrays |= {f"{split}_probabilities": values.numpy(), f"{split}_labels": dataset.labels[rows].cpu().numpy(),
                   f"{split}_tracks": dataset.tracks.index[rows].to_numpy(),
                   f"{split}_artists": np.asarray(dataset.artists[rows], dtype=str)}

    def write(path):
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    save_whole(run_dir / "probabilities.npz", write)


def load_probabilities(run_dir, split="test"):
    """Read the predictions of a finished run for each clip of a split.

    Returns
    -------
    dict of ndarray
        ``probabilities`` (clips, classes), ``labels``, ``tracks`` and ``artists`` (clips,), ``genres`` (classes,). Of
        a cross-validated seed, the clips of all folds.
    """
    if folds := [load_probabilities(part, split) for part in fold_runs(run_dir)]:
        return {key: np.concatenate([said[key] for said in folds]) if key != "genres" else folds[0][key]
                for key in folds[0]}
    path = Path(run_dir) / "probabilities.npz"
    if not path.is_file():
        raise DataError(f"{path} not found: the run is not finished, continue it with the command that started it")
    try:
        with np.load(path, allow_pickle=False) as saved:
            parts = ("probabilities", "labels", "tracks", "artists")
            if any(member.compress_type for member in saved.zip.infolist()):
                raise ValueError("it is compressed, to who knows how much")
            found = {"genres": saved["genres"], **{part: saved[f"{split}_{part}"] for part in parts}}
        (clips, classes), labels = found["probabilities"].shape, found["labels"]
        if not ({len(found[part]) for part in parts} == {clips} and len(found["genres"]) == classes
                and np.isfinite(found["probabilities"]).all() and set(labels.tolist()) <= set(range(classes))):
            raise ValueError("its arrays do not belong together")
        return found
    except Exception as error:      # NumPy and zipfile have a dozen kinds for a damaged file
        raise DataError(f"{path} is damaged: delete {run_dir} and train again") from error


def known_artists(said):
    """Artists of what `load_probabilities` gives; None if no artist is known, for intervals over clips."""
    alone = [artist in (str(track), f"track {track}")           # as `fma.artists_of` writes them
             for artist, track in zip(said["artists"].tolist(), said["tracks"].tolist(), strict=True)]
    return None if all(alone) else said["artists"]


def report(run_dir):
    """Summarise a run in one line: the chosen epoch, and the test accuracy of its weights."""
    history, test = load_history(run_dir), load_probabilities(run_dir)
    best, right = selected(history), test["probabilities"].argmax(1) == test["labels"]
    interval = format_interval(bootstrap_interval(right, known_artists(test)))
    skipped = sum(epoch.get("skipped_steps", 0) for epoch in history)
    return (f"{run_dir}: epoch {best['epoch']} of {len(history)} has the best validation accuracy, "
            f"{100 * best['validation_accuracy']:.1f} %; test accuracy {100 * right.mean():.1f} % "
            f"(95 % interval {interval}, {len(right)} clips)"
            + (f"; {skipped} steps overflowed in float16 and were skipped" if skipped else ""))
