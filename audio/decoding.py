"""Audio files: libsndfile reads them, and PyAV (ffmpeg) what libsndfile refuses or does not read to its end.

PyAV is optional (``pip install av``). With it m4a, aac, wma and others are read, and mp3 files with garbage between
their frames, or several that were joined, as players do.
"""

import os
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np

from fma import ENDINGS, NATIVE

LOUDEST = 1e6           # amplitude: 16-bit numbers stored as floats are below, larger ones overflow when squared
RATES = 1000, 768_000   # Hz: no recording has other sample rates, but damaged headers do
CHANNELS = 32           # no recording has more, but damaged headers do
# What PyAV may take a file for: not playlists and the like, which name other files and addresses.
FORMATS = ("aac,ac3,aiff,amr,ape,asf,avi,caf,dsf,dts,eac3,flac,flv,matroska,mov,mp3,mpc,mpc8,mpegts,ogg,tak,tta,wav,"
           "webm,wv")


class Undecodable(Exception):
    """There is no audio that could be read."""


@contextmanager
def open_audio(source):
    """Open audio; any error, on opening it or while it is read, is raised as `Undecodable`.

    Only regular files are opened: a pipe would block, a device has no end.

    Parameters
    ----------
    source : path-like, bytes or (array, int)
        A file, its content, or samples and their rate in Hz, of shape (samples,), or with channels as a second axis.

    Yields
    ------
    Recording or Samples
        Both have ``sample_rate``, ``frames`` (samples of a channel, by the header), ``seek(frame)`` and
        ``read(frames)``, which gives the next samples, fewer at the end: the mean of the channels, float32.
        ``unread`` is the share of the file that libsndfile left unread and PyAV could have tried.
    """
    if isinstance(source, tuple):
        yield Samples(*source)
        return
    with _open(source) as stream:
        yield Recording(stream, "" if isinstance(source, bytes) else os.path.splitext(os.fsdecode(source))[1].lower())


def _open(source):
    """An unbuffered file of a path, or of bytes: its position is that of the decoder that reads its descriptor."""
    if isinstance(source, bytes):
        stream = tempfile.TemporaryFile(buffering=0)
        stream.write(source)
        stream.seek(0)
        return stream
    if not os.path.isfile(source):
        raise Undecodable("not a file")
    try:
        return open(source, "rb", buffering=0)
    except OSError as error:
        raise Undecodable(f"it cannot be opened ({error.strerror})") from error


def what_to_install(paths):
    """What to install for some of these files, as text to append to a message; empty if nothing would help."""
    endings = {os.path.splitext(path)[1].lower() for path in paths} & (ENDINGS - NATIVE)
    if not endings or find_spec("av"):
        return ""
    return f"; {', '.join(sorted(ending[1:] for ending in endings))}: install PyAV (pip install av)"


def mean_of_channels(samples):
    """Mono, shape (samples,), of an array of shape (samples, channels); `Undecodable` if it is no sound."""
    with np.errstate(invalid="ignore", over="ignore"):                      # such samples are rejected below
        y = samples @ np.full(samples.shape[1], 1 / samples.shape[1], dtype=np.float32)     # 25 times faster than mean
    if len(y) and not (y.min() >= -LOUDEST and y.max() <= LOUDEST):         # neither is true of NaN
        raise Undecodable("samples that are not numbers, or too large to be sound")
    return y


def require_plausible(sample_rate, channels):
    """`Undecodable` unless a recording can have this sample rate (Hz) and so many channels."""
    if not RATES[0] <= sample_rate <= RATES[1]:
        raise Undecodable(f"a sample rate of {sample_rate} Hz")
    if not 1 <= channels <= CHANNELS:
        raise Undecodable(f"{channels} channels")


class Samples:
    """Samples in memory, read like a file."""

    unread = 0.0

    def __init__(self, y, sample_rate):
        y = np.asarray(y)
        if y.ndim == 1:
            y = y[:, None]
        if y.ndim != 2 or not y.shape[1] or y.dtype.kind not in "fiu":
            raise Undecodable(f"an array of {y.dtype} of shape {y.shape}, not samples, or samples and channels")
        if 0 < y.shape[0] < y.shape[1]:               # librosa's order
            y = y.T
        require_plausible(sample_rate, y.shape[1])
        full = 1.0 if y.dtype.kind == "f" else float(np.iinfo(y.dtype).max)
        self.y, self.sample_rate, self.frames, self.at, self.full = y, sample_rate, len(y), 0, full

    def seek(self, frame):
        self.at = frame

    def read(self, frames):
        part = self.y[self.at : self.at + frames].astype(np.float32)
        self.at += len(part)
        return mean_of_channels(part / np.float32(self.full) if self.full != 1 else part)


class Recording:
    """An open file: libsndfile reads it, PyAV goes on where libsndfile refuses, fails or stops early."""

    def __init__(self, stream, ending=""):
        import soundfile

        self.stream, self.ending, self.at, self.unread, self.ended = stream, ending, 0, 0.0, False
        self.errors = soundfile.LibsndfileError, OSError, ValueError, TypeError     # TypeError: it is called x.raw
        try:
            # Its descriptor: through Python's own methods Ctrl-C would be lost. Windows cannot share descriptors.
            self.file = soundfile.SoundFile(stream.fileno() if os.name == "posix" else stream, closefd=False)
        except self.errors as error:
            self._turn_to_av(error)
        require_plausible(self.file.samplerate, self.file.channels)
        self.sample_rate, self.format = self.file.samplerate, self.file.format

    @property
    def frames(self):
        return self.file.frames

    @property
    def seconds(self):
        """Of audio, by the header."""
        return self.file.seconds if isinstance(self.file, AVFile) else self.file.frames / self.file.samplerate

    def seek(self, frame):
        self.at = frame
        try:
            self.file.seek(frame)
        except self.errors as error:
            self._turn_to_av(error)

    def read(self, frames):
        if self.ended:
            return np.empty(0, np.float32)
        if isinstance(self.file, AVFile):
            y = self.file.read(frames)
        else:
            try:
                y = mean_of_channels(self.file.read(frames, dtype="float32", always_2d=True))
                if len(y) < frames:
                    y = self._read_on(y, frames - len(y))
            except self.errors as error:
                self._turn_to_av(error)
                y = self.file.read(frames)
                if not len(y) and not self.at:
                    raise Undecodable("not audio that libsndfile or PyAV can read, or damaged") from error
        self.at, self.ended = self.at + len(y), len(y) < frames
        return y

    def _read_on(self, y, frames):
        """Append to libsndfile's last samples what PyAV finds in the rest of the file, if it is a second or more."""
        place, size = self.stream.tell(), self.stream.seek(0, os.SEEK_END)
        a_second = place * self.sample_rate / max(self.at + len(y), 1)                  # of bytes
        if size - place <= max(a_second, 4096) or self.format not in ("MP3", "OGG", "FLAC"):
            return y                                        # others end in tables and texts
        try:
            more = AVFile(self.stream, self.sample_rate)
        except (Undecodable, ImportError):
            self.unread = (size - place) / size
            return y
        more.seek(self.at + len(y))
        rest = more.read(frames)
        if len(rest) < min(self.sample_rate, frames):       # it was no audio
            return y
        self.file = more
        return np.concatenate([y, rest])

    def _turn_to_av(self, error):
        """Read on with PyAV; where that fails too, an `Undecodable` that says what would help."""
        try:
            self.file = AVFile(self.stream, getattr(self, "sample_rate", None))
        except ImportError:
            if self.ending in ENDINGS - NATIVE:
                raise Undecodable(f"{self.ending[1:]}: install PyAV (pip install av)") from error
            raise Undecodable("not audio that libsndfile can read, or damaged; PyAV (pip install av) reads more"
                              ) from error
        except Undecodable:
            raise Undecodable("not audio that libsndfile or PyAV can read, or damaged") from error
        self.file.seek(self.at)


class AVFile:
    """Audio read by PyAV, packet by packet; damaged packets are passed over, as players do.

    Parameters
    ----------
    stream : binary file
    sample_rate : int, optional
        In Hz; by default the file's own.

    Attributes
    ----------
    seconds : float
        Of audio, by the header.
    """

    channels = 1        # after the mean

    def __init__(self, stream, sample_rate=None):
        import av

        self.av, self.stream = av, stream
        container, audio = self._open()
        self.samplerate, self.format = sample_rate or audio.rate, container.format.name.upper()
        self.seconds = float(audio.duration * audio.time_base) if audio.duration else (container.duration or 0) / 1e6
        self.decoded, self.left = self._decode(container, audio), np.empty(0, np.float32)

    def _open(self):
        self.stream.seek(0)
        try:
            container = self.av.open(_Nameless(self.stream), options={"format_whitelist": FORMATS})
            audio = container.streams.audio[0]
            if not audio.rate:
                raise ValueError("no sample rate")
        except (self.av.FFmpegError, AttributeError, IndexError, ValueError, TypeError, OSError) as error:
            raise Undecodable("PyAV cannot read it") from error
        return container, audio

    @property
    def frames(self):
        """Samples, counted: many headers say nothing, or guess."""
        count = sum(map(len, self._decode(*self._open())))
        self.decoded = self._decode(*self._open())
        return count

    def _decode(self, container, audio):
        """Mono arrays, one per frame. Files that were joined may change their sample rate and channels."""
        layout, packets = None, container.demux(audio)
        while True:
            try:
                if (packet := next(packets, None)) is None:
                    return
                frames = packet.decode()
            except (self.av.FFmpegError, OSError):
                continue
            for frame in frames:
                require_plausible(frame.sample_rate, frame.layout.nb_channels)
                if layout != (layout := (frame.format.name, frame.layout.name, frame.sample_rate)):
                    resampler = self.av.AudioResampler("fltp", frame.layout, self.samplerate)
                frame.pts = None            # of damaged files they jump
                for out in resampler.resample(frame):
                    yield mean_of_channels(out.to_ndarray().T)

    def seek(self, frame):
        """Go forward, by decoding: the place is exact."""
        while frame > 0 and len(y := self.read(min(frame, 2**20))):
            frame -= len(y)

    def read(self, frames):
        parts, count = [self.left], len(self.left)
        while count < frames and (y := next(self.decoded, None)) is not None:
            parts.append(y)
            count += len(y)
        y = np.concatenate(parts)
        self.left = y[frames:]
        return y[:frames]


class _Nameless:
    """A file without its name, of which PyAV expects that it is UTF-8."""

    def __init__(self, stream):
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell
