"""The instruments of the synthetic corpus (demo.py): from a note to a mono waveform."""

import numpy as np
from scipy import fft, signal


def level(x, decibels):
    """A waveform at a level, dB RMS."""
    return x * np.float32(10 ** (decibels / 20) / (np.sqrt(np.mean(np.square(x))) + 1e-9))


def pluck(rng, rate, freq, seconds, bright, ring, position):
    """A Karplus-Strong string (1983): all periods at once, as powers of the loop's filter."""
    n = int(rate / freq)
    k = np.arange(n // 2 + 1, dtype=np.float32)
    burst = fft.rfft(rng.uniform(-1, 1, n)) * np.sin(np.pi * k * position) / (1 + k * (1 - bright) ** 2)
    loss = 4 / (ring * freq) - (1.2 - bright) * np.log(np.cos(np.pi * k / (n + 1)))
    periods = np.arange(int(seconds * freq) + 2, dtype=np.float32)
    string = fft.irfft(burst.astype(np.complex64) * np.exp(-np.outer(periods, loss)), n).ravel()
    # A period is a whole number of samples here; resampling tunes it.
    return np.interp(np.arange(int(seconds * rate)) * (freq * n / rate), np.arange(len(string)), string)


def wave(rng, rate, freq, seconds, shape, cutoff, attack=0.01, decay=9, voices=1, vibrato=0, sweep=0):
    """A filtered oscillator: one band-limited cycle, read at the pitch; `sweep` opens the filter at each onset."""
    time = np.arange(int(seconds * rate), dtype=np.float32) / rate
    k = np.arange(1, min(int(0.45 * rate / freq), 1000))
    spectrum = np.zeros((2, 1025), np.complex64)
    for row, corner in zip(spectrum, (cutoff, 6 * cutoff), strict=True):
        row[k] = SHAPES[shape](k, k * freq, rng) / (1 + (k * freq / corner) ** 3)
    dull, bright = fft.irfft(spectrum * np.exp(2j * np.pi * rng.uniform(size=1025)), 2048).astype(np.float32)
    phase, out = time + vibrato * np.minimum(2 * time, 1) * np.sin(33 * time), 0
    for detune in np.linspace(-0.006, 0.006, voices) if voices > 1 else (0,):
        index = ((freq * (1 + detune) * phase + rng.uniform()) * 2048).astype(np.int32) & 2047
        out = out + dull[index] + (sweep * np.exp(-time / 0.15) * (bright - dull)[index] if sweep else 0)
    return out * np.minimum(time / attack, 1) * np.exp(-time / decay)


def fm(rng, rate, freq, seconds, ratio, index, ring):
    """Frequency modulation, brightest at the onset (Chowning, 1973)."""
    time = np.arange(int(seconds * rate), dtype=np.float32) / rate
    phase = 2 * np.pi * freq * time
    return np.sin(phase + index * np.exp(-4 * time / ring) * np.sin(ratio * phase)) * np.exp(-2.5 * time / ring)


def cloud(rng, rate, freq, seconds, q, *partials):
    """Noise through resonators, with a crescendo: wind, bowed glass, drones."""
    noise = rng.uniform(-1, 1, int(seconds * rate)).astype(np.float32)
    peaks = [signal.iirpeak(min(freq * partial, 0.4 * rate), q, rate) for partial in partials]
    out = sum(signal.lfilter(np.float32(b), np.float32(a), noise) for b, a in peaks)
    return out * np.sqrt(np.linspace(0, 1, len(out), dtype=np.float32))


def hit(rng, rate, freq, seconds, high, low, ring, noise, start, stop, hiss):
    """A drum, tuned to 440: a sine that falls from `high` to `low` Hz, and a burst of filtered noise."""
    time = np.arange(int(5 * max(ring, hiss) * rate), dtype=np.float32) / rate
    turns = freq / 440 * (low * time + (high - low) * 0.03 * (1 - np.exp(-time / 0.03)))
    burst = rng.uniform(-1, 1, len(time)) * np.exp(-time / hiss)
    burst = level(signal.lfilter(*signal.butter(1, (start, stop), "bandpass", fs=rate), burst), -15)
    return (1 - noise) * np.sin(2 * np.pi * turns) * np.exp(-time / ring) + noise * burst


VOWELS = ((750, 1200, 2600), (500, 1800, 2500), (320, 2300, 3000), (450, 800, 2800), (350, 700, 2500))  # formants, Hz
SHAPES = {  # amplitude of harmonics k, at frequencies f
    "saw": lambda k, f, rng: 1 / k, "square": lambda k, f, rng: k % 2 / k, "sine": lambda k, f, rng: 1 / k**4,
    "organ": lambda k, f, rng: np.isin(k, (1, 2, 3, 4, 6, 8)) / np.sqrt(k),
    "reed": lambda k, f, rng: (0.3 + k % 2) / k**0.7,
    "voice": lambda k, f, rng: 0.3 / k**2 + sum(1 / (1 + ((f - v) / 90) ** 2) for v in VOWELS[rng.randint(5)]),
}  # fmt: skip
INSTRUMENTS = {
    # brightness, decay (s), plucking position
    "nylon": (pluck, 0.35, 1.5, 0.2), "steel": (pluck, 0.7, 2.5, 0.12), "oud": (pluck, 0.55, 0.7, 0.08),
    "piano": (pluck, 0.6, 3.0, 0.5), "distorted": (pluck, 0.8, 4.0, 0.2), "picked": (pluck, 0.5, 2.0, 0.1),
    "fuzz": (pluck, 0.7, 3.0, 0.2), "upright": (pluck, 0.15, 0.9, 0.3),
    # harmonics, cutoff (Hz), attack (s), decay (s), voices, vibrato, sweep
    "sub": (wave, "sine", 500, 0.01, 1), "acid": (wave, "saw", 300, 0.01, 0.5, 1, 0, 1),
    "saw": (wave, "saw", 700, 0.01, 9, 2), "cello": (wave, "saw", 900, 0.15, 9, 1, 2e-4),
    "strings": (wave, "saw", 2200, 0.3, 9, 3, 2e-4), "pad": (wave, "saw", 900, 0.4, 9, 3),
    "supersaw": (wave, "saw", 5000, 0.01, 2, 5), "square": (wave, "square", 2000, 0.01, 9, 1, 0, 0.5),
    "organ": (wave, "organ", 4000), "accordion": (wave, "reed", 3000, 0.04, 9, 2),
    "rap": (wave, "voice", 3000, 0.01, 0.15), "reed": (wave, "reed", 3000, 0.05, 9, 1, 4e-4),
    "flute": (wave, "sine", 3000, 0.06, 9, 1, 4e-4), "fiddle": (wave, "saw", 3500, 0.08, 9, 1, 4e-4),
    "voice": (wave, "voice", 3000, 0.05, 9, 1, 6e-4),
    # ratio of the modulator, index, ring (s) | sharpness of the resonators, their partials
    "epiano": (fm, 1, 1.5, 2.0), "bell": (fm, 3.5, 2.0, 3.0), "kalimba": (fm, 5.4, 0.8, 0.8),
    "glass": (cloud, 300, 1, 2.76, 5.4), "wind": (cloud, 5, 1), "drone": (cloud, 60, 1, 1.01, 2.02, 3.1),
    # from and to (Hz), ring (s), share of noise, its band (Hz) and decay (s)
    "kick": (hit, 200, 52, 0.13, 0.08, 2000, 8000, 0.02), "boom": (hit, 160, 42, 0.5, 0.04, 2000, 8000, 0.02),
    "snare": (hit, 260, 180, 0.08, 0.6, 900, 7000, 0.09), "clap": (hit, 180, 50, 0.02, 0.95, 900, 3000, 0.07),
    "hat": (hit, 180, 50, 0.01, 0.98, 6000, 14000, 0.03), "open": (hit, 180, 50, 0.01, 0.98, 5000, 14000, 0.15),
    "shaker": (hit, 180, 50, 0.01, 0.98, 3500, 9000, 0.05), "crash": (hit, 180, 50, 0.01, 0.99, 2500, 14000, 0.5),
    "tom": (hit, 130, 85, 0.2, 0.1, 2000, 8000, 0.02), "conga": (hit, 330, 260, 0.1, 0.15, 500, 3000, 0.03),
    "clave": (hit, 1900, 1800, 0.03, 0.05, 2000, 8000, 0.02),
}  # fmt: skip
DRIVEN = {"distorted": 12, "fuzz": 8, "acid": 2}  # gain into an amplifier


def play(name, pitch, seconds, rate, rng):
    """A note of one of `INSTRUMENTS`, faded out.

    Parameters
    ----------
    pitch : float
        In semitones, 69 for 440 Hz.
    seconds : float
    rate : int
        Sample rate in Hz.
    rng : numpy.random.RandomState

    Returns
    -------
    ndarray, shape (samples,), float32
        Its peak is 1.
    """
    instrument, *settings = INSTRUMENTS[name]
    sound = instrument(rng, rate, 440 * 2 ** ((pitch - 69) / 12), seconds + 0.05, *settings).astype(np.float32)
    fade = int(0.04 * rate)
    sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return sound / np.abs(sound).max()
