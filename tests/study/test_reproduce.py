"""The whole study on one folder: what will be run is said first, and it is what is run."""

import json
import shutil
from pathlib import Path

import pytest
from synthetic import make_collection

from fma import DataError, run_command
from study import reproduce
from study.rows import EXPERIMENTS, features_of
from study.runner import usual_schedule

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("data") / "tiny", features=(("chroma_cqt", 12),))


def test_without_audio_only_what_is_cached_is_run(tiny):
    assert reproduce.chosen_rows(tiny, ["*"]) == [
        name for name, row in EXPERIMENTS.items() if row["feature"] == "chroma_cqt"]
    assert reproduce.chosen_rows(tiny, ["*square", "chroma_cqt_t*"]) == ["chroma_cqt_temporal", "chroma_cqt_square"]
    with pytest.raises(DataError, match="no experiment matches mel128_.* with features of"):
        reproduce.chosen_rows(tiny, ["mel128_*"])


def test_with_audio_every_row_is_run_whose_features_can_be_made(tiny, tmp_path, capsys):
    (tmp_path / "fma_small").mkdir()
    shutil.copytree(tiny / "fma_metadata", tmp_path / "fma_metadata")       # which has no sub-genres
    chosen, given = reproduce.chosen_rows(tmp_path, ["*"]), {"vggish", "mfcc_3s", "musicnn", "recurrence"}
    assert chosen == [name for name, row in EXPERIMENTS.items() if not given & set(features_of(row))
                      and not row.get("training", {}).get("pitch_copies")
                      and not name.startswith(("tags_heads", "tags_aligned", "tags_probe", "tags_tuned"))]
    assert run_command(lambda: reproduce.main(["cqt_square", "--plan", "--data-dir", str(tmp_path)])) == 0
    assert "not in the plan, but made and trained on in a run: cqt\n" in capsys.readouterr().out
    assert not (tmp_path / "features").exists()
    assert {"cqt_bbnn", "statistics_resnet", "fusion_cqt_mel_mfcc"} <= set(chosen)


def test_features_joined_in_one_network_are_planned(tmp_path):
    data = make_collection(tmp_path / "two", features=(("mel128", 32), ("mfcc_3s", 20)), frames=40)
    assert reproduce.plan(["fusion_scratch"], data, device="cpu")["fusion_scratch"] > 0


def test_the_plan_counts_steps_epochs_and_repeats(tiny, monkeypatch):
    monkeypatch.setattr(reproduce, "step_seconds", lambda name, dataset, batch_size: 0.5 if "square" in name else 2.0)
    names = ["chroma_cqt_temporal", "chroma_cqt_square"]
    hours = reproduce.plan(names, tiny, repeats=3, device="cpu")            # 40 clips: two steps an epoch, 60 epochs
    assert hours["chroma_cqt_square"] == pytest.approx(0.5 * 2 * 60 * 3 * reproduce.OVERHEAD / 3600)
    assert hours["chroma_cqt_temporal"] == pytest.approx(4 * hours["chroma_cqt_square"])
    short = reproduce.plan(names, tiny, repeats=3, settings={"epochs": 5}, device="cpu")
    assert short["chroma_cqt_square"] == pytest.approx(hours["chroma_cqt_square"] / 12)
    folds = reproduce.plan(names, tiny, repeats=3, device="cpu", folds=True)
    assert folds["chroma_cqt_square"] == pytest.approx(5 * hours["chroma_cqt_square"])
    table = reproduce.plan_table(hours)
    assert table.index("temporal") < table.index("square") and "2 experiments, 0.3 hours" in table


def test_the_schedule_is_that_of_the_published_results():
    """What `make reproduce` trains is what the stored results say that they were trained with."""
    for name, dataset, epochs in (("mel128_square", "fma_small", 20), ("cqt_bbnn_paper", "allmusic", 60),
                                  ("statistics_resnet", "fma_small", 20), ("vggish_dense", "fma_small", 20)):
        stored = json.loads((ROOT / "results" / dataset / f"{name}.json").read_text())["config"]["training"]
        schedule = usual_schedule(None, epochs=epochs)
        ours = EXPERIMENTS[name].get("training", {}) | reproduce.with_schedule(name, schedule, {})
        assert {key: ours.get(key) for key in ("one_cycle", "epochs")} == {
            key: stored[key] for key in ("one_cycle", "epochs")}, name
    given = {"epochs": 5, "one_cycle": False}
    assert reproduce.with_schedule("cqt_square", usual_schedule(None, epochs=60), given).items() >= given.items()


def test_the_command_says_then_runs_and_goes_on(tiny, tmp_path, capsys, monkeypatch):
    argv = ["chroma_cqt_s*", "--data-dir", str(tiny), "--repeats", "2", "--epochs", "1", "--device", "cpu",
            "--runs-dir", str(tmp_path / "runs"), "--results-dir", str(tmp_path / "results")]
    assert run_command(lambda: reproduce.main([*argv, "--plan"])) == 0
    assert "1 experiments, 0.0 hours" in capsys.readouterr().out and not (tmp_path / "results").exists()
    assert run_command(lambda: reproduce.main(argv)) == 0
    said = capsys.readouterr().out
    assert said.index("hours") < said.index("Measured on tiny; 12 test clips of 6 artists, 2 seeds")
    result = json.loads((tmp_path / "results" / "tiny" / "chroma_cqt_square.json").read_text())
    assert result["config"]["training"]["one_cycle"] and [s["epochs"] for s in result["seeds"]] == [1, 1]
    monkeypatch.setattr("training.train_epoch", lambda *_: pytest.fail("trained again"))
    assert run_command(lambda: reproduce.main(argv)) == 0
