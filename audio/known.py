"""Collections that are known by their layout and names: their splits, their artists, genres that count as one.

GTZAN's split is the fault-filtered one, in which no artist is on two sides and repetitions, distortions and wrong
labels are left out [1]_. Ballroom [2]_ and Extended Ballroom [3]_ name albums, ISMIR04 [4]_ and HOMBURG [5]_ artists.

References
----------
.. [1] Kereliuk, Sturm, Larsen: Deep learning and music adversaries, IEEE TMM 2015; the lists as in torchaudio.
.. [2] Gouyon et al.: An experimental comparison of audio tempo induction algorithms, IEEE TASLP 2006.
.. [3] Marchand, Peeters: The Extended Ballroom dataset, ISMIR 2016 (late-breaking).
.. [4] Cano et al.: ISMIR 2004 audio description contest, MTG-TR-2006-02.
.. [5] Homburg et al.: A benchmark dataset for audio classification and clustering, ISMIR 2005.
"""

import csv
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from fma import DataError

GTZAN = {       # the numbers of training | validation | test
    "blues": "29-49 73-97 | 0-11 50-60 | 12-28 61-72 98-99",
    "classical": "30-33 43-48 50-67 80-99 | 0-10 68-76 | 11-29 34-41 49 77-79",
    "country": "19-26 28-29 65-99 | 0-7 9-18 27 41-42 45 49 | 30-40 43-44 46-48 50-51 53-64",
    "disco": "5 15-20 22-37 39-45 47 49 53-54 56-57 59 61 70 73-74 89 | 0 2-4 6-14 46 48 52 67-68 72 75 90 95 | "
             "1 21 58 62-66 69 76-88 91-94 96-97 99",
    "hiphop": "2-25 28-29 31-38 41-42 55-61 77-80 | 81-98 | 0 26-27 30 40 43-45 51-54 62-75 99",
    "jazz": "0-1 11-24 41 47-72 | 2-10 25-32 | 73-99",
    "metal": "2-3 5 21 24 35 46-57 59-66 69 71-72 79-80 84 86 89-99 | 0-1 6-11 16-20 36-37 68 76-77 81-82 | "
             "12-15 22-23 25-33 38-39 67 70 73-75 78 83 85 87-88",
    "pop": "2-9 11-12 16-20 23-29 31-36 38-42 44 46 49-50 80 97-99 | 10 53 55 58-62 81 83-86 | "
           "0-1 13-14 43 63-66 69-79 82 88-96",
    "reggae": "0-2 4 6 9 11-12 14-32 42-45 49-51 54-60 63 69 | 61-62 70 72 74 76-78 85 92-99 | "
              "34-40 46-48 52-53 64-68 71 79 82-84 87-90",
    "rock": "0-9 16-26 57-70 91-99 | 38 49-56 71-85 | 10-15 27-37 39-48 86-90",
}
DAMAGED = "jazz.00054"      # in most copies of GTZAN
GTZAN_NAME = re.compile(rf"({'|'.join(GTZAN)})\.(\d{{5}})")
BALLROOM = {"chachacha", "jive", "quickstep", "rumba-american", "rumba-international", "rumba-misc", "rumba", "samba",
            "tango", "viennesewaltz", "waltz"}
BALLROOM_NAME = re.compile(r"albums-(.+)-\d+|media-(\d{4})\d\d", re.I)
EXTENDED = {"chacha", "foxtrot", "jive", "pasodoble", "quickstep", "rumba", "salsa", "samba", "slowwaltz", "tango",
            "viennesewaltz", "waltz", "wcswing"}
EXTENDED_NAME = re.compile(r"(\d{4})\d\d")
ISMIR04 = {"classical": "classical", "electronic": "electronic", "jazz_blues": "jazz_blues", "jazz": "jazz_blues",
           "blues": "jazz_blues", "metal_punk": "metal_punk", "metal": "metal_punk", "punk": "metal_punk",
           "rock_pop": "rock_pop", "rock": "rock_pop", "pop": "rock_pop", "world": "world"}
ISMIR04_NAME = re.compile(r"artist_(\d+)_album_(\d+)_track_\d+")
HOMBURG = {"alternative", "blues", "electronic", "folkcountry", "funksoulrnb", "jazz", "pop", "raphiphop", "rock"}


def recognise(found):
    """Complete the entries of a source if it is a known collection.

    Parameters
    ----------
    found : sources.Source
        Its entries, layout, and what is said and left out change. A split that it has is kept.

    Returns
    -------
    name : str
        Empty if it is none.
    """
    genres = {genre.lower() for entry in found.entries for genre in entry["genres"]}
    stems = [entry["path"].stem for entry in found.entries]

    def named(pattern):
        return sum(bool(pattern.fullmatch(stem)) for stem in stems) >= 0.9 * len(stems)

    if named(GTZAN_NAME):
        name, complete = "GTZAN", _gtzan
    elif genres and genres <= BALLROOM and named(BALLROOM_NAME):
        name, complete = "Ballroom", _ballroom
    elif genres and genres <= EXTENDED and named(EXTENDED_NAME) and (len(genres) > 8 or _songs(found)):
        name, complete = "Extended Ballroom", _extended_ballroom
    elif genres <= set(ISMIR04) and genres & {"jazz_blues", "metal_punk", "rock_pop"}:
        name, complete = "ISMIR04", _ismir04
    elif genres <= HOMBURG and len(genres & {"folkcountry", "funksoulrnb", "raphiphop"}) > 1:
        name, complete = "HOMBURG", _homburg
    else:
        return ""
    complete(found)
    found.layout += f", known as {name}"
    return name


def _numbers(text):
    """{0, 1, 2, 5} of ``0-2 5``."""
    pairs = (part.partition("-") for part in text.split())
    return {n for first, _, last in pairs for n in range(int(first), int(last or first) + 1)}


def _gtzan(found):
    sides = {genre: dict(zip(("training", "validation", "test"), map(_numbers, text.split("|")), strict=True))
             for genre, text in GTZAN.items()}
    given = any(entry["split"] for entry in found.entries)
    kept = []
    for entry in found.entries:
        name = GTZAN_NAME.fullmatch(entry["path"].stem)
        if not name:
            found.left["no name of GTZAN's"].append(entry["path"].name)
            continue
        entry["genres"] = [name[1]]
        if not given:
            entry["split"] = next((s for s, numbers in sides[name[1]].items() if int(name[2]) in numbers), None)
        if entry["split"]:
            kept.append(entry)
        else:
            found.left["not in the fault-filtered split"].append(entry["path"].name)
    found.entries = kept
    if not given:
        found.said.append("splits: fault-filtered, no artist in two (Kereliuk, Sturm and Larsen 2015)")
        found.artists = "unknown, but apart in the split; folds (--folds) would mix them, so that accuracies flatter"
    if any(entry["path"].stem == DAMAGED for entry in kept):
        found.said.append(f"{DAMAGED} is damaged in most copies: features.py then notes it as undecodable")


def _ballroom(found):
    for entry in found.entries:
        name = BALLROOM_NAME.fullmatch(entry["path"].stem)
        entry["genres"] = ["Rumba" if genre.lower().startswith("rumba") else genre for genre in entry["genres"]]
        if name and not entry["artist"]:
            entry["album"] = (name[1] or name[2]).replace("_", " ")
            entry["artist"] = f"album {entry['album']}"
    found.origin = "the names of files: the clips of an album count as one artist's"


def _songs(found):
    """Extended Ballroom's own list, {id: attributes}; empty if it is not there."""
    for path in sorted(Path(found.folder).rglob("extendedballroom*.xml"))[:1]:
        try:
            return {song.get("id"): song for song in ElementTree.parse(path).iter() if song.get("id")}
        except ElementTree.ParseError as error:
            raise DataError(f"{path} is damaged ({error}): fetch it again, or move it away") from error
    return {}


def _extended_ballroom(found):
    songs = _songs(found)
    for entry in found.entries:
        name, song = EXTENDED_NAME.fullmatch(entry["path"].stem), songs.get(entry["path"].stem, {})
        for key in ("artist", "album", "title"):
            entry[key] = entry[key] or song.get(key) or None
        if name and not entry["artist"]:
            entry["album"] = entry["album"] or name[1]
            entry["artist"] = f"album {entry['album']}"
    found.origin = ("extendedballroom.xml" if songs else
                    "the names of files, without extendedballroom.xml: the clips of an album count as one artist's")


def _ismir04(found):
    labels = {}         # of the files without a folder: metadata/development/ground_truth.csv and tracklist.csv
    for path in sorted(Path(found.folder).rglob("*.csv")):
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.reader(file):
                files = [Path(cell).name for cell in row if cell.lower().endswith(".mp3")]
                genres = [cell.strip() for cell in row if cell.strip() in ISMIR04]
                if files and genres:
                    labels[files[0]] = genres[0]
    for entry in found.entries:
        path, parts = entry["path"], entry.get("parts", ())
        name = ISMIR04_NAME.fullmatch(path.stem)
        if name:
            entry["artist"], entry["album"] = f"artist {name[1]}", f"artist {name[1]}, album {name[2]}"
            entry["genres"] = entry["genres"] or [labels[path.name]] * (path.name in labels)
        elif len(parts) == 4:
            entry["artist"], entry["album"] = (part.replace("_", " ") for part in parts[1:3])
        entry["genres"] = [ISMIR04.get(genre.lower(), genre) for genre in entry["genres"]]
    if not any(entry["split"] == "test" for entry in found.entries):
        for entry in found.entries:
            entry["split"] = "test" if entry["split"] == "validation" else entry["split"]
        found.said.append("without the evaluation set, the development set is the test")
    found.origin = ("folders and files; the contest made those of its development set numbers, so whether they are in "
                    "training too is not known")


def _homburg(found):
    for entry in found.entries:
        artist, dash, title = entry["path"].stem.partition("-")
        if dash and not entry["artist"]:
            entry["artist"], entry["title"] = artist.replace("_", " ").strip(), title.replace("_", " ").strip()
    found.origin = "the names of files"
