"""Audio that is broken on purpose: small valid files, and what a byte fuzzer makes of them.

Everything follows from a seed, so that a file that breaks something can be made again from its number.
"""

import io
import resource
import struct
from pathlib import Path

import numpy as np
import soundfile

# (format, subtype, seconds, sample rate, channels); the lengths are short but for some, which give features
SEEDS = [
    ("MP3", None, 0.2, 44_100, 2), ("MP3", None, 3, 22_050, 1), ("MP3", None, 30.2, 44_100, 1),
    ("WAV", "PCM_16", 0.2, 44_100, 2), ("WAV", "FLOAT", 0.5, 48_000, 1), ("WAV", "IMA_ADPCM", 1, 22_050, 2),
    ("WAV", "PCM_16", 30.2, 8_000, 1), ("WAVEX", "PCM_24", 0.2, 96_000, 6), ("W64", "PCM_16", 0.2, 44_100, 1),
    ("RF64", "PCM_U8", 0.2, 44_100, 2), ("FLAC", "PCM_16", 0.5, 44_100, 2), ("FLAC", "PCM_24", 31, 8_000, 1),
    ("OGG", "VORBIS", 0.5, 44_100, 2), ("OGG", "VORBIS", 31, 8_000, 1), ("OGG", "OPUS", 0.5, 48_000, 2),
    ("AIFF", "PCM_16", 0.2, 44_100, 2), ("AU", "ULAW", 0.2, 8_000, 1),
    ("CAF", "ALAC_16", 0.5, 44_100, 2), ("VOC", "PCM_16", 0.2, 44_100, 1), ("SVX", "PCM_16", 0.2, 44_100, 1),
    ("NIST", "PCM_16", 0.2, 16_000, 1), ("PAF", "PCM_24", 0.2, 44_100, 2), ("MAT5", "DOUBLE", 0.1, 44_100, 2),
    ("AU", "G721_32", 0.5, 8_000, 1), ("WAV", "GSM610", 0.5, 8_000, 1), ("XI", "DPCM_16", 0.2, 44_100, 1),
]  # fmt: skip


CRC = []
for byte in range(256):
    crc = byte << 24
    for _ in range(8):
        crc = (crc << 1 & 0xFFFFFFFF) ^ (0x04C11DB7 if crc >> 31 else 0)
    CRC.append(crc)


def sound(seconds, rate, channels=1, loudness=0.3):
    """A chord with noise, float32 of shape (samples, channels)."""
    t = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(0).normal(0, 0.02, (len(t), channels))
    tones = sum(np.sin(2 * np.pi * f * t) for f in (220, 277.2, 329.6))
    return (loudness / 3 * tones[:, None] + noise).astype(np.float32)


def encode(y, rate, kind, subtype=None):
    """An audio file as bytes."""
    file = io.BytesIO()
    soundfile.write(file, y, rate, format=kind, subtype=subtype)
    data = file.getvalue()
    if (at := data.find(b"PEAK", 0, 100)) > 0:              # libsndfile writes the time into some
        data = data[: at + 12] + bytes(4) + data[at + 16 :]
    if kind == "MAT5":
        data = data[:20].ljust(116) + data[116:]
    return sign_pages(data, serial=1) if kind == "OGG" else data            # and a random number into these


def sign_pages(data, serial=None):
    """Make the checksums of an Ogg file right: a decoder throws damaged pages away, and would see nothing of them."""
    data, at = bytearray(data), data.find(b"OggS")
    while 0 <= at <= len(data) - 27:
        lengths = data[at + 27 : at + 27 + data[at + 26]]
        end = at + 27 + len(lengths) + sum(lengths)
        if serial is not None:
            data[at + 14 : at + 18] = struct.pack("<I", serial)
        data[at + 22 : at + 26], crc = bytes(4), 0
        for byte in data[at:end]:
            crc = (crc << 8 & 0xFFFFFFFF) ^ CRC[crc >> 24 ^ byte]
        data[at + 22 : at + 26] = struct.pack("<I", crc)
        at = data.find(b"OggS", max(end, at + 4))
    return bytes(data)


def seeds(longest=np.inf):
    """The valid files that are mutated, of so many seconds at most."""
    return [encode(sound(seconds, rate, channels), rate, kind, subtype)
            for kind, subtype, seconds, rate, channels in SEEDS if seconds <= longest]


NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def mutate(data, rng, others):
    """Change a file in one way, or a few: as a bad disk, a bad transfer and a bad person would.

    Parameters
    ----------
    data : bytes
    rng : numpy.random.Generator
    others : list of bytes
        Files that parts are taken of.

    Returns
    -------
    bytes
    """
    data = bytearray(data)
    for _ in range(int(rng.geometric(0.4))):
        size = len(data) or 1
        # half of all changes are within the header, where lengths, rates and counts stand
        at = int(rng.integers(min(size, 200) if rng.random() < 0.5 else size))
        length = int(min(rng.geometric(0.02), size))
        kind = rng.integers(8)
        if kind == 0:
            data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << int(rng.integers(8))])
        elif kind == 1:
            data[at : at + length] = rng.bytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = rng.bytes(length)
        elif kind == 4:                                     # a stretch twice, or many times
            data[at:at] = data[at : at + length] * int(rng.integers(1, 9))
        elif kind == 5:                                     # a number in the header
            form = str(rng.choice(["<H", ">H", "<I", ">I", "<Q", ">Q"]))
            value = int(rng.choice(NUMBERS)) % 256 ** struct.calcsize(form)
            data[at : at + struct.calcsize(form)] = struct.pack(form, value)
        elif kind == 6:                                     # the end of another file
            other = others[int(rng.integers(len(others)))]
            data[at:] = other[int(rng.integers(len(other))):]
        elif rng.random() < 0.5:
            del data[at:]
    return bytes(data)


def fuzzed(number, files):
    """File number so and so of all that the fuzzer makes of some valid ones."""
    rng = np.random.default_rng([1, number])
    data = mutate(files[number % len(files)], rng, files)
    return sign_pages(data) if rng.random() < 0.7 else data


def wav_header(size, channels=1, rate=44_100, bits=16, kind=1):
    """The 44 bytes before the samples, which may claim anything."""
    frame = channels * bits // 8
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", min(size + 36, 2**32 - 1), b"WAVE", b"fmt ", 16, kind, channels,
                       rate, rate * frame % 2**32, frame % 2**16, bits, b"data", size)


def sparse(path, header, size):
    """A file of so many bytes that takes none on disk: zeros."""
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + size)


def flac_header(block, channels=2, rate=44_100, samples=2**36 - 1):
    """What a FLAC file says of itself: the block size, the channels, the length."""
    info = struct.pack(">HH", block, block) + bytes(6)
    info += (rate << 44 | channels - 1 << 41 | 15 << 36 | samples).to_bytes(8, "big") + bytes(16)
    return b"fLaC\x80\x00\x00\x22" + info


def absurd_headers(mp3, flac):
    """Headers that promise what is not there, before a little of something, as name to bytes."""
    noise = np.random.default_rng(0).bytes(4096)
    xing, vbri = bytearray(mp3), bytearray(mp3)
    at = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    xing[at + 4 : at + 16] = struct.pack(">III", 3, 2**32 - 1, 2**32 - 1)       # frames and bytes
    vbri[36:62] = b"VBRI" + struct.pack(">HHHIIHHHH", 1, 0, 0, 2**32 - 1, 2**32 - 1, 65535, 65535, 4, 65535)
    return {
        "wav of 4 GiB": wav_header(2**32 - 1) + noise,
        "wav without channels": wav_header(4096, channels=0) + noise,
        "wav of 65,535 channels": wav_header(4096, channels=65_535, bits=8) + noise,
        "wav of 2^31 Hz": wav_header(4096, rate=2**31) + noise,
        "wav of 0 Hz": wav_header(4096, rate=0) + noise,
        "wav of 4,294,967,295 Hz": wav_header(2**32 - 1, rate=2**32 - 1) + noise,
        "wav of 1,024 channels at 384 kHz, 4 GiB": wav_header(2**32 - 1, channels=1024, rate=384_000) + noise,
        "wav of 0 bits": wav_header(4096, bits=0) + noise,
        "rf64 of 2^63 bytes": struct.pack("<4sI8sIQQQI", b"RF64", 2**32 - 1, b"WAVEds64", 28, *[2**63 - 1] * 3, 0)
                              + wav_header(2**32 - 1)[12:] + noise,
        "flac of the largest blocks": flac_header(65_535) + noise,
        "flac of 49 days": flac_header(4096) + flac[42:],
        "flac of 655,350 Hz": flac_header(4096, rate=655_350) + noise,
        "mp3 of 2^32 frames (Xing)": bytes(xing),
        "mp3 of 2^32 frames (VBRI)": bytes(vbri),
        "mp3 with a tag of 256 MiB": b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + mp3,
        "mp3 with junk in its tag": b"ID3\x03\x00\xff\x00\x00\x20\x00" + noise + mp3,
        "mp3 with a thousand tags": b"ID3\x04\x00\x00\x00\x00\x00\x00" * 1000 + mp3,
        "au of 2^32 bytes": b".snd" + struct.pack(">IIIII", 24, 2**32 - 2, 3, 44_100, 1000) + noise,
        "ogg of nothing but pages": b"OggS\x00\x02" + bytes(8) + struct.pack("<II", 1, 0) + bytes(4) + b"\xff" * 256,
    }


def odd_sounds(seconds=30.2):
    """Samples that transforms may stumble over, as name to (samples, rate, status of such a clip)."""
    rate = 22_050
    n = int(seconds * rate)
    y = sound(seconds, rate)[:, 0]
    square = np.where(np.arange(n) // 50 % 2, np.float32(1), np.float32(-1))
    impulse = np.zeros(n, np.float32)
    impulse[n // 2] = 1
    nan, inf = y.copy(), y.copy()
    nan[n // 3], inf[n // 2] = np.nan, -np.inf
    return {
        "nothing": (y[:0], rate, "undecodable"), "a sample": (y[:1], rate, "short"), "10 ms": (y[:220], rate, "short"),
        "not a number": (nan, rate, "undecodable"), "infinite": (inf, rate, "undecodable"),
        "1e30": (y * np.float32(1e30), rate, "undecodable"),
        "3e38": (np.sign(y) * np.float32(3e38), rate, "undecodable"),
        "16 bits as floats": (y * 32768, rate, "ok"), "largest": (square * np.float32(1e6), rate, "ok"),
        "denormal": (y * np.float32(1e-40), rate, "silent"), "faint": (y * np.float32(1e-9), rate, "silent"),
        "constant": (np.full(n, 0.5, np.float32), rate, "ok"), "square wave": (square, rate, "ok"),
        "impulse": (impulse, rate, "ok"), "silent but for its end": (np.roll(impulse, 29 * rate - n // 2), rate, "ok"),
        "1 Hz": (y[:40], 1, "undecodable"), "999 Hz": (y[:40_000], 999, "undecodable"),
        "1 kHz": (y[:31_000], 1000, "ok"), "8 kHz": (y[:245_000], 8000, "ok"), "11,025 Hz": (y[:340_000], 11_025, "ok"),
        "384 kHz": (np.resize(y, 30 * 384_000), 384_000, "ok"), "2 MHz": (y[:4000], 2_000_000, "undecodable"),
        "8 channels": (np.repeat(y[:, None], 8, 1), rate, "ok"),
        "200 channels": (np.repeat(y[: 24 * 10_000, None], 200, 1), 8000, "undecodable"),
        "1,024 channels": (np.repeat(y[: 30 * 1000, None], 1024, 1), 1000, "undecodable"),
    }  # fmt: skip


def peak_memory():
    """GB that this process took at most since the last call; of all its life where the system does not tell."""
    try:
        text = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
        return int(text.split("VmHWM:")[1].split()[0]) / 1e6
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
