"""Pretrained encoders as features of the cache: what networks hear that have learned from other music.

    pip install --no-deps musicnn                   # 29 MB: trained weights; nothing of the package is run
    python features.py --features musicnn
    pip install transformers                        # for clap, ast and mert, with weights from the Hugging Face hub
    ENCODERS_DIR=encoders python features.py --features clap        # or from encoders/clap, where that is a folder

An encoder is frozen. It hears a clip in windows as long as those it was trained on, and mean and deviation of its
values over the windows are stored: (tracks, 2 * dimensions, 1). Each JSON holds the hash of the weights, so that a
cache is not mixed of two. No code from the hub is run: MERT-v1-95M is a HuBERT, and read as one.
"""

import hashlib
import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audio.transforms import resample
from fma import DataError

# Where weights are on the Hugging Face hub, and the classes of transformers for network and preprocessor.
HUB = {"clap": ("laion/clap-htsat-unfused", "ClapAudioModelWithProjection", "ClapFeatureExtractor"),
       "ast": ("MIT/ast-finetuned-audioset-10-10-0.4593", "ASTModel", "ASTFeatureExtractor"),
       "mert": ("m-a-p/MERT-v1-95M", "HubertModel", "Wav2Vec2FeatureExtractor")}
LEARNED = {"musicnn": "MSD_musicnn (Pons and Serra 2019): 50 tags of 200,000 songs of the Million Song Dataset",
           "clap": "CLAP (Wu et al. 2023): which caption belongs to a sound; its audio encoder, projected",
           "ast": "Audio Spectrogram Transformer (Gong et al. 2021): the 527 sounds of AudioSet; the pooled output",
           "mert": "MERT (Li et al. 2024): masked parts of music; the mean over time and over all layers"}
MERT_S = 5.0            # s, of MERT's training

# What <name>.json says of each embedding, beside what `describe_encoder` adds.
EMBEDDINGS = {
    name: {"unit": "the encoder's own", "axis": "mean over windows of each dimension, then standard deviation",
           "frames_kept": 1, "dtype": "float32", "mono": "mean of channels", "resampler": "soxr HQ", "encoder": learned}
    for name, learned in LEARNED.items()
}


class Encoder(NamedTuple):
    """A network with its weights, and what it expects."""

    encode: callable        # (windows, samples) of sound to (windows, dimensions), both ndarray, float32
    sample_rate: int        # Hz
    samples: int            # of a window
    dimensions: int
    weights: str            # hash of them, sixteen hexadecimal digits


@lru_cache(maxsize=4)
def load_encoder(name, device="cpu"):
    """An encoder of `EMBEDDINGS`; a DataError if its weights, or what reads them, are not installed."""
    return _musicnn(device) if name == "musicnn" else _transformer(name, device)


def describe_encoder(name):
    """What the JSON of an embedding says of its encoder: bins, and what decides the values."""
    encoder = load_encoder(name)
    return {"bins": 2 * encoder.dimensions, "sample_rate": encoder.sample_rate,
            "window": f"{encoder.samples} samples, as many as fit, spread evenly", "weights_sha256": encoder.weights}


def cut(y, samples):
    """Windows of a clip, as many as fit, from its first sample to its last; a shorter clip is repeated to fill one.

    Returns
    -------
    windows : ndarray, shape (windows, samples)

    Examples
    --------
    >>> cut(np.arange(11), 4).tolist()
    [[0, 1, 2, 3], [4, 5, 6, 7], [7, 8, 9, 10]]
    """
    if len(y) < samples:
        y = np.resize(y, samples)
    starts = np.linspace(0, len(y) - samples, max(1, round(len(y) / samples)))
    return np.stack([y[start : start + samples] for start in np.rint(starts).astype(int)])


def embed(y, sample_rate, name, device="cpu"):
    """Hear one clip with a pretrained encoder.

    Parameters
    ----------
    y : ndarray, shape (samples,), float32
        Mono waveform.
    sample_rate : int
        In Hz.
    name : str
        A key of `EMBEDDINGS`.
    device : str or torch.device

    Returns
    -------
    values : ndarray, shape (2 * dimensions, 1), float32
        Mean over the windows of each dimension, then standard deviation.

    Raises
    ------
    DataError
        As `load_encoder`.
    """
    encoder = load_encoder(name, str(device))
    values = encoder.encode(cut(resample(y, sample_rate, encoder.sample_rate), encoder.samples))
    return np.concatenate([values.mean(axis=0), values.std(axis=0)])[:, None]


# ---------------------------------------------------------------- the encoders


def _own_folder(name):
    """Where a user has put the weights of an encoder; None if nowhere."""
    folder = Path(os.environ.get("ENCODERS_DIR") or "encoders", name)
    return folder if folder.is_dir() else None


def find_musicnn():
    """The folder with musicnn's checkpoint, of the installed package or below ENCODERS_DIR."""
    found = importlib.util.find_spec("musicnn")             # looks for it, imports nothing
    folder = _own_folder("musicnn") or (Path(found.origin).parent if found and found.origin else None)
    if folder is None:
        raise DataError("musicnn's weights are not installed: pip install --no-deps musicnn")
    return folder / "MSD_musicnn"


def find_encoder(name):
    """A DataError unless what an embedding of `EMBEDDINGS` needs is installed; of any other feature nothing."""
    if name == "musicnn":
        find_musicnn()
    elif name in EMBEDDINGS and importlib.util.find_spec("transformers") is None:
        raise DataError(f"{name} is read by the package transformers: pip install transformers")


def _musicnn(device):
    import torch

    from audio.musicnn import SAMPLE_RATE, SAMPLES, load_musicnn

    network = load_musicnn(find_musicnn()).to(device)

    def encode(windows):
        with torch.inference_mode():
            return network(torch.from_numpy(windows).to(device))[0].cpu().numpy()

    return Encoder(encode, SAMPLE_RATE, SAMPLES, 200, _hash(network))


def _hash(network):
    """Sixteen hexadecimal digits for all weights of a network and their names."""
    code = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        code.update(name.encode())
        code.update(np.ascontiguousarray(value.cpu().numpy()))
    return code.hexdigest()[:16]


def _transformer(name, device):
    """CLAP, AST or MERT through transformers, with its preprocessor."""
    find_encoder(name)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    network, prepare = _from_pretrained(transformers, name)
    network = network.to(device).eval()
    rate, dimensions = prepare.sampling_rate, getattr(network.config, "projection_dim", network.config.hidden_size)
    samples = {"clap": lambda: prepare.nb_max_samples, "mert": lambda: int(MERT_S * rate),
               "ast": lambda: rate * prepare.max_length // 100}[name]()         # of AST, frames of 10 ms

    def encode(windows):
        given = prepare(list(windows), sampling_rate=rate, return_tensors="pt").to(device)
        with torch.inference_mode():
            said = network(**given, **({"output_hidden_states": True} if name == "mert" else {}))
            values = {"clap": lambda: said.audio_embeds, "ast": lambda: said.pooler_output,
                      "mert": lambda: torch.stack(said.hidden_states).mean((0, 2))}[name]()
        return values.float().cpu().numpy()

    return Encoder(encode, rate, samples, dimensions, _hash(network))


def _from_pretrained(transformers, name):
    """Network and preprocessor; a DataError if they cannot be had, or the weights are not all there."""
    hub, network, prepare = HUB[name]
    source = _own_folder(name) or hub
    try:
        prepare = getattr(transformers, prepare).from_pretrained(source)
        network, told = getattr(transformers, network).from_pretrained(source, output_loading_info=True)
    except (OSError, ValueError) as error:          # no such folder or file, no connection, or damaged
        raise DataError(f"{name}: {source} cannot be loaded ({str(error).splitlines()[0]:.90}): where there is a "
                        f"connection, hf download {hub} --local-dir encoders/{name}; copy that folder here, or "
                        "name the one that it is in as ENCODERS_DIR") from error
    usual = {"feature_extractor_cqt": False, "deepnorm": False, "attention_relax": -1}      # not so of other MERTs
    other = name == "mert" and any(getattr(network.config, key, value) != value for key, value in usual.items())
    if told["missing_keys"] or other:
        raise DataError(f"{name}: {source} is not a network like {hub}: use that one")
    return network, prepare
