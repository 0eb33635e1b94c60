"""Photographs, and the ImageNet-1k classes that some of them show.

labels.csv was written from the file names (and, for a few fish, from looking at the picture),
never from what a model says. `classes` are numbers or ranges of accepted classes, separated by
semicolons; a name stands for itself and for itself with a number appended. Pictures with other
names stay unlabelled and serve for calibration.
"""

from __future__ import annotations

import csv
import io
import string
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from .fetch import HERE, Store

BUNDLES = ("categorization", "explore_world_animals", "explore_farm_animals")
NOT_PHOTOGRAPHS = frozenset(
    {
        "ammunition",
        "cartoon",
        "clothes",
        "flags",
        "naturalforces",
        "people",
        "roadsigns",
        "seasonal",
        "space",
        "symbols",
    }
)
PADDING = 1.3  # a cut-out picture is pasted on a white square this much larger


@dataclass(frozen=True)
class Photos:
    """Pictures, in a fixed order; an empty set of classes means unlabelled."""

    pictures: list[tuple[Image.Image, frozenset[int]]]

    @property
    def labelled(self) -> list[tuple[Image.Image, frozenset[int]]]:
        """Pictures with their accepted classes."""
        return [(image, classes) for image, classes in self.pictures if classes]

    @property
    def unlabelled(self) -> list[Image.Image]:
        """Pictures whose content no class names."""
        return [image for image, classes in self.pictures if not classes]


@cache
def photographs(store: Store) -> Photos:
    """All photographs of the zoo."""
    return Photos([*_imagenet_samples(store), *_gcompris(store), *_tuxpaint(store)])


def cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of an image, scaled to fill `width` x `height`."""
    scale = max(width / image.width, height / image.height)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.resize(size, Image.Resampling.BICUBIC).crop(
        (left, top, left + width, top + height)
    )


def _classes(origin: str) -> dict[str, frozenset[int]]:
    def expand(text: str) -> Iterator[int]:
        for part in text.split(";"):
            first, _, last = part.partition("-")
            yield from range(int(first), int(last or first) + 1)

    with (HERE / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["origin"] == origin]
    return {row["name"]: frozenset(expand(row["classes"])) for row in rows}


def _imagenet_samples(store: Store) -> Iterator[tuple[Image.Image, frozenset[int]]]:
    """foolbox's samples, whose names end in their class."""
    for path in sorted(store.package("wheel", "photos").glob("foolbox/data/imagenet_*.jpg")):
        yield Image.open(path).convert("RGB"), frozenset({int(path.stem.rpartition("_")[2])})


def _gcompris(store: Store) -> Iterator[tuple[Image.Image, frozenset[int]]]:
    classes = _classes("gcompris")
    folder = store.package("debian", "gcompris") / "usr/share/gcompris-qt/rcc"
    for bundle in BUNDLES:
        for name, data in sorted(read_qt_bundle((folder / f"{bundle}.rcc").read_bytes())):
            stem, _, kind = name.rpartition("/")[2].rpartition(".")
            if kind == "webp":
                found = classes.get(stem) or classes.get(stem.rstrip(string.digits))
                yield Image.open(io.BytesIO(data)).convert("RGB"), found or frozenset()


def _tuxpaint(store: Store) -> Iterator[tuple[Image.Image, frozenset[int]]]:
    classes = _classes("tuxpaint")
    folder = store.package("debian", "tuxpaint") / "usr/share/tuxpaint/stamps"
    for path in sorted(folder.rglob("*.png")):
        if NOT_PHOTOGRAPHS.isdisjoint(path.parts):
            yield _on_white(path), classes.get(path.stem, frozenset())


def _on_white(path: Path) -> Image.Image:
    cut = Image.open(path).convert("RGBA")
    side = int(max(cut.size) * PADDING)
    square = Image.new("RGB", (side, side), "white")
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2), cut)
    return square


def read_qt_bundle(bundle: bytes) -> Iterator[tuple[str, bytes]]:
    """The files (path, content) of a Qt binary resource bundle (.rcc).

    The header gives the format's version and the offsets of three sections. `tree` holds
    fixed-size entries, a folder's children next to each other; `names` the UTF-16 names; `data`
    the contents, each behind its length.
    """

    def number(at: int, size: int = 4) -> int:
        return int.from_bytes(bundle[at : at + size], "big")

    version, tree, data, names = (number(at) for at in (4, 8, 12, 16))
    entry_size = 14 if version == 1 else 22  # later versions add a time stamp
    folder_flag, zlib_flag, zstd_flag = 2, 1, 4

    def name_of(entry: int) -> str:
        at = names + number(entry)
        return bundle[at + 6 : at + 6 + 2 * number(at, 2)].decode("utf-16-be")

    waiting = [(0, "")]  # the root is a folder without a name
    while waiting:
        index, path = waiting.pop()
        entry = tree + index * entry_size
        flags = number(entry + 4, 2)
        if flags & folder_flag:
            count, first = number(entry + 6), number(entry + 10)
            children = range(first, first + count)
            waiting += [(i, f"{path}/{name_of(tree + i * entry_size)}") for i in children]
        elif not flags & zstd_flag:
            at = data + number(entry + 10)
            content = bundle[at + 4 : at + 4 + number(at)]
            # qCompress puts the unpacked length in front of the zlib stream
            yield path, zlib.decompress(content[4:]) if flags & zlib_flag else content
