"""Histograms with their clipping range and grid, and shares in order, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup, escape

__all__ = ["histogram", "profile"]

WIDTH, HEIGHT, BASE = 360, 96, 74
"""Size of a histogram, and where its bars stand, in SVG units."""
LEAST = 1.2
"""Distance in SVG units below which the integers are too close to be drawn one by one."""
WIDE, TALL = 720, 80
"""Size of a profile."""


def histogram(
    counts: Sequence[int],
    low: float,
    high: float,
    *,
    clip: tuple[float, float] | None = None,
    step: float | None = None,
) -> Markup:
    """Bars whose height is the logarithm of the counts, between `low` and `high`.

    Args:
        counts: of equal bins.
        low: left edge of the first bin.
        high: right edge of the last.
        clip: the range that the integers cover; what lies outside is shaded.
        step: the distance between neighbouring integers, which are marked under the bars.
    """
    left, right = (min(low, clip[0]), max(high, clip[1])) if clip else (low, high)
    if not right > left:
        left, right = left - 0.5, right + 0.5

    def x(value: float) -> float:
        return WIDTH * (value - left) / (right - left)

    parts = [_bars(counts, x(low), x(high))]
    if clip:
        parts += [_shade(0, x(clip[0])), _shade(x(clip[1]), WIDTH)]
        parts.append(_grid(x(clip[0]), x(clip[1]), WIDTH * (step or 0) / (right - left)))
    parts += [_label(0, "start", left), _label(WIDTH, "end", right)]
    if left < 0 < right:
        parts.append(f'<path class="zero" d="M{x(0):.1f} 0V{BASE}"/>')
    grid = f", steps of {step:.3g}" if step else ""
    covered = f", integers cover {clip[0]:.4g} to {clip[1]:.4g}{grid}" if clip else ""
    title = f"values from {low:.4g} to {high:.4g}{covered}; heights are logarithmic"
    return _drawing(WIDTH, HEIGHT, title, "".join(parts))


def profile(shares: Mapping[str, float]) -> Markup:
    """A bar for each layer, in order, as high as its share."""
    top = max(shares.values(), default=0) or 1.0
    width = WIDE / max(len(shares), 1)
    bars = [
        f'<rect class="bars" x="{index * width:.2f}" y="{TALL - height:.1f}"'
        f' width="{max(width - 1, width / 2):.2f}" height="{height:.1f}">'
        f"<title>{escape(name)}: {100 * share:.1f} %</title></rect>"
        for index, (name, share) in enumerate(shares.items())
        if (height := TALL * share / top) > 0
    ]
    title = f"share of the outputs' error of {len(shares)} layers, up to {100 * top:.1f} %"
    return _drawing(WIDE, TALL, title, "".join(bars))


def _drawing(width: int, height: int, title: str, content: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img">'
        f"<title>{escape(title)}</title>{content}</svg>"
    )


def _bars(counts: Sequence[int], start: float, end: float) -> str:
    if end - start < 1:
        start, end = start - 0.5, end + 0.5
    width = (end - start) / max(len(counts), 1)
    outline = f"M{start:.1f} {BASE}"
    for height, stop in _steps(counts):
        outline += f"V{BASE - height}H{start + stop * width:.1f}"
    return f'<path class="bars" d="{outline}V{BASE}z"/>'


def _steps(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The heights in SVG units, and before which bin each ends."""
    top = math.log1p(max(counts, default=0)) or 1.0
    heights = [
        max(1, round((BASE - 4) * math.log1p(count) / top)) if count else 0 for count in counts
    ]
    for index, height in enumerate(heights):
        if index + 1 == len(heights) or heights[index + 1] != height:
            yield height, index + 1


def _shade(start: float, end: float) -> str:
    if end - start < 0.5:
        return ""
    return f'<rect class="cut" x="{start:.1f}" width="{end - start:.1f}" height="{BASE}"/>'


def _grid(start: float, end: float, step: float) -> str:
    """A tick for each integer, or a line where they are too close."""
    if end - start < 0.5:
        return ""
    dashes = f' stroke-dasharray=".5 {step - 0.5:.3f}"' if step >= LEAST else ""
    return f'<path class="grid" d="M{start:.1f} {BASE + 4}H{end:.1f}"{dashes}/>'


def _label(x: float, anchor: str, value: float) -> str:
    return f'<text x="{x}" y="{HEIGHT - 3}" text-anchor="{anchor}">{value:.4g}</text>'
