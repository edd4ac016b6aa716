"""Audio players and upload buttons for notebooks."""

import io
import os
from pathlib import Path

from fma import DataError, audio_path, audio_paths, load_tracks

PLAYED = 8          # seconds


def player(y, sample_rate, data_dir, seconds=PLAYED):
    """An audio player for the first seconds of a clip, as MP3; use it as the last line of a notebook cell.

    Notebooks are published without other people's music: if the environment variable PUBLISH is set, only clips of
    the synthetic demo corpus get a player, others a line of text.

    Parameters
    ----------
    y : ndarray, shape (samples,)
    sample_rate : int
    data_dir : path-like
        The data folder of the clip.
    seconds : float
    """
    from IPython.display import HTML, Audio

    if os.environ.get("PUBLISH") and Path(data_dir).name != "demo":
        return HTML("<em>Run this notebook to hear the clip: the music may not be published here.</em>")
    import soundfile

    mp3 = io.BytesIO()
    soundfile.write(mp3, y[: int(seconds * sample_rate)], int(sample_rate), format="MP3")
    audio = Audio(data=mp3.getvalue())
    audio.mimetype = "audio/mpeg"
    return audio


def listen(data_dir, track_id):
    """A player for the first seconds of a track, or a line of text if it must not be published or does not exist."""
    from IPython.display import HTML

    from audio.transforms import Undecodable, read_audio

    path = audio_path(data_dir, track_id)
    try:
        if not path.is_file():          # else the metadata, which takes longer, need not be read
            path = audio_paths(data_dir, load_tracks(data_dir))[track_id]
        return player(*read_audio(path, PLAYED), data_dir)
    except (Undecodable, DataError, KeyError):
        return HTML(f"<em>There is no audio of track {track_id}.</em>")


def upload_button(answer):
    """An upload button for an audio file, with the output for the file below; the last line of a notebook cell.

    If the environment variable PUBLISH is set, a line of text replaces it.

    Parameters
    ----------
    answer : callable
        Called with the path of the uploaded file; may display something. The file is deleted with the kernel.
    """
    from IPython.display import HTML

    if os.environ.get("PUBLISH"):
        return HTML("<em>Run this notebook to upload a file of your own here.</em>")
    import tempfile

    from ipywidgets import FileUpload, Output, VBox

    folder, below = tempfile.TemporaryDirectory(), Output()
    button = FileUpload(accept="audio/*", description="Upload audio", layout={"width": "max-content"})

    def take(change):
        files = change["new"]
        if isinstance(files, dict):                 # ipywidgets 7, Colab's
            files = [{"name": name, **file} for name, file in files.items()]
        below.clear_output()
        with below:
            for file in files[-1:]:
                path = Path(folder.name) / Path(file["name"]).name
                path.write_bytes(file["content"])
                answer(path)

    button.observe(take, "value")
    return VBox([button, below])
