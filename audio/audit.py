"""What is wrong with a collection: leaks between splits, thin genres, and audio that is missing, damaged or short.

    python fma.py --data-dir data       prints it
"""

import hashlib
import math
import os
import sys
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path

from audio.cache import PART, STATUSES, USABLE, find_part, load_index
from audio.decoding import Undecodable, open_audio, what_to_install
from audio.transforms import LEAST, count_frames, length_status
from fma import SPLITS, DataError, artists_of, audio_paths, dataset_name, load_tracks, some

FMA_COUNTS = {"small": (6400, 800, 800), "medium": (19_922, 2_505, 2_573)}      # tracks in each split
FEW_CLIPS, FEW_ARTISTS = 10, 5      # of a genre; the audit warns of fewer
NETWORKS_NEED = 64                  # frames, of most networks


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
    problems += genre_problems(tracks) + file_problems(data_dir, tracks, subset)
    expected = FMA_COUNTS.get(subset)
    counts = tuple(int((tracks["split"] == split).sum()) for split in SPLITS)
    if expected and counts != expected and (        # with the name or about the size of FMA
            dataset_name(data_dir, subset) == f"fma_{subset}" or sum(counts) > sum(expected) / 2):
        problems.append(f"{counts} tracks in {', '.join(SPLITS)}; FMA's {subset} has {expected}")
    return problems


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


def file_problems(data_dir, tracks, subset="small"):
    """Tracks without a file, files without a track, and recordings in two splits; list of str, one line each."""
    root, paths, problems = Path(data_dir) / f"fma_{subset}", audio_paths(data_dir, tracks, subset), []
    present = {track: path for track, path in paths.items() if path.is_file()}
    missing = [track for track in tracks.index if track not in present]
    surplus = sorted(str(path.relative_to(root)) for path in set(root.glob("*/*.mp3")) - set(paths.values()))
    if missing:
        where = "" if "file" in tracks else f" under {root}"
        problems.append(f"{len(missing)} of {len(tracks)} tracks have no audio{where}: {some(missing)}")
    if surplus:
        problems.append(f"{len(surplus)} audio files under {root} belong to no track: {some(surplus)}")
    for ids in same_files(present):
        if tracks.loc[ids, "split"].nunique() > 1:
            problems.append(f"the same recording is in more than one split: tracks {some(ids)}")
    return problems


def same_files(paths):
    """Groups of tracks whose files have identical bytes, of {track: path}.

    Only files of the same size with the same middle are read completely.
    """
    def middle(file):
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2)
        return size, file.read(4096)

    groups = [[track for track, path in paths.items() if path.stat().st_size]]
    for key in (middle, lambda file: hashlib.file_digest(file, "sha256").digest()):
        finer = defaultdict(list)
        for k, track in ((k, track) for k, group in enumerate(groups) for track in group):
            with open(paths[track], "rb") as file:
                finer[k, key(file)].append(track)
        groups = [group for group in finer.values() if len(group) > 1]
    return groups


# ---------------------------------------------------------------- lengths of the audio


def durations(paths):
    """Seconds of audio in each file, by its header; a file that is cut off has those that are left.

    Parameters
    ----------
    paths : iterable of path-like

    Returns
    -------
    list of float
        0 for a file that cannot be read, or is not there.
    """
    with quiet_decoders():
        return list(map(_seconds, paths))


def _seconds(path):
    try:
        with open_audio(path) as file:
            seconds = file.seconds * (_share(path) if file.format == "MP3" else 1)
            if file.format == "FLAC" and seconds:
                file.seek(file.frames - 1)
                return seconds if len(file.read(1)) else 0.0
            return seconds
    except Undecodable:
        return 0.0


@contextmanager
def quiet_decoders():
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


def _share(path):
    """How much of an MP3 is there, from 0 to 1: the header of one that was cut off still promises all of it."""
    from mutagen.mp3 import MP3

    try:
        info = MP3(path).info
    except Exception:           # of a file that a decoder opened: its word counts
        return 1
    promised = info.bitrate * info.length / 8               # bytes
    return min(1, (os.path.getsize(path) - info.frame_offset) / max(promised, 1))


def _audit_audio(data_dir, tracks, subset, seconds):
    """Lines on lengths and on what features.py noted, and problems: clips that are short or cannot be used."""
    import pandas as pd

    index = Path(data_dir) / "features" / "index.csv"
    seconds = seconds or (find_part(index.parent) or PART)["seconds"]
    paths = {track: path for track, path in audio_paths(data_dir, tracks, subset).items() if path.is_file()}
    found = pd.Series(durations(paths.values()), list(paths), dtype=float)
    summary, problems = [], []
    bad, found = found.index[found < 1], found[found >= 1]
    if len(bad):
        problems.append(f"{len(bad)} files are unreadable, damaged or hold less than a second of audio: {some(bad)}"
                        + what_to_install(paths[track] for track in bad))
    if len(found):
        status = found.map(lambda duration: length_status(duration, seconds))
        counts = ", ".join(f"{(status == s).sum()} {s}" for s in ("ok", "padded", "short"))
        summary.append(f"audio: {len(found)} files of {found.min():.1f} to {found.max():.1f} s; "
                       f"at --seconds {seconds:g}: {counts}")
        short = found.index[status == "short"]
        if len(short):
            problems.append(f"{len(short)} clips are shorter than {LEAST * seconds:g} s, so short at --seconds "
                            f"{seconds:g}: {some(short)}; --seconds {math.floor(found.min() / LEAST)} would keep all")
    if index.is_file():
        try:
            noted = load_index(index.parent)
        except DataError as error:
            return summary, [*problems, str(error)]
        counts = noted["status"].value_counts()
        summary.append(f"{index}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
        problems += [f"features.py noted {counts[s]} clips as {s}, which no network is given: "
                     + some(noted["track_id"][noted["status"] == s]) for s in STATUSES[len(USABLE):] if s in counts]
    return summary, problems


def print_audit(data_dir, subset="small", seconds=None):
    """What ``python fma.py`` prints: tracks by genre and split, then lengths of the audio, and all problems."""
    import pandas as pd

    if seconds is not None and not 1 <= seconds <= 3600:
        raise DataError("--seconds must be from 1 to 3600")
    tracks = load_tracks(data_dir, subset)
    artists = f"{len(set(artists_of(tracks)))} artists" if "artist_id" in tracks else "artists unknown"
    print(f"{data_dir}: {len(tracks)} tracks, {artists}\n")
    print(pd.crosstab(tracks["genre"].fillna("(none)"), tracks["split"], margins=True, margins_name="all").to_string())
    lengths, problems = _audit_audio(data_dir, tracks, subset, seconds)
    problems = audit(data_dir, subset) + problems or ["no problems found"]
    print("", *lengths, *(f"- {line}" for line in problems), sep="\n")


# ---------------------------------------------------------------- what features.py says


def no_audio(data_dir, subset, path, count, features_dir):
    """Why nothing can be computed, and the remedy: of FMA, of a cache made elsewhere, of a collection of one's own."""
    have, file = some(sorted(array.stem for array in features_dir.glob("*.npy"))), "the column track,file of tracks.csv"
    if dataset_name(data_dir, subset) == f"fma_{subset}":
        remedy = f"run ./download_data.sh {subset} {data_dir}"
    elif have and not (features_dir / "index.csv").is_file():
        remedy = f"{features_dir} has {have}, but no index.csv with track_id,status, which training needs"
    elif have:
        remedy = f"train on what {features_dir} has, {have}, or say in {file} where it is"
    else:
        remedy = f"put it there, or say in {file} where it is"
    return f"none of the {count} tracks of {data_dir} has audio ({path} not found): {remedy}"


def report(index, data_dir, features_dir, subset, taken, new):
    """Print what a cache holds and which clips it could not use; of a new one also how much of the files it leaves."""
    counts, part = Counter(index["status"]), find_part(features_dir) or PART
    print(f"{features_dir}: {len(index)} tracks, " + ", ".join(f"{counts[s]} {s}" for s in STATUSES if counts[s])
          + f" ({taken:.1f} s)")
    paths = audio_paths(data_dir, load_tracks(data_dir, subset), subset)
    for s in STATUSES[len(USABLE):]:
        if counts[s]:
            found = index["track_id"][index["status"] == s]
            print(f"  {s}: {some(found, 10)}" + what_to_install(paths[track] for track in found if s == "undecodable"))
    late = [track for track in index["track_id"][index["status"] == "missing"] if paths[track].is_file()]
    if late:
        print(f"  {len(late)} tracks were missing but have come since: delete the cache and run again to use them")
    if not any(counts[s] for s in USABLE):
        raise DataError(f"no clip of {data_dir} could be used: a clip must be audio, not silent, and last "
                        f"{LEAST * part['seconds']:g} s (--seconds {part['seconds']}): python fma.py lists lengths")
    if (frames := count_frames(part["seconds"])) < NETWORKS_NEED:
        print(f"  {frames} frames a clip: most networks need {NETWORKS_NEED} (--seconds 3)")
    longer = sum(found > part["seconds"] + 0.5 for found in durations(paths.values()) if found) if new else 0
    if longer:
        seconds = f"{part['seconds']} s"
        used = {"start": f"their first {seconds} are used; --from middle takes the middle",
                "middle": f"the {seconds} in their middle are used"}
        print(f"  {longer} files are longer than {seconds}: "
              + used.get(part["from"], f"{seconds} from second {part['from']} on are used"))
