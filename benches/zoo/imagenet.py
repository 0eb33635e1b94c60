"""ImageNet classifiers on labelled photographs: mobilenet_v2 and efficientnet_lite0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from . import graphs, metrics, torchfile
from .case import Case, Feed
from .fetch import Store
from .photos import cover, photographs

SIDE = 224
CROP = 0.875  # the share of the scaled picture's side that is looked at
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def build(
    store: Store, name: str, key: str, make: Callable[[graphs.Weights], onnx.ModelProto]
) -> Path:
    """The ONNX file of a network whose weights a package holds as .pth."""

    def fill(path: Path) -> None:
        onnx.save(make(torchfile.read(store.find("wheel", key, "*.pth"))), path)

    return store.derive(f"onnx/{name}.onnx", fill)


def planar(pixels: np.ndarray) -> np.ndarray:
    """Height x width x channels -> 1 x channels x height x width."""
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)[np.newaxis], np.float32)


def centre(image: Image.Image) -> np.ndarray:
    """The middle of a picture, as float32 pixels of 0 to 255."""
    scaled = round(SIDE / CROP)
    margin = (scaled - SIDE) // 2
    window = slice(margin, margin + SIDE)
    return np.asarray(cover(image, scaled, scaled), np.float32)[window, window]


def _case(
    store: Store, name: str, model: Path, normalize: Callable[[np.ndarray], np.ndarray]
) -> Case:
    def feed(image: Image.Image) -> Feed:
        return {"image": planar(normalize(centre(image)))}

    photos = photographs(store)
    return Case(
        name=name,
        model=model,
        calibration=[feed(image) for image in photos.unlabelled[::2][:96]],
        evaluation=[feed(image) for image, _ in photos.labelled],
        score=metrics.top1([classes for _, classes in photos.labelled]),
        metric="top-1 on labelled photographs",
    )


def mobilenet_v2(store: Store) -> Case:
    """MobileNetV2: depthwise convolutions, ReLU6, residual additions."""
    model = build(store, "mobilenet_v2", "mobilenet", graphs.mobilenet_v2)
    return _case(store, "mobilenet_v2", model, lambda x: (x / 255 - IMAGENET_MEAN) / IMAGENET_STD)


def efficientnet_lite0(store: Store) -> Case:
    """EfficientNet-Lite0: 5x5 depthwise convolutions, asymmetric padding."""
    model = build(store, "efficientnet_lite0", "efficientnet", graphs.efficientnet_lite0)
    return _case(store, "efficientnet_lite0", model, lambda x: (x - 127) / 128)
