"""The precision of a run is what its device can train its network in, and float16 loses no step unseen."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from test_training import Cut, command, cut, outcome, train
from torch import nn
from tqdm.auto import tqdm

import training
from fma import DataError
from learning import devices, runs

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("capability, expected", [
    ((5, 2), "float32"), ((6, 0), "float16"), ((6, 1), "float32"), ((7, 0), "float16"), ((7, 5), "float16"),
    ((8, 0), "bfloat16"), ((9, 0), "bfloat16"), ((12, 0), "bfloat16"),
])
def test_auto_precision_asks_the_gpu_of_the_run(monkeypatch, capability, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability)
    device = torch.device("cuda", 1)
    assert devices.choose_precision("auto", device) == expected and asked == [device]
    assert devices.choose_precision("float32", device) == "float32"


@pytest.mark.parametrize("instructions, used, expected", [
    ({"amx_bf16": True}, True, "bfloat16"), ({"avx512_bf16": True}, True, "bfloat16"),
    ({"avx512_f": True, "avx512_bf16": False}, True, "float32"),            # oneDNN emulates it
    ({"amx_bf16": True, "avx512_bf16": True}, False, "float32"),            # ONEDNN_MAX_CPU_ISA=AVX2
])
def test_auto_precision_of_a_cpu_is_what_it_multiplies_and_onednn_uses(monkeypatch, instructions, used, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: used)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert devices.choose_precision("auto", CPU) == expected
    assert devices.choose_precision("auto", torch.device("mps")) == "float32"


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("could not create a primitive. Run with ONEDNN_VERBOSE=all\nin C++")


class Picky(nn.Linear):
    """As an LSTM on a CPU without AVX-512, or a layer on one that has bfloat16 kernels forward alone."""

    def __init__(self, stage):
        super().__init__(4, 4)
        self.stage, self.norm = stage, nn.BatchNorm1d(4)

    def forward(self, x):
        x, coarse = self.norm(super().forward(x)), torch.is_autocast_enabled("cpu")
        if coarse and self.stage == "forward":
            raise RuntimeError("could not create a primitive. Run with ONEDNN_VERBOSE=all\nin C++")
        return NoBackward.apply(x) if coarse and self.stage == "backward" else x


@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_what_a_device_cannot_train_is_found_by_trying(monkeypatch, stage):
    monkeypatch.setattr(devices, "fast_precisions", lambda device: ("bfloat16",))
    x = torch.randn(2, 4)
    assert devices.choose_precision("auto", CPU, Picky("never"), x) == "bfloat16"
    network = Picky(stage)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert devices.choose_precision("auto", CPU, network, x) == "float32"
    with pytest.raises(DataError) as error:
        devices.choose_precision("bfloat16", CPU, network, x)
    assert str(error.value) == ("Picky cannot be trained in bfloat16 on this cpu (could not create a primitive): "
                                "pass --precision float32")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.weight.grad is None


def test_an_explicit_precision_is_tried_on_the_network_of_the_run(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training.MODELS["SquareCNN"], "forward", lambda self, x: Picky("forward")(x[:, :4, 0]))
    status, said = command(capsys, "chroma_cqt_square", "--data-dir", tiny, "--runs-dir", tmp_path / "runs",
                           "--precision", "bfloat16", "--device", "cpu")
    assert status == 2 and len(said) == 1 and "SquareCNN cannot be trained in bfloat16 on this cpu" in said[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("fast, expected", [(("bfloat16",), torch.bfloat16), ((), torch.float32)])
def test_bfloat16_computes_in_bfloat16_where_it_is_fast(tiny, monkeypatch, fast, expected):
    seen = []
    monkeypatch.setattr(devices, "fast_precisions", lambda device: fast)
    hook = nn.modules.module.register_module_forward_hook(lambda layer, _, out: seen.append((type(layer), out.dtype)))
    dataset = training.open_dataset(tiny, "chroma_cqt")
    training.predict(training.MODELS["SquareCNN"](12, 64, 4), dataset, dataset.rows["test"], "bfloat16")
    hook.remove()
    assert {dtype for kind, dtype in seen if kind is nn.Conv2d} == {expected}


def test_a_finished_run_is_read_where_its_precision_is_missing(tiny, tmp_path, monkeypatch):
    run_dir, history = train(tiny, tmp_path, precision="bfloat16")
    monkeypatch.setattr(devices, "fast_precisions", lambda device: ())
    assert train(tiny, tmp_path, precision="auto") == (run_dir, history)


def overflowing(monkeypatch, start=2.0**24):
    """A scale that overflows at first and then grows every second step, until it overflows again."""
    monkeypatch.setattr(devices, "gradient_scaler", lambda precision, device: torch.amp.GradScaler(
        device.type, init_scale=start, growth_interval=2, enabled=precision == "float16"))


def test_float16_goes_on_with_the_scale_it_had(tiny, tmp_path, monkeypatch):
    overflowing(monkeypatch)
    settings = {"precision": "float16", "clip_norm": 1.0}
    whole, history = train(tiny, tmp_path / "whole", **settings)
    with pytest.MonkeyPatch.context() as once, pytest.raises(Cut):
        cut(once, tqdm, "update", 8)                        # in the third epoch
        train(tiny, tmp_path / "cut", **settings)
    state = torch.load(next((tmp_path / "cut").rglob("state.pt")), weights_only=True)
    assert state["scaler"]["scale"] not in (2.0**24, 2.0**16)
    assert outcome(train(tiny, tmp_path / "cut", **settings)[0]) == outcome(whole)


def test_steps_that_overflow_are_skipped_and_counted(tiny, tmp_path, monkeypatch):
    overflowing(monkeypatch, 2.0**120)                      # too large for every step
    settings = {"precision": "float16", "epochs": 2}
    run_dir, history = train(tiny, tmp_path / "all", **settings)
    assert [epoch["skipped_steps"] for epoch in history] == [3, 3]
    torch.manual_seed(0)
    fresh = training.build(runs.load_config(run_dir))
    kept = runs.load_weights(run_dir, training.build(runs.load_config(run_dir)))
    assert all(map(torch.equal, kept.parameters(), fresh.parameters()))
    assert "; 6 steps overflowed in float16 and were skipped" in runs.report(run_dir)
    overflowing(monkeypatch, 1.0)
    run_dir, history = train(tiny, tmp_path / "none", **settings)
    assert [epoch["skipped_steps"] for epoch in history] == [0, 0] and "overflowed" not in runs.report(run_dir)
    assert history[-1]["train_loss"] < 2


def test_the_memory_of_a_step_is_foreseen(monkeypatch, capsys):
    """A run that needs more than there is would be ended by the system, without a word: it is warned of."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 100), nn.ReLU(), nn.Dropout(0.5), nn.Linear(100, 8))
    clips, before = torch.randn(2, 3, 4), torch.get_rng_state()
    floats = 12 + 100 + 100 + 100       # a clip, what ReLU gives, which half of it is dropped, and what is left
    held = []
    model[2].register_forward_hook(lambda module, given, said: held.append(weakref.ref(said)))
    assert devices.step_memory(model, clips, 32, "float32") == 2 * 32 * 4 * floats
    model[2]._forward_hooks.clear()
    gc.collect()
    assert len(held) == 1 and held[0]() is None, "what was measured stays in memory"
    for limit, words in ((1e6, ""), (8e4, "takes about 8e-05 GB of memory for 32 clips at a time, of 8e-05: if")):
        monkeypatch.setattr(devices, "memory_limit", lambda limit=limit: limit)
        dataset = SimpleNamespace(device=CPU, rows={"training": range(32)})
        devices.warn_of_memory(model, clips, training.Training(batch_size=500, precision="float32"), dataset)
        assert bool(words) == bool(said := capsys.readouterr().err) and words in said
    assert torch.equal(torch.get_rng_state(), before), "the network would be trained with other random numbers"


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
])
@pytest.mark.parametrize("where", ["training.train_epoch", "training.settle", "learning.devices.failure"])
def test_memory_that_is_too_small_is_one_line(monkeypatch, tiny, tmp_path, error, where):
    def fail(*args):
        raise error

    monkeypatch.setattr(where, fail)
    with pytest.raises(DataError, match="there is too little memory for this training: choose a smaller") as said:
        train(tiny, tmp_path)
    assert "\n" not in str(said.value)


def test_too_little_memory_is_not_taken_for_a_lack_of_the_precision(monkeypatch):
    def fail(*args):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you ...")

    monkeypatch.setattr(nn.Linear, "forward", fail)
    with pytest.raises(DataError, match="the memory of cpu is too small for this network: close what else uses it$"):
        devices.choose_precision("bfloat16", CPU, nn.Linear(2, 2), torch.zeros(2, 2))
