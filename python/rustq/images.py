"""Image files as model inputs: the options, what the model's shape says, and the reading."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rustq.errors import DataError, UnsupportedError
from rustq.samples import InputInfo, shape_text

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_SUFFIXES", "ImageOptions", "ImageReader"]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""File name endings, in lower case, that are read as images."""

LAYOUTS = ("NCHW", "NHWC")
CHANNELS = ("RGB", "BGR", "L")
RESIZES = ("stretch", "crop", "letterbox")


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How an image file becomes a model input: `(pixel * scale - mean) / std`.

    `None` means "as the model's input says": the size from its static height and width, the layout
    and the number of channels from the place and size of its channel axis, the scale from its
    dtype.

    Attributes:
        size: `(width, height)` in pixels, or one int for a square.
        layout: `"NCHW"` or `"NHWC"`.
        channels: `"RGB"`, `"BGR"` or `"L"` (one grey channel).
        scale: factor on the 0…255 pixel values. Default 1/255 for a float input, 1 for an integer
            one.
        mean: subtracted after the scale; one number, or one per channel in the order of `channels`.
        std: divides after the mean; one number, or one per channel, none of them 0.
        resize: `"stretch"` to the size; `"crop"` the middle after filling the size; or
            `"letterbox"`, the whole image on a grey (114) ground.

    Raises:
        ValueError: a value is out of range; the message lists the valid ones.
    """

    size: tuple[int, int] | int | None = None
    layout: str | None = None
    channels: str | None = None
    scale: float | None = None
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    resize: str = "stretch"

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", _size(self.size))
        if self.layout is not None:
            _choice("layout", self.layout, LAYOUTS)
        if self.channels is not None:
            _choice("channels", self.channels, CHANNELS)
        _choice("resize", self.resize, RESIZES)
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale != 0):
            raise ValueError(f"scale must be a finite number other than 0, got {self.scale!r}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, _per_channel(name, getattr(self, name), self.channels))
        if 0.0 in (self.std if isinstance(self.std, tuple) else (self.std,)):
            raise ValueError("std must not be 0")


def _choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"unknown image {name} {value!r}: choose one of {', '.join(valid)}")


def _size(size: Any) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f"image size must be a positive int or (width, height), got {size!r}")
    return pair


def _per_channel(name: str, value: Any, channels: str | None) -> float | tuple[float, ...]:
    numbers = tuple(float(v) for v in value) if isinstance(value, Iterable) else (float(value),)
    counts = (1, 3) if channels is None else (1, len(channels))
    if len(numbers) not in counts or not all(math.isfinite(v) for v in numbers):
        wanted = " or ".join(str(n) for n in sorted(set(counts)))
        raise ValueError(f"image {name} must be {wanted} finite number(s), got {value!r}")
    return numbers[0] if len(numbers) == 1 else numbers


class ImageReader:
    """Reads image files into arrays for one model input.

    Args:
        info: the model's input: rank 4 with a channel axis of 1 or 3, or rank 3 without a batch
            axis.
        options: what the user asked for; `None` derives everything from `info`.

    Attributes:
        options: the options in force, with nothing left `None`.
        notes: what was assumed and how to say otherwise, for the report; empty when options were
            given.

    Raises:
        DataError: the input does not look like an image, or its size is dynamic and was not given.
    """

    def __init__(self, info: InputInfo, options: ImageOptions | None) -> None:
        self.info = info
        self.options = _resolve(info, options or ImageOptions())
        self.notes: tuple[str, ...] = ()
        if options is None:
            width, height = _pair(self.options)
            note = (
                f"images are read as {width}x{height} {self.options.channels}"
                f" {self.options.layout}, pixels times {self.options.scale:.4g}, no mean or std;"
                " if the model was trained otherwise, say so with"
                " QuantConfig(images=rustq.ImageOptions(mean=..., std=...)) or --images-mean and"
                " --images-std"
            )
            self.notes = (note,)

    def read(self, path: Path) -> np.ndarray[Any, Any]:
        """One image as `[1, C, H, W]` or `[1, H, W, C]`, in the dtype of the model's input.

        Raises:
            DataError: the file is not an image that Pillow can read, or its values do not fit the
                input's dtype.
            UnsupportedError: Pillow is not installed.
        """
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise UnsupportedError("reading images needs Pillow: pip install pillow") from error
        grey = self.options.channels == "L"
        try:
            with Image.open(path) as file:
                # `exif_transpose` gives a file from a phone the way up that its owner sees.
                image = ImageOps.exif_transpose(file).convert("L" if grey else "RGB")
        except FileNotFoundError:
            raise
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: cannot read this image: {error}") from error
        pixels = np.asarray(_fit(image, _pair(self.options), self.options.resize), np.float32)
        return self._normalise(pixels[:, :, None] if grey else pixels, path)

    def _normalise(self, pixels: np.ndarray[Any, Any], path: Path) -> np.ndarray[Any, Any]:
        options, dtype = self.options, self.info.dtype
        if options.channels == "BGR":
            pixels = pixels[:, :, ::-1]
        mean, std = np.asarray(options.mean, np.float32), np.asarray(options.std, np.float32)
        values = (pixels * np.float32(options.scale or 1) - mean) / std
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values = np.rint(values)
            if values.min() < limits.min or values.max() > limits.max:
                raise DataError(
                    f'{path}: input "{self.info.name}" is {dtype}, but the pixels become'
                    f" {values.min():g}…{values.max():g}: set an image scale and mean that fit"
                )
        if options.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[None], dtype)


def _pair(options: ImageOptions) -> tuple[int, int]:
    assert isinstance(options.size, tuple)
    return options.size


def _resolve(info: InputInfo, options: ImageOptions) -> ImageOptions:
    """Fills what the options leave open from the input's shape, and checks that the two agree."""
    where = f'input "{info.name}" {shape_text(info.shape)}'
    if info.shape is None:
        dims: tuple[int | str | None, ...] = (None,) * 4
    elif len(info.shape) == 3:
        dims = (1, *info.shape)
    else:
        dims = info.shape
    if len(dims) != 4:
        raise DataError(
            f"{where} does not take images: it needs the shape [N, C, H, W] or [N, H, W, C]"
        )
    layout = options.layout or ("NHWC" if dims[3] in (1, 3) and dims[1] not in (1, 3) else "NCHW")
    count, height, width = (dims[1], *dims[2:]) if layout == "NCHW" else (dims[3], *dims[1:3])
    channels = options.channels or ("L" if count == 1 else "RGB")
    if isinstance(count, int) and count != len(channels):
        raise DataError(
            f"{where} has {count} channels in {layout}, but images give {len(channels)}"
            f" ({channels})"
        )
    size = options.size
    if size is None:
        if not (isinstance(height, int) and isinstance(width, int)):
            raise DataError(
                f"{where} has no fixed height and width: give the size of the images, with"
                " QuantConfig(images=rustq.ImageOptions(size=(width, height))) or --images-size"
                " WIDTHxHEIGHT"
            )
        size = (width, height)
    assert isinstance(size, tuple)
    for given, fixed in zip(size, (width, height), strict=True):
        if isinstance(fixed, int) and given != fixed:
            raise DataError(
                f"{where} takes images of {width}x{height}, but the size asked for is"
                f" {size[0]}x{size[1]}"
            )
    scale = (
        options.scale
        if options.scale is not None
        else (1 / 255 if info.dtype.kind not in "iu" else 1.0)
    )
    per_channel = max(len(v) if isinstance(v, tuple) else 1 for v in (options.mean, options.std))
    if per_channel not in (1, len(channels)):
        raise DataError(
            f"{where} has {len(channels)} channel(s), but the image mean or std has"
            f" {per_channel} numbers"
        )
    return replace(options, size=size, layout=layout, channels=channels, scale=scale)


def _fit(image: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    from PIL import Image

    bilinear = Image.Resampling.BILINEAR
    if image.size == size:
        return image
    if resize == "stretch":
        return image.resize(size, bilinear)
    ratios = size[0] / image.width, size[1] / image.height
    ratio = max(ratios) if resize == "crop" else min(ratios)
    width, height = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    if resize == "crop":
        width, height = max(size[0], width), max(size[1], height)
    scaled = image.resize((width, height), bilinear)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    if resize == "crop":
        return scaled.crop((-left, -top, size[0] - left, size[1] - top))
    ground = Image.new(image.mode, size, 114 if image.mode == "L" else (114, 114, 114))
    ground.paste(scaled, (left, top))
    return ground
