"""Give a trained network away: calibrated by cross-validation, with a detector of other sounds and a model card.

    python -m classifier.shipping runs/allmusic/linear_musicnn/seed0 weights/allmusic_musicnn \\
        --folds runs/allmusic/linear_musicnn/seed0_folds --outside data/outside --data-dir data/allmusic

The temperature is fitted on the answers of the folds' networks, each about clips whose artists it has not heard. A run
that has learned all clips has none left to test: the folds' answers are then its figures, each calibrated by the other
folds. Without ``--folds`` any finished run can be exported; its temperature is fitted on validation.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from audio.cache import save_text, save_whole
from classifier.calibration import calibration_error, fit_temperature, least_error, log_probabilities
from classifier.card import model_card
from classifier.network import DETECTOR, Classifier, read_config, without_ending
from classifier.outside import THRESHOLD, fit_detector
from evaluation import bootstrap_interval, summarise
from fma import DataError, add_data_options, run_command
from learning.runs import fold_runs, is_finished, known_artists, load_config, load_probabilities, load_weights

STEPS = (0.3, 0.5, 0.7, 0.9)        # thresholds that the card compares


def export_run(run_dir, path, folds_dir=None, outside=None, data_dir=None, subset="small"):
    """Write a run as ``<path>.safetensors``, ``.json`` and ``.md``.

    Parameters
    ----------
    run_dir : path-like
    path : path-like
        With or without one of the endings.
    folds_dir : path-like, optional
        ``seed<k>_folds`` of the same network, of which none has learned the run's test clips.
    outside : path-like, optional
        What classifier/outside.py makes: the network gets a detector of what is none of its genres.
    data_dir, subset
        The collection that it has learned, with the folds; needed for `outside`.

    Returns
    -------
    dict
        The content of the JSON: the run's config, ``temperature``, mean confidence on test (``sureness``),
        ``calibration_error`` there before and after, ``test``, from `evaluation.summarise`, and ``none_of_these``.
    """
    from safetensors.torch import load_file, save

    run_dir, path = Path(run_dir), without_ending(path)
    if not path.name:
        raise DataError(f"{path} names no weights: name them, for example weights/mine")
    if outside and not data_dir:
        raise DataError(f"the detector learns from {outside} and from the network's own clips: pass --data-dir")
    config = read_config(run_dir)
    if not folds_dir and "epochs" not in config["training"]:
        raise DataError(f"{run_dir} has no validation to fit its temperature on: pass --folds, with "
                        "seed<k>_folds of the same experiment")
    answers = _fold_answers(run_dir, config, folds_dir) if folds_dir else None
    card = {**config, **calibrate(run_dir, answers)}
    tensors = load_file(run_dir / "model.safetensors")
    if outside:
        detector, card["none_of_these"] = _refusals(run_dir, config, answers, outside, data_dir, subset)
        tensors |= {DETECTOR + name: value for name, value in detector.state_dict().items()}
    text = model_card(path.name, card)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_whole(path.with_name(f"{path.name}.safetensors"), lambda temporary: temporary.write_bytes(save(tensors)))
    save_text(path.with_name(f"{path.name}.json"), json.dumps(card, indent=1) + "\n")
    save_text(path.with_name(f"{path.name}.md"), text)
    return card


def _fold_answers(run_dir, config, folds_dir):
    """The answers of the folds' networks, with the ``fold`` of each; a DataError if they are not those of the run."""
    parts = fold_runs(folds_dir)
    if not parts:
        raise DataError(f"{folds_dir} holds no folds: name seed<k>_folds of a cross-validation")
    for part in parts:
        there = load_config(part)
        if any(there[key] != config[key] for key in ("feature", "genres")) or any(
                there["model"][key] != config["model"][key] for key in ("class", "args")):
            raise DataError(f"{part} is of another network than {run_dir}: cross-validate the same experiment")
    each = [load_probabilities(part) for part in parts]
    found = load_probabilities(folds_dir) | {
        "fold": np.repeat(range(len(each)), [len(said["labels"]) for said in each])}
    tested = load_probabilities(run_dir)["tracks"].tolist() if is_finished(run_dir) else []
    heard = set(found["tracks"].tolist()) & set(tested)
    if heard:
        raise DataError(f"{folds_dir} has learned {len(heard)} test clips of {run_dir}: leave these out of the folds "
                        "(python -m learning.folds)")
    return found


def calibrate(run_dir, answers=None):
    """Temperature of a run, and what its test says of it.

    Parameters
    ----------
    run_dir : Path
    answers : dict, optional
        Of the folds; without them the temperature is fitted on validation.

    Returns
    -------
    dict
        See `export_run`, with ``calibrated_on`` and ``tested_on`` in words.
    """
    from scipy.special import softmax

    fitted = answers or load_probabilities(run_dir, "validation")
    temperature = fit_temperature(log_probabilities(fitted), fitted["labels"])
    test = load_probabilities(run_dir) if is_finished(run_dir) else answers
    scores, labels = log_probabilities(test), test["labels"]
    divisors = np.full(len(labels), temperature)
    for fold in np.unique(answers["fold"]) if test is answers else ():
        own = answers["fold"] == fold
        divisors[own] = fit_temperature(scores[~own], labels[~own])
    before, after = softmax(scores, 1), softmax(scores / divisors[:, None], 1)
    folds = answers and f"{len(answers['labels']):,} clips in {answers['fold'].max() + 1} folds by artist"
    loss = {name: round(float(-np.log(p[np.arange(len(labels)), labels].clip(1e-12)).mean()), 4)
            for name, p in (("before", before), ("after", after))}
    return {"temperature": round(temperature, 4), "sureness": round(float(after.max(1).mean()), 4),
            "calibrated_on": f"the answers about {folds}" if folds else "validation",
            "tested_on": "folds" if test is answers else "test",
            "calibration_error": {"before": round(calibration_error(before, labels), 4),
                                  "after": round(calibration_error(after, labels), 4),
                                  "least": round(least_error(after), 4)},
            "log_loss": loss, "test": summarise(labels, after, known_artists(test), test["genres"].tolist())}


def _refusals(run_dir, config, answers, outside, data_dir, subset):
    """The detector of other sounds, and how many clips of each kind are refused at several thresholds."""
    from training import build

    network = Classifier(load_weights(run_dir, build(config)).eval(), config, 1.0)
    detector, judged, others, unheard = fit_detector(network, data_dir, outside, subset)
    said = {"folds": answers, "test": load_probabilities(run_dir) if is_finished(run_dir) else None}
    said = {name: each for name, each in said.items() if each}
    own = {name: np.array([judged[track] for track in each["tracks"].tolist()]) for name, each in said.items()}
    kinds = own | {kind: others[kind] for kind in [*sorted(set(others) - set(unheard)), *sorted(unheard)]}

    def share(chosen):
        return round(float(chosen.mean()), 4)

    table = [{"sounds": name, "known": name not in unheard, "clips": len(found),
              "refused": [share(found > step) for step in STEPS],
              "unheard": None if unheard.get(name) is None else share(unheard[name] > THRESHOLD)}
             for name, found in kinds.items()]
    tested = "test" if "test" in said else "folds"
    right, kept = said[tested]["probabilities"].argmax(1) == said[tested]["labels"], own[tested] <= THRESHOLD
    shares = {name: share(right[chosen]) if chosen.any() else None
              for name, chosen in (("answered", kept), ("refused", ~kept))}
    return detector, {"threshold": THRESHOLD, "thresholds": STEPS, "table": table, "right": shares,
                      "interval": bootstrap_interval(right[kept], said[tested]["artists"][kept])}


def main(argv=None):
    parser = argparse.ArgumentParser(description="Export a finished run for predict.py.")
    parser.add_argument("run_dir", help="runs/<dataset>/<experiment>/seed<k>")
    parser.add_argument("path", help="weights/<name>; gets .safetensors, .json and .md")
    parser.add_argument("--folds", help="seed<k>_folds of the same experiment, to calibrate it (default: validation)")
    parser.add_argument("--outside", help="sounds of classifier/outside.py, to learn what is none of the genres")
    add_data_options(parser)
    args = parser.parse_args(argv)
    if "" in (args.run_dir, args.path, args.folds, args.outside):       # from an unset variable
        raise DataError("an empty argument names no file: name it, or leave its option out")
    card = export_run(args.run_dir, args.path, args.folds, args.outside, args.data_dir, args.subset)
    error = {name: f"{100 * value:.1f} %" for name, value in card["calibration_error"].items()}
    print(f"{args.path}: test accuracy {100 * card['test']['accuracy']:.1f} %, temperature {card['temperature']:.2f}, "
          f"calibration error {error['before']} before, {error['after']} after (true probabilities: {error['least']})")


if __name__ == "__main__":
    sys.exit(run_command(main))
