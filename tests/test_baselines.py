"""The classifiers see training alone, warn of nothing, and leave results that the networks' tables can show."""

import json
import re
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import write_cache, write_tracks
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

import baselines
import experiments
from baselines import Statistics
from dataset import FeatureDataset
from fma import DataError, run_command
from learning.runs import commit, load_probabilities
from plots.runs import plot_panels
from study import classifiers
from study.classifiers import CLASSIFIERS, ShrunkQDA, fit_baselines, scores_of, tsne_map
from study.marked_tables import marked_tables
from study.statistics import LEVELS, load_statistics

GENRES = ("Folk", "Hip-Hop", "Metal", "Rock")
COLUMNS = [(feature, moment, f"{k:02d}") for feature in ("mfcc", "zcr") for moment in ("mean", "std")
           for k in range(1, 9)]
DRAWN = {"LinearSVC", "RandomForest", "AdaBoost", "MLP"}
NAMES = ("SVC", "RandomForest", "GaussianNB")       # one of each kind of score, and one that draws


def make_collection(folder, genres=GENRES, clips=96):
    """Clips in FMA's layout, 60 / 18 / 18, two of each artist; fewer of each genre than the 32 columns are many."""
    rng, ids = np.random.default_rng(0), np.arange(clips) + 2
    split = np.repeat(["training", "validation", "test"], [clips - 36, 18, 18])
    write_tracks(folder, ids, {("set", "split"): split, ("set", "subset"): ["small"],
                               ("track", "genre_top"): genres, ("artist", "id"): 100 + ids // 2})
    values = rng.normal(0, 1, (clips, len(COLUMNS), 1)).astype(np.float32)
    for clip in range(clips):
        values[clip, clip % len(genres)] += 2.5
    values[:, -1] = 3                                       # of some features nothing moves
    values[:, 0] *= 1000                                    # statistics have the most different units
    values[:, 5] = values[:, 6] + values[:, 7]
    write_cache(folder, "statistics", values, ids, columns=[".".join(c) for c in COLUMNS])
    return folder


@pytest.fixture
def tiny(tmp_path):
    return make_collection(tmp_path / "tiny")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """All twelve with three seeds: data, results, runs and folder; any warning is an error."""
    folder = tmp_path_factory.mktemp("fitted")
    data = Statistics(make_collection(folder / "tiny"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results, runs = fit_baselines(data, repeats=3, results_dir=folder / "results", runs_dir=folder / "runs",
                                      progress=False)
    return data, results, runs, folder


def features_csv(data_dir, ids, values, columns=COLUMNS):
    """Write features.csv as FMA does, with pandas."""
    table = pd.DataFrame(values, index=pd.Index(ids, name="track_id"),
                         columns=pd.MultiIndex.from_tuples(columns, names=LEVELS))
    path = data_dir / "fma_metadata" / "features.csv"
    table.to_csv(path, float_format="%.10e")
    return path


# ---------------------------------------------------------------- statistics


def test_the_cache_is_read_as_fmas_file_is(tiny):
    cached = load_statistics(tiny)
    assert cached.shape == (96, 32) and cached.columns.names == list(LEVELS) and cached.index.name == "track_id"
    assert cached["mfcc"]["mean"].columns.tolist() == [f"{k:02d}" for k in range(1, 9)]
    ids = [*cached.index[::-1], 99_999]                     # FMA's file has tracks of the larger subsets, too
    features_csv(tiny, ids, np.vstack([cached.to_numpy()[::-1], np.zeros((1, 32))]))
    (tiny / "features" / "index.csv").unlink()              # audio and cache are not needed beside it
    ours = load_statistics(tiny)
    pd.testing.assert_frame_equal(ours.sort_index(), cached)
    assert Statistics(tiny).values.tolist() == Statistics(tiny).values[cached.index.argsort()].tolist()


def test_rows_genres_and_labels_are_those_of_a_network(tiny):
    index = pd.read_csv(tiny / "features" / "index.csv")
    index.loc[[3, 20, 70, 90], "status"] = ["short", "padded", "silent", "missing"]
    index.to_csv(tiny / "features" / "index.csv", index=False)
    ours, network = Statistics(tiny), FeatureDataset(tiny, "statistics")
    assert ours.genres == network.genres and ours.name == network.name and ours.left_out == 3
    assert {s: r.tolist() for s, r in ours.rows.items()} == {s: r.tolist() for s, r in network.rows.items()}
    assert ours.labels.equal(network.labels) and ours.artists.tolist() == network.artists.tolist()
    assert "3 left out" in repr(ours) and "32 statistics" in repr(ours)


@pytest.mark.parametrize("value", ["", "nan", "inf"])
def test_a_track_without_a_number_is_left_out_and_counted(tiny, value):
    table = load_statistics(tiny)
    path = features_csv(tiny, table.index, table)
    lines = path.read_text().splitlines()
    cells = lines[10].split(",")
    lines[10] = ",".join([cells[0], value, *cells[2:]])
    path.write_text("\n".join([*lines[:20], *lines[21:]]) + "\n")           # one track is not there at all
    data = Statistics(tiny)
    assert data.left_out == 2 and sum(map(len, data.rows.values())) == 94
    out = set(data.tracks.index) - {i for rows in data.rows.values() for i in data.tracks.index[rows]}
    assert out == {int(cells[0]), int(lines[19].split(",")[0]) + 1}


@pytest.mark.parametrize("damage, words", [
    (lambda path: path.write_text(""), "not in FMA's layout"),
    (lambda path: path.write_bytes(b"\xff\xfe\x00" * 99), "not in FMA's layout"),
    (lambda path: path.write_text("track_id,a,b\n" * 9), "must read feature, statistics, number, track_id"),
    (lambda path: path.write_text(path.read_text().replace("e+00", "e+word")), "not in FMA's layout"),
    (lambda path: path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n"), "has track 97 twice"),
])
def test_a_damaged_features_csv_is_named(tiny, damage, words):
    table = load_statistics(tiny)
    path = features_csv(tiny, table.index, table)
    damage(path)
    with pytest.raises(DataError, match=f"^{path} ") as caught:
        load_statistics(tiny)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_is_named_with_its_remedy(tiny):
    info = tiny / "features" / "statistics.json"
    info.write_text(json.dumps({"scale": 1.0, "offset": 0.0, "columns": ["mfcc.mean.01"]}))
    with pytest.raises(DataError, match="statistics.json does not name the columns"):
        load_statistics(tiny)
    (tiny / "features" / "statistics.npy").unlink()
    with pytest.raises(DataError, match=f"run features.py --statistics --data-dir {tiny}$"):
        load_statistics(tiny)


@pytest.mark.parametrize("damage, words", [
    (lambda index: index.assign(track_id=index["track_id"] + 5), "lists track 98, which tracks.csv has not"),
    (lambda index: index.assign(track_id=index["track_id"].replace(7, 8)), "names track 8 twice"),
])
def test_an_index_of_other_tracks_is_named(tiny, damage, words):
    path = tiny / "features" / "index.csv"
    damage(pd.read_csv(path)).to_csv(path, index=False)     # rows would be taken for other tracks' statistics
    with pytest.raises(DataError, match=f"^{path} {words}") as caught:
        Statistics(tiny)
    assert "\n" not in str(caught.value)


def test_fewer_columns_stand_beside_all_of_them(tiny, fitted, tmp_path):
    where = {"results_dir": tmp_path / "results", "runs_dir": tmp_path / "runs", "progress": False}
    data, few = Statistics(tiny), Statistics(tiny, only="mfcc40")
    assert few.values.shape == (96, 16) and set(few.columns.droplevel(2)) == {("mfcc", "mean"), ("mfcc", "std")}
    assert np.array_equal(few.values, data.values[:, :16])
    both = [fit_baselines(d, ["SVC"], **where)[0]["SVC"] for d in (data, few)]
    assert [r["config"]["feature_parameters"]["columns"] for r in both] == [32, 16]
    assert [r["experiment"] for r in both] == ["baseline_SVC", "baseline_SVC_mfcc40"]
    stems = sorted(path.stem for path in (tmp_path / "results" / "tiny").glob("*.json"))
    assert stems == [r["experiment"] for r in both]
    assert both[0]["seeds"][0]["test"] == fitted[1]["SVC"]["seeds"][0]["test"] and both[1]["reported"] is None
    assert set(Statistics(tiny, only="spectral84").columns.droplevel([1, 2])) == {"zcr"}
    text = marked_tables("<!-- families tiny -->\n<!-- end -->", tmp_path / "results")
    shown = [100 * r["test"]["accuracy"] for r in both]
    assert {"all 32", "mfcc40"} <= set(re.split(r" *\| *", text)) and all(f"{x:.1f}" in text for x in shown)
    zcr = [k for k, column in enumerate(COLUMNS) if column[0] == "zcr"]
    features_csv(tiny, data.tracks.index, data.values[:, zcr], [COLUMNS[k] for k in zcr])
    with pytest.raises(DataError, match="no columns of mfcc40"):
        Statistics(tiny, only="mfcc40")


@pytest.mark.parametrize("keep, words", [
    (lambda t: (t["split"] != "training") | (t["genre"] != "Rock"), "genre Rock has fewer than two training clips"),
    (lambda t: t["split"] != "test", "there is no test clip"),
])
def test_too_few_clips_are_an_error_not_a_figure(tiny, keep, words):
    data = Statistics(tiny)
    features_csv(tiny, data.tracks.index[keep(data.tracks)], data.values[keep(data.tracks)])
    with pytest.raises(DataError, match=words):
        Statistics(tiny)


# ---------------------------------------------------------------- classifiers


def test_the_classifiers_are_those_of_the_study(fitted):
    assert list(CLASSIFIERS) == ["LogisticRegression", "RidgeClassifier", "LinearSVC", "SVC", "RandomForest",
                                 "AdaBoost", "GaussianNB", "LDA", "QDA", "OneVsRest", "KNeighbors", "MLP"]
    for name, result in fitted[1].items():
        assert len(result["seeds"]) == (3 if name in DRAWN else 1), name
        assert result["test"]["accuracy"] > 0.3 + 0.2 * (name in NAMES), name


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_highest_score_is_what_the_classifier_says(fitted, name):
    data = fitted[0]
    model = CLASSIFIERS[name](0).fit(*data.part("training"))
    for split in ("validation", "test"):
        x, _ = data.part(split)
        scores = scores_of(model, x)
        assert scores.shape == (18, 4) and scores.dtype == np.float64 and np.isfinite(scores).all()
        assert (scores.argmax(1) == model.predict(x)).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.filterwarnings("error")
def test_two_genres_have_two_scores(tmp_path, name):
    data = Statistics(make_collection(tmp_path, GENRES[:2], clips=60))
    model = CLASSIFIERS[name](0).fit(*data.part("training"))
    x, _ = data.part("test")
    assert (scores_of(model, x).argmax(1) == model.predict(x)).all()


@pytest.mark.parametrize("poisoned, judged", [("test", "validation"), ("validation", "test")])
def test_nothing_is_fitted_to_validation_or_test_clips(fitted, tmp_path, poisoned, judged):
    data, _, before, _ = fitted
    folder = make_collection(tmp_path / "tiny")
    array = np.load(folder / "features" / "statistics.npy")
    array[data.rows[poisoned]] = np.random.default_rng(1).normal(0, 1e3, array[data.rows[poisoned]].shape)
    np.save(folder / "features" / "statistics.npy", array)
    _, after = fit_baselines(Statistics(folder), repeats=1, results_dir=tmp_path / "results",
                             runs_dir=tmp_path / "runs", progress=False)
    scores = {name: [load_probabilities(runs[name][0], judged)["probabilities"] for runs in (before, after)]
              for name in CLASSIFIERS}
    assert not [name for name, (clean, spoilt) in scores.items() if not np.array_equal(clean, spoilt)]


def test_shrinkage_matters_where_clips_are_few_and_vanishes_where_they_are_many():
    rng = np.random.default_rng(0)
    y = np.arange(6000) % 3
    x = rng.normal(0, 1, (6000, 4)) * [1, 1.5, 2, 3] * np.array([1, 2, 3])[y, None] + y[:, None]
    ours, plain = ShrunkQDA().fit(x, y), QuadraticDiscriminantAnalysis().fit(x, y)
    assert (ours.predict(x) == plain.predict(x)).mean() > 0.99 > 0.75 > plain.score(x, y) > 0.5    # not an easy one
    few = ShrunkQDA().fit(rng.normal(0, 1, (12, 40)), np.arange(12) % 3)
    assert np.isfinite(few.predict_joint_log_proba(rng.normal(0, 1, (5, 40)))).all()


def test_clips_do_not_tie_where_probabilities_round(fitted):
    data = fitted[0]
    x, y = data.part("training")
    x = np.tile(x, 30)                                      # naive: thirty times as sure
    model = CLASSIFIERS["GaussianNB"](0).fit(x, y)
    probabilities, scores = model.predict_proba(x), scores_of(model, x)
    assert len(np.unique(probabilities[:, 0])) < len(np.unique(scores[:, 0])) == len(x)
    order = scores[:, 0].argsort()
    assert (np.diff(probabilities[order, 0]) >= 0).all()


# ---------------------------------------------------------------- results


def test_a_result_is_laid_out_as_a_networks_is(fitted):
    data, results, runs, folder = fitted
    for name, result in results.items():
        path = folder / "results" / "tiny" / f"baseline_{name}.json"
        assert json.loads(path.read_text()) == result and result["experiment"] == f"baseline_{name}"
        assert result["config"]["feature"] == "statistics" and result["config"]["feature_parameters"]["columns"] == 32
        assert {"model", "feature", "feature_parameters", "scale", "training"} == set(result["config"])
        assert result["commit"] == commit() and len(result["config"]["feature_parameters"]["sha256"]) > 8
        assert result["test"]["clips"] == 18 and result["test"]["artists"] == 9 and result["parameters"] is None
        for seed, run in zip(result["seeds"], runs[name], strict=True):
            assert set(seed) == {"seed", "epoch", "epochs", "validation", "test", "test_max", "seconds"}
            assert seed["epoch"] is None and seed["seconds"] >= 0
            for split in ("validation", "test"):
                said = load_probabilities(run, split)
                right = said["probabilities"].argmax(1) == said["labels"]
                assert seed[split] == pytest.approx(right.mean(), abs=1e-6)
                assert said["tracks"].tolist() == data.tracks.index[data.rows[split]].tolist()
    assert {name: r["reported"] for name, r in results.items() if r["reported"]} == {
        "SVC": 47.8, "RandomForest": 46.2, "LDA": 45.6}     # the original's figures


def test_what_is_there_is_not_fitted_again(fitted, monkeypatch):
    data, results, _, folder = fitted
    paths = sorted((folder / "results" / "tiny").iterdir())
    before = [path.read_bytes() for path in paths]
    monkeypatch.setattr(baselines.Statistics, "part", lambda *args: pytest.fail("fitted again"))
    monkeypatch.setattr(data, "fingerprint", lambda code=results["SVC"]["config"]["feature_parameters"]["sha256"]: code)
    again, _ = fit_baselines(data, repeats=3, results_dir=folder / "results", runs_dir=folder / "runs", progress=False)
    assert again == results and [path.read_bytes() for path in paths] == before


def test_other_values_or_settings_are_fitted_anew(tiny, tmp_path, monkeypatch):
    where = {"results_dir": tmp_path / "results", "runs_dir": tmp_path / "runs", "progress": False}
    data = Statistics(tiny)
    first = fit_baselines(data, ["SVC"], **where)[0]["SVC"]
    data.values[data.rows["training"][0], 3] += 1
    other = fit_baselines(data, ["SVC"], **where)[0]["SVC"]
    codes = [r["config"]["feature_parameters"]["sha256"] for r in (first, other)]
    assert codes[0] != codes[1]
    monkeypatch.setitem(CLASSIFIERS, "SVC", lambda seed: classifiers._scaled(classifiers.SVC(C=1e-6, break_ties=True)))
    soft, runs = fit_baselines(data, ["SVC"], **where)
    assert "C=1e-06" in soft["SVC"]["config"]["model"]["args"]["classifier"]
    model = CLASSIFIERS["SVC"](0).fit(*data.part("training"))
    assert np.array_equal(load_probabilities(runs["SVC"][0])["probabilities"], scores_of(model, data.part("test")[0]))


def test_by_default_as_many_seeds_are_fitted_as_the_result_has(fitted, tmp_path, monkeypatch):
    data, results, _, folder = fitted
    shutil.copytree(folder / "results", tmp_path / "results")               # a fresh clone has no runs
    names, where = ["SVC", "RandomForest"], {"results_dir": tmp_path / "results", "runs_dir": tmp_path / "runs"}
    again, runs = fit_baselines(data, names, **where, progress=False)
    assert [again[name]["test"] for name in names] == [results[name]["test"] for name in names]
    assert [len(runs[name]) for name in names] == [1, 3]
    monkeypatch.setattr(classifiers, "fit_seed", lambda *args: pytest.fail("fitted before the results were read"))
    with pytest.raises(DataError, match="MLP.json has 3 seeds: pass --repeats 3"):
        fit_baselines(data, ["SVC", "MLP"], 1, **where, progress=False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"test": null}'])
def test_a_damaged_result_is_named(fitted, tmp_path, text):
    path = tmp_path / "tiny" / "baseline_MLP.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(DataError, match=f"^{path} is damaged: delete it"):
        fit_baselines(fitted[0], ["MLP"], results_dir=tmp_path, runs_dir=tmp_path / "runs", progress=False)


def test_the_experiments_table_shows_them(fitted):
    _, results, _, folder = fitted
    found = experiments.load_results(folder / "results" / "tiny")
    assert {r["experiment"] for r in found} == {f"baseline_{name}" for name in CLASSIFIERS}
    table = experiments.results_table(found)
    assert "statistics (32)" in table and "epoch chosen" not in table and "reported" not in table
    on_fma = experiments.results_table([results["SVC"] | {"dataset": "fma_small"}])
    assert "47.8 |" in on_fma and "all 518 statistics" in on_fma and "saved epochs" not in on_fma


# ---------------------------------------------------------------- figures, the command


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind, axis", [("roc", "clips of other genres taken for it"), ("confusion", "Folk, Hip-Hop")])
def test_every_classifier_has_a_small_panel(fitted, kind, axis):
    data, results, runs, _ = fitted
    scores = {name: load_probabilities(paths[0])["probabilities"] for name, paths in runs.items()}
    labels = data.part("test")[1]
    figure = plot_panels(labels, scores, data.genres, kind)
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    for name, title in zip(CLASSIFIERS, titles, strict=True):
        areas, right = results[name]["test"]["macro_auc_per_seed"], results[name]["test"]["accuracy_per_seed"]
        assert title == f"{name}  " + (f"{areas[0]:.3f}" if kind == "roc" else f"{100 * right[0]:.1f} %")
    assert axis in figure.get_supxlabel()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("clips", [4, 60])
def test_the_map_has_a_point_for_each_clip(fitted, clips):
    values = fitted[0].values[:clips]
    points = tsne_map(values)
    assert points.shape == (clips, 2) and np.isfinite(points).all()
    assert np.array_equal(points, tsne_map(values))


def test_the_command_prints_a_table_and_says_in_a_line_what_is_wrong(tiny, tmp_path, capsys):
    where = ["--data-dir", str(tiny), "--runs-dir", str(tmp_path / "runs"), "--results-dir", str(tmp_path / "results")]
    assert run_command(lambda: baselines.main(["SVC", "LDA", *where])) == 0
    said = capsys.readouterr().out
    assert "tiny: 32 statistics" in said and "baseline_LDA" in said and "18 test clips of 9 artists" in said
    for argv, words in ((["svc"], "no classifier is named svc: choose from LogisticRegression"),
                        (["SVC", "--repeats", "0"], "--repeats must be at least 1")):
        assert run_command(lambda argv=argv: baselines.main([*argv, *where])) == 2
        complaint = capsys.readouterr().err
        assert words in complaint and len(complaint.splitlines()) == 1
