"""FMA's metadata: tracks, genres, artists, the official split, and an audit of a data folder.

A data folder has the layout of FMA; any collection in that layout works:

    data/fma_metadata/tracks.csv            which track, artist, genre and split
    data/fma_small/000/000002.mp3           the audio
    data/features/                          the cache that features.py makes

    python fma.py --data-dir data           checks such a folder and lists its problems
    python fma.py --seconds 10              and the clips that are too short for features of ten seconds
"""

import argparse
import csv
import errno
import hashlib
import html
import json
import math
import os
import sys
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

# OpenMP's threads, torch's among them, sleep while they wait instead of spinning: beside another busy program training
# is several times faster (docs/speed.md). It is read when torch is imported, and commands import this module first.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SPLITS = ("training", "validation", "test")
SUBSETS = ("small", "medium", "large", "full")      # each contains the ones before it
LEAST = 0.9         # of a clip's length: one that is a little shorter is padded, with less than this it is "short"
FMA_COUNTS = {"small": (6400, 800, 800), "medium": (19_922, 2_505, 2_573)}  # tracks in each split

# FMA's two-line column names, and ours. The first three are required, the others optional.
COLUMNS = {
    ("set", "split"): "split",
    ("set", "subset"): "subset",
    ("track", "genre_top"): "genre",
    ("set", "fold"): "fold",            # for cross-validation: learning/folds.py
    ("track", "genres"): "genre_ids",
    ("track", "title"): "title",
    ("track", "listens"): "listens",
    ("track", "duration"): "duration",
    ("track", "bit_rate"): "bit_rate",
    ("artist", "id"): "artist_id",
    ("artist", "name"): "artist",
    ("album", "id"): "album_id",
    ("album", "title"): "album",
    ("album", "date_released"): "released",
}

FEW_CLIPS, FEW_ARTISTS = 10, 5      # of a genre; audit warns of fewer

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
        line = "".join(c if c.isprintable() else "?" for c in str(error))       # names may hold line ends and escapes
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
        return 2
    except BrokenPipeError:             # for example of | head
        sys.stdout = open(os.devnull, "w", encoding="utf-8")    # noqa: SIM115 - the rest is flushed at exit
        return 0
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(f"{Path(sys.argv[0]).name}: {error.filename or 'a file'} cannot be used ({error.strerror}): free space, "
              "fix its permissions, or choose another folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: " + ("run the same command to continue" if resumes else "the same command begins again"),
              file=sys.stderr)
        return 130


def progress_bar(*args, show=True, **kwargs):
    """tqdm's progress bar for a terminal or notebook; disabled by `show`, or by the environment's TQDM_DISABLE.

    (tqdm's bar for notebooks ignores that variable, and would stay in rendered notebooks.)
    """
    from tqdm.auto import tqdm

    return tqdm(*args, **kwargs, disable=not show or os.environ.get("TQDM_DISABLE", "0") not in ("", "0"))


# ---------------------------------------------------------------- metadata


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
        raise DataError(f"{folder}/fma_metadata/tracks.csv not found: run ./download_data.sh small {folder}, "
                        "or choose another folder")
    import demo

    print("=" * 78 + "\nFMA not found (./download_data.sh fetches it): using data/demo, a small SYNTHETIC corpus.\n"
          "Accuracies on it show that the code runs, and nothing about music.\n" + "=" * 78)
    return Path(demo.make("data/demo"))


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
    import pandas as pd  # here: predict.py and --help do without its 0.3 s

    path = Path(data_dir) / "fma_metadata" / "tracks.csv"
    if subset not in SUBSETS:
        raise DataError(f"subset {subset!r} is unknown: choose one of {', '.join(SUBSETS)}")
    if not path.is_file():
        raise DataError(f"{path} not found: run ./download_data.sh, or python demo.py for a synthetic corpus")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header, third = list(zip(next(reader), next(reader), strict=False)), next(reader)
        places = {column: header.index(column) for column in COLUMNS if column in header}
        lacking = [".".join(c) for c in list(COLUMNS)[:3] if c not in places]
        if lacking:
            raise DataError(f"{path} has no column {', '.join(lacking)}: it is not in the layout of FMA's tracks.csv")
        if third and third[0].isdigit():        # else it would be skipped as a header
            raise DataError(f"{path} has a track in line 3: in FMA's layout the header has three lines")
        tracks = pd.read_csv(path, skiprows=3, header=None, usecols=[0, *places.values()], low_memory=False,
                             dtype={places[("track", "genre_top")]: str},       # a genre may be called 1980, or None
                             keep_default_na=False, na_values=[""])
    except (StopIteration, ValueError, csv.Error) as error:     # pandas' and Unicode's are ValueErrors
        reason = " ".join(str(error).split()) or "it is truncated"
        raise DataError(f"{path} is not a table with FMA's three header lines ({reason})") from error
    tracks = tracks.rename(columns={place: COLUMNS[column] for column, place in places.items()})
    tracks = tracks.set_index(0).rename_axis("track_id")
    if not pd.api.types.is_integer_dtype(tracks.index):
        raise DataError(f"{path} has track ids that are not whole numbers: put them in the first column")
    if tracks.index.has_duplicates:
        raise DataError(f"{path} has track {tracks.index[tracks.index.duplicated()][0]} twice: remove one row")
    wanted = tracks["subset"].isin(SUBSETS[: SUBSETS.index(subset) + 1])
    if not wanted.any():
        others = some(tracks["subset"].dropna().unique()) or "none"
        raise DataError(f"{path} has no track of subset {subset}, only of {others}: choose another, or fix that column")
    for column in {"title", "artist", "album"} & set(tracks):
        if not pd.api.types.is_numeric_dtype(tracks[column]):       # all albums may be named by year
            tracks[column] = tracks[column].map(html.unescape, na_action="ignore")
    return tracks[wanted]


def load_genres(data_dir):
    """Read the hierarchy of genres, ``genres.csv``.

    Parameters
    ----------
    data_dir : path-like

    Returns
    -------
    genres : DataFrame, indexed by genre_id
        Columns title, parent (0 at the top) and top_level (the id of the root). Empty if there is no such file,
        which is optional.
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
    tracks : DataFrame
        From `load_tracks`.
    genres : DataFrame
        From `load_genres`.

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


def effective_number(names):
    """Effective number of names, 1 / Σ share² (Hill 1973, order 2).

    As many equally frequent names have the same diversity; it is the reciprocal of the probability that two random
    draws have the same name.

    Examples
    --------
    >>> effective_number(["a", "b", "c", "d"]), round(effective_number(["a"] * 97 + ["b", "c", "d"]), 2)
    (4.0, 1.06)
    """
    import pandas as pd

    counts = pd.Series(names).value_counts()
    return float(counts.sum() ** 2 / (counts**2).sum()) if len(counts) else 0.0


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


def some(items, most=5):
    """The first few items as text, for a message."""
    items = list(items)
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")


def same_files(paths):
    """Groups of files with identical bytes; only files of the same size with the same middle are read completely."""
    def middle(file):
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2)
        return size, file.read(4096)

    groups = [[path for path in paths if path.stat().st_size]]
    for key in (middle, lambda file: hashlib.file_digest(file, "sha256").digest()):
        finer = defaultdict(list)
        for k, path in ((k, path) for k, group in enumerate(groups) for path in group):
            with open(path, "rb") as file:
                finer[k, key(file)].append(path)
        groups = [group for group in finer.values() if len(group) > 1]
    return groups


def genre_problems(tracks):
    """Problems of genres: several in one field, few training clips, few artists; list of str, one line each."""
    import pandas as pd

    genres = tracks["genre"].dropna()
    several = genres[genres.str.contains(r"[|;]|^\s*\[.*\]\s*$")]
    problems = [f"{len(several)} tracks have several genres in one field, which count as a genre of their own: "
                f"{some(several.unique())}"] if len(several) else []
    learned = genres[tracks.loc[genres.index, "split"] == "training"].value_counts()
    artists = pd.Series(artists_of(tracks), tracks.index)[genres.index].groupby(genres).nunique()
    for counts, least, what in ((learned, FEW_CLIPS, "training clips"), (artists, FEW_ARTISTS, "artists")):
        few = counts[counts < least].sort_index()
        if len(few):
            problems.append(f"a genre has fewer than {least} {what}: "
                            + some(f"{genre} ({count})" for genre, count in few.items()))
    return problems


def audit(data_dir, subset="small"):
    """Check a data folder and list its problems.

    Parameters
    ----------
    data_dir : path-like
    subset : str

    Returns
    -------
    problems : list of str
        One line each: unknown splits, artists, albums or recordings in two splits or folds, genres missing from a
        split, with few clips or artists, or several in one field, tracks without audio, audio without a track, numbers
        of tracks other than FMA's. Empty if there are none.
    """
    tracks = load_tracks(data_dir, subset)
    problems = []
    unknown = tracks.index[~tracks["split"].isin(SPLITS)]
    if len(unknown):
        problems.append(f"{len(unknown)} tracks are in no known split: {some(unknown)}")
    for side in ("split", *({"fold"} & set(tracks))):
        for what, column in (("artist", "artist_id"), ("album", "album_id" if "album_id" in tracks else "album")):
            if column in tracks:
                spread = tracks.groupby(column)[side].nunique()
                both = spread.index[spread > 1]
                if len(both):
                    problems.append(f"{len(both)} {what}s are in more than one {side}: {what} {some(both)}")
    for split in SPLITS:
        absent = set(tracks["genre"].dropna()) - set(tracks.loc[tracks["split"] == split, "genre"])
        if absent:
            problems.append(f"no {split} track of genre {some(sorted(absent))}")
    problems += genre_problems(tracks)
    root = Path(data_dir) / f"fma_{subset}"
    expected = {audio_path(data_dir, track, subset) for track in tracks.index}
    present = set(root.glob("*/*.mp3"))
    missing = [track for track in tracks.index if audio_path(data_dir, track, subset) not in present]
    surplus = sorted(str(path.relative_to(root)) for path in present - expected)
    if missing:
        problems.append(f"{len(missing)} of {len(tracks)} tracks have no audio under {root}: {some(missing)}")
    if surplus:
        problems.append(f"{len(surplus)} audio files under {root} belong to no track: {some(surplus)}")
    paths = [audio_path(data_dir, track, subset) for track in tracks.index]
    for group in same_files([path for path in paths if path in present]):
        ids = [int(path.stem) for path in group]
        if tracks.loc[ids, "split"].nunique() > 1:
            problems.append(f"the same recording is in more than one split: tracks {some(ids)}")
    expected = FMA_COUNTS.get(subset)
    counts = tuple(int((tracks["split"] == split).sum()) for split in SPLITS)
    if expected and counts != expected and (        # with the name or about the size of FMA
            dataset_name(data_dir, subset) == f"fma_{subset}" or sum(counts) > sum(expected) / 2):
        problems.append(f"{counts} tracks in {', '.join(SPLITS)}; FMA's {subset} has {expected}")
    return problems


# ---------------------------------------------------------------- lengths of the audio


def length_status(duration, seconds):
    """What a clip is for features of so many seconds: "ok", "padded" (at least `LEAST` of them are there) or "short".

    >>> [length_status(duration, 30) for duration in (29.97, 29, 27, 26.9)]
    ['ok', 'padded', 'padded', 'short']
    """
    enough = (int(seconds * 64 / 3) - 1) * 1024 / 22_050        # has all frames of `transforms.count_frames`
    return "ok" if duration >= enough else "padded" if duration >= LEAST * seconds else "short"


def durations(paths):
    """Seconds of audio in each file, by its header; a file that is cut off has those that are left.

    Parameters
    ----------
    paths : iterable of path-like

    Returns
    -------
    list of float
        0 for a file that libsndfile cannot open, or is not there.
    """
    import soundfile

    found = []
    with _quiet_decoders():
        for path in paths:
            if not os.path.isfile(path):        # a pipe would wait for someone to write
                found.append(0.0)
                continue
            try:
                with soundfile.SoundFile(os.fsencode(path)) as file:
                    found.append(_present(path, file) / file.samplerate)
            except (soundfile.LibsndfileError, OSError, ValueError, TypeError):
                found.append(0.0)
    return found


@contextmanager
def _quiet_decoders():
    """Keep remarks of C libraries on damaged files off the terminal: they write to stderr by its number."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _present(path, file):
    """Samples in an open file: the header of an MP3 or FLAC that was cut off still promises all of them."""
    if file.format == "MP3":
        from mutagen.mp3 import MP3

        try:
            info = MP3(path).info
        except Exception:           # of a file that libsndfile opened: its word counts
            return file.frames
        promised = info.bitrate * info.length / 8               # bytes
        return int(file.frames * min(1, (os.path.getsize(path) - info.frame_offset) / max(promised, 1)))
    if file.format == "FLAC" and file.frames:
        file.seek(file.frames - 1)                              # raises where there is nothing
    return file.frames


def audit_audio(data_dir, subset="small", seconds=30, features_dir=None):
    """Say how long the audio of a collection is, and what is wrong with it for clips of so many seconds.

    Parameters
    ----------
    data_dir : path-like
    subset : str
    seconds : float
        As of features.py.
    features_dir : path-like, optional
        ``<data_dir>/features`` by default.

    Returns
    -------
    summary : list of str
        Lengths, how many clips would be ok, padded and short, and what features.py noted if it was there.
    problems : list of str
        Files that are unreadable or hold less than a second, and clips that would be short.
    """
    import pandas as pd

    ids = [track for track in load_tracks(data_dir, subset).index if audio_path(data_dir, track, subset).is_file()]
    found = pd.Series(durations(audio_path(data_dir, track, subset) for track in ids), ids, dtype=float)
    summary, problems = [], []
    bad, found = found.index[found < 1], found[found >= 1]
    if len(bad):
        problems.append(f"{len(bad)} files are unreadable, damaged or hold less than a second of audio: {some(bad)}")
    if len(found):
        status = found.map(lambda duration: length_status(duration, seconds))
        counts = ", ".join(f"{(status == s).sum()} {s}" for s in ("ok", "padded", "short"))
        summary.append(f"audio: {len(found)} files of {found.min():.1f} to {found.max():.1f} s; "
                       f"at --seconds {seconds:g}: {counts}")
        short = found.index[status == "short"]
        if len(short):
            problems.append(f"{len(short)} clips are shorter than {LEAST * seconds:g} s, so short at --seconds "
                            f"{seconds:g}: {some(short)}; --seconds {math.floor(found.min() / LEAST)} would keep all")
    index = Path(features_dir or Path(data_dir) / "features") / "index.csv"
    if index.is_file():
        try:
            noted = pd.read_csv(index)["status"].value_counts()
            summary.append(f"{index}: " + ", ".join(f"{count} {status}" for status, count in noted.items()))
        except (KeyError, ValueError):
            problems.append(f"{index} is not a table of track_id,status: delete the cache and run features.py again")
    return summary, problems


def main(argv=None):
    parser = argparse.ArgumentParser(description="Summarise a data folder and list its problems.")
    import pandas as pd

    parser.add_argument("--data-dir", help="in FMA's layout (default: $DATA_DIR, data, or the demo corpus)")
    parser.add_argument("--subset", default="small", choices=SUBSETS)
    parser.add_argument("--seconds", type=float, default=30, metavar="S",
                        help="length of a clip, as it will be asked of features.py (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 1 <= args.seconds <= 3600:
        parser.error("--seconds must be from 1 to 3600")
    data_dir = find_data(args.data_dir)
    tracks = load_tracks(data_dir, args.subset)
    print(f"{data_dir}: {len(tracks)} tracks, {len(set(artists_of(tracks)))} artists\n")
    print(pd.crosstab(tracks["genre"].fillna("(none)"), tracks["split"], margins=True, margins_name="all").to_string())
    summary, problems = audit_audio(data_dir, args.subset, args.seconds)
    problems = audit(data_dir, args.subset) + problems
    print("\n" + "\n".join([*summary, *(f"- {line}" for line in problems or ["no problems found"])]))


if __name__ == "__main__":
    sys.exit(run_command(main))
