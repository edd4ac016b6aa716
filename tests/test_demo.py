"""The synthetic corpus: FMA's layout, FMA's faults, and the same bytes on every run."""

import io

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

import demo

FAULTY = {track["fault"]: track_id for track_id, track in demo.TRACKS.items() if track["fault"]}
SOUND = [track_id for track_id, track in demo.TRACKS.items() if not track["fault"]]
ONE_PER_GENRE = list({demo.TRACKS[track_id]["genre"]: track_id for track_id in SOUND}.values())


@pytest.fixture(scope="module")
def subset():
    """The four faulty tracks and two sound ones, the first at the folder's first path."""
    return {i: demo.TRACKS[i] for i in sorted([*FAULTY.values(), *SOUND[:2]])}


@pytest.fixture
def small(monkeypatch, subset):
    monkeypatch.setattr(demo, "TRACKS", subset)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, subset):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRACKS", subset)
        return demo.make(tmp_path_factory.mktemp("demo"), workers=1)


def files(root):
    return {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}


def test_a_track_is_determined_by_its_id():
    once, rate = demo.synthesise(SOUND[0])
    demo.synthesise(SOUND[1])  # a state shared between tracks would change the second rendering
    again, _ = demo.synthesise(SOUND[0])
    assert np.array_equal(once, again)
    other, other_rate = demo.synthesise(SOUND[1])
    assert rate != other_rate or once.shape != other.shape or not np.array_equal(once, other)


def test_each_genre_renders_30_seconds_at_sane_levels():
    for track_id in ONE_PER_GENRE:
        waveform, rate = demo.synthesise(track_id)
        assert waveform.dtype == np.float32 and waveform.ndim == 2
        assert len(waveform) == 30 * rate
        assert np.isfinite(waveform).all()
        assert np.abs(waveform).max() <= 1
        quarters = np.array_split(waveform, 4)
        assert min(np.sqrt(np.mean(quarter**2)) for quarter in quarters) > 1e-3  # -60 dB
        assert abs(waveform.mean()) < 1e-2


def test_rates_and_channels_vary_in_every_split():
    audio = pd.DataFrame([{**demo.TRACKS[i], "k48": i % 8 == 0, "stereo": i % 3 == 1} for i in SOUND])
    assert audio.groupby("split")[["k48", "stereo"]].agg(["any", lambda x: not x.all()]).all(axis=None)
    for track_id, rate, channels in ((next(i for i in SOUND if i % 24 == 0), 48000, 1),
                                     (next(i for i in SOUND if i % 24 == 1), 44100, 2)):  # fmt: skip
        waveform, its_rate = demo.synthesise(track_id)
        assert its_rate == rate and waveform.shape[1] == channels


def test_splits_are_balanced_and_share_no_artist():
    tracks = pd.DataFrame(demo.TRACKS.values(), index=list(demo.TRACKS))
    counts = tracks.groupby(["genre", "split"]).size().unstack()
    assert len(counts) == 8
    assert (counts[["training", "validation", "test"]] == [12, 4, 4]).all(axis=None)
    assert (tracks.groupby("artist")["split"].nunique() == 1).all()
    assert (tracks.groupby("artist")["genre"].nunique() == 1).all()
    assert (tracks.groupby("artist").size() > 1).all()
    assert set(tracks["fault"].dropna()) == {"short", "silent", "undecodable", "missing"}
    assert set(tracks.loc[tracks["fault"].notna(), "split"]) == {"training"}


def test_metadata_reads_as_fmas_does(corpus, subset):
    tracks = pd.read_csv(corpus / "fma_metadata" / "tracks.csv", index_col=0, header=[0, 1])
    genres = pd.read_csv(corpus / "fma_metadata" / "genres.csv", index_col=0)
    assert tracks.index.name == "track_id" and list(tracks.index) == list(subset)
    assert tracks["track", "genre_top"].to_dict() == {i: track["genre"] for i, track in subset.items()}
    assert tracks["set", "split"].to_dict() == {i: track["split"] for i, track in subset.items()}
    assert set(tracks["set", "subset"]) == {"small"}
    assert tracks["artist", "name"].notna().all() and set(tracks["album", "title"]) == {"Synthetic demo corpus"}
    for genre, ids in zip(tracks["track", "genre_top"], tracks["track", "genres"], strict=True):
        assert ids == f"[{genres.index[genres['title'] == genre][0]}]"
    assert genres.loc[[21, 1235], "title"].tolist() == ["Hip-Hop", "Instrumental"]  # FMA's own ids
    assert "not real music" in (corpus / "README.txt").read_text()


def test_an_artist_has_one_name():
    tracks = pd.DataFrame(demo.TRACKS.values())
    assert (tracks.groupby("artist")["name"].nunique() == 1).all()
    assert (tracks.groupby("name")["artist"].nunique() == 1).all()


def test_the_four_faults_are_fmas(corpus):
    path = {fault: corpus / demo.TRACKS[track_id]["path"] for fault, track_id in FAULTY.items()}
    assert sf.info(path["short"]).duration == pytest.approx(1.2, abs=0.1)
    silence, rate = sf.read(path["silent"])
    assert len(silence) == pytest.approx(30 * rate, abs=0.1 * rate) and np.abs(silence).max() < 1e-4
    with pytest.raises(sf.LibsndfileError):
        sf.read(io.BytesIO(path["undecodable"].read_bytes()))
    assert not path["missing"].exists()


def test_decoded_clips_are_what_was_synthesised(corpus):
    for track_id in SOUND[:2]:
        waveform, rate = demo.synthesise(track_id)
        decoded, its_rate = sf.read(corpus / demo.TRACKS[track_id]["path"], always_2d=True)
        assert (its_rate, decoded.shape[1]) == (rate, waveform.shape[1])
        assert len(decoded) == pytest.approx(len(waveform), abs=0.1 * rate)
        assert np.abs(decoded).max() <= 1
        assert decoded.std() == pytest.approx(waveform.std(), rel=0.1)


def test_a_second_make_touches_nothing(corpus, small):
    before = {name: path.stat().st_mtime_ns for name, path in files(corpus).items()}
    assert demo.make(corpus) == corpus
    assert {name: path.stat().st_mtime_ns for name, path in files(corpus).items()} == before


def test_an_interrupted_make_ends_with_the_same_bytes(corpus, small):
    before = {name: path.read_bytes() for name, path in files(corpus).items()}
    assert not [name for name in before if name.suffix == ".part"]
    (corpus / demo.TRACKS[FAULTY["short"]]["path"]).unlink()
    (corpus / demo.TRACKS[SOUND[1]]["path"]).unlink()
    (corpus / "fma_metadata" / "tracks.csv").unlink()
    demo.make(corpus, workers=3)
    assert {name: path.read_bytes() for name, path in files(corpus).items()} == before
