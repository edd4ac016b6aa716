"""FMA's metadata: tracks, genres, artists, the official split, and where the audio of each track is.

A data folder has the layout of FMA; any collection in that layout works (collection.py makes it):

    data/fma_metadata/tracks.csv            which track, artist, genre and split
    data/fma_small/000/000002.mp3           the audio, unless a column track,file says where it is
    data/features/                          the cache that features.py makes

    python fma.py --data-dir data           checks such a folder and lists its problems
    python fma.py --seconds 10              and the clips that are too short for features of ten seconds
"""

import argparse
import csv
import errno
import html
import json
import os
import sys
from glob import glob
from pathlib import Path

# OpenMP's threads, torch's among them, sleep while they wait instead of spinning: beside another busy program training
# is several times faster (docs/speed.md). It is read when torch is imported, and commands import this module first.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SPLITS = ("training", "validation", "test")
SUBSETS = ("small", "medium", "large", "full")      # each contains the ones before it

# FMA's two-line column names, and ours. The first three are required, the others optional.
COLUMNS = {
    ("set", "split"): "split",
    ("set", "subset"): "subset",
    ("track", "genre_top"): "genre",
    ("set", "fold"): "fold",            # for cross-validation: learning/folds.py
    ("track", "genres"): "genre_ids",
    ("track", "title"): "title",
    ("track", "listens"): "listens",
    ("track", "file"): "file",          # where the audio is, if not in FMA's layout: see audio_paths
    ("track", "duration"): "duration",
    ("track", "bit_rate"): "bit_rate",
    ("artist", "id"): "artist_id",
    ("artist", "name"): "artist",
    ("album", "id"): "album_id",
    ("album", "title"): "album",
    ("album", "date_released"): "released",
}
TEXTS = ("track", "genre_top"), ("track", "file")   # a genre may be called 1980, or None

NATIVE = set(".mp3 .flac .ogg .oga .opus .wav .aif .aiff .aifc .au .snd .caf .w64 .rf64".split())   # for libsndfile
ENDINGS = NATIVE | set(".m4a .m4b .mp4 .3gp .aac .wma .ape .wv .mpc .mp2 .mka .webm .ac3 .amr .dsf .dts .spx .tak "
                       ".tta".split())     # of audio files: PyAV reads the rest

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
              errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP)


class DataError(Exception):
    """An error that the user can fix: one line that names the file and the remedy."""


def run_command(main, resumes=False):
    """Run a command's main function; a `DataError`, or a full or read-only disk, ends it with one line and status 2.

    `resumes` says whether the command, interrupted, goes on where it was when it is run again.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except DataError as error:
        line = str(error)
    except BrokenPipeError:             # for example of | head
        sys.stdout = open(os.devnull, "w", encoding="utf-8")    # noqa: SIM115 - the rest is flushed at exit
        return 0
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        line = (f"{error.filename or 'a file'} cannot be used ({error.strerror}): free space, fix its permissions, or "
                "choose another folder")
    except KeyboardInterrupt:
        print("\ninterrupted: " + ("run the same command to continue" if resumes else "the same command begins again"),
              file=sys.stderr)
        return 130
    line = "".join(c if c.isprintable() else "?" for c in line)             # names may hold line ends and escapes
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    return 2


def add_data_options(parser):
    """Add the options of every command on a collection, --data-dir and --subset, to an argparse parser."""
    parser.add_argument("--data-dir", help="in FMA's layout (default: $DATA_DIR, data, or the demo corpus)")
    parser.add_argument("--subset", default="small", choices=SUBSETS)


def progress_bar(*args, show=True, **kwargs):
    """tqdm's progress bar; disabled by `show`, or by TQDM_DISABLE, which tqdm's bar for notebooks ignores."""
    from tqdm.auto import tqdm

    return tqdm(*args, **kwargs, disable=not show or os.environ.get("TQDM_DISABLE", "0") not in ("", "0"))


def find_data(data_dir=None):
    """Choose the data folder; where there is none, make the synthetic demo corpus.

    Parameters
    ----------
    data_dir : path-like, optional
        By default the environment's DATA_DIR, else ``data``, else the demo corpus in ``data/demo``.

    Returns
    -------
    data_dir : Path

    Raises
    ------
    DataError
        If the named folder has no FMA metadata.
    """
    named = data_dir or os.environ.get("DATA_DIR")
    folder = Path(named or "data")
    if (folder / "fma_metadata" / "tracks.csv").is_file():
        return folder
    if named and folder.resolve() != Path("data/demo").resolve():
        raise DataError(f"{folder}/fma_metadata/tracks.csv not found: {ways_in(folder)}")
    import demo

    print("=" * 78, "No collection in data/: ./download_data.sh fetches FMA, collection.py takes your own music.",
          "Using data/demo, a small SYNTHETIC corpus: accuracies on it say nothing about music.", "=" * 78, sep="\n")
    return Path(demo.make("data/demo"))


def ways_in(folder):
    """How a folder without tracks.csv becomes a collection, or one is made of what lies in it, in words."""
    music = Path(folder).is_dir() and any(Path(folder).iterdir())
    return (f"python collection.py {f'{folder} NEW_FOLDER' if music else f'SOURCE {folder}'} takes your own music, "
            f"./download_data.sh small {folder} fetches FMA")


def dataset_name(data_dir, subset="small"):
    """Name under which runs and results are saved: fma_<subset> for FMA itself, otherwise the name of the folder."""
    if (Path(data_dir) / "fma_metadata" / "raw_tracks.csv").is_file():      # only in FMA's own archive
        return f"fma_{subset}"
    name = Path(data_dir).resolve().name
    return name if subset == "small" else f"{name}_{subset}"


def load_tracks(data_dir, subset="small"):
    """Read the metadata of a collection.

    Parameters
    ----------
    data_dir : path-like
    subset : {"small", "medium", "large", "full"}
        FMA's subsets are nested: tracks of the smaller ones are included.

    Returns
    -------
    tracks : DataFrame, indexed by track_id
        Columns split, subset, genre, and those of `COLUMNS` in the file. HTML entities in names are decoded:
        ``Apes &amp; History`` becomes ``Apes & History``.

    Raises
    ------
    DataError
        If the file is missing, lacks a required column, has a track twice, or no track of the subset.
    """
    path = Path(data_dir) / "fma_metadata" / "tracks.csv"
    if subset not in SUBSETS:
        raise DataError(f"subset {subset!r} is unknown: choose one of {', '.join(SUBSETS)}")
    if not path.is_file():
        raise DataError(f"{path} not found: {ways_in(data_dir)}")
    tracks = _read_tracks(path)
    if tracks.index.dtype.kind not in "iu":
        raise DataError(f"{path} has track ids that are not whole numbers: put them in the first column")
    if tracks.index.has_duplicates:
        raise DataError(f"{path} has track {tracks.index[tracks.index.duplicated()][0]} twice: remove one row")
    wanted = tracks["subset"].isin(SUBSETS[: SUBSETS.index(subset) + 1])
    if not wanted.any():
        others = some(tracks["subset"].dropna().unique()) or "none"
        raise DataError(f"{path} has no track of subset {subset}, only of {others}: choose another, or fix that column")
    for column in {"title", "artist", "album"} & set(tracks):       # all albums may be named by year
        tracks[column] = tracks[column].map(lambda name: html.unescape(name) if isinstance(name, str) else name)
    return tracks[wanted]


def _read_tracks(path):
    """A tracks.csv as it is, under the names of `COLUMNS`."""
    import pandas as pd  # here: predict.py and --help do without its 0.3 s

    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header, third = list(zip(next(reader), next(reader), strict=False)), next(reader)
        places = {column: header.index(column) for column in COLUMNS if column in header}
        lacking = [".".join(c) for c in list(COLUMNS)[:3] if c not in places]
        if lacking:
            raise DataError(f"{path} has no column {', '.join(lacking)}: "
                            + (spreadsheet(path) or "it is not in the layout of FMA's tracks.csv"))
        if third and third[0].isdigit():        # else it would be skipped as a header
            raise DataError(f"{path} has a track in line 3: in FMA's layout the header has three lines")
        tracks = pd.read_csv(path, skiprows=3, header=None, usecols=[0, *places.values()], low_memory=False,
                             dtype={places[column]: str for column in TEXTS if column in places},
                             keep_default_na=False, na_values=[""])
    except (StopIteration, ValueError, csv.Error) as error:     # pandas' and Unicode's are ValueErrors
        reason = spreadsheet(path) or " ".join(str(error).split()) or "it is truncated"
        raise DataError(f"{path} is not a table with FMA's three header lines ({reason})") from error
    tracks = tracks.rename(columns={place: COLUMNS[column] for column, place in places.items()})
    return tracks.set_index(0).rename_axis("track_id")


def spreadsheet(path):
    """What a spreadsheet made of a table, and the remedy; empty if it is in UTF-8 with commas."""
    data = Path(path).read_bytes()
    try:
        text, found = data.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        encoding = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
        text, found = data.decode(encoding, "replace"), [f"in {encoding}"]
    most = max(",;\t", key=text.partition("\n")[0].count)
    found += {",": [], ";": ["separated by semicolons"], "\t": ["separated by tabs"]}[most]
    return f"it is {' and '.join(found)}: save it as CSV with commas, in UTF-8" if found else ""


def load_genres(data_dir):
    """Read the hierarchy of genres, ``genres.csv``.

    Parameters
    ----------
    data_dir : path-like

    Returns
    -------
    genres : DataFrame, indexed by genre_id
        Columns title, parent (0 at the top) and top_level (the id of the root). Empty without the optional file.
    """
    import pandas as pd

    path, columns = Path(data_dir) / "fma_metadata" / "genres.csv", ["title", "parent", "top_level"]
    if not path.is_file():
        return pd.DataFrame(columns=columns, index=pd.Index([], name="genre_id", dtype=int))
    try:
        genres = pd.read_csv(path).set_index("genre_id")[columns]
    except (KeyError, ValueError) as error:     # pandas' own are ValueErrors
        raise DataError(f"{path} is not a table of genre_id, {', '.join(columns)}: delete it or fetch FMA's") from error
    if genres.index.has_duplicates:
        raise DataError(f"{path} has genre {genres.index[genres.index.duplicated()][0]} twice: remove one row")
    return genres


def sub_genres(tracks, genres):
    """The sub-genres that artists assigned to their tracks, below the top level.

    Parameters
    ----------
    tracks, genres : DataFrame
        From `load_tracks` and `load_genres`.

    Returns
    -------
    names : Series of str, indexed by track_id
        One row per track and sub-genre; empty if the metadata has none.

    Raises
    ------
    DataError
        If the genres of a track are not a list of ids, as in FMA.
    """
    import pandas as pd

    if "genre_ids" not in tracks:
        return pd.Series([], index=tracks.index[:0], dtype=str, name="sub_genre")
    ids = tracks["genre_ids"].dropna().map(_genre_ids).explode().dropna().astype(int)
    ids = ids[ids.isin(genres.index[genres["parent"] != 0])]
    return ids.map(genres["title"]).astype(str).rename("sub_genre")


def _genre_ids(text):
    """The ids in ``[12, 25]``."""
    try:
        return [int(number) for number in json.loads(text)]
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"tracks.csv has {str(text)[:40]!r} as the genres of a track: write ids of genres.csv, "
                        "like [12, 25], or remove the column track.genres") from error


def artists_of(tracks):
    """Artist of each track, for resampling and splitting by artist; a track of unknown artist is its own group."""
    if "artist_id" not in tracks:
        return tracks.index.to_numpy()
    artists = tracks["artist_id"].astype("string")
    return artists.fillna("track " + tracks.index.astype("string").to_series(index=tracks.index)).to_numpy(dtype=str)


def audio_path(data_dir, track_id, subset="small"):
    """Path of a track in FMA's layout: ``fma_small/000/000002.mp3``."""
    name = f"{track_id:06d}"
    return Path(data_dir) / f"fma_{subset}" / name[:3] / f"{name}.mp3"


def audio_paths(data_dir, tracks, subset="small"):
    """Where the audio of each track is, or would be.

    Parameters
    ----------
    data_dir : path-like
    tracks : DataFrame
        From `load_tracks`.
    subset : str

    Returns
    -------
    paths : dict of int to Path, in the order of the tracks
        What the column track,file says, relative to the data folder. Without it FMA's `audio_path`, or the same name
        with another ending of `ENDINGS`.
    """
    data_dir, root, here = Path(data_dir), Path(data_dir) / f"fma_{subset}", {}
    for name in sorted(glob("*/*", root_dir=root), key=lambda name: (not name.endswith(".mp3"), name)):
        stem, ending = os.path.splitext(name)
        if ending.lower() in ENDINGS:
            here.setdefault(stem, name)
    given, paths = tracks["file"].to_dict() if "file" in tracks else {}, {}
    for track in tracks.index:
        file, usual = given.get(track), audio_path(data_dir, track, subset)
        stem = os.path.join(usual.parent.name, usual.stem)
        paths[track] = data_dir / file if isinstance(file, str) else root / here[stem] if stem in here else usual
    return paths


def some(items, most=5):
    """The first few items as text, for a message."""
    items = list(items)
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")


def main(argv=None):
    from audio.audit import print_audit  # which is below this module: the command alone needs it

    parser = argparse.ArgumentParser(description="Summarise a data folder and list its problems.")
    add_data_options(parser)
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a clip, as it will be asked of "
                        "features.py (default: 30, or what the cache was made with)")
    args = parser.parse_args(argv)
    print_audit(find_data(args.data_dir), args.subset, args.seconds)


if __name__ == "__main__":
    sys.exit(run_command(main))
