"""A collection made of what people have: audio is linked where it lies, never copied, renamed or changed.

    python collection.py ~/GTZAN/genres data/gtzan          a folder for each genre, or train/ and test/ above them
    python collection.py songs.csv data/mymusic             a table: path,genre and, if known, artist,album,title,
                                                            split,fold
    python collection.py tags:~/Music data/mymusic          genres and artists in the tags of the files
    python collection.py mirdata:gtzan_genre data/gtzan     a data set of mirdata

It writes DATA_DIR/fma_metadata/tracks.csv in FMA's layout, in which a column track,file says where each file is.
docs/collections.md has the details.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

from audio.cache import load_index, save_text, save_whole
from audio.known import recognise
from audio.sources import count_names, read_source, split_genres
from fma import SPLITS, DataError, load_tracks, run_command, some
from learning.folds import draw_folds

NOBODY = {"", "unknown", "unknown artist", "<unknown>", "various", "various artists"}       # no artist's name
DRAWN = ["test", "validation"]      # what the first folds are; the others are training


def import_collection(source, data_dir, genres="first"):
    """Make a collection, or add to one what its source has since.

    Parameters
    ----------
    source : str
        See `audio.sources.read_source`.
    data_dir : path-like
        Gets fma_metadata/tracks.csv, and beside it collection.json, which says of what and how it was made.
    genres : {"first", "drop"}
        Of a track with several: the first counts, or it is left out.

    Returns
    -------
    lines : list of str
        What was decided.

    Raises
    ------
    DataError
        If the source has no genres or too few artists to split, or the folder holds something else.
    """
    found, data_dir = read_source(str(source)), Path(data_dir).expanduser()
    inside = found.folder.resolve()
    if data_dir.resolve().is_relative_to(inside) and inside.is_dir():
        raise DataError(f"{data_dir} lies in {found.folder}, where nothing is written: name a folder outside")
    old = _read_old(data_dir)
    recognise(found)
    entries = _one_genre(_distinct(found), genres, found)
    if not entries:
        raise DataError(f"{source} has no track with a genre, left out are {_left(found) or 'none'}: sort files into "
                        "a folder for each genre, or name a CSV with columns path and genre")
    if len({entry["genre"] for entry in entries}) < 2:
        found.said.append("one genre only: networks tell two or more apart")
    table = _split(_table(_number(entries, old, data_dir, found), data_dir), found, source, bool(old))
    _write(table, data_dir, source, found)
    return _describe(table, data_dir, source, found)


# ---------------------------------------------------------------- what is a track


def _distinct(found):
    """The entries by the file that they lead to, each once: one that is in several genres has all of them."""
    by_file = {}
    for entry in found.entries:
        file = entry["path"].resolve()
        try:
            str(entry["path"].absolute()).encode()
        except UnicodeEncodeError:
            found.left["a name that is not UTF-8: rename it"].append(ascii(entry["path"].name))
            continue
        if file in by_file:
            found.left["a second name or line of a file"].append(entry["path"].name)
            by_file[file]["genres"] = by_file[file]["genres"] + entry["genres"]
        else:
            by_file[file] = entry | {"file": file}
    return list(by_file.values())


def _one_genre(entries, genres, found):
    """The entries that have a genre, one each, in its most frequent spelling."""
    several, kept = [], []
    for entry in entries:
        names = split_genres(entry["genres"])
        if len({name.casefold() for name in names}) > 1:
            several.append(f"{entry['path'].name}: {'|'.join(names)}")
            if genres == "drop":
                found.left["several genres"].append(entry["path"].name)
                continue
        if names:
            kept.append(entry | {"genre": names[0]})
        else:
            found.left["no genre"].append(entry["path"].name)
    if several and genres == "first":
        found.said.append(f"of several genres the first counts: {count_names(several)}; --genres drop leaves them out")
    spellings = Counter(entry["genre"] for entry in kept)
    usual = {name.casefold(): name for name, _ in sorted(spellings.items(), key=lambda item: (item[1], item[0]))}
    other = [name for name in spellings if usual[name.casefold()] != name]
    if other:
        found.said.append(f"genres that differ in capitals are one: {some(sorted(other))} count as "
                          f"{some(sorted(usual[name.casefold()] for name in other))}")
    return [entry | {"genre": usual[entry["genre"].casefold()]} for entry in kept]


# ---------------------------------------------------------------- what is its number


def _read_old(data_dir):
    """{file: track id} of an earlier import, empty if there is none; an error if the folder holds anything else."""
    metadata = data_dir / "fma_metadata"
    tracks, made = metadata / "tracks.csv", metadata / "collection.json"
    if not tracks.exists():
        return {}
    try:
        same = json.loads(made.read_text(encoding="utf-8"))["sha256"] == _digest(tracks)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{tracks} was not made by collection.py, so it is kept: name another DATA_DIR") from error
    if not same:
        raise DataError(f"{tracks} was changed since collection.py made it, so it is kept: name another DATA_DIR")
    return {(data_dir / file).resolve(): track for track, file in load_tracks(data_dir)["file"].items()}


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _number(entries, old, data_dir, found):
    """Give each entry its id: that of an earlier import, else the next ones in order of file name, then folders.

    The order is of files, links resolved: the same ones have the same ids whether a folder or a table names them.
    """
    entries = sorted(entries, key=lambda entry: entry["file"].parts[::-1])
    gone = set(old) - {entry["file"] for entry in entries}
    if old and len(gone) == len(old):
        raise DataError(f"{data_dir} is a collection of other files ({some(map(str, sorted(gone)), 1)}): "
                        "name another DATA_DIR")
    if gone:
        found.said.append(f"no longer a track: {count_names(sorted(path.name for path in gone))}")
    if old:
        found.said.append(f"{len(old) - len(gone)} tracks keep the ids of the earlier import, "
                          f"{len(entries) - len(old) + len(gone)} are new")
    number = max(old.values(), default=0)
    for entry in entries:
        if entry["file"] in old:
            entry["id"] = old[entry["file"]]
        else:
            number += 1
            entry["id"] = number
    return sorted(entries, key=lambda entry: entry["id"])


def _codes(names):
    """Numbers from 1 for names, in order of appearance and without regard to capitals; None for None."""
    numbers = {}
    return [None if name is None else numbers.setdefault(" ".join(name.casefold().split()), len(numbers) + 1)
            for name in names]


def _table(entries, data_dir):
    """tracks.csv without splits: a DataFrame with FMA's two-line columns."""
    import pandas as pd

    home = data_dir.resolve()
    for entry in entries:
        path = entry["path"].absolute()
        entry["link"] = str(path.relative_to(home) if path.is_relative_to(home) else path)
        if (entry["artist"] or "").strip().casefold() in NOBODY:
            entry["artist"] = None
    by = [entry["album"] and f"{entry['album_artist'] or entry['artist'] or ''}\n{entry['album']}" for entry in entries]
    columns = {("set", "split"): [entry["split"] for entry in entries], ("set", "subset"): "small",
               ("set", "fold"): [entry.get("fold") for entry in entries],
               ("track", "genre_top"): [entry["genre"] for entry in entries],
               ("track", "title"): [entry["title"] for entry in entries],
               ("track", "file"): [entry["link"] for entry in entries],
               ("artist", "id"): pd.array(_codes(entry["artist"] for entry in entries), dtype="Int64"),
               ("artist", "name"): [entry["artist"] for entry in entries],
               ("album", "id"): pd.array(_codes(by), dtype="Int64"),
               ("album", "title"): [entry["album"] for entry in entries]}
    table = pd.DataFrame(columns, index=pd.Index([entry["id"] for entry in entries], name="track_id"))
    return table.dropna(axis=1, how="all")


# ---------------------------------------------------------------- where it is learned or tested


def _split(table, found, source, again):
    """The table with a split of each track: what is given, of folds the first two, else folds by artist."""
    import pandas as pd

    tracks = pd.DataFrame({"genre": table["track", "genre_top"],
                           **({"artist_id": table["artist", "id"]} if ("artist", "id") in table else {})})
    if ("set", "fold") in table:
        table["set", "fold"] = _given_folds(table["set", "fold"], found, source)
    if ("set", "split") in table:
        lacking = table.index[table["set", "split"].isna()]
        if len(lacking):
            raise DataError(f"{source} has {len(lacking)} tracks without a split, others have one: {some(lacking)}: "
                            "write training, validation or test for all of them, or for none")
        absent = [name for name in DRAWN[::-1] if name not in set(table["set", "split"])]
        learned = table.index[table["set", "split"] == "training"]
        folds = _draw(tracks.loc[learned], source) if absent else None
        if not absent and not any(line.startswith("splits:") for line in found.said):
            found.said.append("splits: as the source gives them")
        for k, name in enumerate(absent):
            table.loc[folds.index[folds == k], ("set", "split")] = name
            found.said.append(f"no {name} was given: it is a fifth of training, by artist")
    else:
        if ("set", "fold") not in table:
            table["set", "fold"] = _draw(tracks, source)
            found.said.append(f"splits: five folds by artist{', drawn anew' * again}, the first is test, the second "
                              "validation")
        else:
            found.said.append("splits: of the folds that are given the first is test, the second validation")
        table["set", "split"] = table["set", "fold"].map(lambda fold: (*DRAWN, "training")[min(int(fold), 2)])
    return table[[column for group in ("set", "track", "artist", "album") for column in table.columns
                  if column[0] == group]]


def _draw(tracks, source):
    try:
        return draw_folds(tracks)
    except DataError as error:
        raise DataError(f"{source} is too small to be split by artist: {str(error).removeprefix('tracks.csv has ')}; "
                        "or name a CSV with a column split") from error


def _given_folds(values, found, source):
    """Folds from 0, as they are given or from 1."""
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce")
    there = sorted(numbers.unique())
    counted = [list(range(first, first + len(there))) for first in (0, 1)]
    if numbers.isna().any() or len(there) < 3 or there not in counted:
        raise DataError(f"{source} has {some(values.unique())} as folds: number them 0, 1, 2 and so on, three at "
                        "least, for all tracks or for none")
    if there[0]:
        found.said.append(f"folds 1 to {len(there)} are numbered from 0")
    return (numbers - there[0]).astype(int)


# ---------------------------------------------------------------- what is written and said


def _write(table, data_dir, source, found):
    metadata = data_dir / "fma_metadata"
    metadata.mkdir(parents=True, exist_ok=True)
    save_whole(metadata / "tracks.csv", lambda path: table.to_csv(path, lineterminator="\n"))
    made = {"source": os.path.abspath(source) if os.path.exists(source) else str(source), "layout": found.layout,
            "said": found.said, "left_out": {why: len(names) for why, names in found.left.items()},
            "sha256": _digest(metadata / "tracks.csv")}
    save_text(metadata / "collection.json", json.dumps(made, indent=1))


def _left(found):
    return ", ".join(f"{why} {count_names(names)}" for why, names in sorted(found.left.items()) if names)


def _describe(table, data_dir, source, found):
    """What was decided, a line each."""
    genres, splits = table["track", "genre_top"].value_counts(), table["set", "split"].value_counts()
    known = table["artist", "id"].dropna() if ("artist", "id") in table else []
    artists = f"{len(set(known))}, from {found.origin}" if len(known) else found.artists
    if 0 < len(known) < len(table):
        artists += f"; {len(table) - len(known)} tracks name none: each is taken for an artist of its own"
    lines = [f"{data_dir}: {len(table)} tracks of {len(genres)} genres, from {source} ({found.layout})",
             "genres: " + some((f"{genre} {count}" for genre, count in genres.items()), 12), f"artists: {artists}",
             "split: " + ", ".join(f"{splits[name]} {name}" for name in SPLITS), *found.said]
    if _left(found):
        lines.append(f"left out: {_left(found)}")
    index = data_dir / "features" / "index.csv"
    if index.is_file() and not load_index(index.parent)["track_id"].equals(table.index.to_series(range(len(table)))):
        lines.append(f"{index.parent} is of other tracks: delete it, and run features.py again")
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description="Make a collection of your own music; audio stays where it is.")
    parser.add_argument("source", help="a folder for each genre, a CSV with columns path and genre, tags:FOLDER, or "
                                       "mirdata:NAME")
    parser.add_argument("data_dir", help="where the collection goes: a folder outside the source")
    parser.add_argument("--genres", choices=("first", "drop"), default="first",
                        help="of a track with several: the first counts, or it is left out (default: %(default)s)")
    args = parser.parse_args(argv)
    first, *lines = import_collection(args.source, args.data_dir, args.genres)
    print("\n  ".join([first, *lines]))
    print(f"next: python fma.py --data-dir {args.data_dir} checks it, python features.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    sys.exit(run_command(main))
