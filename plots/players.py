"""Players and buttons of a notebook: hear a clip, upload one."""

import io
import os
from pathlib import Path

from fma import audio_path


def player(y, sample_rate, data_dir, seconds=8):
    """A player for the first seconds of a clip, compressed; the last line of a notebook cell.

    Others' music may not be published with a notebook: with the environment variable PUBLISH set, only the
    synthetic demo corpus can be heard, and a line of text stands for the player.

    Parameters
    ----------
    y : ndarray, shape (samples,)
    sample_rate : int
    data_dir : path-like
        Where the clip is from.
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


def listen(data_dir, track_id, subset="small", seconds=8):
    """A player for the first seconds of a track, or a line of text where it may not be published or is not there."""
    from IPython.display import HTML

    from audio.transforms import Undecodable, read_audio

    try:
        return player(*read_audio(audio_path(data_dir, track_id, subset), seconds), data_dir, seconds)
    except Undecodable:
        return HTML(f"<em>No sound of track {track_id} is at hand.</em>")


def upload_button(answer):
    """A button that takes an audio file, and below it what is said of the file; the last line of a notebook cell.

    With the environment variable PUBLISH set there is nobody to press it, and a line of text stands for it.

    Parameters
    ----------
    answer : callable
        Given the path of the uploaded file, displays something. The file is gone with the kernel.
    """
    from IPython.display import HTML

    if os.environ.get("PUBLISH"):
        return HTML("<em>Run this notebook for a button here that takes a file of yours.</em>")
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
