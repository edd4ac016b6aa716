"""The figures of the results notebook, and the numbers behind them, say what the results say."""

import itertools

import numpy as np
import pandas as pd
import pytest

from evaluation import summarise
from fma import DataError
from plots import results as rf
from study import comparisons, predictions, result_files
from study.predictions import compare_predictions, prediction_table
from study.rows import EXPERIMENTS

GENRES = ["Folk", "Pop", "Rock"]
LABELS = np.arange(120) % 3
ARTISTS = np.arange(120) // 3       # each has a clip of every genre
ORDER = np.random.default_rng(0).permutation(120)


def made_up(name, accuracy, seeds=1, watched=True, wrong_first=(), dataset="fma_small"):
    """A result of a network that is right on the share given, on the clips of lower `ORDER`, and its predictions."""
    right = ORDER < round(accuracy * 120)
    right[list(wrong_first)] = False
    tests = [{"probabilities": np.eye(3)[np.where(right, LABELS, (LABELS + 1) % 3)], "labels": LABELS,
              "tracks": np.arange(120), "artists": ARTISTS, "genres": np.array(GENRES)}] * seeds
    summary = summarise(LABELS, np.stack([t["probabilities"] for t in tests]), ARTISTS, GENRES)
    trained = not name.startswith("baseline_")
    row = EXPERIMENTS.get(name, {"model": "SVC", "feature": "statistics"})
    result = {"experiment": name, "dataset": dataset, "test": summary, "parameters": 1000 * len(name) * trained or None,
              "seeds": [{"seed": k, "epoch": 3 if trained else None, "validation": summary["accuracy"] + 0.1,
                         "test": summary["accuracy"], "test_max": summary["accuracy"] + 0.02 if watched else None}
                        for k in range(seeds)],
              "config": {"model": {"class": row["model"], "args": row.get("args", {})}, "feature": row["feature"]}}
    return (result if trained else result | {"reported": 47.8}), tests


@pytest.fixture(scope="module")
def results():
    accuracies = {"mel128_frequency": 0.5, "mel128_square": 0.9, "mel128_frequency_resnet_all": 0.52,
                  "mel128_parallel_gru": 0.6, "mel128_bbnn": 0.4}
    return [made_up(name, accuracy)[0] for name, accuracy in accuracies.items()]


@pytest.fixture
def save(tmp_path):
    def to_png(figure):
        figure.savefig(tmp_path / "figure.png")
        assert len((tmp_path / "figure.png").read_bytes()) > 5000
        return figure
    return to_png


def texts(axes):
    return [text.get_text() for text in axes.texts]


def names_on(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_row_of_the_study_has_its_family():
    families = {name: rf.family(made_up(name, 0.5)[0]) for name in (*EXPERIMENTS, "baseline_SVC")}
    assert set(families.values()) == set(rf.FAMILIES) and len(set(rf.FAMILIES.values())) == 5
    assert {families[f"cqt_{name}"] for name in ("frequency", "temporal", "square")} == {"convolutions"}
    assert families["cqt_frequency_densenet_second"] == families["mel128_frequency_resnet_all"]
    assert families["cqt_parallel_gru"] == families["cqt_sequential_lstm_bi"] == "with a recurrent layer"


def test_forest_has_a_line_per_model_best_on_top_in_its_familys_colour(results, save):
    axes = save(rf.plot_forest([*results, made_up("baseline_SVC", 0.7)[0]])).axes[0]
    assert names_on(axes.yaxis) == ["square", "SVC", "parallel_gru", "frequency_resnet_all", "frequency", "bbnn"]
    dots = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o" and len(line.get_ydata()) == 1}
    assert [dots[row].get_xdata()[0] for row in range(6)] == pytest.approx([90, 70, 60, 51.7, 50, 40], abs=0.1)
    assert [dots[row].get_color() for row in (0, 1, 2)] == [rf.FAMILIES[f] for f in (
        "convolutions", "classifiers on statistics", "with a recurrent layer")]
    ends = [line.get_xdata() for line in axes.lines if list(line.get_ydata()) == [0, 0]]
    assert ends[0] == pytest.approx(100 * np.array(results[1]["test"]["interval"]))
    assert texts(axes)[0].startswith("90.0   ")


def test_forest_shows_what_was_reported_on_fma_and_nowhere_else(results, save):
    def diamonds(rows):
        figure = save(rf.plot_forest(rows))
        found = [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == "D"]
        return [x for values in found for x in values], "reported by the original" in legend(figure)

    assert diamonds([*results, made_up("baseline_SVC", 0.7)[0]]) == ([47.8], True)
    assert diamonds([made_up("cqt_square", 0.7)[0]]) == ([43.1], True)
    assert diamonds(results) == ([], False)
    assert diamonds([made_up("cqt_square", 0.7, dataset="emotify")[0]]) == ([], False)
    chance = [line for line in rf.plot_forest(results).axes[0].lines if line.get_label() == "chance"]
    assert chance[0].get_xdata()[0] == pytest.approx(100 / 3)


def test_pairs_say_by_how_much_and_frame_what_is_real(results, save):
    tests = {r["experiment"]: made_up(r["experiment"], r["test"]["accuracy"])[1] for r in results}
    found = compare_predictions({name: prediction_table(test, [0]) for name, test in tests.items()})
    figure = save(rf.plot_pairs(results, found))
    axes = figure.axes[0]
    best_first = ["square", "parallel_gru", "frequency_resnet_all", "frequency", "bbnn"]
    assert names_on(axes.xaxis)[:4] == best_first[:-1] and names_on(axes.yaxis)[-4:] == best_first[1:]
    cells = {tuple(text.get_position()): text for text in axes.texts}
    assert set(cells) == {(column, row) for row in range(5) for column in range(row)}
    assert cells[0, 4].get_text() == "50.0" and cells[3, 4].get_text() == "10.0"      # of square, and of frequency
    framed = {place for place, text in cells.items() if text.get_bbox_patch() is not None}
    assert len(framed) == (found["p (Holm)"] < 0.05).sum() and (0, 4) in framed and (2, 3) not in framed


def test_differences_are_filled_where_they_are_real(save):
    found = pd.DataFrame({"difference": [5.0, -1.0], "low": [3.0, -4.0], "high": [7.0, 2.0], "p (Holm)": [0.01, 0.5]})
    axes = save(rf.plot_differences(["one", "other"], found, "changed − unchanged")).axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, True]
    assert texts(axes) == ["+5.0   +3.0 to +7.0 *", "-1.0   -4.0 to +2.0"]
    assert names_on(axes.yaxis) == ["one", "other"] and axes.get_xlabel() == "changed − unchanged"


def test_protocols_compare_the_runs_in_which_test_was_watched(results, save):
    axes = save(rf.plot_protocols([*results, made_up("mel128_temporal", 0.7, watched=False)[0]])).axes[0]
    values = {line.get_label(): line.get_xdata() for line in axes.lines}
    assert len(values["validation"]) == 5
    assert values["best on test of the saved epochs"][0] == pytest.approx(92)
    assert values["test, epoch chosen on validation"][0] == pytest.approx(90)
    assert values["validation"][0] == pytest.approx(100)


def test_recall_has_the_hardest_genre_first_and_the_mean_on_top(save):
    rows = [made_up(name, 0.95, wrong_first=np.flatnonzero(LABELS == 1)[:n])[0]
            for name, n in (("mel128_square", 10), ("mel128_frequency", 30))]
    axes = save(rf.plot_recall(rows)).axes[0]
    assert names_on(axes.xaxis)[0] == "Pop" and names_on(axes.yaxis) == ["mean of all", "square", "frequency"]
    recall = [100 * r["test"]["genres"]["Pop"]["accuracy"] for r in rows]
    column = [text.get_text() for text in axes.texts if text.get_position()[0] == 0]
    assert column == [f"{value:.0f}" for value in (np.mean(recall), *recall)]


@pytest.mark.parametrize("near", [False, True])
def test_no_two_names_lie_on_one_another_or_leave_the_picture(save, near):
    from matplotlib.text import Text

    names = [name for name in EXPERIMENTS if name.startswith("mel128_") and "ablates" not in EXPERIMENTS[name]]
    rows = [made_up(name, 0.5 if near else 0.4 + 0.01 * k)[0] for k, name in enumerate(names)]
    costs = {name: 5e5 * (1 + 0.02 * k) if near else 10.0 ** (k % 3) for k, name in enumerate(names)}
    figure = save(rf.plot_cost(rows, costs, "parameters"))
    axes = figure.axes[0]
    assert axes.get_xscale() == "log" and sorted(texts(axes)) == sorted(rf.short_names(rows).values())
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]       # without the line to its point
    assert all(box.x0 > axes.bbox.x0 and box.x1 < axes.bbox.x1 for box in boxes)
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.padded(-1).overlaps(b.padded(-1))]


@pytest.mark.parametrize("call", [
    lambda results: rf.plot_forest([]),
    lambda results: rf.plot_recall([]),
    lambda results: rf.plot_protocols([made_up("mel128_square", 0.5, watched=False)[0]]),
])
def test_what_cannot_be_drawn_is_one_line(results, call):
    with pytest.raises(ValueError) as error:
        call(results)
    assert "\n" not in str(error.value)


@pytest.fixture
def stored(tmp_path):
    """Results in a folder, of which the last has no predictions."""
    rows, accuracies = [], {"cqt_frequency": 0.8, "cqt_square": 0.9, "mel_stft_square": 0.4, "cqt_temporal": 0.5}
    for name, accuracy in accuracies.items():
        result, tests = made_up(name, accuracy, seeds=2)
        result_files.save_result(tmp_path / "fma_small" / f"{name}.json", result, tests)
        rows.append(result)
    (tmp_path / "fma_small" / "cqt_temporal.csv").unlink()
    return tmp_path, rows


def test_results_without_predictions_are_left_out(stored):
    folder, rows = stored
    answers = predictions.load_answers(rows, folder)
    assert list(answers) == ["cqt_frequency", "cqt_square", "mel_stft_square"]
    assert predictions.load_answers(rows, folder / "none") == {} and comparisons.right_by_clip({}).empty


def test_predictions_of_other_runs_are_called_out(stored):
    folder, rows = stored
    (folder / "fma_small" / "cqt_square.csv").write_bytes((folder / "fma_small" / "cqt_frequency.csv").read_bytes())
    with pytest.raises(DataError, match="cqt_square.csv does not belong to the result") as error:
        predictions.load_answers(rows, folder)
    assert "\n" not in str(error.value)


def test_right_by_clip_lines_the_models_up(stored):
    folder, rows = stored
    answers = predictions.load_answers(rows, folder)
    answers["cqt_square"] = answers["cqt_square"].iloc[::-1]        # in another order
    right = comparisons.right_by_clip(answers)
    assert right.index.names == ["track_id", "artist", "genre"] and len(right) == 120
    assert right.mean().to_dict() == pytest.approx({"cqt_frequency": 0.8, "cqt_square": 0.9, "mel_stft_square": 0.4})
    assert (right["cqt_square"] >= right["cqt_frequency"]).all()    # right wherever the other is
    answers["cqt_square"] = answers["cqt_square"].iloc[1:]
    with pytest.raises(DataError, match="cqt_square was tested on other clips than cqt_frequency"):
        comparisons.right_by_clip(answers)


def test_a_contrast_is_a_difference_of_means_and_a_pair_is_compared_as_ever(stored):
    folder, rows = stored
    answers = predictions.load_answers(rows, folder)
    right = comparisons.right_by_clip(answers)
    pair = comparisons.contrast(["cqt_square"], ["mel_stft_square"])
    both = comparisons.contrast(["cqt_square", "cqt_frequency"], ["mel_stft_square"])
    questions = {"pair": pair, "both": both, "unknown": comparisons.contrast(["cqt_bbnn"], ["cqt_square"])}
    found = comparisons.contrasts(right, questions)
    assert list(found.index) == ["pair", "both"]
    assert found["difference"].tolist() == pytest.approx([50, 45])
    same = compare_predictions(answers, [("cqt_square", "mel_stft_square")]).iloc[0]
    assert found.loc["pair", ["difference", "low", "high", "p"]].tolist() == pytest.approx(
        same[["difference", "low", "high", "p"]].tolist())
    assert found.loc["pair", "p (Holm)"] == pytest.approx(2 * same["p"], rel=0.5)      # corrected for two questions
    said = comparisons.in_words(found, questions).splitlines()
    assert said[0].startswith("pair: +50.0 points (") and said[0].endswith("), significant")
    assert said[-1] == "1 of 3 not measured yet" and len(said) == 3


def test_what_no_model_answers_is_not_measured():
    questions = comparisons.cqt_against_mel()
    found = comparisons.contrasts(comparisons.right_by_clip({}), questions)
    assert found.empty and "p (Holm)" in found
    assert comparisons.in_words(found, questions) == "6 of 6 not measured yet"


def test_differences_that_are_not_real_are_counted():
    table = pd.DataFrame({"difference": [1.0, 2.0], "low": [-1.0, -1.0], "high": [3.0, 5.0], "p (Holm)": [0.4, 0.2]})
    assert comparisons.in_words(table) == "no significant difference in 2 of 2 comparisons"


@pytest.mark.parametrize("questions", [
    comparisons.cqt_against_mel(), comparisons.from_mel_to_cqt(),
    *(ask(feature) for ask in (comparisons.blocks_against_plain, comparisons.recurrent_against_plain)
      for feature in ("cqt", "mel128")),
])
def test_the_puzzles_ask_about_rows_of_the_study(questions):
    for label, weights in questions.items():
        assert set(weights) <= set(EXPERIMENTS), label
        assert sum(weights.values()) == pytest.approx(0), label


def test_the_gap_that_decibels_close_is_the_lead_before_minus_the_lead_after():
    right = pd.DataFrame(0.5, pd.MultiIndex.from_tuples([(k, str(k), "Pop") for k in range(20)],
                                                        names=["track_id", "artist", "genre"]),
                         [name for name in EXPERIMENTS if name.startswith(("cqt_", "mel_stft_"))])
    for shape in ("frequency", "square"):
        right[f"mel_stft_{shape}_linear_raw"] = 0.2
        right[f"cqt_{shape}_linear_raw"] = 0.4
    found = comparisons.contrasts(right, comparisons.cqt_against_mel())["difference"]
    assert found.round(6).tolist() == [20, 0, 0, 30, 10, 20]


def test_a_step_is_timed_without_data(results):
    result = results[1] | {"config": {**results[1]["config"], "model": {
        "class": "SquareCNN", "args": {"n_bins": 128, "n_frames": 128, "n_classes": 3}}}}
    size = comparisons.recorded_size(result)
    assert size.shape == (128, 128) and size.genres == GENRES
    assert comparisons.step_seconds("mel128_square", size, batch_size=2, steps=1) > 0
