"""Draws the pictures of docs/concepts.md: grids, folding, and a histogram with what methods clip.

    python scripts/draw_concepts.py            # writes docs/images/*.svg
    python scripts/draw_concepts.py --check    # fails if those there are not what it would write

The grids have 4 bits, so that their points can be told apart. The histogram and the ranges in it
are rustq's own, of values drawn from a fixed seed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import rustq
from onnx import TensorProto, helper

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
WIDTH = 720
INK, QUIET, BLUE, RED, GREEN = "#222", "#777", "#2b6cb0", "#c53030", "#2f855a"

LOW, HIGH = -1.0, 3.0
"""The range of the tensor in the picture of grids: more above zero than below."""


# ---------------------------------------------------------------------- SVG
def picture(height: int, title: str, parts: Iterable[str]) -> str:
    """A whole file, on a white card so that it can be read on dark pages too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="{title}" font-family="sans-serif" font-size="13">\n<title>{title}</title>\n'
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def words(
    x: float, y: float, text: str, fill: str = INK, anchor: str = "start", **more: str
) -> str:
    """A line of text."""
    extra = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" text-anchor="{anchor}"{extra}>{text}</text>'
    )


def line(points: Iterable[tuple[float, float]], stroke: str = QUIET, width: float = 1) -> str:
    """A line through points."""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="{stroke}" stroke-width="{width}"/>'


def box(x: float, y: float, width: float, text: str, fill: str = "#edf2f7") -> str:
    """An operator."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="34" rx="4" fill="{fill}" stroke="{QUIET}"/>'
        + words(x + width / 2, y + 22, text, anchor="middle")
    )


def arrow(x: float, y: float, length: float, up: float = 0) -> str:
    """An arrow to the right, or downwards where `up` is negative."""
    end = (x + length, y - up)
    angle = math.atan2(end[1] - y, end[0] - x)
    sides = [
        (end[0] - 7 * math.cos(angle + turn), end[1] - 7 * math.sin(angle + turn))
        for turn in (0.45, -0.45)
    ]
    return line([(x, y), end], INK) + line([sides[0], end, sides[1]], INK)


# ---------------------------------------------------------------------- grids
def grids() -> str:
    """The real numbers that 4 bits, or one, can stand for."""
    asym_scale = (HIGH - LOW) / 15
    zero = round(-LOW / asym_scale)
    sym_scale = HIGH / 7
    rows = (
        (
            "asymmetric",
            "q from 0 to 15, a zero point",
            [asym_scale * (q - zero) for q in range(16)],
        ),
        ("symmetric", "q from −7 to 7, zero point 0", [sym_scale * q for q in range(-7, 8)]),
        (
            "log2",
            "a sign and a power of 2",
            [0.0, *(sign * HIGH / 2**k for sign in (1, -1) for k in range(7))],
        ),
        ("binary", "a sign, times the mean magnitude", [-1.1, 1.1]),
    )
    start, end = 250.0, WIDTH - 30.0

    def x(value: float) -> float:
        return start + (value + HIGH) / (2 * HIGH) * (end - start)

    parts = [
        f'<rect x="{x(LOW):.1f}" y="34" width="{x(HIGH) - x(LOW):.1f}" height="226"'
        ' fill="#ebf8ff"/>',
        words((x(LOW) + x(HIGH)) / 2, 24, "the values of the tensor", BLUE, "middle"),
        line([(x(0), 34), (x(0), 268)]),
        words(x(0), 284, "0", QUIET, "middle"),
        words(x(LOW), 284, "−1", QUIET, "middle"),
        words(x(HIGH), 284, "3", QUIET, "middle"),
    ]
    for number, (name, how, points) in enumerate(rows):
        y = 62 + 56 * number
        parts += [words(20, y, name, font_weight="bold"), words(20, y + 18, how, QUIET)]
        parts.append(line([(start - 8, y + 4), (end + 8, y + 4)]))
        parts += [f'<circle cx="{x(p):.1f}" cy="{y + 4}" r="4" fill="{BLUE}"/>' for p in points]
    return picture(296, "asymmetric, symmetric, log2 and binary grids", parts)


# ---------------------------------------------------------------------- folding
def folding() -> str:
    """A BatchNormalization that goes into a convolution, and what is written in int8."""
    y = 44
    parts = [words(20, 26, "the model as it comes", QUIET), words(20, 134, "folded", QUIET)]
    parts.append(
        words(20, 242, "quantized: pairs around the operator, none before the Relu", QUIET)
    )
    parts += [
        box(70, y, 110, "Conv"),
        box(230, y, 190, "BatchNormalization"),
        box(470, y, 90, "Relu"),
    ]
    parts += [arrow(20, y + 17, 48), arrow(180, y + 17, 48), arrow(420, y + 17, 48)]
    parts += [arrow(560, y + 17, 48)]
    y += 108
    green = "#e6fffa"
    parts += [box(70, y, 350, "Conv    w′ = w · γ / √(var + ε)", green), box(470, y, 90, "Relu")]
    parts += [arrow(20, y + 17, 48), arrow(420, y + 17, 48), arrow(560, y + 17, 48)]
    y += 108
    blue = "#ebf8ff"
    parts += [
        box(70, y, 40, "Q", blue),
        box(126, y, 40, "DQ", blue),
        box(216, y, 154, "Conv", green),
    ]
    parts += [box(410, y, 80, "Relu"), box(530, y, 40, "Q", blue), box(586, y, 40, "DQ", blue)]
    parts += [box(126, y + 52, 40, "DQ", blue), words(106, y + 74, "int8 weights", QUIET, "end")]
    parts += [arrow(20, y + 17, 48), arrow(110, y + 17, 14), arrow(166, y + 17, 48)]
    parts += [arrow(370, y + 17, 38), arrow(490, y + 17, 38), arrow(570, y + 17, 14)]
    parts += [arrow(626, y + 17, 48), arrow(166, y + 69, 48, 42)]
    parts.append(
        f'<rect x="118" y="{y - 10}" width="460" height="104" rx="8" fill="none" stroke="{GREEN}"'
        ' stroke-dasharray="5 4"/>'
    )
    parts.append(words(440, y + 76, "one integer kernel in the runtime", GREEN, "middle"))
    return picture(y + 110, "BatchNormalization folded into a convolution, then quantized", parts)


# ---------------------------------------------------------------------- the histogram
def values() -> np.ndarray:
    """Values as an activation has them: many small ones, a few far out."""
    random = np.random.default_rng(7)
    return np.concatenate([random.laplace(0.4, 0.5, 200_000), random.uniform(7, 13, 16)]).astype(
        "f4"
    )


def observed(data: np.ndarray) -> rustq.Calibration:
    """A calibration of a model whose input these values are."""
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")],
        "one_layer",
        [helper.make_tensor_value_info("x", kind, ["n", 8])],
        [helper.make_tensor_value_info("y", kind, ["n", 8])],
        [helper.make_tensor("w", kind, [8, 8], [0.5] * 64)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return rustq.calibrate(model, [data.reshape(-1, 8)])


def histogram() -> str:
    """What was counted of a tensor, and the range that each method covers with its integers."""
    calibration = observed(values())
    counts, edges = calibration.histogram("x", 120)
    start, end, base = 120.0, WIDTH - 24.0, 170.0
    low, high = float(edges[0]), float(edges[-1])

    def x(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    top = math.log1p(int(counts.max()))
    bars = [
        f"M{x(float(left)):.1f} {base}v{-130 * math.log1p(int(n)) / top:.1f}"
        f"h{x(float(right)) - x(float(left)):.1f}V{base}"
        for n, left, right in zip(counts, edges, edges[1:], strict=False)
        if n
    ]
    parts = [
        words(
            20, 26, "200,016 values of a tensor; the height of a bar is the logarithm of its count"
        ),
        f'<path d="{"".join(bars)}" fill="{BLUE}" opacity=".55"/>',
        line([(start, base), (end, base)], INK),
    ]
    for value in range(-4, 14, 2):
        label = f"{value}".replace("-", "−")
        parts += [words(x(value), base + 18, label, QUIET, "middle")]
    for number, method in enumerate(("minmax", "mse", "percentile", "entropy")):
        first, last = (float(limit) for limit in calibration.range("x", method=method))
        y = base + 44 + 26 * number
        step = f"{(last - first) / 255:.3f}"
        parts += [
            words(20, y + 4, method, font_weight="bold"),
            line([(x(first), y), (x(last), y)], RED, 2),
            *(line([(x(edge), y - 6), (x(edge), y + 6)], RED, 2) for edge in (first, last)),
            words(x(last) + 8, y + 4, f"step {step}", QUIET)
            if x(last) < end - 80
            else words(x(last) - 6, y - 7, f"step {step}", QUIET, "end"),
        ]
    return picture(int(base) + 144, "a histogram, and the ranges of four methods", parts)


PICTURES = {"grids": grids, "folding": folding, "histogram": histogram}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if one differs")
    check = parser.parse_args().check
    stale = []
    for name, draw in PICTURES.items():
        path, text = FOLDER / f"{name}.svg", draw()
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            stale.append(path.name)
        elif not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"docs/images: {', '.join(stale)} not as scripts/draw_concepts.py draws it")
    return bool(stale)


if __name__ == "__main__":
    raise SystemExit(main())
