"""Known collections are recognised by their layout, and have the splits and artists that are known of them."""

import shutil
from pathlib import Path

import pytest
from test_collection import lines, write

from audio.known import GTZAN, _numbers
from fma import load_tracks

# Files, and what is known of them: genres and artists.
KNOWN = {
    "Ballroom": (["{Rumba-American,Rumba-Misc,Waltz}/Media-{1034,1035,1036}0{1,2}.wav",
                  "Tango/Albums-{Fire,On_Ice}-{01,02,03}.wav"], {"Rumba", "Waltz", "Tango"},
                 {"album 1034", "album 1035", "album 1036", "album Fire", "album On Ice"}),
    "Extended Ballroom": (["{Salsa,Wcswing}/{1001,1002,1003,1004}0{1,2}.wav"], {"Salsa", "Wcswing"},
                          {"Ana", "album 1001", "album 1002", "album 1003", "album 1004"}),
    "HOMBURG": (["{funksoulrnb,raphiphop}/{The_Beeps,Zach_-Madden,Bleep,22,3pm}-{a,b}.wav"],
                {"funksoulrnb", "raphiphop"}, {"The Beeps", "Zach", "Bleep", "22", "3pm"}),
}


def expand(pattern):
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    names, _, tail = rest.partition("}")
    return [head + name + end for name in names.split(",") for end in expand(tail)]


def place(folder, *patterns):
    for path in (path for pattern in patterns for path in expand(pattern)):
        write(folder / path, 0.1)


def test_gtzan_has_its_fault_filtered_split(tmp_path):
    sample = write(tmp_path / "x.wav", 1, 1000)
    for genre in GTZAN:
        (tmp_path / "Data" / "genres" / genre).mkdir(parents=True)
        for k in range(100):
            shutil.copy(sample, tmp_path / "Data" / "genres" / genre / f"{genre}.{k:05d}.wav")
    said = lines(tmp_path / "Data", tmp_path / "data")
    tracks = load_tracks(tmp_path / "data")
    assert tracks["split"].value_counts().to_dict() == {"training": 443, "validation": 197, "test": 290}
    assert "known as GTZAN" in said and "not in the fault-filtered split 70 (" in said
    assert "jazz.00054 is damaged in most copies" in said
    stems = tracks["file"].map(lambda file: Path(file).stem)
    assert (tracks["genre"] == stems.str.partition(".")[0]).all()
    assert tracks["split"][stems == "blues.00012"].tolist() == ["test"] and "rock.00086" in stems.tolist()
    for sides in GTZAN.values():
        training, validation, test = map(_numbers, sides.split("|"))
        assert not (training & validation or training & test or validation & test)


@pytest.mark.parametrize("name", KNOWN)
def test_known_collections_are_recognised_by_their_layout(tmp_path, name):
    patterns, genres, artists = KNOWN[name]
    place(tmp_path / "s", *patterns)
    if name == "Extended Ballroom":
        (tmp_path / "s" / "extendedballroom_v1.1.xml").write_text(
            '<x><Salsa><song id="100101" artist="Ana" title="T" album="Al"/></Salsa></x>')
    assert f"known as {name})" in lines(tmp_path / "s", tmp_path / "data")
    tracks = load_tracks(tmp_path / "data")
    assert set(tracks["genre"]) == genres and set(tracks["artist"]) == artists


def test_ismir04_has_its_three_sets(tmp_path):
    music = tmp_path / "s"
    place(music, "audio/{training,evaluation}/{rock_pop,metal}/{x_y,zz}/{al,bum}/1-so_ng.wav",
          "audio/development/artist_{1,2}_album_1_track_{3,4}.wav")
    (music / "metadata").mkdir()
    (music / "metadata" / "ground_truth.csv").write_text(
        "".join(f'"./tracks/artist_{a}_album_1_track_{t}.mp3","world"\n' for a in (1, 2) for t in (3, 4)))
    for path in music.rglob("*.wav"):
        path.rename(path.with_suffix(".mp3"))
    assert "known as ISMIR04)" in lines(music, tmp_path / "data")
    tracks = load_tracks(tmp_path / "data")
    assert set(tracks["genre"]) == {"rock_pop", "metal_punk", "world"}
    assert set(tracks["artist"]) == {"x y", "zz", "artist 1", "artist 2"}
    assert tracks["split"].value_counts().to_dict() == {"training": 8, "test": 8, "validation": 4}
    shutil.rmtree(music / "audio" / "evaluation")
    for k in range(12):                             # enough for a fifth of training as validation
        write(music / "audio" / "training" / "world" / f"artist {k}" / "b" / "2-s.ogg", 0.1)
    assert "the development set is the test" in lines(music, tmp_path / "two")
    counts = load_tracks(tmp_path / "two")["split"].value_counts()
    assert counts["test"] == 4 and 3 <= counts["validation"] <= 7 and counts.sum() == 24


def test_a_likeness_is_not_taken_for_a_known_collection(tmp_path):
    for k in range(6):
        write(tmp_path / "mine" / "Salsa" / f"00010{k}.wav", 0.1)
        write(tmp_path / "mine" / "Tango" / f"00020{k}.wav", 0.1)
        write(tmp_path / "flat" / f"jazz.0000{k}.wav", 0.1)          # GTZAN's names tell the genre, without folders
        write(tmp_path / "flat" / f"rock.0001{k}.wav", 0.1)
    assert "known as" not in lines(tmp_path / "mine", tmp_path / "a")
    assert "known as GTZAN" in lines(tmp_path / "flat", tmp_path / "b")
    assert set(load_tracks(tmp_path / "b")["genre"]) == {"jazz", "rock"}
