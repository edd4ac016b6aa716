"""What people have, as entries of a collection: a folder for each genre, tags, a table, a data set of mirdata.

An entry is a dict: path, genres (a list), and artist, album, album_artist, title, split, fold where they are known.
"""

import csv
import io
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from fma import ENDINGS, DataError, progress_bar, some

SPLIT_NAMES = {"train": "training", "training": "training", "test": "test", "testing": "test", "eval": "test",
               "evaluation": "test", "val": "validation", "valid": "validation", "validation": "validation",
               "dev": "validation", "development": "validation"}
COLUMNS = {"path": ("path", "file", "filename", "file_name", "filepath", "file_path"),
           "genre": ("genre", "label", "class"), "artist": ("artist",), "album": ("album",), "title": ("title",),
           "split": ("split",), "fold": ("fold",)}      # of a table, and what else they may be called
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
TAGS = {"genres": ("TCON", "genre", "\xa9gen", "WM/Genre"), "artist": ("TPE1", "artist", "\xa9ART", "Author"),
        "album_artist": ("TPE2", "albumartist", "aART", "WM/AlbumArtist", "Album Artist"),
        "album": ("TALB", "album", "\xa9alb", "WM/AlbumTitle"), "title": ("TIT2", "title", "\xa9nam", "Title")}


@dataclass
class Source:
    layout: str                                                         # what it was taken for, in words
    entries: list = field(default_factory=list)
    left: dict = field(default_factory=lambda: defaultdict(list))       # names of what is left out, by reason
    said: list = field(default_factory=list)                            # further decisions, a line each
    origin: str = "their tags"                                          # of artists, where they are known
    artists: str = "unknown: each file is taken for an artist of its own, so that accuracies may flatter"
    folder: Path = Path()                                               # where it is


def read_source(source):
    """Read what a collection is to be made of.

    Parameters
    ----------
    source : str
        A folder, a table, ``tags:FOLDER``, or ``mirdata:NAME`` (``mirdata:NAME:FOLDER``).

    Returns
    -------
    found : Source

    Raises
    ------
    DataError
        If there is nothing, or no genre in it.
    """
    kind, _, rest = source.partition(":")
    path = Path(rest if kind == "tags" else source).expanduser()
    if kind == "mirdata":
        return from_mirdata(*rest.split(":", 1))
    if path.is_file():
        return from_table(path)
    if not path.is_dir():
        raise DataError(f"{path} not found: name a folder, a CSV, or mirdata:NAME")
    if (path / "fma_metadata" / "tracks.csv").is_file():
        raise DataError(f"{path} is a collection already: name it as --data-dir")
    return from_folder(path, kind == "tags")


# ---------------------------------------------------------------- folders and tags


def find_audio(folder):
    """Audio files below a folder, by their ending, in order of path; and {why: [paths]} of all else.

    Links are followed, but not into a folder above; hidden files and folders are passed over.
    """
    files, others = [], defaultdict(list)

    def refused(error):
        others["a folder that cannot be read"].append(Path(error.filename))

    for here, folders, names in os.walk(folder, followlinks=True, onerror=refused):
        real = Path(here).resolve()
        folders[:] = sorted(name for name in folders if not name.startswith(".")
                            and not real.is_relative_to((Path(here) / name).resolve()))
        for name in sorted(names):
            path = Path(here) / name
            if name.startswith("."):
                others["hidden"].append(path)
            elif path.suffix.lower() not in ENDINGS:
                others[f"no audio: {path.suffix.lower() or 'without an ending'}"].append(path)
            elif not path.is_file():
                others["a link to nothing" if path.is_symlink() else "not a file"].append(path)
            else:
                files.append(path)
    return files, others


def from_folder(folder, tags=False):
    """Entries of a folder: genres are its folders, or (also if asked to) those in the tags of its files.

    Wrapping folders with a single one in them do not count; train, validation and test above the genres are splits.
    """
    files, others = find_audio(folder)
    if not files:
        passed_over = some(f"{len(paths)} {why}" for why, paths in others.items())
        raise DataError(f"{folder} has no audio file{passed_over and f', but {passed_over}'}: known endings are "
                        f"{some(sorted(ENDINGS), 30)}")
    found, root = Source("a folder for each genre", folder=folder), Path(folder)
    found.left |= {why: [path.name for path in paths] for why, paths in others.items()}
    while len(tops := {path.relative_to(root).parts[0] for path in files}) == 1 and (root / min(tops)).is_dir():
        root /= tops.pop()
    splits = all(name.lower() in SPLIT_NAMES and (root / name).is_dir() for name in tops)
    for path in progress_bar(files, desc="tags", unit="file", leave=False):
        parts = path.relative_to(root).parts
        entry = {"path": path, "split": SPLIT_NAMES[parts[0].lower()] if splits else None, "parts": parts[splits:]}
        entry["folder"] = parts[splits] if len(parts) > splits + 1 else None
        found.entries.append(entry | read_tags(path))
    foldered = {entry["folder"] for entry in found.entries} - {None}
    if tags or len(foldered) < 2 and not splits or _are_artists(found.entries):
        found.layout = "genres from tags"
    else:
        for entry in found.entries:
            entry["genres"] = [entry["folder"]] if entry["folder"] else []
    return found


def _are_artists(entries):
    """Whether folders are named after the artists in the tags of their files, which have genres."""
    return 2 * sum(bool(entry["genres"]) and entry["folder"] is not None and entry["folder"].casefold() in
                   [(entry[key] or "").casefold() for key in ("artist", "album_artist")]
                   for entry in entries) > len(entries)


def read_tags(path):
    """Genres (a list), artist, album, album_artist and title in the tags of a file; None where there is none."""
    import mutagen

    try:
        file = mutagen.File(path)
    except Exception:           # mutagen has many kinds for damaged files
        file = None
    tags = getattr(file, "tags", None)
    found = {key: [] if tags is None else _texts(tags, names) for key, names in TAGS.items()}
    if not any(found.values()) and path.suffix.lower() in (".wav", ".aif", ".aiff"):
        found |= {key: [text] for key, text in _riff_tags(path).items()}
    return {key: texts if key == "genres" else next(iter(texts), None) for key, texts in found.items()}


def _texts(tags, names):
    """The texts of the first tag of several names that is there: ID3, MP4, Vorbis, APE and ASF have each their own."""
    for name in names:
        try:
            value = tags[name]
        except (KeyError, ValueError):          # ValueError: not a name in this kind of tags
            continue
        texts = getattr(value, "genres", None) or getattr(value, "text", None) or value
        return [str(text).strip() for text in ([texts] if isinstance(texts, str) else texts) if str(text).strip()]
    return []


def _riff_tags(path):
    """What libsndfile finds in the INFO chunk of a WAV file, which mutagen does not read."""
    import soundfile

    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            given = file.copy_metadata()
    except (soundfile.LibsndfileError, OSError, TypeError):
        return {}
    return {key: given[name].strip() for key, name in
            (("genres", "genre"), ("artist", "artist"), ("album", "album"), ("title", "title")) if given.get(name)}


# ---------------------------------------------------------------- tables


def from_table(path):
    """Entries of a CSV or TSV; its columns are those of `COLUMNS`, in any order and case."""
    with open(path, "rb") as file:
        data = file.read(1 << 16)
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        if not wide and b"\0" in data:         # an archive, or audio, of any size
            raise DataError(f"{path} is not a table: save a spreadsheet as CSV, unpack an archive")
        data += file.read()
    try:
        encoding = "utf-16" if wide else "utf-8-sig"
        text = data.decode(encoding)
    except UnicodeDecodeError:
        encoding = "cp1252"
        text = data.decode(encoding, "replace")
    text = re.sub(r"\r\n?", "\n", text)
    text = re.sub(r"\Asep=.\n", "", text)               # Excel's
    try:
        delimiter, places = _columns(path, text)
        lines = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        rows = [row for row in lines if any(row)][1:]
    except csv.Error as error:
        raise DataError(f"{path} is not a table ({error})") from error
    found = Source("a table", folder=path, origin="the table" if "artist" in places else "their tags",
                   said=[f"read as {encoding.removesuffix('-sig')}, separated by {DELIMITERS[delimiter]}"])
    for row in rows:
        if several := next((cell for cell in row if cell.count("\n") > 1), ""):
            raise DataError(f"{path} has a cell of several lines, {several[:40]!r}: close its quotation mark")
        given = {key: row[k].strip() if k < len(row) else "" for key, k in places.items()}
        file = path.parent / Path(given["path"]).expanduser()
        if not file.is_file() and "\\" in given["path"]:                # written on Windows
            file = path.parent / given["path"].replace("\\", "/")
        if not given["path"] or not file.is_file():
            found.left["not found"].append(given["path"] or "a row without a path")
            continue
        split = given.get("split", "")
        if split and split.lower() not in SPLIT_NAMES:
            raise DataError(f"{path} has {split!r} as a split: write training, validation or test")
        tags = {} if "artist" in places else read_tags(file)
        entry = {key: given.get(key) or tags.get(key) for key in ("artist", "album_artist", "album", "title", "fold")}
        found.entries.append(entry | {"path": file, "genres": [given["genre"]],
                                      "split": SPLIT_NAMES.get(split.lower())})
    if rows and not found.entries:
        raise DataError(f"{path} names no file that is there, but {count_names(found.left['not found'])}: write paths "
                        f"from the root, or relative to {path.parent.absolute()}")
    return found


def _columns(path, text):
    """The delimiter of a table, and where each column stands."""
    first = text.lstrip("\n").split("\n", 1)[0]
    for delimiter in DELIMITERS:
        cells = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
        names = [name.strip().casefold() for name in cells]
        places = {key: names.index(name) for key, known in COLUMNS.items() for name in known[::-1] if name in names}
        if {"path", "genre"} <= set(places):
            return delimiter, places
    raise DataError(f"{path} has no columns path and genre in its first line ({first.strip()[:60]!r}): name them there")


def split_genres(texts):
    """The genres in fields as people write them.

    >>> split_genres(["pop|rock"]), split_genres(["['Folk', 'Pop']"]), split_genres(["Pop/Rock", "R&B; Soul"])
    (['pop', 'rock'], ['Folk', 'Pop'], ['Pop/Rock', 'R&B', 'Soul'])
    """
    found = []
    for text in texts:
        text = text.strip()
        inner = re.fullmatch(r"\[(.*)\]", text, re.DOTALL)
        found += inner[1].split(",") if inner else re.split(r"[|;]", text)
    names = [name.strip().strip("'\"").strip() for name in found]
    return list(dict.fromkeys(name for name in names if name))


# ---------------------------------------------------------------- mirdata


def from_mirdata(name, folder=None):
    """Entries of a data set that mirdata knows, its files checked against mirdata's index."""
    try:
        import mirdata
    except ImportError as error:
        raise DataError(f"mirdata:{name} needs mirdata: pip install mirdata") from error
    try:
        data = mirdata.initialize(name, data_home=folder)
        missing, invalid = (_count(x) for x in data.validate(verbose=False))
        tracks = data.load_tracks()
    except ValueError as error:
        raise DataError(f"mirdata knows no {name}: mirdata.list_datasets() lists what it knows") from error
    except FileNotFoundError as error:
        raise DataError(f"mirdata has no index or files of {name} ({error}): python -c \"import mirdata; "
                        f"mirdata.initialize('{name}').download()\"") from error
    found = Source(f"mirdata's {name}", folder=Path(data.data_home), origin="mirdata")
    found.said = [f"checked by mirdata: {missing} files of its index are missing, {invalid} have another checksum"]
    for track_id, track in tracks.items():
        genre, path = getattr(track, "genre", None), getattr(track, "audio_path", None)
        if not path or not os.path.isfile(path):
            found.left["not found"].append(track_id)
            continue
        given = {key: getattr(track, key, None) or None for key in ("artist", "album", "title")}
        found.entries.append(given | {"path": Path(path), "split": None, "album_artist": None, "genres":
                                      [genre] if isinstance(genre, str) else list(genre or [])})
    return found


def _count(files):
    """How many files there are in what mirdata reports: lists, by track, by kind."""
    return sum(map(_count, files.values())) if isinstance(files, dict) else len(files)


def count_names(names):
    """How many there are, and the first few: ``3 (a.wav, b.wav, c.wav)``."""
    most = Counter(map(str, names))
    return f"{len(names)} ({some(most, 3)})"
