"""Figures of sound: waveforms, features, and what a network sees of them."""

import numpy as np

from plots.style import DASHES, RUNS, genre_colours, new_figure, shortened, styled


def _draw_waveform(axes, y, sample_rate, colour):
    """The minimum and maximum of each of 1,500 pieces of a clip."""
    pieces = np.array_split(np.asarray(y), min(1500, len(y)))
    seconds = np.linspace(0, len(y) / sample_rate, len(pieces))
    axes.fill_between(seconds, [p.min() for p in pieces], [p.max() for p in pieces], color=colour, linewidth=0)


@styled
def plot_waveform(y, sample_rate):
    """Amplitude of a clip over time."""
    figure, axes = new_figure(7.6, 1.8)
    _draw_waveform(axes, y, sample_rate, RUNS[0])
    axes.set(xlabel="time (s)", ylabel="amplitude", xlim=(0, len(y) / sample_rate), ylim=(-1.05, 1.05))
    return figure


@styled
def plot_waveforms(clips):
    """Waveforms below each other, in the colours of their genres.

    Parameters
    ----------
    clips : dict of str to (ndarray, int)
        Genre to samples and sample rate (Hz).
    """
    figure, panels = new_figure(7.6, 0.72 * len(clips) + 0.6, rows=len(clips))
    longest = max(len(y) / sample_rate for y, sample_rate in clips.values())
    for axes, (genre, (y, sample_rate)) in zip(np.atleast_1d(panels), clips.items(), strict=True):
        _draw_waveform(axes, y, sample_rate, genre_colours([genre])[genre])
        axes.set(xlim=(0, longest), ylim=(-1.05, 1.05), yticks=[-1, 0, 1])
        axes.set_ylabel(shortened([genre], 20)[0], rotation=0, ha="right", va="center", labelpad=4)
    axes.set_xlabel("time (s); amplitude from −1 to 1")
    return figure


@styled
def plot_features(features, title):
    """All features of one clip, in two columns with a common time axis.

    Parameters
    ----------
    features : dict of str to array, (bins, frames)
        The study's six, as `transforms.extract` gives them; chroma features are in the right column.
    title : str
    """
    figure, panels = new_figure(7.6, 7.2, columns=2, rows=3)
    for column, is_chroma in zip(panels.T, (False, True), strict=True):
        names = [name for name in features if name.startswith("chroma") == is_chroma]
        for axes, name in zip(column, names, strict=True):
            plot_feature(features[name], name, axes=axes)
            if axes is not column[-1]:
                axes.set_xlabel("")
    figure.suptitle(shortened([title], 80)[0], fontsize=11)
    return figure


@styled
def plot_spectra(spectra, feature, sample_rate=22050, unit=None):
    """Average spectrum of each genre, one line each.

    Parameters
    ----------
    spectra : dict of str to array, (bins,)
        Genre to its mean over clips and time.
    feature : str
        Determines the frequency axis, as in `plot_feature`.
    sample_rate : float, Hz
    unit : str, optional
        By default the unit of the feature.
    """
    figure, axes = new_figure(7.6, 3.4)
    n_bins, colours = len(next(iter(spectra.values()))), genre_colours(spectra)
    for k, (short, (genre, values)) in enumerate(zip(shortened(spectra), spectra.items(), strict=True)):
        axes.plot(np.arange(n_bins), values, color=colours[genre], linestyle=DASHES[k % 3], label=short)
    _bins_along_x(axes, feature, n_bins, sample_rate, unit)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3)
    return figure


@styled
def plot_values(groups):
    """Histograms, side by side.

    Parameters
    ----------
    groups : dict of str to ndarray
        Unit (the axis label) to values of any shape.
    """
    figure, panels = new_figure(7.6, 2.4, columns=len(groups))
    for axes, (unit, values) in zip(np.atleast_1d(panels), groups.items(), strict=True):
        axes.hist(np.ravel(values), bins=60, color=RUNS[0], weights=np.full(np.size(values), 100 / np.size(values)))
        axes.set(xlabel=unit, ylabel="share of values (%)")
    return figure


@styled
def plot_normalisation(mean, std, feature):
    """Mean of each bin over the training clips, with a band of one standard deviation."""
    mean, std = np.asarray(mean), np.asarray(std)
    figure, axes = new_figure(7.6, 2.4)
    bins = np.arange(len(mean))
    axes.fill_between(bins, mean - std, mean + std, color=RUNS[0], alpha=0.2, linewidth=0, label="± one deviation")
    axes.plot(bins, mean, color=RUNS[0], label="mean of the training clips")
    _bins_along_x(axes, feature, len(mean))
    axes.legend()
    return figure


def _bins_along_x(axes, feature, n_bins, sample_rate=22050, unit=None):
    kind = _kind(feature)
    places, names, label = _frequency_ticks(kind, n_bins, sample_rate)
    axes.set_xticks(places, names)
    axes.set(xlabel=label, ylabel=unit or _unit(kind), xlim=(0, n_bins - 1))


@styled
def plot_windows(values, feature, windows, frame_seconds=1024 / 22050):
    """The windows of several networks on a clip, drawn to scale.

    Parameters
    ----------
    values : array, (bins, frames)
    feature : str
    windows : dict of str to list of tuple
        Name of a network to (bins, frames) of the window of its first convolution, drawn filled, and of the
        receptive field of a later layer, dashed.
    frame_seconds : float
    """
    from matplotlib.patches import Rectangle

    figure, panels = new_figure(9.0, 2.9, columns=len(windows))
    bins, frames = values.shape
    kind = _kind(feature)
    places, names, label = _frequency_ticks(kind, bins, 1024 / frame_seconds)
    for axes, (name, ((height, width), (tall, wide))) in zip(np.atleast_1d(panels), windows.items(), strict=True):
        axes.imshow(values, origin="lower", aspect="auto", cmap="Greys",
                    extent=(0, frames * frame_seconds, -0.5, bins - 0.5))
        centre, middle = frames * frame_seconds / 2, (bins - 1) / 2
        for (h, w), look in (((tall, wide), {"fill": False, "linestyle": "--", "linewidth": 1.6}),
                             ((height, width), {"alpha": 0.9})):
            h, w = min(h, bins), min(w, frames) * frame_seconds
            axes.add_patch(Rectangle((centre - w / 2, middle - h / 2), w, h, color=RUNS[1], **look))
        axes.set_title(f"{name}\n{height} × {width}, then {min(tall, bins)} × {min(wide, frames)}")
        axes.set(xlabel="time (s)", xlim=(0, frames * frame_seconds), ylim=(-1.5, bins + 0.5))
        axes.set_yticks(places, names)
        axes.grid(False)
    np.atleast_1d(panels)[0].set_ylabel(label)
    return figure


def _kind(feature):
    """Which axis of frequency a feature has; variants of another range than the study's are counted in bins."""
    if feature.startswith(("mel84", "cqt128")):
        return "other"
    kinds = {"cqt": "cqt", "logstft84": "cqt", "chroma": "chroma", "mel": "mel", "mfcc": "mfcc"}
    return next((kind for start, kind in kinds.items() if feature.startswith(start)), "other")


def _unit(kind):
    """Unit of a feature's values, by its kind."""
    return {"cqt": "magnitude (dB)", "mel": "power (dB)", "chroma": "relative energy"}.get(kind, "value")


@styled
def plot_feature(values, feature, sample_rate=22050, hop_length=1024, axes=None):
    """One clip's feature as an image, with axes in musical or physical units.

    Parameters
    ----------
    values : array, (bins, frames)
    feature : str
        Determines the frequency axis: "cqt..." by note from C1, 12 bins per octave; "chroma..." by pitch
        class from C; "mel..." in Hz from 0 to half the sample rate (Slaney's scale, librosa's default);
        "mfcc..." by coefficient from 0; anything else by bin. Of decibels the upper 80 are shown.
    sample_rate : float, Hz
    hop_length : float, samples from one frame to the next
    axes : matplotlib.axes.Axes, optional
        Axes to draw into; by default a new figure.
    """
    values, kind = np.asarray(values, dtype=float), _kind(feature)
    unit = _unit(kind)
    limits = {"vmin": values.min(), "vmax": values.max()}
    if "dB" in unit:
        limits["vmin"] = max(values.min(), values.max() - 80)
    elif kind == "chroma":
        limits = {"vmin": 0, "vmax": max(1, values.max())}
    elif kind == "mfcc":  # around zero; a scale that fits coefficients 0 and 1 would hide the rest
        spread = np.percentile(np.abs(values[1:] if len(values) > 1 else values), 94)
        limits = {"vmin": -spread, "vmax": spread, "cmap": "RdBu_r"}
    if axes is None:
        _, axes = new_figure(7.6, 2.4 if len(values) <= 24 else 3.0)
    seconds = values.shape[1] * hop_length / sample_rate
    image = axes.imshow(values, origin="lower", aspect="auto", extent=(0, seconds, -0.5, len(values) - 0.5),
                        interpolation="nearest" if len(values) <= 24 else "auto", **limits)
    places, names, label = _frequency_ticks(kind, len(values), sample_rate)
    axes.set_yticks(places, names)
    axes.set(xlabel="time (s)", ylabel=label, title=feature)
    axes.grid(False)
    below, above = bool(values.min() < limits["vmin"]), bool(values.max() > limits["vmax"])
    bar = axes.figure.colorbar(image, ax=axes, label=unit, pad=0.01, aspect=16,
                               extend=(("neither", "max"), ("min", "both"))[below][above])
    bar.outline.set_visible(False)
    return axes.figure


@styled
def plot_relevance(values, maps, feature, sample_rate=22050, hop_length=1024):
    """Relevance for and against a genre, in colour over the clip's feature in grey.

    Parameters
    ----------
    values : array, (bins, frames)
        The feature, also drawn alone on top.
    maps : dict of str to array, (bins, frames)
        Title to the relevance of each value, positive for and negative against the genre, as
        `explain.integrated_gradients` gives it.
    feature, sample_rate, hop_length : see `plot_feature`
    """
    figure, panels = new_figure(7.6, 2.2 * (1 + len(maps)), rows=1 + len(maps))
    panels = np.atleast_1d(panels)
    plot_feature(values, feature, sample_rate, hop_length, axes=panels[0])
    panels[0].images[0].set_interpolation("nearest")
    for axes, (title, relevance) in zip(panels[1:], maps.items(), strict=True):
        relevance = np.asarray(relevance, dtype=float)
        most = max(np.percentile(np.abs(relevance), 99.5), 1e-12)
        plot_feature(values, feature, sample_rate, hop_length, axes=axes)
        clip = axes.images[0]
        clip.set(cmap="Greys", alpha=0.5, interpolation="nearest")
        clip.colorbar.remove()
        colours = axes.imshow(relevance, origin="lower", aspect="auto", extent=clip.get_extent(), cmap="RdBu_r",
                              vmin=-most, vmax=most, alpha=np.clip(np.abs(relevance) / most, 0, 1),
                              interpolation="nearest")
        bar = figure.colorbar(colours, ax=axes, pad=0.01, aspect=16)
        bar.set_ticks([-most, 0, most], labels=["against", "0", "for"])
        bar.ax.set_ylim(-most if relevance.min() < 0 else 0, most)
        bar.outline.set_visible(False)
        axes.set_title(shortened([title], 70)[0])
    for axes in panels[:-1]:
        axes.set_xlabel("")
    return figure


def _frequency_ticks(kind, n_bins, sample_rate):
    """Positions (bins) and names of the ticks, and the label, of a feature's frequency axis."""
    if kind == "cqt":
        places = np.arange(0, n_bins, 12)
        return places, [f"C{1 + place // 12}" for place in places], "note"
    if kind == "chroma" and n_bins == 12:
        return [0, 2, 4, 5, 7, 9, 11], list("CDEFGAB"), "pitch class"
    if kind == "mel":
        def mel(hz):  # Slaney's scale: linear to 1 kHz, logarithmic above
            return 3 * hz / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)
        hertz = [hz for hz in (0, 500, 1000, 2000, 4000, 8000, 16000) if hz < 0.45 * sample_rate]
        step = mel(sample_rate / 2) / (n_bins + 1)  # bin k peaks at step k + 1
        return [max(mel(hz) / step - 1, -0.5) for hz in hertz], [str(hz) for hz in hertz], "frequency (Hz)"
    places = np.arange(0, n_bins, max(1, 5 * round(n_bins / 25)))
    return places, [str(place) for place in places], "coefficient" if kind == "mfcc" else "bin"


@styled
def plot_grid(clips, feature):
    """Spectrograms in a row, with a common colour scale.

    Parameters
    ----------
    clips : dict of str to Tensor or ndarray, shape (1, bins, frames)
        Title to clip.
    feature : str
        Shown on the frequency axis.
    """
    images = {title: np.asarray(clip)[0] for title, clip in clips.items()}
    figure, panels = new_figure(7.6, 2.2, columns=len(images))
    low, high = min(x.min() for x in images.values()), max(x.max() for x in images.values())
    for axes, (title, image) in zip(np.atleast_1d(panels), images.items(), strict=True):
        axes.imshow(image, origin="lower", aspect="auto", vmin=low, vmax=high, interpolation="nearest")
        axes.set(title=title, xlabel="frame")
        axes.grid(False)
    np.atleast_1d(panels)[0].set_ylabel(f"bin of {feature}")
    return figure


@styled
def plot_recurrence(clips):
    """What clips repeat, in a row: a line along time is a passage that was heard so many seconds before.

    Parameters
    ----------
    clips : dict of str to array, (lags, steps)
        Title to what `audio.recurrence.time_lag` gives.
    """
    from audio.recurrence import STEP

    figure, panels = new_figure(9.0, 2.9, columns=len(clips))
    for axes, (title, similarity) in zip(np.atleast_1d(panels), clips.items(), strict=True):
        lags, steps = similarity.shape
        image = axes.imshow(similarity, origin="lower", aspect="auto", vmin=-1, vmax=1, cmap="RdBu_r",
                            interpolation="nearest", extent=(0, steps * STEP, 0.5 * STEP, (lags + 0.5) * STEP))
        axes.set(title=shortened([title], 30)[0], xlabel="time (s)", yticks=[0, 5, 10])
        axes.grid(False)
    np.atleast_1d(panels)[0].set_ylabel("lag (s)")
    figure.colorbar(image, ax=panels, label="correlation", pad=0.01, aspect=16).outline.set_visible(False)
    return figure
