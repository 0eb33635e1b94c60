"""Types of source files: magika."""

from __future__ import annotations

import json
import tomllib

import numpy as np

from . import metrics
from .case import Case, Feed
from .fetch import HERE, Store

WINDOW, BLOCK = 1024, 4096  # bytes taken from each end, out of the first and last block
PADDING = 256


def feed(content: bytes) -> Feed:
    """The first and last kilobyte without surrounding white space, as numbers; 256 pads the gap."""
    head = content[:BLOCK].lstrip()[:WINDOW]
    tail = content[-BLOCK:].rstrip()[-WINDOW:]
    x = np.full((1, 2 * WINDOW), PADDING, np.int32)
    x[0, : len(head)] = np.frombuffer(head, np.uint8)
    x[0, 2 * WINDOW - len(tail) :] = np.frombuffer(tail, np.uint8)
    return {"bytes": x}


def magika(store: Store) -> Case:
    """Google's file type model: one-hot bytes, dense layers, one convolution."""
    model = store.find("wheel", "filetypes", "model.onnx")
    types = json.loads((model.parent / "config.min.json").read_text())["target_labels_space"]
    number = {label: i for i, label in enumerate(types)}
    renamed = tomllib.loads((HERE / "languages.toml").read_text())
    known: list[tuple[int, Feed]] = []
    other: list[Feed] = []
    for path in sorted(store.package("sdist", "examples").glob("*/tests/examplefiles/*/*")):
        content, lexer = path.read_bytes(), path.parent.name
        if path.suffix == ".output" or len(content) < 16:
            continue
        label = number.get(renamed.get(lexer, lexer))
        if label is None:
            other.append(feed(content))
        else:
            known.append((label, feed(content)))
    return Case(
        name="magika",
        model=model,
        calibration=other[::3][:96],
        evaluation=[x for _, x in known],
        score=metrics.top1([{label} for label, _ in known]),
        metric="types of Pygments' example files",
    )
