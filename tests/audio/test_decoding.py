"""What libsndfile refuses, or does not read to its end, PyAV reads; without it a line says what to install."""

import sys

import numpy as np
import pytest
import soundfile
from hostile import encode, sound
from synthetic import encode_with_av

from audio.audit import durations
from audio.clips import clip_features
from audio.decoding import AVFile, Samples, Undecodable, open_audio, what_to_install
from audio.transforms import read_audio

RATE = 44_100
TOLERANCE = 0.01        # dB, of a feature


def read(source, seconds=300):
    with open_audio(source) as file:
        return file.read(int(seconds * file.sample_rate)), file


@pytest.fixture
def without_av(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)


@pytest.mark.parametrize("name, container, codec", [
    ("x.m4a", "ipod", "aac"), ("x.m4a", "ipod", "alac"), ("x.aac", "adts", "aac"), ("x.wma", "asf", "wmav2"),
    ("x.mp3", "ipod", "aac")])                                              # by its content, not its name
def test_features_are_those_of_the_file_converted_to_wav(tmp_path, name, container, codec):
    av = pytest.importorskip("av")
    encode_with_av(tmp_path / name, sound(31, RATE, 2), RATE, container, codec)
    with av.open(tmp_path / name) as file:
        convert = av.AudioResampler("flt", "stereo", RATE)
        parts = [part.to_ndarray() for frame in file.decode(audio=0) for part in convert.resample(frame)]
    soundfile.write(tmp_path / "x.wav", np.concatenate(parts, 1).reshape(-1, 2), RATE, subtype="FLOAT")
    (status, found), (_, expected) = (clip_features(tmp_path / each, ["cqt", "mel_stft"]) for each in (name, "x.wav"))
    assert status == "ok"
    for feature, x in found.items():
        np.testing.assert_allclose(x, expected[feature], atol=TOLERANCE)
    assert durations([tmp_path / name]) == pytest.approx([31], abs=0.5)
    middle, _ = read_audio(tmp_path / name, 10, "middle")
    np.testing.assert_allclose(middle, read_audio(tmp_path / "x.wav", 10, "middle")[0][: len(middle)], atol=1e-4)


def test_without_pyav_a_line_says_what_to_install(tmp_path, without_av):
    for name, line in (("x.m4a", "m4a: install PyAV"), ("x.WMA", "wma: install PyAV"), ("x.mp3", "PyAV .* reads more")):
        (tmp_path / name).write_bytes(b"\x00\x00\x00\x20ftypM4A " + bytes(99))
        with pytest.raises(Undecodable, match=line):
            read(tmp_path / name)
    assert what_to_install(["a.m4a", "b.mp3", "c.WMA"]) == "; m4a, wma: install PyAV (pip install av)"
    assert what_to_install(["b.mp3", "c.wav"]) == ""


@pytest.fixture(scope="module")
def mp3():
    return encode(sound(10, RATE, 2), RATE, "MP3")


def damaged(mp3):
    """Name to content and seconds of audio in it."""
    junk, third = np.random.default_rng(0).bytes(70_000), len(mp3) // 3
    return {"front": (junk + mp3, 10), "early": (mp3[:5000] + junk + mp3[5000:], 10),
            "between": (mp3[:third] + junk[:500] + mp3[third:-third] + junk + mp3[-third:], 10),
            "joined": (mp3 + mp3, 20), "of another rate": (mp3 + encode(sound(10, 22_050), 22_050, "MP3"), 20)}


@pytest.mark.parametrize("name", ["front", "early", "between", "joined", "of another rate"])
def test_an_mp3_is_read_to_its_end_as_players_do(mp3, name):
    pytest.importorskip("av")
    content, seconds = damaged(mp3)[name]
    y, file = read(content)
    assert file.sample_rate == RATE and len(y) / RATE == pytest.approx(seconds, abs=0.3) and not file.unread
    parts = []                                                              # in pieces, as predict.py reads
    with open_audio(content) as file:
        while len(part := file.read(3 * RATE)):
            parts.append(part)
    assert abs(sum(map(len, parts)) - len(y)) < RATE / 10


@pytest.mark.parametrize("kind", ["OGG", "FLAC"])
def test_so_are_others_that_were_joined(kind):
    pytest.importorskip("av")
    one = encode(sound(5, RATE, 2), RATE, kind)
    assert len(read(one + one)[0]) / RATE == pytest.approx(10, abs=0.1)


def test_without_pyav_the_share_that_was_not_read_is_known(mp3, without_av):
    for content, share in ((mp3 + mp3, 0.5), (mp3, 0)):
        y, file = read(content)
        assert len(y) == 10 * RATE and file.unread == pytest.approx(share, abs=0.02)


def test_pyav_is_not_asked_where_libsndfile_reads_all(tmp_path, mp3, monkeypatch):
    """FMA's clips are a little shorter than 30 s, some end in tags: their features are libsndfile's."""
    opened = []
    monkeypatch.setattr(AVFile, "__init__", lambda *args: opened.append(args) or 1 / 0)
    for content in (mp3, mp3 + b"TAG" + bytes(125), encode(sound(10, 24_000), 24_000, "OGG", "OPUS"),
                    encode(sound(10, RATE), RATE, "WAV") + bytes(99_999)):
        assert len(read(content, 30)[0]) and not opened


def test_a_long_tag_at_the_end_is_no_audio(mp3):
    tagged = mp3 + b"APETAGEX" + np.random.default_rng(0).bytes(400_000)
    np.testing.assert_array_equal(read(tagged)[0], read(mp3)[0])


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
                                  "ffconcat version 1.0\nfile {}\n", "this is no music\n" * 99])
def test_what_names_other_files_opens_none(tmp_path, mp3, text):
    (tmp_path / "secret.mp3").write_bytes(mp3)
    for name in ("x.m3u8", "x.m4a"):
        (tmp_path / name).write_text(text.format(tmp_path / "secret.mp3"))
        with pytest.raises(Undecodable, match="not audio"):
            read(tmp_path / name)


def test_samples_are_read_like_a_file(tmp_path):
    y = sound(2, RATE, 2)
    soundfile.write(tmp_path / "x.wav", y, RATE, subtype="FLOAT")
    expected = read(tmp_path / "x.wav")[0]
    np.testing.assert_array_equal(read((y, RATE))[0], expected)
    np.testing.assert_array_equal(read((y.T, RATE))[0], expected)           # librosa's order
    np.testing.assert_allclose(read(((y * 32767).astype(np.int16), RATE))[0], expected, atol=1e-4)
    for wrong in (np.zeros((2, 2, 2)), np.array("x"), np.full(9, np.nan), np.zeros((99, 64))):
        with pytest.raises(Undecodable):
            Samples(wrong, RATE).read(9)
    with pytest.raises(Undecodable, match="sample rate of 7 Hz"):
        Samples(y, 7)
