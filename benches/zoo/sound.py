"""Speech in noise: silero_vad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import metrics
from .case import Case, Feed, Outputs
from .fetch import Store

RATE = 16_000
FRAME, CONTEXT = 512, 64  # samples the detector looks at, and repeats from the frame before
VOICED = 0.03  # a frame of clean speech counts as speech above this root mean square


def clips(store: Store, count: int) -> list[np.ndarray]:
    """Short recordings of people naming things in several languages, at 16 kHz, peaks at 0.5."""
    import soundfile
    from scipy.signal import resample_poly

    stamps = store.package("debian", "tuxpaint") / "usr/share/tuxpaint/stamps"
    files, found = sorted(stamps.rglob("*_desc_*.ogg")), []
    for index in np.random.default_rng(0).permutation(len(files)):
        sound, own_rate = soundfile.read(files[index], dtype="float32", always_2d=True)
        sound = resample_poly(sound.mean(axis=1), RATE, own_rate).astype(np.float32)
        peak = np.abs(sound).max(initial=0)
        if 0.6 < len(sound) / RATE < 5 and peak > 0.05:
            found.append(sound / peak * 0.5)
        if len(found) == count:
            break
    return found


def hiss(rng: np.random.Generator, length: int) -> np.ndarray:
    """Noise of unit power, with a spectrum between white and pink."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** rng.uniform(0, 1)
    noise: np.ndarray = np.fft.irfft(spectrum, length)
    noise /= noise.std()
    return noise


def recordings(
    seed: int, count: int, voices: Sequence[np.ndarray]
) -> tuple[np.ndarray, list[Feed]]:
    """Recordings of six clips with pauses, in noise; and which of their frames hold speech."""
    rng = np.random.default_rng(seed)
    speech, feeds = [], []
    for _ in range(count):
        parts: list[np.ndarray] = []
        for pause in rng.uniform(0.4, 2.5, 6):
            parts += [np.zeros(int(pause * RATE)), voices[int(rng.integers(len(voices)))]]
        clean = np.concatenate(parts)
        clean = clean[: len(clean) - len(clean) % FRAME]
        level = np.sqrt(np.mean(clean.reshape(-1, FRAME) ** 2, axis=1))
        voiced = level > VOICED
        noise = hiss(rng, len(clean)) * level[voiced].mean()
        decibel = rng.uniform(-3, 12)
        heard = np.clip(clean + noise * 10 ** (-decibel / 20), -1, 1).astype(np.float32)
        frames = heard.reshape(-1, FRAME)
        before = np.zeros((len(frames), CONTEXT), np.float32)
        before[1:] = frames[:-1, -CONTEXT:]
        state = np.zeros((1, 1, 128), np.float32)
        feeds.append({"input": np.hstack([before, frames]), "h": state, "c": state.copy()})
        speech.append(voiced)
    return np.concatenate(speech), feeds


def silero_vad(store: Store) -> Case:
    """Silero's voice activity detector: an STFT as a convolution, six convolutions, an LSTM."""
    voices = clips(store, 400)
    voiced, feeds = recordings(11, 24, voices[:200])

    def score(outputs: Sequence[Outputs]) -> float:
        return metrics.roc_auc(np.concatenate([first.ravel() for first, *_ in outputs]), voiced)

    return Case(
        name="silero_vad",
        model=store.find("wheel", "speech", "silero_vad_16k_sequence.onnx"),
        calibration=recordings(12, 12, voices[200:])[1],
        evaluation=feeds,
        score=score,
        metric="ROC AUC of 32 ms frames of speech in noise",
    )
