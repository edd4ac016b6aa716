"""A trained network ready to use: exported with everything it needs, loaded, calibrated.

    weights/<name>.safetensors      the weights
    weights/<name>.json             the run's config, calibration and test metrics
    weights/<name>.md               the model card

``python -m classifier.network runs/fma_small/statistics_resnet/seed0 weights/statistics_resnet`` exports a run.
"""

import argparse
import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation import summarise
from fma import DataError, run_command

DEFAULT = Path(__file__).resolve().parents[1] / "weights" / "statistics_resnet"


@dataclass
class Classifier:
    """A network with everything needed to prepare its input and interpret its output."""

    network: object         # nn.Module, in evaluation mode
    config: dict            # as runs.load_config gives it: feature, normalisation, genres, model
    temperature: float      # divides the logits before the softmax

    @property
    def genres(self):
        """Names of the classes."""
        return self.config["genres"]

    def probabilities(self, x):
        """Calibrated genre probabilities of clips.

        Parameters
        ----------
        x : ndarray, shape (clips, bins, frames)
            In the feature's unit, as `transforms.extract` returns it.

        Returns
        -------
        ndarray, shape (clips, genres), float32
        """
        import torch

        with torch.inference_mode():
            return self.outputs(x).numpy()

    def outputs(self, x):
        """The same of a Tensor, as a Tensor."""
        return (self.logits(self.normalised(x)) / self.temperature).softmax(1)

    def normalised(self, x):
        """Normalised clips, the network's input: Tensor, shape (clips, bins, frames), float32."""
        import torch

        mean, std = (torch.tensor(self.config["normalisation"][key]).reshape(-1, 1) for key in ("mean", "std"))
        x = torch.as_tensor(x, dtype=torch.float32)
        if self.config["scale"] == "linear":
            x = (x * (self.config["feature_parameters"]["power"] / 20 * np.log(10))).exp()
        return (x - mean) / std

    def logits(self, x):
        """Logits of normalised clips: Tensor, shape (clips, genres)."""
        from learning.inference import clip_logits

        return clip_logits(self.network, x, self.config["training"].get("chunk", 0))


def load_classifier(path=DEFAULT):
    """Load exported weights, or any finished run.

    Parameters
    ----------
    path : path-like
        ``weights/<name>``, with or without ``.safetensors``, or the folder of a run.

    Returns
    -------
    Classifier
    """
    from learning.runs import load_weights

    config = read_config(path)
    path, named, weights, remedy = _files(path)
    with _damage_named(named, remedy):
        network = _rebuild(config, weights, remedy)
        if path.is_dir():
            temperature = fit_temperature(*_log_probabilities(path, "validation"))
            found = Classifier(load_weights(path, network).eval(), config, temperature)
        else:
            found = Classifier(_load_tensors(weights, network).eval(), config, float(config["temperature"]))
        _try_out(found)
    return found


def read_config(path=DEFAULT):
    """The config of exported weights or of a run, as `load_classifier` finds them, without importing torch: dict."""
    from learning.runs import load_config

    path, named, _, remedy = _files(path)
    with _damage_named(named, remedy):
        config = load_config(path) if path.is_dir() else json.loads(named.read_text(encoding="utf-8"))
        _require_predictable(path, config)
    return config


def _files(path):
    """What a name stands for: its path, the files of its config and weights, and the remedy if these are damaged."""
    path = Path(path)
    if path.is_dir():
        return path, path / "config.json", path / "model.safetensors", f"delete {path} and train again"
    path = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    if not _beside(path, ".json").is_file():
        raise DataError(f"{path} is neither exported weights nor the folder of a run")
    return path, _beside(path, ".json"), _beside(path, ".safetensors"), "export the run again"


@contextmanager
def _damage_named(named, remedy):
    """Raise a `DataError` for whatever a damaged config causes: any value may be wrong, and fail anywhere."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{named} is damaged, or does not match the weights ({reason}): {remedy}") from error


def clip_part(config):
    """Length of the clips that a network learned, as `cache.PART`: 30 s unless its cache says otherwise."""
    from audio.cache import PART

    seconds = config.get("feature_parameters", {}).get("seconds", PART["seconds"])
    if not 1 <= seconds <= 3600:
        raise ValueError(f"clips of {seconds} seconds")
    return PART | {"seconds": seconds}


def input_shape(config):
    """Bins and frames of a clip as a network takes it."""
    from audio.cache import kept_frames
    from audio.transforms import FEATURES

    return FEATURES[config["feature"]]["bins"], kept_frames(config["feature"], clip_part(config))


def _rebuild(config, weights, remedy):
    """The network of a config, if no larger than its weights file: a damaged number could ask for terabytes."""
    import torch

    from training import build

    with torch.device("meta"):                  # which allocates nothing
        claimed = sum(tensor.nbytes for tensor in build(config).state_dict().values())
    if not weights.is_file() or claimed > weights.stat().st_size:
        raise DataError(f"{weights} does not have the {claimed:,} bytes of the network in its .json: {remedy}")
    return build(config)


def _try_out(classifier):
    """An error unless the classifier gives valid probabilities, here for a clip of zeros."""
    said = classifier.probabilities(np.zeros((1, *input_shape(classifier.config))))
    named = isinstance(classifier.genres, list) and all(isinstance(genre, str) for genre in classifier.genres)
    if classifier.config["scale"] not in ("db", "linear"):
        raise ValueError(f"scale {classifier.config['scale']!r}")
    if not named or said.shape != (1, len(classifier.genres)) or not np.isfinite(said).all():
        raise ValueError("its output is not one probability per genre")


def _beside(path, ending):
    """A file of an export, whose name may contain dots."""
    return path.with_name(path.name + ending)


def _require_predictable(path, config):
    """An error unless predict.py can compute the feature from a file, in clips of the length in training."""
    from audio.cache import kept_frames
    from audio.transforms import FEATURES

    feature, frames = config["feature"], config["model"]["args"]["n_frames"]
    if feature not in FEATURES:
        raise DataError(f"{path} needs {feature}, which predict.py cannot compute from a file: choose a network for "
                        f"one of {', '.join(FEATURES)}")
    part = clip_part(config)
    made = kept_frames(feature, part)
    if isinstance(frames, int) and frames != made and not config["training"].get("chunk"):
        raise DataError(f"{path} was trained on clips of {frames} frames, predict.py makes {made} of {feature} in "
                        f"{part['seconds']} s: train again on a cache of features.py")


def _load_tensors(path, network):
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(f"{path} cannot be loaded ({str(error).splitlines()[0]}): export the run again") from error
    return network


# ---- calibration -----------------------------------------------------------------------------------------------


def fit_temperature(log_probabilities, labels):
    """Temperature scaling: the divisor of the logits with which their softmax is calibrated [1]_.

    Parameters
    ----------
    log_probabilities : ndarray, shape (clips, classes)
        Logits, or logarithms of probabilities, of clips that were not trained on.
    labels : ndarray of int, shape (clips,)

    Returns
    -------
    float
        Above 1 for an overconfident network; between 0.05 and 20.

    References
    ----------
    .. [1] C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
       arXiv:1706.04599.

    Examples
    --------
    >>> sure = np.log([[0.98, 0.02], [0.98, 0.02], [0.02, 0.98], [0.98, 0.02]])
    >>> round(fit_temperature(sure, [0, 0, 1, 1]), 2)      # right in three of four: 0.75, not 0.98
    3.54
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    scores, labels = np.asarray(log_probabilities, dtype=float), np.asarray(labels)

    def loss(log_temperature):
        return -log_softmax(scores / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def calibration_error(probabilities, labels, bins=10):
    """Expected calibration error [1]_: mean gap between confidence and accuracy, over bins of confidence.

    Parameters
    ----------
    probabilities : ndarray, shape (clips, classes)
    labels : ndarray of int, shape (clips,)
    bins : int
        Number of bins of equal width, from 0 to 1.

    Returns
    -------
    float, 0 to 1

    References
    ----------
    .. [1] M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
       binning", AAAI 2015.

    Examples
    --------
    >>> calibration_error([[0.9, 0.1], [0.9, 0.1]], [0, 1])
    0.4
    """
    probabilities, labels = np.asarray(probabilities, dtype=float), np.asarray(labels)
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = np.abs(np.bincount(place, sure, bins) - np.bincount(place, right, bins))
    return round(float(gaps.sum() / len(labels)), 12)


def _log_probabilities(run_dir, split):
    from learning.runs import load_probabilities

    said = load_probabilities(run_dir, split)
    return np.log(said["probabilities"].astype(float).clip(1e-12)), said["labels"]


# ---- export ----------------------------------------------------------------------------------------------------


def export_run(run_dir, path):
    """Write a finished run as ``<path>.safetensors``, ``.json`` and ``.md``, calibrated on its validation clips.

    Parameters
    ----------
    run_dir : path-like
    path : path-like
        Without an extension.

    Returns
    -------
    dict
        The content of the JSON: the run's config, ``temperature``, mean confidence on test (``sureness``),
        ``calibration_error`` there before and after, and ``test``, from `evaluation.summarise`.
    """
    import shutil

    from scipy.special import softmax

    from audio.cache import save_text, save_whole
    from classifier.card import model_card
    from learning.runs import known_artists, load_config, load_probabilities

    run_dir, path = Path(run_dir), Path(path)
    config, test = load_config(run_dir), load_probabilities(run_dir)
    _require_predictable(run_dir, config)
    temperature = fit_temperature(*_log_probabilities(run_dir, "validation"))
    scores, labels = _log_probabilities(run_dir, "test")
    before, after = softmax(scores, 1), softmax(scores / temperature, 1)
    card = {**config, "temperature": round(temperature, 4), "sureness": round(float(after.max(1).mean()), 4),
            "calibration_error": {"before": round(calibration_error(before, labels), 4),
                                  "after": round(calibration_error(after, labels), 4)},
            "test": summarise(labels, test["probabilities"], known_artists(test), test["genres"].tolist())}
    texts = {".json": json.dumps(card, indent=1) + "\n",
             ".md": model_card(path.name, card, default=path.name == DEFAULT.name)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(_beside(path, ".safetensors"), lambda temporary: shutil.copyfile(run_dir / "model.safetensors",
                                                                                temporary))
    for ending, text in texts.items():
        save_text(_beside(path, ending), text)
    return card


def main(argv=None):
    parser = argparse.ArgumentParser(description="Export a finished run for predict.py, calibrated on validation.")
    parser.add_argument("run_dir", help="runs/<dataset>/<experiment>/seed<k>")
    parser.add_argument("path", help="weights/<name>; gets .safetensors, .json and .md")
    args = parser.parse_args(argv)
    card = export_run(args.run_dir, args.path)
    print(f"{args.path}: test accuracy {100 * card['test']['accuracy']:.1f} %, temperature {card['temperature']:.2f}, "
          f"calibration error {100 * card['calibration_error']['before']:.1f} % before, "
          f"{100 * card['calibration_error']['after']:.1f} % after")


if __name__ == "__main__":
    sys.exit(run_command(main))
