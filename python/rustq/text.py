"""Plain text for people: sizes, counts and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["count", "decibels", "milliseconds", "size", "table"]


def size(bytes_: int) -> str:
    """A number of bytes in decimal units: `14.2 MB`."""
    value, unit = float(bytes_), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def count(number: int, what: str) -> str:
    """So many of something: `1 sample`, `2 samples`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def decibels(value: float | None) -> str:
    """A signal-to-noise ratio: `35.2 dB`, `exact` if infinite, `-` if not measured."""
    if value is None or math.isnan(value):
        return "-"
    return "exact" if value == float("inf") else f"{value:.1f} dB"


def milliseconds(value: float | None) -> str:
    """A time in ms, with three significant digits; nothing if it was not taken."""
    if value is None:
        return ""
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart, under a rule."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
