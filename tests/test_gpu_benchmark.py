"""The benchmark of a GPU, on a CPU at a hundredth of the size: what it times is a training, and no row is lost."""

import json

import pytest
import torch

from benchmarks import gpu

CPU = torch.device("cpu")
FEATURES = {"network": "six features", "loop": "ours", "batch": 2, "precision": "float64", "graph": False,
            "compiled": False, "clips_per_second": 1.0, "peak_mib": None, "seconds": 1}


@pytest.fixture
def small(monkeypatch):
    """Clips of 12 x 64, which the command takes for those of the study."""
    for name, value in {"SIZE": (12, 64), "CLIPS": 3200, "BATCHES": (8, 16), "BESIDE": 1, "COMPILED": ()}.items():
        monkeypatch.setattr(gpu, name, value)
    return gpu.random_clips(CPU, 32, (12, 64))


def test_random_clips_are_what_a_training_step_takes(small):
    x, y = small.batch(torch.arange(8))
    assert x.shape == (8, 12, 64) and y.tolist() == list(range(8))
    assert abs(x.mean()) < 0.1 and abs(x.std() - 1) < 0.1


def test_both_loops_learn_what_they_are_timed_on(small, monkeypatch):
    """A loop that does not train would be the fastest of all."""
    taken, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (taken.append(1), step(self)))
    for loop in (lambda: gpu.original("TemporalCNN", small, 8, 0),
                 lambda: gpu.ours("TemporalCNN", small, 8, "float32", seconds=0)):
        assert loop() > 0 and len(taken) == 8           # two epochs of four steps, the first to warm up
        taken.clear()


def test_every_row_is_written_as_soon_as_it_is_measured(small, monkeypatch, tmp_path, capsys):
    path, measure = tmp_path / "gpu.json", gpu.measure
    monkeypatch.setattr(gpu, "features_row", lambda *_: FEATURES)
    monkeypatch.setattr(gpu, "measure", lambda case, *rest: measure(case, *rest) if "float32" in case else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gpu.main(["--network", "TemporalCNN", "--device", "cpu", "--seconds", "0", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["loop"], row["batch"]) for row in rows[1:]] == [("original", 8), ("ours", 8)]
    assert all(row["clips_per_second"] > 0 for row in rows)
    assert "TemporalCNN" in capsys.readouterr().out


def test_what_the_time_or_the_card_does_not_allow_is_named(small, monkeypatch, capsys):
    def fails(case, *_):
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(gpu, "measure", fails)
    monkeypatch.setattr(gpu, "features_row", lambda *_: FEATURES)
    gpu.main(["--network", "TemporalCNN", "--device", "cpu"])
    assert "not measured: TemporalCNN original 8 float32 False False: no such kernel" in capsys.readouterr().out
    gpu.main(["--network", "TemporalCNN", "--device", "cpu", "--minutes", "0"])
    assert "six features: no time left" in capsys.readouterr().out


def test_the_hours_of_the_study_are_those_of_its_rows():
    rows = [{"network": name, "loop": loop, "batch": gpu.BATCHES[0], "clips_per_second": 6400.0}
            for name in gpu.STUDY for loop in ("ours", "original")]
    assert gpu.study_hours(rows[1:]) == {}
    assert gpu.study_hours(rows)["ours"] == pytest.approx(sum(gpu.STUDY.values()) * 150 / 3600)
    assert sum(gpu.STUDY.values()) == 32 and set(gpu.STUDY) == set(gpu.NETWORKS)



def test_the_summary_has_a_line_for_each_network_with_its_fastest_setting(capsys):
    gpu.main(["--summary", str(gpu.Path(gpu.__file__).with_name("gpu_h200.json"))])
    lines = capsys.readouterr().out.splitlines()
    [bbnn] = [line.split("|") for line in lines if line.startswith("| BBNN")]
    numbers = [float(cell.replace(",", "")) for cell in bbnn[2:-1]]
    assert len(lines) == 12 and numbers[-1] == pytest.approx(max(numbers[1:5]) / numbers[0], abs=0.1)
