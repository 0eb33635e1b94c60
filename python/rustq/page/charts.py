"""Histograms with their clipping range and grid, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

__all__ = ["histogram"]

WIDTH, HEIGHT, BASE = 360, 96, 78
"""Size of a chart, and where its bars stand, in SVG units."""


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
        step: the distance between neighbouring integers, named under the chart.
    """
    left, right = (min(low, clip[0]), max(high, clip[1])) if clip else (low, high)
    if not right > left:
        left, right = left - 0.5, right + 0.5

    def x(value: float) -> float:
        return WIDTH * (value - left) / (right - left)

    parts = [_bars(counts, x(low), x(high))]
    if clip:
        parts += [_shade(0, x(clip[0])), _shade(x(clip[1]), WIDTH)]
    parts += [_label(0, "start", left), _label(WIDTH, "end", right)]
    if left < 0 < right:
        parts.append(f'<path class="zero" d="M{x(0):.1f} 0V{BASE}"/>')
    grid = f", steps of {step:.3g}" if step else ""
    covered = f", integers cover {clip[0]:.4g} to {clip[1]:.4g}{grid}" if clip else ""
    title = f"values from {low:.4g} to {high:.4g}{covered}; heights are logarithmic"
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _bars(counts: Sequence[int], start: float, end: float) -> str:
    if end - start < 1:
        start, end = start - 0.5, end + 0.5
    width = (end - start) / max(len(counts), 1)
    top = math.log1p(max(counts, default=0)) or 1.0
    path = []
    for index, count in enumerate(counts):
        if count:
            height = (BASE - 4) * math.log1p(count) / top
            path.append(
                f"M{start + index * width:.1f} {BASE}v{-height:.1f}h{width:.2f}v{height:.1f}"
            )
    return f'<path class="bars" d="{"".join(path)}"/>'


def _shade(start: float, end: float) -> str:
    if end - start < 0.5:
        return ""
    return f'<rect class="cut" x="{start:.1f}" width="{end - start:.1f}" height="{BASE}"/>'


def _label(x: float, anchor: str, value: float) -> str:
    return f'<text x="{x}" y="{HEIGHT - 4}" text-anchor="{anchor}">{value:.4g}</text>'
