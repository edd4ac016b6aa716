"""The audit of a collection: leaks, thin genres, missing files, and what python fma.py prints."""

import numpy as np
import pandas as pd
import soundfile
from conftest import write_cache, write_tracks

import fma
from audio.audit import audit
from fma import run_command

NEEDED = {("set", "split"): ["training", "validation", "test"], ("set", "subset"): ["small"],
          ("track", "genre_top"): ["Folk"]}


def change(data_dir, column, track_id, value):
    path = data_dir / "fma_metadata" / "tracks.csv"
    table = pd.read_csv(path, index_col=0, header=[0, 1])
    table.loc[track_id, column] = value
    table.to_csv(path)


def printed(capsys, *args):
    """What python fma.py prints."""
    capsys.readouterr()
    assert run_command(lambda: fma.main([str(arg) for arg in args])) == 0
    return capsys.readouterr().out


def test_nothing_is_wrong_with_a_healthy_folder(healthy):
    assert audit(healthy) == []


def test_an_artist_in_two_splits_is_found(healthy):
    change(healthy, ("artist", "id"), 3, 4)         # artist 4 is in validation
    [problem] = audit(healthy)
    assert "artist 4" in problem and "more than one split" in problem


def test_an_album_in_two_splits_is_found(healthy):
    change(healthy, ("album", "id"), 155_000, 0)
    [problem] = audit(healthy)
    assert "album 0" in problem and "more than one split" in problem


def test_a_genre_that_a_split_lacks_is_found(healthy):
    for i in (150, 151, 152, 153, 1154, 155_000):
        change(healthy, ("set", "split"), i, "test")
    assert audit(healthy) == ["no training track of genre Rock", "no validation track of genre Rock"]


def test_an_artist_in_two_folds_is_found(tmp_path):
    write_tracks(tmp_path, range(1, 61), NEEDED | {("artist", "id"): range(20), ("set", "split"): ["training"],
                                                   ("set", "fold"): [*range(20)] * 2 + [1, *range(1, 20)]})
    [problem] = [line for line in audit(tmp_path) if "than one fold" in line]
    assert problem == "1 artists are in more than one fold: artist 0"


def test_genres_of_few_clips_or_artists_are_named(tmp_path):
    genres, artists = ["Folk"] * 9 + ["Rock"] * 10 + ["Jazz"] * 10, [*range(9), *range(10), *[1, 2, 3, 4] * 3]
    write_tracks(tmp_path, range(29), NEEDED | {("set", "split"): ["training"], ("track", "genre_top"): genres,
                                                ("artist", "id"): artists[:29]})
    said = [line for line in audit(tmp_path) if line.startswith("a genre")]
    assert said == ["a genre has fewer than 10 training clips: Folk (9)", "a genre has fewer than 5 artists: Jazz (4)"]


def test_several_genres_in_one_field_are_named(tmp_path):
    names = ["pop|rock", "Pop/Rock", "a;b", "Old-Time / Historic", "['Folk', 'Pop']", "R&B [live]", None, "a;b"]
    write_tracks(tmp_path, range(8), NEEDED | {("track", "genre_top"): names})
    [said] = [line for line in audit(tmp_path) if "several genres" in line]
    assert said.startswith("4 tracks have") and said.endswith(": pop|rock, a;b, ['Folk', 'Pop']")


def test_an_unknown_split_is_found(healthy):
    change(healthy, ("set", "split"), 3, "train")
    assert any("1 tracks are in no known split: 3" in problem for problem in audit(healthy))


def test_missing_and_surplus_audio_are_found(healthy):
    fma.audio_path(healthy, 1154).rename(fma.audio_path(healthy, 1155))
    missing, surplus = audit(healthy)
    assert missing.startswith("1 of 12") and missing.endswith(": 1154")
    assert surplus.startswith("1 audio") and surplus.endswith(": 001/001155.mp3")


def test_counts_that_are_not_fmas_are_found(tmp_path):
    ids, splits = np.arange(8000), np.repeat(["training", "validation", "test"], [6400, 800, 800])
    write_tracks(tmp_path, ids, NEEDED | {("set", "split"): splits})
    assert not any("FMA's small" in problem for problem in audit(tmp_path))
    splits[0] = "test"
    write_tracks(tmp_path, ids, NEEDED | {("set", "split"): splits})
    assert any("(6399, 800, 801)" in problem and "(6400, 800, 800)" in problem for problem in audit(tmp_path))


# ---------------------------------------------------------------- python fma.py


def test_the_command_counts_and_audits(healthy, capsys):
    change(healthy, ("artist", "id"), 3, 4)
    said = printed(capsys, "--data-dir", healthy)
    assert "12 tracks, 6 artists" in said and "more than one split: artist 4" in said
    [rock] = [line.split() for line in said.splitlines() if line.startswith("Rock")]
    assert rock == ["Rock", "2", "2", "2", "6"]


def test_nothing_is_fine_where_features_noted_a_clip_that_it_could_not_use(healthy, capsys):
    for path in fma.audio_paths(healthy, fma.load_tracks(healthy)).values():
        soundfile.write(path, np.random.default_rng(int(path.stem)).normal(0, 0.1, 9000), 4000, format="WAV")
    args = "--data-dir", healthy, "--seconds", 2
    assert printed(capsys, *args).endswith("- no problems found\n")
    ids = fma.load_tracks(healthy).index
    write_cache(healthy, "mine", np.zeros((12, 1, 1)), ids, ["ok"] * 10 + ["silent", "undecodable"])
    said = printed(capsys, *args)
    assert "- features.py noted 1 clips as undecodable, which no network is given: 155000\n" in said
    assert "as silent, which no network is given: 1154" in said and "no problems" not in said
    write_cache(healthy, "mine", np.zeros((12, 1, 1)), ids, "fine")
    assert "index.csv is not an index of track_id,status" in printed(capsys, *args)
