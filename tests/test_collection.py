"""A collection made of what people have: folders, tables, tags, known collections; audio stays where it is."""

import os
import shutil
import sys
import types
from pathlib import Path

import mutagen
import numpy as np
import pytest
import soundfile
from mutagen import id3

import collection
import features
import fma
from audio.sources import read_tags
from collection import import_collection
from fma import DataError, audio_paths, load_tracks, run_command

GENRES = {"Folk": ["a", "b", "c", "d", "e", "f"], "Rock": ["a", "g", "h", "i", "j", "k"]}      # a file "a" in both


def write(path, seconds=1.2, rate=4000, seed=None, **tags):
    """A short file of noise, in the format of its ending, with tags."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y = np.random.default_rng(seed if seed is not None else len(str(path))).normal(0, 0.1, round(seconds * rate))
    with soundfile.SoundFile(path, "w", rate, 1, format=path.suffix[1:].upper()) as file:
        for name, text in tags.items():
            setattr(file, name, text)
        file.write(y)
    return path


@pytest.fixture
def shelf(tmp_path):
    """A folder for each of two genres, one nested, with two kinds of files."""
    for k, (genre, names) in enumerate(GENRES.items()):
        for j, name in enumerate(names):
            ending = "wav" if j % 2 else "flac"
            write(tmp_path / "shelf" / genre / ("old" if j > 3 else "") / f"{name}.{ending}", 10, 8000, 10 * k + j)
    return tmp_path / "shelf"


def lines(*args):
    return "\n".join(import_collection(*args))


def refused(*args):
    with pytest.raises(DataError) as caught:
        import_collection(*args)
    return str(caught.value)


def contents(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def table(path, rows, header="path,genre", encoding="utf-8", delimiter=","):
    text = "\n".join([header, *rows]) + "\n"
    path.write_bytes(text.replace(",", delimiter).encode(encoding))
    return path


# ---------------------------------------------------------------- the ways in


def test_a_folder_for_each_genre(shelf, tmp_path):
    (shelf / "cover.jpg").touch()
    (shelf / "Folk" / "._a.wav").touch()
    write(shelf / "loose.wav")
    before = contents(shelf)
    said = lines(shelf, tmp_path / "data")
    assert contents(shelf) == before                    # nothing of the source is touched
    tracks = load_tracks(tmp_path / "data")
    assert tracks["genre"].value_counts().to_dict() == {"Folk": 6, "Rock": 6}
    assert "artists: unknown: each file is taken for an artist of its own, so that accuracies may flatter" in said
    assert "left out: hidden 1 (._a.wav), no audio: .jpg 1 (cover.jpg), no genre 1 (loose.wav)" in said
    assert "splits: five folds by artist, the first is test, the second validation" in said
    assert tracks["split"].tolist() == [{0: "test", 1: "validation"}.get(fold, "training") for fold in tracks["fold"]]
    paths = audio_paths(tmp_path / "data", tracks)
    assert [path.name for path in paths.values()] == sorted(path.name for path in paths.values())
    assert all(path.is_file() and shelf in path.parents for path in paths.values())


def links(shelf, folder):
    """The same files as links in other folders, and under other names."""
    for path in sorted(shelf.rglob("*.*")):
        link = folder / path.relative_to(shelf).parts[0].lower() / f"x {path.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return folder


def test_folder_links_and_table_give_the_same_cache(shelf, tmp_path):
    rows = [f"{path},{path.relative_to(shelf).parts[0].upper()}" for path in sorted(shelf.rglob("*.*"), reverse=True)]
    sources = [shelf, links(shelf, tmp_path / "links"), table(tmp_path / "songs.csv", rows)]
    made = []
    for k, source in enumerate(sources):
        data = tmp_path / f"data{k}"
        import_collection(source, data)
        index = features.fill_cache(data, ["mfcc", "mel128"], workers=1, progress=False, seconds=10)
        assert index["status"].tolist() == ["ok"] * 12
        made.append({path.name: path.read_bytes() for path in (data / "features").iterdir()})
        made[-1]["folds"] = load_tracks(data)[["fold", "split"]].to_csv()
    assert len(made[0]) == 6 and made[0] == made[1] == made[2]


def test_splits_above_the_genres(shelf, tmp_path):
    shutil.copytree(shelf, tmp_path / "x" / "images" / "train")
    shutil.copytree(shelf, tmp_path / "x" / "images" / "Test")
    said = lines(tmp_path / "x", tmp_path / "data")
    tracks = load_tracks(tmp_path / "data")
    assert set(tracks["genre"]) == {"Folk", "Rock"} and tracks["split"].value_counts()["test"] == 12
    assert tracks["split"].value_counts()["validation"] in (2, 3)
    assert "no validation was given: it is a fifth of training, by artist" in said


@pytest.mark.parametrize(("encoding", "delimiter"), [("utf-8", ","), ("utf-8-sig", ";"), ("cp1252", ";"),
                                                     ("utf-16", "\t"), ("utf-8", "\t"), ("cp1252", "|")])
def test_tables_as_spreadsheets_save_them(tmp_path, encoding, delimiter):
    names = ["Señor.wav", "b b.WAV", "c.flac", "d.ogg", "e.aiff"]
    for name in names:
        write(tmp_path / "m" / name)
    rows = [f"Jazz,Günter {k},m\\{name}" if k == 1 else f"Jazz,Günter {k},m/{name}" for k, name in enumerate(names)]
    rows.append("Jazz,Nobody,m/gone.wav")
    said = lines(table(tmp_path / "songs.txt", rows, "GENRE, Artist ,File", encoding, delimiter), tmp_path / "data")
    tracks = load_tracks(tmp_path / "data")
    assert sorted(tracks["artist"]) == [f"Günter {k}" for k in range(5)] and "artists: 5, from the table" in said
    assert sorted(path.name for path in audio_paths(tmp_path / "data", tracks).values()) == sorted(names)
    assert "left out: not found 1 (m/gone.wav)" in said and f"read as {encoding.removesuffix('-sig')}, " in said


def test_splits_and_folds_of_a_table_are_kept(tmp_path):
    files = [write(tmp_path / f"{k}.wav") for k in range(6)]
    rows = [f"{file},Jazz,{split},{fold}" for file, split, fold in
            zip(files, ["train", "train", "VAL", "dev", "Test", "eval"], [1, 1, 2, 2, 3, 3], strict=True)]
    said = lines(table(tmp_path / "a.csv", rows, "path,label,split,fold"), tmp_path / "data")
    tracks = load_tracks(tmp_path / "data")
    assert tracks["split"].tolist() == ["training"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert tracks["fold"].tolist() == [0, 0, 1, 1, 2, 2] and "folds 1 to 3 are numbered from 0" in said
    assert "splits: as the source gives them" in said
    lines(table(tmp_path / "b.csv", [row.replace(",train", ",").replace(",VAL", ",").replace(",dev", ",").replace(
        ",Test", ",").replace(",eval", ",") for row in rows], "path,label,split,fold"), tmp_path / "folds")
    assert load_tracks(tmp_path / "folds")["split"].tolist() == ["test"] * 2 + ["validation"] * 2 + ["training"] * 2
    assert "'3x' as a split" in refused(table(tmp_path / "c.csv", [rows[0].replace("train", "3x")],
                                              "path,genre,split,fold"), tmp_path / "c")
    assert "1 tracks without a split" in refused(
        table(tmp_path / "d.csv", [rows[0].replace("train", ""), *rows[1:]], "path,genre,split,fold"), tmp_path / "d")
    assert "1, 5, 9 as folds" in refused(
        table(tmp_path / "e.csv", [f"{f},x,{n}" for f, n in zip(files, [1, 1, 5, 5, 9, 9], strict=True)],
              "path,genre,fold"), tmp_path / "e")


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_genres_and_artists_in_tags(tmp_path, ending):
    for k in range(6):
        path = write(tmp_path / "music" / f"Artist {k}" / "Album" / f"0{k}.{ending}", 1.2, 16000, genre="Rock;Pop",
                     artist=f"Artist {k}", album="Hits", title=f"Song {k}")
        if ending in ("mp3", "aiff"):                   # libsndfile writes other tags than people have there
            frames = {"TCON": ["Rock", "Pop"], "TPE1": f"Artist {k}", "TALB": "Hits", "TIT2": f"Song {k}"}
            file = mutagen.File(path)
            if file.tags is None:
                file.add_tags()
            for frame, text in frames.items():
                file.tags.add(getattr(id3, frame)(encoding=3, text=text))
            file.save()
    said = lines(tmp_path / "music", tmp_path / "data")      # folders are artists: genres are those in the tags
    tracks = load_tracks(tmp_path / "data")
    assert set(tracks["genre"]) == {"Rock"} and tracks["title"].tolist() == [f"Song {k}" for k in range(6)]
    assert tracks["artist_id"].tolist() == tracks["album_id"].tolist() == [1, 2, 3, 4, 5, 6]      # each its own Hits
    assert "artists: 6, from their tags" in said and "of several genres the first counts: 6 (" in said
    assert "no track with a genre, left out are several genres 6" in refused(tmp_path / "music", tmp_path / "b", "drop")
    import_collection(f"tags:{tmp_path}/music", tmp_path / "c")
    assert load_tracks(tmp_path / "c")["genre"].tolist() == ["Rock"] * 6


def test_damaged_tags_are_none(tmp_path):
    none = dict.fromkeys(("artist", "album_artist", "album", "title")) | {"genres": []}
    cut_off = {"a.mp3": b"ID3\x04\0\0\x7f\x7f\x7f\x7fTCON", "b.flac": b"fLaC\xff\xff", "c.wav": b"RIFF", "d.m4a": b""}
    for name, content in cut_off.items():
        (tmp_path / name).write_bytes(content)
        assert read_tags(tmp_path / name) == none


def test_a_file_in_two_genres_has_several(shelf, tmp_path):
    (shelf / "Rock" / "again.wav").symlink_to(shelf / "Folk" / "b.wav")
    said = lines(shelf, tmp_path / "data")
    assert "of several genres the first counts: 1 (b.wav: Folk|Rock)" in said
    assert "left out: a second name or line of a file 1 (again.wav)" in said
    assert load_tracks(tmp_path / "data")["genre"].value_counts().to_dict() == {"Folk": 6, "Rock": 6}
    import_collection(shelf, tmp_path / "drop", "drop")
    assert load_tracks(tmp_path / "drop")["genre"].value_counts().to_dict() == {"Folk": 5, "Rock": 6}


def test_genres_as_people_write_them(tmp_path):
    genres = ["pop|rock", "Pop", "pop", "['Pop', 'Jazz']", "Pop/Rock", "", "pop"]
    rows = [f'{write(tmp_path / f"{k}.wav")},"{genre}"' for k, genre in enumerate(genres)]
    said = lines(table(tmp_path / "a.csv", rows), tmp_path / "data")
    assert load_tracks(tmp_path / "data")["genre"].tolist() == ["pop", "pop", "pop", "pop", "Pop/Rock", "pop"]
    assert "no genre 1 (5.wav)" in said and "genres that differ in capitals are one: Pop count as pop" in said


# ---------------------------------------------------------------- names, and a second import


def test_odd_names_and_folders_are_found_again(tmp_path):
    names = ["a b.wav", "Ünïcode 日本.WAV", "new\nline.flac", "comma, \"quote\".ogg", "'.aiff"]
    for k, name in enumerate(names):
        path = write(tmp_path / "s" / "Tango\nNuevo" / f"x{Path(name).suffix.lower()}", seed=k)
        path.rename(path.with_name(name))
    (tmp_path / "s" / "loop").symlink_to(tmp_path / "s")
    (tmp_path / "s" / "Tango\nNuevo" / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"")
    assert "has no track with a genre" in refused(tmp_path / "s", tmp_path / "data")    # in one folder, without tags
    write(tmp_path / "s" / "Jazz" / "y.wav")
    said = lines(tmp_path / "s", tmp_path / "data")
    paths = audio_paths(tmp_path / "data", load_tracks(tmp_path / "data"))
    assert sorted(path.name for path in paths.values()) == sorted([*names, "y.wav"])
    assert all(path.is_file() for path in paths.values()) and "a name that is not UTF-8: rename it 1" in said


def test_importing_again_keeps_the_ids(shelf, tmp_path):
    data = tmp_path / "data"
    import_collection(shelf, data)
    before = load_tracks(data)["file"]
    features.fill_cache(data, ["mfcc"], workers=1, progress=False, seconds=10)
    write(shelf / "Folk" / "0 first by name.wav")
    (shelf / "Rock" / "a.flac").unlink()
    said = lines(shelf, data)
    after = load_tracks(data)["file"]
    assert after.index.tolist() == [*before.index.drop(before.index[before.str.endswith("Rock/a.flac")]), 13]
    assert all(before[track] == file for track, file in after.items() if track != 13)
    assert "splits: five folds by artist, drawn anew, the first" in said
    assert "11 tracks keep the ids of the earlier import, 1 are new" in said and "no longer a track: 1 (a.flac)" in said
    assert f"{data}/features is of other tracks: delete it, and run features.py again" in said


def test_nothing_is_overwritten(shelf, tmp_path, healthy):
    made = healthy / "fma_metadata" / "tracks.csv"
    before = made.read_bytes()
    assert "was not made by collection.py, so it is kept" in refused(shelf, healthy) and made.read_bytes() == before
    data = tmp_path / "data"
    import_collection(shelf, data)
    write(tmp_path / "other" / "A" / "1.wav")
    for k in range(6):
        write(tmp_path / "other" / "B" / f"{k}.wav")
    assert "is a collection of other files" in refused(tmp_path / "other", data)
    csv = data / "fma_metadata" / "tracks.csv"
    csv.write_text(csv.read_text().replace("Folk", "Blues"))
    assert "was changed since collection.py made it, so it is kept" in refused(shelf, data)
    for inside in (shelf, shelf / "data", shelf / ".." / "shelf" / "Folk"):
        assert "name a folder outside" in refused(shelf, inside)
    assert "is a collection already" in refused(healthy, tmp_path / "x")
    assert "not found: name a folder, a CSV, or mirdata:NAME" in refused(tmp_path / "nowhere", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_audio_inside_the_data_folder_moves_with_it(shelf, tmp_path):
    data = tmp_path / "mine"
    shutil.move(shelf, data / "audio")
    import_collection(data / "audio", data)
    moved = Path(shutil.move(data, tmp_path / "moved"))
    assert all(path.is_file() for path in audio_paths(moved, load_tracks(moved)).values())


@pytest.mark.parametrize(("content", "said"), [
    (b"title,genre\nx,y\n", "has no columns path and genre in its first line ('title,genre')"),
    (b"", "has no columns path and genre"), (b"PK\x03\x04\0\0\0", "is not a table"), (b"path,genre\n", "has no track"),
    (b'path,genre\n"x,y\n', "names no file that is there, but 1 (x,y)"),
    (b'path,genre\n"x,y\nz,y\nz,y\n', "has a cell of several lines")])
def test_what_is_no_table_is_said_in_a_line(tmp_path, content, said):
    (tmp_path / "x.csv").write_bytes(content)
    assert said in refused(tmp_path / "x.csv", tmp_path / "data")


def test_too_few_artists_to_split(tmp_path):
    rows = [f"{write(tmp_path / f'{k}.wav')},Jazz,Miles" for k in range(7)]
    said = refused(table(tmp_path / "a.csv", rows, "path,genre,artist"), tmp_path / "data")
    assert "too small to be split by artist: 7 tracks with a genre, of 1 artists" in said and "column split" in said


def test_mirdata_is_a_source_by_name(shelf, tmp_path, monkeypatch):
    assert "pip install mirdata" in refused("mirdata:gtzan_genre", tmp_path / "data")

    class Dataset:
        data_home = str(shelf)

        def validate(self, verbose):
            return {"tracks": {"gone": ["gone.wav"]}}, {"tracks": {}}

        def load_tracks(self):
            tracks = {str(path): types.SimpleNamespace(audio_path=str(path), genre=path.relative_to(shelf).parts[0])
                      for path in shelf.rglob("*.*")}
            return tracks | {"gone": types.SimpleNamespace(audio_path=str(shelf / "gone.wav"), genre="Folk")}

    def initialize(name, data_home):
        if name != "gtzan_genre":
            raise ValueError(f"Invalid dataset {name}")
        return Dataset()

    monkeypatch.setitem(sys.modules, "mirdata", types.SimpleNamespace(initialize=initialize))
    said = lines("mirdata:gtzan_genre", tmp_path / "data")
    assert load_tracks(tmp_path / "data")["genre"].value_counts().to_dict() == {"Folk": 6, "Rock": 6}
    assert "checked by mirdata: 1 files of its index are missing, 0 have another checksum" in said
    assert "left out: not found 1 (gone)" in said
    assert "mirdata knows no x: mirdata.list_datasets()" in refused("mirdata:x", tmp_path / "data2")


# ---------------------------------------------------------------- the command


def test_the_command_says_what_comes_next(shelf, tmp_path, capsys):
    assert run_command(lambda: collection.main([str(shelf), str(tmp_path / "data")])) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{tmp_path}/data: 12 tracks of 2 genres, from {shelf} (a folder for each genre)"
    assert said[-1].startswith(f"next: python fma.py --data-dir {tmp_path}/data checks it")
    assert run_command(lambda: fma.main(["--data-dir", str(tmp_path / "data"), "--seconds", "10"])) == 0
    assert "audio: 12 files of 10.0 to 10.0 s; at --seconds 10: 12 ok" in capsys.readouterr().out
