"""FMA's metadata: read as pandas reads it, refused in one line where it is broken."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import soundfile
from conftest import ROOT, write_tracks
from test_lengths import noise

import fma
from fma import DataError, artists_of, audio_paths, dataset_name, find_data, load_tracks, run_command

NEEDED = {("set", "split"): ["training", "validation", "test"], ("set", "subset"): ["small"],
          ("track", "genre_top"): ["Folk"]}


def the_error(function, *args):
    """The message of the DataError that a call ends in: one line."""
    with pytest.raises(DataError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- tracks.csv


def test_every_column_is_the_one_that_pandas_reads(demo, healthy):
    for data_dir in (demo, healthy):
        oracle = pd.read_csv(data_dir / "fma_metadata" / "tracks.csv", index_col=0, header=[0, 1])
        tracks = load_tracks(data_dir)
        assert tracks.index.tolist() == oracle.index.tolist() and tracks.index.name == "track_id"
        for column, name in fma.COLUMNS.items():
            assert (name in tracks) == (column in oracle)
            if column in oracle:        # neither corpus has html in its names
                pd.testing.assert_series_equal(tracks[name], oracle[column], check_names=False)


def test_names_from_web_pages_are_read_as_text(tmp_path):
    write_tracks(tmp_path, [4, 5, 6], NEEDED | {
        ("track", "title"): ["Apes &amp; History", "Rock & Roll", None], ("album", "title"): [1999, 2000, None],
        ("artist", "name"): ["Caf&eacute; &quot;Ünï&quot;", "&#39;68", "A&amp;amp;B"]})
    tracks = load_tracks(tmp_path)
    assert tracks["title"].tolist()[:2] == ["Apes & History", "Rock & Roll"] and pd.isna(tracks["title"][6])
    assert tracks["artist"].tolist() == ['Café "Ünï"', "'68", "A&amp;B"]       # once, as it was written
    assert tracks["album"].tolist()[:2] == [1999, 2000]                         # a column of years stays one


def test_columns_may_stand_in_any_order(tmp_path):
    write_tracks(tmp_path, [5, 2], {("zzz", "split"): ["decoy"], ("track", "genre_top"): ["Folk", "Rock"],
                                    ("set", "subset"): ["small"], ("set", "split"): ["test", "training"]})
    tracks = load_tracks(tmp_path)
    assert tracks.loc[5, ["split", "genre"]].tolist() == ["test", "Folk"]
    assert tracks.loc[2, ["split", "genre"]].tolist() == ["training", "Rock"]


def test_larger_subsets_hold_the_smaller_ones(tmp_path):
    write_tracks(tmp_path, range(8), NEEDED | {("set", "subset"): ["large", "small", "full", "medium"]})
    sizes = [len(load_tracks(tmp_path, subset)) for subset in fma.SUBSETS]
    assert sizes == [2, 4, 6, 8]
    assert load_tracks(tmp_path, "medium").index.tolist() == [1, 3, 5, 7]
    assert "tiny" in the_error(load_tracks, tmp_path, "tiny")


@pytest.mark.parametrize("lacking", NEEDED)
def test_a_lacking_column_is_named(tmp_path, lacking):
    path = write_tracks(tmp_path, range(3), {k: v for k, v in NEEDED.items() if k != lacking})
    message = the_error(load_tracks, tmp_path)
    assert str(path) in message and ".".join(lacking) in message


def test_a_track_named_twice_is_refused(tmp_path):
    path = write_tracks(tmp_path, [1, 7, 7], NEEDED)
    message = the_error(load_tracks, tmp_path)
    assert str(path) in message and "7 twice" in message


GOOD = ",set,set,track\n,split,subset,genre_top\ntrack_id,,,\n"


@pytest.mark.parametrize("content", [
    b"", b"\n", b"\x00\x01\x02\xff\xfe" * 200, b"\x89PNG\r\n\x1a\n" + bytes(500), b"<html>\n<p>404</p>\n</html>\n",
    GOOD[:20].encode(), GOOD.encode(), (GOOD + "2,training,small\n").encode(),
    (GOOD + '2,training,small,"Folk\n').encode(),
    (GOOD + "two,training,small,Folk\n").encode(), (GOOD + "2.5,training,small,Folk\n").encode(),
    (GOOD[:-12] + "2,training,small,Folk\n3,training,small,Folk\n").encode(), GOOD.encode() + b"2,tr\xe9,small,Folk\n",
], ids=["empty", "newline", "binary", "png", "html", "cut in header", "no rows", "short row", "open quote",
        "word as id", "fraction as id", "no third line", "latin-1"])  # fmt: skip
def test_a_broken_file_is_named_in_one_line(tmp_path, content):
    path = write_tracks(tmp_path, range(3), NEEDED)
    path.write_bytes(content)
    assert str(path) in the_error(load_tracks, tmp_path)


def test_no_metadata_says_what_to_run(tmp_path):
    for function in (load_tracks, find_data):
        said = the_error(function, tmp_path / "new")
        assert f"python collection.py SOURCE {tmp_path}/new takes your own music" in said
        assert f"download_data.sh small {tmp_path}/new fetches FMA" in said
    (tmp_path / "Jazz").mkdir()                 # a folder of music is named instead of a collection
    assert f"python collection.py {tmp_path} NEW_FOLDER takes your own music" in the_error(find_data, tmp_path)


def test_artists_are_those_of_the_file_and_unknown_ones_stand_alone(tmp_path):
    write_tracks(tmp_path, [4, 5, 6, 7], NEEDED | {("artist", "id"): [8, 8, None, None]})
    artists = artists_of(load_tracks(tmp_path)).tolist()
    assert artists[0] == artists[1] and len(set(artists)) == 3
    write_tracks(tmp_path, [4, 5, 6, 7], NEEDED)
    assert len(set(artists_of(load_tracks(tmp_path)).tolist())) == 4


# ---------------------------------------------------------------- the tree of genres


def write_genres(data_dir, rows="12,9,0,Rock,12\n25,9,12,Punk,12\n109,9,25,Hardcore,12\n"):
    path = data_dir / "fma_metadata" / "genres.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("genre_id,#tracks,parent,title,top_level\n" + rows)
    return path


def test_sub_genres_are_those_below_the_top(tmp_path):
    write_genres(tmp_path)
    ids = ["[12, 25]", "[12]", "[]", "[109, 777]", None]
    write_tracks(tmp_path, [4, 5, 6, 7, 8], NEEDED | {("track", "genres"): ids})
    names = fma.sub_genres(load_tracks(tmp_path), fma.load_genres(tmp_path))
    assert list(names.items()) == [(4, "Punk"), (7, "Hardcore")]     # 777 is in no tree


def test_a_collection_needs_no_tree(tmp_path):
    write_tracks(tmp_path, [4, 5], NEEDED)
    tracks, genres = load_tracks(tmp_path), fma.load_genres(tmp_path)
    assert genres.empty and fma.sub_genres(tracks, genres).empty
    assert fma.sub_genres(tracks.assign(genre_ids="[12]"), genres).empty
    write_genres(tmp_path)
    assert fma.sub_genres(tracks, fma.load_genres(tmp_path)).to_frame().join(tracks["genre"]).empty


@pytest.mark.parametrize("ids", ["Rock;Pop", "Rock", '["Rock"]', "12, 25", 12, 1.5, "[12", "[[12]]", "[1e999]",
                                 "[null]"])
def test_genres_that_are_no_list_of_ids_are_refused_in_one_line(tmp_path, ids):
    write_genres(tmp_path)
    write_tracks(tmp_path, [4, 5], NEEDED | {("track", "genres"): [None, ids]})
    tracks = load_tracks(tmp_path)      # whoever does not ask for sub-genres needs no ids
    message = the_error(fma.sub_genres, tracks, fma.load_genres(tmp_path))
    assert "tracks.csv" in message and str(ids) in message and "track.genres" in message


@pytest.mark.parametrize("content", [b"", b"<html>404</html>\n", b"genre_id,title\n12,Rock\n", b"\xff\xfe\x00" * 50])
def test_a_broken_tree_is_named_in_one_line(tmp_path, content):
    path = write_genres(tmp_path)
    path.write_bytes(content)
    assert str(path) in the_error(fma.load_genres, tmp_path)


# ---------------------------------------------------------------- which folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory; the demo corpus is not synthesised but noted."""
    made = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setattr("demo.make", lambda folder: made.append(folder) or folder)
    return made


def test_without_fma_the_demo_corpus_is_used_and_says_so(elsewhere, capsys):
    assert str(find_data()) == "data/demo" and elsewhere == ["data/demo"]
    loud = capsys.readouterr().out
    assert "SYNTHETIC" in loud and "download_data.sh" in loud and "=" * 78 in loud


def test_fma_is_preferred_where_it_is(elsewhere, tmp_path, capsys):
    write_tracks(tmp_path / "data", range(3), NEEDED)
    assert str(find_data()) == "data" and not elsewhere
    assert capsys.readouterr().out == ""


def test_data_dir_names_the_folder_and_an_argument_overrules_it(elsewhere, tmp_path, monkeypatch):
    write_tracks(tmp_path / "mine", range(3), NEEDED)
    write_tracks(tmp_path / "other", range(3), NEEDED)
    monkeypatch.setenv("DATA_DIR", "mine")
    assert str(find_data()) == "mine"
    assert str(find_data("other")) == "other"


def test_a_named_folder_without_metadata_is_not_replaced_by_the_demo(elsewhere, monkeypatch):
    assert "typo" in the_error(find_data, "typo")
    monkeypatch.setenv("DATA_DIR", "also_typo")
    assert "also_typo" in the_error(find_data)
    assert not elsewhere


def test_runs_are_kept_under_the_name_of_the_data(tmp_path):
    (tmp_path / "fma_metadata").mkdir()
    assert dataset_name(tmp_path) == tmp_path.name and dataset_name(tmp_path, "large") == f"{tmp_path.name}_large"
    (tmp_path / "fma_metadata" / "raw_tracks.csv").touch()      # FMA itself, whatever its folder is called
    assert dataset_name(tmp_path) == "fma_small" and dataset_name(tmp_path, "medium") == "fma_medium"
    assert dataset_name("data/demo") == dataset_name("data/demo/") == "demo"


# ---------------------------------------------------------------- python fma.py


def command(*args, cwd=ROOT):
    environment = {k: v for k, v in os.environ.items() if k != "DATA_DIR"}
    return subprocess.run([sys.executable, ROOT / "fma.py", *args], cwd=cwd, env=environment, capture_output=True,
                          text=True)


def test_the_command_fails_in_one_line(tmp_path):
    done = command("--data-dir", tmp_path / "nowhere")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("fma.py: ") and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
    assert command("--subset", "tiny").returncode == 2


def test_a_subset_without_tracks_is_no_crash(tmp_path, capsys):
    write_tracks(tmp_path, range(3), NEEDED | {("set", "subset"): ["full"]})
    status = run_command(lambda: fma.main(["--data-dir", str(tmp_path)]))
    printed = capsys.readouterr()
    assert status == 2 and "small" in printed.err and printed.err.count("\n") == 1


def test_genres_that_look_like_numbers_are_names(tmp_path):
    columns = {("set", "split"): ["training"], ("set", "subset"): ["small"], ("track", "genre_top"): [1980, 1990]}
    write_tracks(tmp_path, [1, 2, 3, 4], columns)
    assert load_tracks(tmp_path)["genre"].tolist() == ["1980", "1990", "1980", "1990"]


@pytest.mark.parametrize(("variable", "show", "hidden"), [("1", True, True), ("0", True, False), ("0", False, True)])
def test_progress_bars_can_be_switched_off_from_outside(monkeypatch, capsys, variable, show, hidden):
    monkeypatch.setenv("TQDM_DISABLE", variable)
    with fma.progress_bar(total=3, show=show) as bar:
        assert bar.disable is hidden
    assert bool(capsys.readouterr().err) is not hidden


def test_a_genre_may_be_called_none(tmp_path):
    write_tracks(tmp_path, [2, 3, 4], {("set", "split"): ["training"], ("set", "subset"): ["small"],
                                       ("track", "genre_top"): ["None", "NA", ""]})
    assert load_tracks(tmp_path)["genre"].tolist()[:2] == ["None", "NA"]
    assert load_tracks(tmp_path)["genre"].isna().tolist() == [False, False, True]


def test_a_message_is_one_line_whatever_is_in_a_name(capsys):
    def fail():
        raise DataError("no\npe \x1b[31m.mp3 not found")

    assert run_command(fail) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "\x1b" not in said


def test_a_reader_who_has_enough_ends_a_command_quietly():
    code = "import sys; sys.path.insert(0, sys.argv[1]); from fma import run_command\n"
    code += "sys.exit(run_command(lambda: [print('x' * 9999) for _ in range(99)] and 0))"
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(30) == 0


def test_fmas_layout_is_found_under_any_ending(healthy):
    tracks = load_tracks(healthy)
    usual = {track: fma.audio_path(healthy, track) for track in tracks.index}
    assert audio_paths(healthy, tracks) == usual
    soundfile.write(usual[3].with_suffix(".WAV"), noise(1), 8000)
    assert audio_paths(healthy, tracks) == usual            # .mp3 comes first
    usual[3].unlink()
    assert audio_paths(healthy, tracks) == usual | {3: usual[3].with_suffix(".WAV")}
    usual[10].unlink()
    usual[10].with_suffix(".txt").touch()
    assert audio_paths(healthy, tracks)[10] == usual[10]     # so that a message names what is missing


@pytest.mark.parametrize(("encoding", "delimiter", "said"), [
    ("utf-8", ";", "it is separated by semicolons: save it as CSV with commas, in UTF-8"),
    ("cp1252", ",", "it is in cp1252: save it"), ("utf-16", "\t", "it is in UTF-16 and separated by tabs: save it"),
    ("cp1252", ";", "it is in cp1252 and separated by semicolons: save it")])
def test_a_tracks_csv_that_a_spreadsheet_saved_is_said_so(healthy, encoding, delimiter, said):
    path = healthy / "fma_metadata" / "tracks.csv"
    text = path.read_text(encoding="utf-8").replace("Folk", "Fölk").replace(",", delimiter)
    path.write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=said):
        load_tracks(healthy)
    path.write_text(text.replace(delimiter, ","), encoding="utf-8-sig")
    assert "Fölk" in set(load_tracks(healthy)["genre"]) and not pd.isna(load_tracks(healthy)["genre"]).any()
