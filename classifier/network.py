"""A trained network ready to use: shipped or any finished run, with everything it needs.

    weights/<name>.safetensors      the weights, and those of the detector of what is none of its genres
    weights/<name>.json             the run's config, calibration and test metrics
    weights/<name>.md               the model card

classifier/shipping.py writes these of a run.
"""

import json
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audio.cache import PART, kept_frames
from audio.embeddings import EMBEDDINGS, find_encoder, load_encoder
from audio.transforms import FEATURES
from classifier.calibration import fit_temperature, log_probabilities
from fma import DataError

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
NETWORKS = {"fma": ("fma",), "allmusic": ("allmusic_musicnn", "allmusic_cqt")}  # the first whose encoder is installed
NAMES = [name for names in NETWORKS.values() for name in names]
DEFAULT = WEIGHTS / "fma"
DETECTOR = "detector."          # what the names of its weights begin with


@dataclass
class Classifier:
    """A network with everything needed to prepare its input and interpret its output."""

    network: object         # nn.Module, in evaluation mode
    config: dict            # as runs.load_config gives it: feature, normalisation, genres, model
    temperature: float      # divides the logits before the softmax
    detector: object = None     # nn.Module, of normalised clips: the second of two classes is none of the genres

    @property
    def genres(self):
        """Names of the classes."""
        return self.config["genres"]

    def answers(self, x):
        """What the network says of clips.

        Parameters
        ----------
        x : ndarray, shape (clips, bins, frames)
            In the feature's unit, as `transforms.extract` returns it.

        Returns
        -------
        probabilities : ndarray, shape (clips, genres), float32
            Calibrated.
        none : ndarray, shape (clips,), float32
            Probability that a clip is of none of the genres; 0 without a detector.
        """
        import torch

        with torch.inference_mode():
            return tuple(values.numpy() for values in self.outputs(x))

    def probabilities(self, x):
        """The first of `answers`."""
        return self.answers(x)[0]

    @property
    def threshold(self):
        """The probability of none of the genres above which this is the answer."""
        return self.config["none_of_these"]["threshold"] if self.detector else 1.0

    def outputs(self, x):
        """`answers` as Tensors."""
        import torch

        x = self.normalised(x)
        said = (self.logits(x) / self.temperature).softmax(1)
        return said, self.detector(x).softmax(1)[:, 1] if self.detector else torch.zeros_like(said[:, 0])

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


def shipped(name):
    """``weights/<name>`` of a key of `NETWORKS`: of several networks the first whose encoder is installed."""
    for each in NETWORKS[name][:-1]:
        feature = read_config(WEIGHTS / each)["feature"]
        with suppress(DataError):
            find_encoder(feature)
            return WEIGHTS / each
    return WEIGHTS / NETWORKS[name][-1]


def network_name(path):
    """What answers call a network: a shipped one by its own name, any other as it is named."""
    found = _files(path)[0]
    return found.name if found.name in NAMES and found.resolve().parent == WEIGHTS else str(path)


def load_classifier(path=DEFAULT):
    """Load exported weights, or any finished run.

    Parameters
    ----------
    path : path-like
        A key of `NETWORKS` or a name among its values, ``weights/<name>``, with or without ``.safetensors``, or the
        folder of a run.

    Returns
    -------
    Classifier
    """
    from learning.runs import load_probabilities, load_weights

    config = read_config(path)
    path, named, weights, remedy = _files(path)
    with _damage_named(named, remedy):
        _require_encoder(path, config)
        network, detector = _rebuild(config, weights, remedy), None
        if path.is_dir():
            load_weights(path, network)
            said = load_probabilities(path, "validation")
            temperature = fit_temperature(log_probabilities(said), said["labels"])
        else:
            from safetensors.torch import load_file

            tensors, temperature = load_file(weights), float(config["temperature"])
            if "none_of_these" in config:
                from resnet_models import Linear

                detector = Linear(*input_shape(config), 2).eval()
                detector.load_state_dict({name.removeprefix(DETECTOR): tensors.pop(name) for name in list(tensors)
                                          if name.startswith(DETECTOR)})
            network.load_state_dict(tensors)
        found = Classifier(network.eval(), config, temperature, detector)
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
    if isinstance(path, str) and path in (*NETWORKS, *NAMES):
        path = shipped(path) if path in NETWORKS else WEIGHTS / path
    path = Path(path)
    if path.is_dir():
        return path, path / "config.json", path / "model.safetensors", f"delete {path} and train again"
    path = without_ending(path)
    named, weights = (path.with_name(path.name + ending) for ending in (".json", ".safetensors"))   # may contain dots
    if not named.is_file():
        raise DataError(f"{path} is neither exported weights nor the folder of a run: name one, or a shipped network "
                        f"({', '.join(sorted({*NETWORKS, *NAMES}))})")
    return path, named, weights, "export the run again"


def without_ending(path):
    """The name of exported weights, of which one of the files may be named: Path."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path


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
    seconds = config.get("feature_parameters", {}).get("seconds", PART["seconds"])
    if not 1 <= seconds <= 3600:
        raise ValueError(f"clips of {seconds} seconds")
    return PART | {"seconds": seconds}


def input_shape(config):
    """Bins and frames of a clip as a network takes it."""
    feature = config["feature"]
    bins = FEATURES[feature]["bins"] if feature in FEATURES else config["model"]["args"]["n_bins"]
    return bins, kept_frames(feature, clip_part(config))


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
    silence = np.zeros((1, *input_shape(classifier.config)))
    said, none = classifier.answers(silence)
    named = isinstance(classifier.genres, list) and all(isinstance(genre, str) for genre in classifier.genres)
    if classifier.config["scale"] not in ("db", "linear"):
        raise ValueError(f"scale {classifier.config['scale']!r}")
    if not named or said.shape != (1, len(classifier.genres)) or not np.isfinite([*said[0], *none]).all():
        raise ValueError("its output is not one probability per genre")
    if not 0 < classifier.threshold <= 1:
        raise ValueError(f"threshold {classifier.threshold}")


def _require_predictable(path, config):
    """An error unless predict.py can compute the feature from a file, in clips of the length in training."""
    feature, frames = config["feature"], config["model"]["args"]["n_frames"]
    if feature not in FEATURES and feature not in EMBEDDINGS:
        raise DataError(f"{path} needs {feature}, which predict.py cannot compute from a file: choose a network for "
                        f"one of {', '.join([*FEATURES, *EMBEDDINGS])}")
    part = clip_part(config)
    made = kept_frames(feature, part)
    if isinstance(frames, int) and frames != made and not config["training"].get("chunk"):
        raise DataError(f"{path} was trained on clips of {frames} frames, predict.py makes {made} of {feature} in "
                        f"{part['seconds']} s: train again on a cache of features.py")


def _require_encoder(path, config):
    """An error unless the encoder that the network was trained on, if it was on one, is installed."""
    if config["feature"] in EMBEDDINGS:
        trained_on = config["feature_parameters"]["weights_sha256"]
        if (found := load_encoder(config["feature"]).weights) != trained_on:
            raise DataError(f"{path} was trained on {config['feature']} with the weights {trained_on}, not with those "
                            f"found here ({found}): name the folder of the right ones as ENCODERS_DIR, or choose "
                            "another network, for example --weights allmusic_cqt")
