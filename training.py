"""Train one network, with one short training loop.

    python training.py cqt_square --data-dir data/emotify
    torchrun --standalone --nproc_per_node 2 training.py cqt_square --data-dir data/emotify

The names are those of experiments.py. A run is a folder, ``runs/<dataset>/<experiment>/seed<k>``: stopped
at any moment, the same command continues after the last saved epoch and ends with the same weights. A finished one is
a row of ``python experiments.py table``.

With torchrun the processes share each batch and average their gradients. On GPUs batch norm uses the clips of all, so
N processes train as one does. On CPUs torch has no such batch norm: each process normalises its own share of a batch.
"""

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass, fields

# fma first: it sets how the threads of torch wait.
from fma import DataError, add_data_options, find_data, progress_bar, run_command

# isort: split
import torch
import torch.distributed as dist

from bbnn_models import BBNN
from cnn_models import FrequencyCNN, SquareCNN, TemporalCNN
from crnn_models import ParallelCRNN, SequentialCRNN
from dataset import JointDataset, leaking_artists, open_dataset
from learning import devices, runs
from learning.augmentation import AUGMENTATIONS, Augmentation
from learning.devices import choose_device, process_group, world
from learning.folds import call_out_leaks, take_fold
from learning.inference import predict, score
from learning.pitch_copies import pitch_shifts
from learning.steps import OPTIMIZERS, StepGraph, averaged, count_steps, optimizer_for, steps_taken, train_epoch
from resnet_models import Dense, Fusion, Linear, ResNet, StatisticsResNet
from study.rows import find_row
from tag_models import LEARN_TAGS, CoAligned, EncoderClassifier, TwoHeads, take_encoder, training_tags

SAVE_EVERY = 2.0                # seconds of training that an interruption may cost, at least one epoch
MODELS = {m.__name__: m for m in (FrequencyCNN, TemporalCNN, SquareCNN, SequentialCRNN, ParallelCRNN, BBNN, ResNet,
                                  StatisticsResNet, Dense, Linear, Fusion, EncoderClassifier, TwoHeads, CoAligned)}


@dataclass
class Training(Augmentation):
    """Settings of one run, those of `augmentation.Augmentation` included. The defaults are the original study's."""

    epochs: int = 50                # passes over the training clips
    batch_size: int = 32            # clips per step, over all processes
    optimizer: str = "adam"         # or adamw
    lr: float = 1e-3                # constant, or the peak if one_cycle
    one_cycle: bool = False         # warm up for 30 % of the steps, then anneal to zero along a cosine
    weight_decay: float = 0.0       # decay of the weights per step, times lr (adamw), or L2 penalty (adam)
    balance: bool = False           # weigh the loss so that all genres count alike, however many clips they have
    label_smoothing: float = 0.0    # share of each label that is spread over all genres
    average: float = 0.0            # decay per step of a running mean of the weights, which is what is kept; 0: none
    clip_norm: float = 0.0          # gradients are scaled down to this norm; 0: as they are
    patience: int = 0               # stop after so many epochs without a better one on validation; 0: never
    graph: bool = False             # on a GPU, replay each step as one CUDA graph: quicker where networks are small
    precision: str = "auto"         # float32, bfloat16 or float16 (autocast); auto: the fastest that the device has
    watch_test: int = 0             # test too every so many epochs, for the original's test_max; never to choose
    seed: int = 0                   # of the weights, the order of the clips and the dropout

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("optimizer", OPTIMIZERS), ("precision", devices.PRECISIONS)):
            if getattr(self, name) not in known:
                raise DataError(f"{name} {getattr(self, name)!r} is unknown: choose {', '.join(known)}")
        for name, least in (("epochs", 0), ("batch_size", 1), ("lr", 0)):      # a batch norm needs two clips
            if not getattr(self, name) > least:
                raise DataError(f"{name} must be above {least}, not {getattr(self, name)}")
        for name, most in (("weight_decay", math.inf), ("clip_norm", math.inf), ("patience", math.inf),
                           ("watch_test", math.inf), ("seed", 2**32), ("mixup", 100), ("mix_style", 100)):
            if not 0 <= getattr(self, name) < most:
                raise DataError(f"{name} must be from 0 to below {most}, not {getattr(self, name)}")
        for name in ("label_smoothing", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise DataError(f"{name} must be from 0 to 1, not {getattr(self, name)}")


def as_config(settings):
    """Settings as config.json holds them: an augmentation that is off is not in it, nor in runs from before it was."""
    later = (*AUGMENTATIONS, "balance", "label_smoothing", "average", "graph")
    return {k: v for k, v in asdict(settings).items() if v or k not in later}


# ---------------------------------------------------------------- the loop


def fit(model, dataset, settings, run_dir, progress):
    """Train a network, keep the weights that are best on validation, and test these once.

    Parameters
    ----------
    model : nn.Module
        (batch, bins, frames) to logits (batch, classes).
    dataset : FeatureDataset
        Normalised; rows["training"] are learned, rows["validation"] choose the epoch.
    settings : Training
    run_dir : Path
        Gets what learning/runs.py lists. An interrupted run continues, a finished one is not repeated.

    Returns
    -------
    history : list of dict
        One for each epoch: loss and accuracy on training and validation, learning rate, seconds.
    """
    rank, size = world()
    if runs.is_finished(run_dir):
        return runs.load_history(run_dir)
    model = model.to(dataset.device, memory_format=torch.channels_last)
    optimizer = optimizer_for(model, settings)
    mean = averaged(model, settings.average)
    kept = mean.module if mean else model                   # what is validated and saved
    scaler = devices.gradient_scaler(settings.precision, dataset.device)
    history, best, saved = runs.load_state(run_dir, model, optimizer, mean, scaler), None, time.monotonic()
    tools = mean, StepGraph(dataset.device) if settings.graph else None, scaler
    network = devices.join_processes(model) if size > 1 else model
    steps = count_steps(len(dataset.rows["training"]), settings.batch_size)
    with progress_bar(total=settings.epochs * steps, initial=len(history) * steps, unit="step", leave=False,
                      desc=" ".join(run_dir.parts[-3:]), show=progress and rank == 0) as bar:
        while len(history) < settings.epochs and not out_of_patience(history, settings):
            history.append(one_epoch(network, kept, dataset, optimizer, settings, len(history), bar, *tools))
            if runs.selected(history) is history[-1]:
                best = {name: value.detach().clone() for name, value in kept.state_dict().items()}
            if rank == 0 and time.monotonic() >= saved + SAVE_EVERY:
                best = best and runs.save_weights(run_dir, best)            # first: the state must not be ahead of it
                runs.save_state(run_dir, model, optimizer, history, mean, scaler)
                saved = time.monotonic()
            bar.set_postfix(epoch=len(history), validation=f"{100 * history[-1]['validation_accuracy']:.1f} %")
    if rank == 0:
        if best:
            runs.save_weights(run_dir, best)
        runs.save_history(run_dir, history)
    finish(model, dataset, settings, run_dir)
    return history


def finish(model, dataset, settings, run_dir):
    """Write what the best weights say of validation and test: then a run is finished."""
    rank, size = world()
    if size > 1:
        dist.barrier()                                      # until the best weights are written
    runs.load_weights(run_dir, model)
    said = {split: predict(model, dataset, dataset.rows[split], settings.precision, settings.chunk)
            for split in ("validation", "test")}
    if not all(values.isfinite().all() for values in said.values()):
        raise DataError(f"{dataset.feature}.npy holds values that are not numbers in validation or test: make it again")
    if rank == 0:
        runs.save_probabilities(run_dir, dataset, said)
        (run_dir / "state.pt").unlink(missing_ok=True)


def one_epoch(network, kept, dataset, optimizer, settings, epoch, bar, *tools):
    """Train for one epoch and validate: the epoch's line in the history."""
    start, before = time.perf_counter(), steps_taken(optimizer)
    loss, accuracy = train_epoch(network, dataset, optimizer, settings, epoch, bar, *tools)
    if not math.isfinite(loss):
        raise DataError(f"the training loss became {loss} in epoch {epoch + 1}: try a lower lr, clip_norm 1, or "
                        "precision float32")
    devices.share_statistics(kept)
    line = {"epoch": epoch + 1, "train_loss": loss, "train_accuracy": accuracy}
    if settings.precision == "float16":
        steps = count_steps(len(dataset.rows["training"]), settings.batch_size)
        line["skipped_steps"] = steps - (steps_taken(optimizer) - before)
    how = settings.precision, settings.chunk
    line["validation_loss"], line["validation_accuracy"] = score(kept, dataset, "validation", *how)
    if settings.watch_test and (epoch + 1) % settings.watch_test == 0:
        line["test_accuracy"] = score(kept, dataset, "test", *how)[1]
    return line | {"lr": float(optimizer.param_groups[0]["lr"]), "seconds": time.perf_counter() - start}


def out_of_patience(history, settings):
    return bool(settings.patience and history) and len(history) - runs.selected(history)["epoch"] >= settings.patience


# ---------------------------------------------------------------- a run of an experiment


def build(config):
    """Rebuild the network of a run's config.json, with fresh weights."""
    if config["model"]["class"] not in MODELS:
        raise DataError(f"no network is named {config['model']['class']!r} in training.MODELS: it has "
                        f"{', '.join(MODELS)}")
    return MODELS[config["model"]["class"]](**config["model"]["args"])


def new_network(row, dataset, settings):
    """A row's network for clips of a dataset, with weights that the seed draws; and what config.json says of it."""
    n_bins, n_frames = dataset.shape
    args = {"n_bins": n_bins, "n_frames": settings.chunk or n_frames, "n_classes": len(dataset.genres),
            **({} if dataset.tags is None else {"n_tags": dataset.tags.shape[1]}), **row.get("args", {})}
    network = {"class": row["model"], "args": args}
    torch.manual_seed(settings.seed)
    model = build({"model": network})
    return model, network | {"fingerprint": runs.fingerprint(model)}


def read_settings(name, row, given):
    """The settings of a row, and those given in their place, as `Training`."""
    try:
        return Training(**{**row.get("training", {}), **(given or {})})
    except TypeError as error:
        raise DataError(f"{name}: {error}: the settings are {', '.join(f.name for f in fields(Training))}") from error


def open_row(row, data_dir, subset=None, features_dir=None, device=None):
    """The dataset of a row of the study, with the parameters of `run`."""
    devices.keep_memory()
    return open_dataset(data_dir, row["feature"], row.get("scale", "db"), subset or "small", features_dir,
                        choose_device(device))


def check(name, settings, dataset, data_dir, fold):
    """Raise a DataError if these settings do not fit this data, device or number of processes."""
    if empty := [split for split in ("validation", "test") if not len(dataset.rows[split])]:
        raise DataError(f"{data_dir}: no usable {empty[0]} clip: python fma.py says what is wrong with the folder")
    if settings.chunk and isinstance(dataset, JointDataset):
        raise DataError(f"{name}: chunk is for one feature alone: frames of several features differ in length")
    if settings.graph and not (dataset.device.type == "cuda" and dataset.is_held() and world()[1] == 1
                               and not settings.pitch_copies):
        raise DataError(f"{name}: graph is for one process on a GPU that holds the data, and not for pitch_copies: "
                        "leave out --graph")
    if settings.mixup and dataset.tags is not None:
        raise DataError(f"{name}: clips that learn from tags are not mixed: leave out mixup")
    if settings.pitch_copies and fold is not None:
        raise DataError(f"{name}: pitch_copies are of the training clips of tracks.csv's split: leave out the folds")
    if settings.batch_size < 2 * world()[1]:
        raise DataError(f"batch_size {settings.batch_size} is less than two clips for each of {world()[1]} processes")


def settle(settings, run_dir, model, dataset):
    """Resolve the precision "auto". A run that was begun keeps its own; a finished one its graph and watch_test too."""
    finished = runs.is_finished(run_dir)
    begun = runs.load_config(run_dir)["training"] if finished or (run_dir / "config.json").is_file() else {}
    if begun and settings.precision == "auto":
        settings.precision = begun.get("precision", "float32")
    if finished:                                            # neither changes what was learned
        settings.graph, settings.watch_test = begun.get("graph", False), begun.get("watch_test", 0)
        return
    clips, _ = dataset.batch(dataset.rows["training"][[0, 0]])
    clips = clips[..., : settings.chunk] if settings.chunk else clips
    settings.precision = devices.choose_precision(settings.precision, dataset.device, model, clips)
    devices.warn_of_memory(model, clips, settings, dataset)


def describe(name, network, normalisation, dataset, settings):
    """What config.json says of every run: all that is needed to rebuild the network and to feed it."""
    config = {"experiment": name, "dataset": dataset.name, "model": network, "feature": dataset.feature,
              "feature_parameters": dataset.info, "scale": dataset.scale, "normalisation": normalisation,
              "genres": dataset.genres, "training": as_config(settings), "device": devices.name_of(dataset.device),
              "processes": world()[1], "versions": runs.versions()}
    return config | ({"pitch_shifts": pitch_shifts(dataset)} if settings.pitch_copies else {})


@devices.memory_named()
def run(name, row, data_dir, settings=None, runs_dir="runs", subset="small", features_dir=None, device=None,
        progress=True, fold=None, dataset=None):
    """Train one experiment with one seed, on the collection's split or on one of its folds.

    Parameters
    ----------
    name : str
        Of the experiment, and of its folder.
    row : dict
        ``feature`` (a name, or several), ``model`` (a key of `MODELS`), and optionally ``args`` of the model,
        ``scale`` of the feature, ``normalise`` (per what, see `FeatureDataset`), ``start`` (the experiment whose
        encoder of the same seed and fold it takes over), and ``training``, settings that differ from the defaults.
    data_dir : path-like
    settings : dict, optional
        Settings that take precedence over the row's.
    fold : int, optional
        The fold that is tested, see learning/folds.py; by default the split of tracks.csv.
    dataset : FeatureDataset or JointDataset, optional
        That of an earlier run on the same row; its split and normalisation change.

    Returns
    -------
    run_dir : Path
    history : list of dict
    """
    settings = read_settings(name, row, settings)
    dataset = open_row(row, data_dir, subset, features_dir, device) if dataset is None else dataset
    folds = None if fold is None else take_fold(dataset, fold)
    dataset.tags = training_tags(dataset)[1] if row["model"] in LEARN_TAGS else None
    check(name, settings, dataset, data_dir, fold)
    mean, std = dataset.normalise(per=row.get("normalise", "bin"))
    try:
        model, network = new_network(row, dataset, settings)
    except (TypeError, ValueError) as error:                # wrong arguments, or clips too short for it
        raise DataError(f"{name} on {data_dir}: {error}") from error
    run_dir, first = runs.run_folder(runs_dir, dataset.name, name, settings.seed, fold), world()[0] == 0
    settle(settings, run_dir, model, dataset)
    config = describe(name, network, {"mean": mean, "std": std}, dataset, settings)
    config |= {"data": runs.data_fingerprints(dataset, "fold" if folds else "split"), "commit": runs.commit(),
               "threads": torch.get_num_threads()} | ({"fold": fold, "folds": folds} if folds else {})
    if "start" in row:
        begun = runs.run_folder(runs_dir, dataset.name, row["start"], settings.seed, fold)
        config["start"] = take_encoder(model, begun, config["data"], run_dir)
    config |= {"leaks": leaks} if (leaks := leaking_artists(dataset, ["test"])) else {}
    if progress and first:
        call_out_leaks(dataset)
    with runs.lock(run_dir, write=first):
        runs.start_run(run_dir, config, write=first)
        return run_dir, fit(model, dataset, settings, run_dir, progress)


def true_or_false(text):
    return bool(("false", "true").index(text.lower()))      # a ValueError, of which argparse makes a message


def add_settings(parser):
    """Add what every command that trains has: the device, and an option for each of `Training`'s settings."""
    parser.add_argument("--features-dir", help="the feature cache (default: features in the data folder)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: cuda if there is one)")
    for f in fields(Training):
        how = {"type": true_or_false, "nargs": "?", "const": True} if f.type is bool else {"type": f.type}
        parser.add_argument(f"--{f.name.replace('_', '-')}", **how, metavar=f.type.__name__.upper(),
                            help=f"default {f.default}, or the experiment's")


def given_settings(args):
    """The settings among parsed arguments that were given: dict for `run`."""
    return {f.name: getattr(args, f.name) for f in fields(Training) if getattr(args, f.name) is not None}


def main(argv=None):
    parser = argparse.ArgumentParser(description="Train one experiment with one seed; continues where it was stopped.")
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a name from: python experiments.py list")
    add_data_options(parser)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--fold", type=int, metavar="K", help="test on fold K, validate on the next, learn the others "
                                                              "(default: the split of tracks.csv)")
    add_settings(parser)
    args = parser.parse_args(argv)
    if not find_row(args.experiment):
        parser.error(f"no experiment is named {args.experiment}: see python experiments.py list")
    with process_group(choose_device(args.device)):
        run_dir, _ = run(args.experiment, find_row(args.experiment), find_data(args.data_dir), given_settings(args),
                         args.runs_dir, args.subset, args.features_dir, args.device, fold=args.fold)
        if world()[0] == 0:
            print(runs.report(run_dir))


if __name__ == "__main__":
    sys.exit(run_command(main, resumes=True))
