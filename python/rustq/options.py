"""The command line options that several commands share, and what they become."""

from __future__ import annotations

import functools
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from rustq.config import QuantConfig
from rustq.images import CHANNELS, LAYOUTS, RESIZES, ImageOptions

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = [
    "DATA_HELP",
    "MODEL",
    "checked_output",
    "config",
    "data_options",
    "executor_of",
    "external_data",
    "image_flags",
    "named_shape",
    "workers_option",
]

P = ParamSpec("P")
T = TypeVar("T")

MODEL = click.Path(path_type=Path)
DATA_HELP = "A .npz or .npy file, or a folder of them or of images."


def _numbers(text: str) -> tuple[float, ...]:
    """One number, or several with commas between them; a fraction such as 1/255 is a number."""
    try:
        return tuple(_number(part) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(
            f"{text!r} is not a number, or numbers with commas between them"
        ) from None


def _scale(text: str) -> float:
    numbers = _numbers(text)
    if len(numbers) != 1:
        raise click.BadParameter(f"{text!r} is not one number")
    return numbers[0]


def _size(text: str) -> tuple[int, int]:
    """A size in pixels: 224, or 224x160 for width x height."""
    width, _, height = text.lower().partition("x")
    if not width.isdecimal() or not (height or width).isdecimal():
        raise click.BadParameter(f"{text!r} is not a size such as 224 or 224x160")
    return int(width), int(height or width)


def named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An input and its shape: image=1x3x224x224."""
    name, _, sizes = text.rpartition("=")
    shape = sizes.lower().replace(",", "x").split("x")
    if not name or not all(size.isdecimal() for size in shape):
        raise click.BadParameter(f"{text!r} is not a shape such as image=1x3x224x224")
    return name, tuple(map(int, shape))


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


_IMAGE_OPTIONS = (
    click.option(
        "--images-size", type=_size, metavar="W[xH]", help="Size in pixels, such as 224 or 224x160."
    ),
    click.option(
        "--images-mean", type=_numbers, metavar="N[,N,N]", help="Subtracted after the scale."
    ),
    click.option("--images-std", type=_numbers, metavar="N[,N,N]", help="Divides after the mean."),
    click.option(
        "--images-scale", type=_scale, metavar="N", help="Factor on the pixels. [default: 1/255]"
    ),
    click.option("--images-layout", type=click.Choice(LAYOUTS), help="Axis order of the input."),
    click.option("--images-channels", type=click.Choice(CHANNELS), help="Colours, in order."),
    click.option("--images-resize", type=click.Choice(RESIZES), help="How the size is reached."),
)
_THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads that ONNX Runtime runs models with."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that share the data between them, each with --threads threads, or 1.",
)


external_data = click.option(
    "--external-data/--no-external-data",
    default=None,
    help="Weights in a file beside the model, or in it.  [default: beside it above 2 GiB]",
)


def data_options(command: Callable[P, T]) -> Callable[..., T]:
    """Adds `--threads` and the `--images-…` options; the latter arrive as `images`, or `None`."""

    @functools.wraps(command)
    def with_images(*args: Any, **values: Any) -> T:
        given = {
            key: values.pop(f"images_{key}")
            for key in ("size", "mean", "std", "scale", "layout", "channels", "resize")
        }
        values["images"] = _images(
            {key: value for key, value in given.items() if value is not None}
        )
        return command(*args, **values)

    wrapped: Callable[..., T] = with_images
    for option in reversed((*_IMAGE_OPTIONS, _THREADS)):
        wrapped = option(wrapped)
    return wrapped


def _images(given: dict[str, Any]) -> ImageOptions | None:
    if not given:
        return None
    try:
        return ImageOptions(**given)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def image_flags(images: ImageOptions | None) -> str:
    """The options that stand for `images`, to be shown in a command to try."""
    if images is None:
        return ""
    flags = ""
    for key, default in asdict(ImageOptions()).items():
        value = getattr(images, key)
        if isinstance(value, tuple):
            value = ("x" if key == "size" else ",").join(str(number) for number in value)
        if value != default:
            flags += f" --images-{key} {shlex.quote(str(value))}"
    return flags


def config(**values: Any) -> QuantConfig:
    """A `QuantConfig` of the values that were given; a bad one is a usage error."""
    given: Mapping[str, Any] = {key: value for key, value in values.items() if value is not None}
    try:
        return QuantConfig(**given)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def executor_of(workers: int | None) -> Iterator[Executor | None]:
    """A pool of so many processes; `None` for none."""
    if workers is None:
        yield None
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # A fork would take over the threads of this process by halves. Ctrl-C reaches the workers as
    # well, where it is left to this process to end the work.
    with ProcessPoolExecutor(
        workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    ) as executor:
        yield executor


def checked_output(path: Path) -> Path:
    """The path, once it is sure that a file can be written there.

    Raises:
        click.ClickException: it is a folder, or its folder is missing or not writable.
    """
    folder = path.parent
    if path.is_dir():
        raise click.ClickException(f"{path}: is a folder, name a file in it")
    if not folder.is_dir():
        raise click.ClickException(f"{path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise click.ClickException(f"{path}: the folder {folder} is not writable")
    return path
