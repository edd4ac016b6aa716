"""Every clip is learned once an epoch, at the scheduled rate, and nothing in a step waits for a GPU."""

import os
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from synthetic import make_collection
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm.auto import tqdm

import training
from dataset import FeatureDataset, JointDataset, memory_limit
from fma import DataError
from learning import devices, steps
from learning.devices import choose_precision, failure, gradient_scaler
from learning.steps import learning_rate
from tag_models import LEARN_TAGS
from training import Training

pytestmark = pytest.mark.usefixtures("one_thread")
NOTHING = tqdm(disable=True)


# ---- order and rate ------------------------------------------------------------------------------------------


def test_one_cycle_warms_up_and_anneals_to_zero():
    settings = Training(lr=0.01, one_cycle=True)
    rates = [learning_rate(step, 1000, settings) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01 / 25) and np.argmax(rates) == 300 and rates[300] == 0.01
    assert np.allclose(np.diff(rates[:301]), np.diff(rates[:301])[0])                   # a straight line up
    assert all(np.diff(rates[300:]) < 0) and rates[650] == pytest.approx(0.005)         # half a cosine down
    assert rates[1000] == pytest.approx(0, abs=1e-9)
    assert {learning_rate(step, 1000, Training(lr=0.01)) for step in range(1000)} == {0.01}


def test_every_clip_is_in_one_batch_of_an_epoch_in_an_order_of_seed_and_epoch():
    rows = np.array([3, 5, 8, 13, 21, 34, 55])
    orders = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        batches = steps.batches_of(rows, Training(batch_size=2, seed=seed), epoch, "cpu")
        assert [len(batch) for batch in batches] == [2, 2, 3]                           # no batch of a single clip
        orders[seed, epoch] = torch.cat(batches).tolist()
        again = steps.batches_of(rows, Training(batch_size=2, seed=seed), epoch, "cpu")
        assert torch.cat(again).tolist() == orders[seed, epoch]
        assert sorted(orders[seed, epoch]) == rows.tolist()
    assert len({tuple(order) for order in orders.values()}) == 3
    assert steps.count_steps(40, 13) == 3 and steps.count_steps(1, 13) == 1


def test_every_process_has_two_clips_of_every_batch(monkeypatch):
    for processes, sizes in ((1, [13, 13, 4]), (2, [13, 13, 4]), (3, [13, 17])):
        monkeypatch.setattr(steps, "world", lambda processes=processes: (0, processes))
        batches = steps.batches_of(np.arange(30), Training(batch_size=13), 0, "cpu")
        assert [len(batch) for batch in batches] == sizes
        assert steps.count_steps(30, 13) == len(sizes)


def test_processes_share_a_batch_without_loss_or_repetition(tiny, monkeypatch):
    dataset, seen = FeatureDataset(tiny, "chroma_cqt"), {}
    monkeypatch.setattr(steps.dist, "all_reduce", lambda totals: None)
    for rank in range(3):
        monkeypatch.setattr(steps, "world", lambda rank=rank: (rank, 3))
        monkeypatch.setattr(steps, "learn", lambda *args, rank=rank: seen.setdefault(rank, []).append(
            (args[-2].tolist(), args[-1])) or torch.zeros(2))
        steps.train_epoch(torch.nn.Identity(), dataset, torch.optim.SGD([torch.zeros(1)]), Training(batch_size=13), 0,
                          NOTHING)
    for parts in zip(*seen.values(), strict=True):          # the shares of one batch
        assert {count for _, count in parts} == {sum(len(rows) for rows, _ in parts)}
    assert sorted(row for parts in seen.values() for rows, _ in parts for row in rows) == (
        dataset.rows["training"].tolist())


def test_a_last_batch_of_one_clip_goes_with_the_one_before(tiny, tmp_path, monkeypatch):
    sizes, real = [], steps.training_batch
    monkeypatch.setattr(steps, "training_batch", lambda dataset, rows, *rest: (
        sizes.append(len(rows)) or real(dataset, rows, *rest)))
    row = {"feature": "chroma_cqt", "model": "Dense"}       # whose batch norm stops at one clip
    training.run("x", row, tiny, {"epochs": 1, "batch_size": 13, "precision": "float32"}, tmp_path, device="cpu",
                 progress=False)
    assert sizes == [13, 13, 14]


# ---- precision -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Clips that are as small as all networks allow: a precision that a CPU emulates is slow."""
    return make_collection(tmp_path_factory.mktemp("data") / "narrow", (("cqt", 16), ("mfcc", 16)))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", training.MODELS)
def test_every_network_learns_in_every_precision_of_this_machine(narrow, model, precision):
    dataset = JointDataset(narrow, ["cqt", "mfcc"]) if model == "Fusion" else FeatureDataset(narrow, "cqt")
    dataset.normalise()
    dataset.tags = torch.eye(64, 105) if model in LEARN_TAGS else None
    torch.manual_seed(0)
    network, rows = training.MODELS[model](*dataset.shape, n_classes=4), torch.tensor(dataset.rows["training"][:4])
    lacking = failure(network, dataset.batch(rows)[0], precision, dataset.device)
    if lacking:
        with pytest.raises(DataError, match=f"{model} cannot be trained in {precision} on this cpu .* --precision"):
            choose_precision(precision, dataset.device, network, dataset.batch(rows)[0])
        return
    optimizer, scaler = torch.optim.Adam(network.parameters()), gradient_scaler(precision, dataset.device)
    before = [weight.clone() for weight in network.parameters()]
    for _ in range(8):                                      # the first may overflow, until the scale fits
        if steps.steps_taken(optimizer) < 2:
            steps.learn(network, dataset, optimizer, scaler, Training(precision=precision), torch.Generator(), rows, 4)
    assert steps.steps_taken(optimizer) == 2
    assert all((weight != old).any() and weight.isfinite().all()
               for weight, old in zip(network.parameters(), before, strict=True))


# ---- GPUs ----------------------------------------------------------------------------------------------------


class Waiting(TorchDispatchMode):
    """Note each operation whose result, or whose size, a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select", "unique2", "equal"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_waiting_is_noticed():
    x = torch.arange(4.0)
    with Waiting() as watch:
        x.sum().item(), x[x > 1], x.nonzero()
    assert watch.found == ["_local_scalar_dense", "index", "nonzero"]


ALTERED = {"roll": True, "shift_bins": 2, "equaliser_db": 3, "low_pass": 0.5, "mix_style": 0.3,
           "mask_bins": 4, "mask_frames": 8, "mixup": 0.3, "clip_norm": 1.0}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Clips that are large enough for every network."""
    return make_collection(tmp_path_factory.mktemp("data") / "large", (("cqt", 84), ("mfcc", 20)), frames=128)


@pytest.mark.parametrize("model", training.MODELS)
def test_no_step_waits_for_a_result(large, model):
    several = model == "Fusion"
    dataset = JointDataset(large, ["cqt", "mfcc"]) if several else FeatureDataset(large, "cqt")
    dataset.normalise()
    dataset.tags = torch.eye(64, 105) if model in LEARN_TAGS else None
    torch.manual_seed(0)
    network = training.MODELS[model](*dataset.shape, n_classes=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)      # Adam counts its steps on the CPU
    for settings in (Training(precision="float32"), Training(precision="float32", **ALTERED)):
        with Waiting() as watch:
            found = steps.learn(network, dataset, optimizer, gradient_scaler("float32", dataset.device), settings,
                                torch.Generator(), torch.tensor(dataset.rows["training"][:8]), 8)
        assert watch.found == [] and found.isfinite().all()


@pytest.fixture
def fake_cuda(monkeypatch):
    """CUDA graphs on a CPU: what is recorded is noted, not done, and done when it is replayed."""
    class Graph:
        registered, replay = None, None

        def register_generator_state(self, generator):
            self.registered = generator

    recording = []

    @contextmanager
    def record(graph):
        recording.append(graph)
        yield
        recording.pop()

    class Stream:
        def wait_stream(self, stream):
            pass

    for name, value in {"CUDAGraph": Graph, "graph": record, "Stream": Stream, "current_stream": Stream,
                        "stream": lambda stream: record(None)}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return recording


def test_a_recorded_step_learns_every_batch_once_and_in_order(fake_cuda):
    learned, result = [], torch.zeros(2)

    def step(rows, count):
        def work():
            learned.append((rows.tolist(), count))
            return result.copy_(torch.tensor([rows.sum(), count]))
        if fake_cuda and fake_cuda[-1] is not None:
            fake_cuda[-1].replay = work
            return result
        return work()

    graph, batches = steps.StepGraph(torch.device("cpu")), [torch.arange(k, k + 3) for k in range(0, 18, 3)]
    batches.insert(3, torch.arange(90, 92))                         # smaller: not what is to be recorded
    found = [graph.take(step, batch).tolist() for batch in batches]
    assert learned == [(batch.tolist(), len(batch)) for batch in batches]
    assert found == [[batch.sum().item(), len(batch)] for batch in batches]
    assert len(graph.rows) == 3
    assert graph.graph.registered is graph.generator                # else dropout and augmentation would repeat


def test_a_graph_is_refused_where_it_cannot_be(tiny, tmp_path):
    with pytest.raises(DataError, match="graph is for one process on a GPU"):
        training.run("x", {"feature": "chroma_cqt", "model": "Dense"}, tiny, {"graph": True}, tmp_path, device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_recorded_steps_train_as_single_ones(large, tmp_path, monkeypatch, precision):
    if precision == "float16":                              # a scale that overflows at first, and then grows
        monkeypatch.setattr(devices, "gradient_scaler", lambda _, device: torch.amp.GradScaler(
            device.type, init_scale=2.0**30, growth_interval=4))
    row = {"feature": "cqt", "model": "TemporalCNN", "args": {"dropouts": 0}}
    settings = {"epochs": 4, "batch_size": 8, "precision": precision, "clip_norm": 1.0}
    both = [training.run("x", row, large, settings | {"graph": graph}, tmp_path / str(graph), progress=False)[1]
            for graph in (False, True)]
    for alone, recorded in zip(*both, strict=True):
        assert recorded["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-3)
        assert recorded["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-2)
        assert recorded.get("skipped_steps") == alone.get("skipped_steps")
    if precision == "float16":
        assert sum(epoch["skipped_steps"] for epoch in both[0]) >= 5


# ---- from a disk ---------------------------------------------------------------------------------------------


def test_the_system_is_told_which_bytes_are_read_next(tiny, monkeypatch):
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system is not told")
    dataset, told = FeatureDataset(tiny, "cqt", hold=False), []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, offset, length, advice: told.append(
        (os.pread(file, length, offset), advice)))
    steps.train_epoch(training.MODELS["TemporalCNN"](84, 64, 4), dataset, torch.optim.SGD([torch.zeros(1)]),
                      Training(batch_size=4, precision="float32"), 0, NOTHING)
    batches = steps.batches_of(dataset.rows["training"], Training(batch_size=4), 0, "cpu")
    assert told == [(dataset.array[row].tobytes(), os.POSIX_FADV_WILLNEED)
                    for row in torch.cat(batches[steps.AHEAD:]).tolist()]


def test_clips_on_a_disk_train_as_those_in_memory(tiny, tmp_path):
    found = []
    for hold in (True, False):
        dataset = FeatureDataset(tiny, "cqt", hold=hold)
        dataset.normalise()
        assert dataset.is_held() == hold
        torch.manual_seed(0)
        model = training.MODELS["TemporalCNN"](84, 64, 4)
        settings = Training(batch_size=8, precision="float32", mixup=0.2)
        steps.train_epoch(model, dataset, torch.optim.Adam(model.parameters()), settings, 0, NOTHING)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_batch_job_has_the_memory_of_its_group_not_of_the_machine(tmp_path):
    groups, job = tmp_path / "cgroup", tmp_path / "job"
    groups.write_text("3:cpu:/elsewhere\n0::/job/step\n")
    machine = memory_limit(groups, tmp_path)
    assert machine == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")      # no file says otherwise
    (job / "step").mkdir(parents=True)
    (job / "step" / "memory.max").write_text("max\n")
    (job / "memory.max").write_text("1048576\n")
    assert memory_limit(groups, tmp_path) == 2**20
    assert memory_limit(tmp_path / "none", tmp_path) == machine
