"""Files that this repository reads, broken on purpose, and what reads them: each gives an answer or a `DataError`."""

import json
import os
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
from hostile import mutate
from synthetic import make_collection

EVIL = (None, True, -1, 0, 1, 7, 10**9, 10**18, -(10**30), 1e308, float("nan"), float("inf"), "", "x", "\0", "../x",
        "ok", [], {}, [[]], [None], {"a": 1}, [1e308] * 3, "9" * 5000)


def change_json(data, rng):
    """Change a value somewhere in JSON, or take it out."""
    top = json.loads(data)
    places, nodes = [], [top]
    while nodes:
        node = nodes.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            nodes += [node[key]] if isinstance(node[key], dict | list) else []
    node, key = places[int(rng.integers(len(places)))]
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = EVIL[int(rng.integers(len(EVIL)))]
    return json.dumps(top).encode()


def change_line(data, rng):
    """Change a line of several as JSON."""
    lines = data.splitlines()
    at = int(rng.integers(len(lines)))
    lines[at] = change_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def change_cell(data, rng):
    """Change a cell of a CSV, or take out or repeat a line."""
    lines = [line.split(b",") for line in data.splitlines()]
    line = int(rng.integers(min(len(lines), 5))) if rng.random() < 0.5 else int(rng.integers(len(lines)))
    if rng.random() < 0.2:
        lines[line : line + 1] = lines[line : line + 1] * int(2 * rng.integers(2))
    else:
        cell = int(rng.integers(len(lines[line])))
        lines[line][cell] = str(EVIL[int(rng.integers(len(EVIL)))]).encode()
    return b"\n".join(b",".join(line) for line in lines) + b"\n"


SHAPES = ("(64, 128, 128)", "(10**15,)", "(1000000000000000, 1, 1)", "(-1, 2, 2)", "()", "(0, 0, 0)", "(64, 0, 128)",
          "(64, 16384)", "(64, 128, 129)", "64", "(64.5,)", "(True, 1, 1)", "(64, 1000000000000, 1)", "None")
TYPES = (">f2", "|O", "<f8", "|S5", "<U9", "|V0", "|u1", "<c16", "<M8[s]", "|b1", "<f16", "[('a', '<f2')]", "<i1000")


def change_header(data, rng):
    """Give the array of an .npy file another header: shapes of petabytes, types that are not numbers, other order."""
    at = data.find(b"\x93NUMPY")
    size = struct.unpack("<H", data[at + 8 : at + 10])[0]
    kind = str(rng.choice(TYPES)) if rng.random() < 0.5 else "<f2"
    shape = str(rng.choice(SHAPES)) if rng.random() < 0.7 else "(64, 128, 128)"
    kind = kind if kind.startswith("[") else repr(kind)
    text = f"{{'descr': {kind}, 'fortran_order': {rng.random() < 0.2}, 'shape': {shape}, }}"
    return data[: at + 10] + text.encode().ljust(size - 1)[: size - 1] + b"\n" + data[at + 10 + size :]


def change_tensors(data, rng):
    """Change a value in the JSON at the head of a safetensors file."""
    size = struct.unpack("<Q", data[:8])[0]
    head = change_json(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(head)) + head + data[8 + size :]


def make_files(folder):
    """A collection with a cache, an unfinished cache, a finished run, its export and result: all small and valid."""
    import torch

    import training
    from audio.cache import describe
    from audio.filling import make_plan
    from classifier.shipping import export_run
    from learning import runs
    from study.result_files import save_result, summarise_runs

    folder = Path(folder)
    data = make_collection(folder / "tiny", features=(("mel128", 128),), frames=128)
    (data / "features" / "mel128.json").write_text(json.dumps(describe("mel128", 64)))
    (data / "fma_metadata" / "genres.csv").write_text(
        "genre_id,#tracks,parent,title,top_level\n1,9,0,Folk,1\n2,9,1,Psych-Folk,1\n3,4,0,Rock,3\n")
    tracks = (data / "fma_metadata" / "tracks.csv").read_text().splitlines()
    ends = (",track,album", ",genres,title", ",,") + (',"[1, 2]",Tüte & Söhne',) * (len(tracks) - 3)
    (data / "fma_metadata" / "tracks.csv").write_text("\n".join(a + b for a, b in zip(tracks, ends, strict=True)))
    run_dir, _ = training.run("x", {"feature": "mel128", "model": "SquareCNN"}, data,
                              {"epochs": 2, "precision": "float32"}, folder / "runs", device="cpu", progress=False)
    export_run(run_dir, folder / "weights" / "some")
    result, test = summarise_runs("mel128_square", [run_dir]), runs.load_probabilities(run_dir)
    result["seeds"].append(result["seeds"][0] | {"seed": 1})
    for name, dataset in (("mel128_square", "fma_tiny"), ("mel128_square_one_dropout", "fma_tiny"),
                          ("mel128_square", "ladder/fma_tiny_official")):
        save_result(folder / "results" / dataset / f"{name}.json",
                    result | {"experiment": name, "dataset": dataset.rpartition("/")[2]}, [test, test])
    model = training.build(runs.load_config(run_dir))
    runs.save_state(run_dir, model, torch.optim.Adam(model.parameters()), runs.load_history(run_dir))
    partial = folder / "unfinished" / ".partial"
    partial.mkdir(parents=True)
    make_plan(partial.parent, ["mfcc"], np.arange(2, 66))
    (partial / "progress.csv").write_text("".join(f"{row},ok\n" for row in range(30)))
    return folder


def read_dataset(folder):
    from dataset import FeatureDataset

    dataset = FeatureDataset(folder / "tiny", "mel128")
    dataset.normalise()
    dataset.batch(dataset.rows["training"][:3])


def read_tracks(folder):
    from audio.audit import audit
    from fma import load_genres, load_tracks, sub_genres

    tracks = load_tracks(folder / "tiny")
    audit(folder / "tiny")
    sub_genres(tracks, load_genres(folder / "tiny"))
    read_dataset(folder)


def read_info(folder):
    from audio.cache import find_present

    read_dataset(folder)
    find_present(folder / "tiny" / "features", ["mel128"], 64)


def read_plan(folder):
    from audio.filling import make_plan, read_journal

    make_plan(folder / "unfinished", ["mfcc"], np.arange(2, 66))
    read_journal(folder / "unfinished" / ".partial" / "progress.csv", 64)


def read_run(folder):
    from classifier.network import load_classifier
    from learning import runs

    run_dir = folder / "runs" / "tiny" / "x" / "seed0"
    runs.start_run(run_dir, runs.load_config(run_dir))
    runs.report(run_dir)
    classify(load_classifier(run_dir))


def read_state(folder):
    import torch

    import training
    from learning import runs

    run_dir = folder / "runs" / "tiny" / "x" / "seed0"
    model = training.build(runs.load_config(run_dir))
    runs.load_state(run_dir, model, torch.optim.Adam(model.parameters()))


def read_export(folder):
    from classifier.network import load_classifier

    classify(load_classifier(folder / "weights" / "some"))


def read_results(folder):
    from study.marked_tables import marked_tables
    from study.predictions import load_answers
    from study.result_files import load_results
    from study.tables import results_table

    results = load_results(folder / "results" / "fma_tiny")
    results_table(results, seconds=True)
    marked_tables("".join(f"<!-- {kind} -->\n<!-- end -->\n" for kind in (
        "table fma_tiny *", "ablations fma_tiny *", "ladder fma_tiny mel128_square")), folder / "results")
    load_answers(results, folder / "results")


def classify(classifier):
    said = classifier.probabilities(np.zeros((1, 128, 128), np.float32))
    if said.shape != (1, len(classifier.genres)) or not np.isfinite(said).all():
        raise AssertionError(f"a classifier was loaded that says {said}")


RUN = "runs/tiny/x/seed0"
FILES = {   # file: (what reads it, what changes it beside the byte fuzzer)
    "tiny/fma_metadata/tracks.csv": (read_tracks, change_cell),
    "tiny/fma_metadata/genres.csv": (read_tracks, change_cell),
    "tiny/features/index.csv": (read_dataset, change_cell), "tiny/features/mel128.npy": (read_dataset, change_header),
    "tiny/features/mel128.json": (read_info, change_json), "unfinished/.partial/plan.json": (read_plan, change_json),
    "unfinished/.partial/progress.csv": (read_plan, change_cell), f"{RUN}/config.json": (read_run, change_json),
    f"{RUN}/history.jsonl": (read_run, change_line), f"{RUN}/probabilities.npz": (read_run, change_header),
    f"{RUN}/model.safetensors": (read_run, change_tensors), f"{RUN}/state.pt": (read_state, None),
    "weights/some.json": (read_export, change_json), "weights/some.safetensors": (read_export, change_tensors),
    "results/fma_tiny/mel128_square.json": (read_results, change_json),
    "results/fma_tiny/mel128_square.csv": (read_results, change_cell),
    "results/ladder/fma_tiny_official/mel128_square.json": (read_results, change_json),
}  # fmt: skip


def try_broken(folder, number):
    """Break one file, read it, and mend it again.

    Returns
    -------
    name : str
        Of the file.
    outcome : {"read", "DataError"}

    Raises
    ------
    Exception
        Whatever else comes of reading it, with a note of the file.
    """
    from fma import DataError

    rng, name = np.random.default_rng([2, number]), list(FILES)[number % len(FILES)]
    (read, change), path = FILES[name], Path(folder) / name
    valid = path.read_bytes()
    others = [(Path(folder) / other).read_bytes() for other in ("weights/some.json", "tiny/features/index.csv")]
    data = mutate(valid, rng, others) if change is None or rng.random() < 0.4 else change(valid, rng)
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(Path(folder))
        return name, "read"
    except DataError as error:
        if "\n" in str(error):
            raise AssertionError(f"file {number}, {name}: an error of several lines: {error!r}") from error
        return name, "DataError"
    except Exception as error:
        error.add_note(f"file {number}: {name}")
        raise
    finally:
        path.write_bytes(valid)


def copy_files(source, folder):
    """A copy to break, for a process of its own."""
    return Path(shutil.copytree(source, Path(folder) / str(os.getpid())))
