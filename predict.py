"""Genres of your own music: files in, probabilities out.

    python predict.py song.mp3
    python predict.py ~/music --jsonl > genres.jsonl
    python predict.py ~/music --resume genres.jsonl             # keeps answers there, and goes on from them
    find ~/music -name '*live*' | python predict.py - party.m3u8
    python predict.py song.flac --network allmusic              # of AllMusic's genres; best with musicnn installed
    python predict.py song.flac --weights runs/fma_small/mel128_square/seed0
    python predict.py --export genres.onnx                      # the network, for ONNX's runtimes

Any format that libsndfile reads, with PyAV (pip install av) any that ffmpeg does, up to a day long. The shipped
networks know eight genres each, and say "none of these" of most speech, noise and classical music. In Python:
classifier/songs.py.
"""

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

from audio.embeddings import EMBEDDINGS
from audio.sources import find_audio
from audio.workers import hush_libraries
from classifier.network import NETWORKS, network_name, read_config, shipped
from classifier.songs import NONE, classify
from fma import ENDINGS, DataError, run_command

PLAYLISTS = {".m3u", ".m3u8"}


def find_songs(named):
    """The songs that arguments stand for.

    Parameters
    ----------
    named : sequence of str
        Files, folders (the audio files in them, as `find_audio` finds them), playlists, and "-", a list of these on
        stdin.

    Returns
    -------
    songs : list of str
        What a playlist or a list names is among them even if it is not there.
    passed_over : list of (str, str)
        Why a file in the folders is none of them, and which.
    """
    songs, passed_over = [], []
    if "" in named:                     # from an unset variable: it would mean the current folder
        raise DataError("an empty name is no file: name files and folders")
    for name, given in [(each, arg != "-") for arg in named for each in (read_stdin() if arg == "-" else [arg])]:
        path, ending = Path(name), Path(name).suffix.lower()
        if path.is_dir():
            inside, others = find_audio(path)
            if given and not inside:
                raise DataError(f"{path} holds no audio file ({', '.join(sorted(ENDINGS))})")
            songs += map(str, inside)
            passed_over += [(why, str(file)) for why, files in others.items() for file in files]
        elif given and not path.exists():
            raise DataError(f"{path} not found")
        else:
            songs += read_playlist(path) if ending in PLAYLISTS and path.is_file() else [str(path)]
    return songs, passed_over


def read_stdin():
    """Names on stdin, one a line, or separated by zeros as ``find -print0`` writes them; they may be any bytes."""
    listed = sys.stdin.buffer.read()
    names = listed.split(b"\0") if b"\0" in listed else listed.splitlines()
    return [os.fsdecode(name) for name in names if name]


def read_playlist(path):
    """The files that a playlist names, relative ones beside it."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    lines = [unquote(urlsplit(line).path) if line.startswith("file:") else line for line in lines]
    return [line if "://" in line else str(path.parent / (line.replace("\\", "/") if os.sep == "/" else line))
            for line in lines]


def read_answers(path, network):
    """The answers in a file of JSON lines, or of --json, by the name of the song.

    Errors are left out, since they are tried again, and a line that was cut off when the command was killed.
    A DataError if the file holds something else, or answers of another network.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text if text.startswith("[") else f"[{','.join(text[: text.rfind(chr(10)) + 1].splitlines())}]"
        found = [each for each in json.loads(whole) if "error" not in each]
        networks = {each["network"] for each in found if each["file"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} does not hold answers of predict.py: name another file with --resume") from error
    if networks - {network}:
        raise DataError(f"{path} holds answers of {networks.pop()}: name another file with --resume for {network}")
    return {each["file"]: each for each in found}


def as_line(found, width, top):
    """One line of the printed table: the file, and its most probable genres in per cent."""
    name = found["file"] if len(found["file"]) <= width else "…" + found["file"][1 - width :]
    name = "".join(c if c.isprintable() else "?" for c in name).ljust(width)
    if "error" in found:
        return f"{name}  not classified: {found['error']}"
    best = sorted(found["probabilities"].items(), key=lambda item: -item[1])[:top]
    said = "  ".join(f"{genre} {100 * p:.0f} %" for genre, p in best)
    if found.get("genre") == NONE:
        said = f"{NONE} {100 * found['none']:.0f} %  (else {said})"
    return f"{name}  {said}" + (f"  ({found['note']})" if "note" in found else "")


def print_answer(found, args, width):
    """What the command prints of one answer as it comes."""
    if args.jsonl:
        print(json.dumps(found), flush=True)
    elif not args.json:
        print(as_line(found, width, args.top), flush=True)
        for part in found.get("course", []) if args.course else []:
            minutes, seconds = divmod(int(part["start"]), 60)
            print(as_line({**part, "file": f"  {minutes}:{seconds:02d}"}, width, args.top))


def count(names):
    """How many of each, as text: ``12 .jpg, 3 .txt``."""
    return ", ".join(f"{n} {name}" for name, n in Counter(names).most_common())


def answers(songs, args, network):
    """Each answer as it comes, also into the file of --resume, from where those come that are there."""
    known, file = {}, None
    if args.resume:
        from audio.cache import save_text

        known = read_answers(args.resume, network)
        lines = "".join(f"{json.dumps(each)}\n" for each in known.values())
        save_text(Path(args.resume), lines)
        file = open(args.resume, "a", encoding="utf-8")         # noqa: SIM115 - open as long as the command runs
    left = [song for song in songs if song not in known]
    new = classify(left, args.weights or args.network, args.workers, len(left) > 1 and sys.stderr.isatty())
    for song in songs:
        found = known.get(song)
        if found is None:
            found = next(new) | {"network": network}
            if file:
                print(json.dumps(found), file=file, flush=True)
        yield found


def introduce(name):
    """The line that says which shipped network answers, what it knows and how often it is right."""
    path, card = shipped(name), read_config(shipped(name))
    better = "" if path.name == NETWORKS[name][0] else "; more often with musicnn: pip install --no-deps musicnn"
    return (f"network {path.name}: {', '.join(card['genres'])}; right on {100 * card['test']['accuracy']:.0f} % of "
            f"{card['test']['clips']} test clips (weights/{path.name}.md){better}")


def run(songs, passed_over, args):
    """Classify and print; return the exit status."""
    found, width, stopped = [], max(map(len, songs)), False
    width = min(60, width) if sys.stdout.isatty() else width
    if not args.weights:
        print(introduce(args.network), file=sys.stderr)
    try:
        for each in answers(songs, args, network_name(args.weights or args.network)):
            found.append(each)
            print_answer(each, args, width)
    except KeyboardInterrupt:
        stopped = True
    others = [{"file": name, "error": f"passed over, {why}"} for why, name in passed_over]
    if args.json:
        print(json.dumps(found + others, indent=1))
    for each in others if args.jsonl else []:
        print(json.dumps(each))
    if stopped:
        print(f"\ninterrupted after {len(found)} of {len(songs)} songs: " + (
            "the same command goes on from here" if args.resume else
            "the next time it begins again; with --resume FILE it would go on"), file=sys.stderr)
        return 130
    failed = [each["error"] for each in found if "error" in each]
    if failed and (args.json or args.jsonl) and len(found) > 1:
        print(f"{len(failed)} of {len(found)} songs not classified: {count(failed)}", file=sys.stderr)
    return 1 if len(failed) == len(found) else 0


def main(argv=None):
    parser = argparse.ArgumentParser(description="Classify audio files by genre.")
    parser.add_argument("paths", nargs="*", metavar="FILE",
                        help="audio files, folders of them, playlists (.m3u, .m3u8), or - for a list on stdin")
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--network", choices=NETWORKS,
                         help="the shipped network for FMA's genres or for AllMusic's (default: fma)")
    network.add_argument("--weights", help="exported weights, or the folder of a run, instead")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true",
                        help="all probabilities, and their course over time, as one array at the end")
    output.add_argument("--jsonl", action="store_true", help="the same, a line for each song as it is done")
    parser.add_argument("--resume", metavar="FILE",
                        help="write the answers to FILE too, as --jsonl does, and take from it those that are there")
    parser.add_argument("--course", action="store_true", help="a line for every 30 seconds as well")
    parser.add_argument("--top", type=int, default=3, help="genres to print for each file (default 3)")
    parser.add_argument("--workers", type=int, help="processes that decode (default: one per core)")
    parser.add_argument("--export", metavar="FILE.onnx",
                        help="write the network, from the feature to probabilities and that of none of these, as ONNX")
    args = parser.parse_args(argv)
    args.network = args.network or "fma"        # not argparse's default, beside which it allows --weights
    for option in ("weights", "resume", "export"):
        if getattr(args, option) == "":         # from an unset variable: the option would be ignored
            raise DataError(f"--{option} is empty: name a file, or leave the option out")
    if args.top < 1 or args.workers is not None and args.workers < 1:
        parser.error("--top and --workers must be at least 1")
    if not args.paths and not args.export:
        parser.error("name files or folders")
    if args.export:
        from classifier.onnx_export import export_onnx

        weights = args.weights or shipped(args.network)
        if read_config(weights)["feature"] in EMBEDDINGS:
            raise DataError(f"{weights} hears with another network, which --export does not write: export another, "
                            "for example with --weights allmusic_cqt")
        print(export_onnx(args.export, weights))
    if not args.paths:
        return 0
    songs, passed_over = find_songs(args.paths)
    if passed_over:
        print(f"passed over {len(passed_over)} files: {count(why for why, _ in passed_over)}", file=sys.stderr)
    if not songs:
        raise DataError("the list names no song")
    return run(songs, passed_over, args)


if __name__ == "__main__":
    hush_libraries()
    sys.exit(run_command(main))
