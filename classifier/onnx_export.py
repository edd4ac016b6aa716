"""A trained network in the ONNX format, for programs without torch: from the feature in its unit to probabilities,
and where the network has a detector to the probability that a clip is of none of the genres.

Needs onnx, onnxscript and onnxruntime (``pip install onnx onnxscript onnxruntime``).
"""

import json
import logging
import warnings
from pathlib import Path

import numpy as np

from audio.transforms import FEATURES
from classifier.network import clip_part, input_shape, load_classifier
from classifier.songs import usual_rate
from fma import DataError

CLOSE = 1e-5        # to torch's probabilities; an export that differs by more is refused


def metadata(classifier):
    """What a program needs to know to use the network, as texts: dict.

    ``labels`` (JSON) are the outputs in their order, ``preprocessing`` (JSON) how the feature is computed of a clip;
    ``accuracy`` is that on test, where it is known. With a detector there are ``threshold``, the probability of the
    second output above which no genre is the answer, and ``refused`` (JSON), the kinds of sound that it has learned.
    """
    config = classifier.config
    given = FEATURES[config["feature"]] | {"seconds": clip_part(config)["seconds"]}
    if usual_rate(config):
        given |= {"sample_rate": usual_rate(config)}
    known = {"accuracy": str(config["test"]["accuracy"])} if "test" in config else {}
    if classifier.detector:
        learned = [row["sounds"] for row in config["none_of_these"]["table"] if not row["known"]]
        known |= {"threshold": str(classifier.threshold), "refused": json.dumps(learned),
                  "none_of_these": "clips: probability of none of the labels; above threshold none is the answer"}
    return {"labels": json.dumps(classifier.genres), "feature": config["feature"], "preprocessing": json.dumps(given),
            "input": "clips, bins, frames: the feature in its unit; normalisation is part of the network",
            "output": "clips, labels: calibrated probabilities", "dataset": config["dataset"],
            "windows": f"of {given['seconds']} s; the probabilities of a longer track are the mean over its windows",
            **known}


def export_onnx(path, weights="fma"):
    """Write a network as one ONNX file, and check it with onnxruntime.

    Parameters
    ----------
    path : path-like
        Of the file.
    weights : path-like, optional
        What `load_classifier` takes; the shipped network of FMA's genres by default.

    Returns
    -------
    str
        A line that says what was written.

    Raises
    ------
    DataError
        If the path is a folder, a package is missing, ONNX lacks an operation of the network, or the file says
        anything else than torch.
    """
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder: name a file in it, for example {Path(path) / 'genres.onnx'}")
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise DataError(f"--export needs {error.name}: pip install onnx onnxscript onnxruntime") from error
    import torch

    classifier = load_classifier(weights)
    shape, detects = input_shape(classifier.config), classifier.detector is not None
    x = torch.as_tensor(np.random.default_rng(0).uniform(-80, 0, (3, *shape)).astype(np.float32))
    names = ["probabilities"] + ["none_of_these"] * detects
    try:
        program = _program(classifier, names, x)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[-1]
        raise DataError(f"{weights} cannot be written as ONNX: {reason}") from error
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    for clips in (x, x[:1]):
        said = session.run(names, {"clips": clips.numpy()})
        for name, found, expected in zip(names, said, classifier.answers(clips), strict=False):
            if (error := np.abs(found - expected).max()) > CLOSE:
                Path(path).unlink()
                raise DataError(f"{path} was deleted: onnxruntime's {name} differ from torch's by {error:.1e}")
    return (f"{path}: {classifier.config['feature']} of shape (clips, {shape[0]}, {shape[1]}) to "
            f"{len(classifier.genres)} genres{', or none of these' * detects}")


def _program(classifier, names, x):
    """Normalisation, network, calibration and detector as one ONNX program."""
    import torch

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.detector = classifier.network, classifier.detector

        def forward(self, x):
            return classifier.outputs(x)[: len(names)]

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            Whole().eval(), (x,), dynamo=True, verbose=False, input_names=["clips"], output_names=names,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            custom_translation_table={torch.ops.aten.median.dim: _median})
    program.model.metadata_props.update(metadata(classifier))
    return program


def _median(x, dim, keepdim=False):
    """torch's median in ONNX, which has none: of an even number the lower of the two in the middle, and where it is."""
    from onnxscript import opset20 as op

    half = x.shape[dim] // 2
    largest, places = op.TopK(x, op.Constant(value_ints=[half + 1]), axis=dim)
    axis = op.Constant(value_ints=[dim])
    last = [op.Slice(found, op.Constant(value_ints=[half]), op.Constant(value_ints=[half + 1]), axis)
            for found in (largest, places)]
    return tuple(last if keepdim else [op.Squeeze(found, axis) for found in last])
