"""How far ranges derived from the histogram are from the same methods in numpy on all of the data.

The bounds asserted here are those that docs/how-it-works.md states.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rustq
from rustq import _rustq

Array = np.ndarray[Any, Any]
COUNT = 30_000
BIN = 2.0**-7
"""Largest width of a bin relative to its values."""
TINY = float(np.finfo(np.float32).tiny)
"""The smallest scale."""
WORSE = 1.02
"""Error of a range that was searched for on the histogram, relative to the best on the data."""


def distributions() -> dict[str, Array]:
    draw = np.random.default_rng(11)
    normal = draw.normal(size=COUNT)
    side = draw.choice([-1.0, 1.0], COUNT)
    values = {
        "gaussian": normal,
        "relu": np.maximum(normal, 0),
        "relu6": np.clip(4 * normal, 0, 6),
        "heavy-tailed": draw.standard_t(3, COUNT),
        "one-sided heavy": draw.lognormal(0, 1.5, COUNT),
        "bimodal": 5 * side + 0.3 * normal,
        "outliers": np.where(draw.uniform(size=COUNT) < 1e-4, 40 * normal, normal),
        "tiny": normal * 1e-30,
        "huge": normal * 1e30,
        "around the smallest normal": normal * 1e-37,
    }
    return {name: x.astype(np.float32) for name, x in values.items()}


DATA = distributions()
SCHEMES = ("asym", "sym")


def calibration(x: Array) -> rustq.Calibration:
    core = _rustq.Calibration()
    core.observe(["x"], [x])
    return rustq.Calibration(core)


def found(name: str, method: str, scheme: str, **more: Any) -> tuple[float, float]:
    return calibration(DATA[name]).range("x", method, scheme=scheme, **more)


def error(x: Array, low: float, high: float, scheme: str) -> float:
    """Mean squared error of quantizing over the range."""
    if scheme == "sym":
        scale, zero, least, most = max(max(-low, high) / 127, TINY), 0, -127, 127
    else:
        scale = max((high - low) / 255, TINY)
        zero, least, most = int(np.rint(-low / scale)), 0, 255
    x = x.astype(np.float64)
    steps = np.clip(np.rint(x / scale) + zero, least, most) - zero
    return float(((steps * scale - x) ** 2).mean())


def ends(x: Array) -> tuple[float, float]:
    return min(float(x.min()), 0.0), max(float(x.max()), 0.0)


@pytest.mark.parametrize("name", DATA)
def test_extremes_are_exact(name: str) -> None:
    low, high = ends(DATA[name])
    assert found(name, "minmax", "asym") == (low, high)
    assert found(name, "minmax", "sym") == (-max(-low, high), max(-low, high))


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentiles_are_within_a_bin(name: str, percentile: float) -> None:
    """Of an order statistic: between the values on both sides of the position, give or take."""
    x = DATA[name].astype(np.float64)

    def close(value: float, values: Array, share: float) -> bool:
        lower, higher = (np.percentile(values, share, method=m) for m in ("lower", "higher"))
        slack = BIN * max(abs(lower), abs(higher)) + TINY
        return bool(
            min(lower, 0) - slack <= value <= max(higher, 0) + slack
            and (
                lower - slack <= value <= higher + slack
                or lower > 0 >= value
                or higher < 0 <= value
            )
        )

    tail = (100 - percentile) / 2
    low, high = found(name, "percentile", "asym", percentile=percentile)
    assert close(low, x, tail)
    assert close(high, x, 100 - tail)
    _, high = found(name, "percentile", "sym", percentile=percentile)
    assert close(high, np.abs(x), percentile)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", DATA)
def test_mse_is_the_best(name: str, scheme: str) -> None:
    x = DATA[name]
    low, high = ends(x)
    shares: Any = np.geomspace(0.02, 1, 200)
    if scheme == "asym":
        coarse = np.geomspace(0.05, 1, 16)
        shares = [(a, b) for a in (coarse if low else [1]) for b in (coarse if high else [1])]
    most = max(-low, high)
    ranges = [
        (-t * most, t * most) if scheme == "sym" else (low * t[0], high * t[1]) for t in shares
    ]
    best = min(error(x, *each, scheme) for each in ranges)
    assert error(x, *found(name, "mse", scheme), scheme) <= WORSE * best


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", DATA)
def test_ifmr_is_its_definition(name: str, scheme: str) -> None:
    x = DATA[name]
    low, high = ends(x)
    most = max(-low, high)
    ratios = np.arange(70, 131) / 100
    ranges = [(-t * most, t * most) if scheme == "sym" else (low, t * high) for t in ratios]
    best = min(error(x, *each, scheme) for each in ranges)
    assert error(x, *found(name, "ifmr", scheme), scheme) <= WORSE * best


def divergence(cells: Array, end: int, levels: int = 128) -> float:
    """Of the magnitudes clipped behind cell `end`, and the same in as many levels."""
    p = cells[:end].copy()
    p[-1] += cells[end:].sum()
    q = np.zeros(end)
    for group in range(levels):
        part = slice(end * group // levels, end * (group + 1) // levels)
        used = p[part] > 0
        if used.any():
            q[part][used] = cells[:end][part].sum() / used.sum()
    some = p > 0
    p, q = p[some] / p.sum(), q[some] / q.sum()
    with np.errstate(divide="ignore"):
        return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("name", DATA)
def test_entropy_is_near_the_best(name: str) -> None:
    """On 2048 cells of the magnitudes, zeros apart: within a bin of a limit that is."""
    magnitudes = np.abs(DATA[name].astype(np.float64))
    magnitudes = magnitudes[magnitudes > 0]
    most = magnitudes.max()
    cells = np.histogram(magnitudes, 2048, (0, most))[0].astype(np.float64)
    candidates = [end for end in range(128, 2049, 16) if cells[:end].sum() >= cells.sum() / 2]
    best = min(divergence(cells, end) for end in candidates)
    _, high = found(name, "entropy", "sym")
    reach = 2048 * BIN
    near = [end for end in range(128, 2049) if abs(end - high / most * 2048) <= reach]
    assert min(divergence(cells, end) for end in near) <= 1.1 * best + 0.01


def test_subnormals_are_zeros() -> None:
    """Except for the extremes, which are exact: no grid could tell the others apart."""
    x = np.float32([1e-40, -3e-45, 0, 1e-38, -1e-41] * 100)
    for method in ("minmax", "percentile", "entropy", "mse", "ifmr", "auto"):
        low, high = calibration(x).range("x", method)
        assert (low, high) == (float(x.min()), float(x.max()))
    mixed = np.concatenate([x, np.float32([1.0, -2.0] * 100)])
    assert calibration(mixed).range("x", "minmax") == (-2.0, 1.0)
    low, high = calibration(mixed).range("x", "percentile", percentile=51, scheme="sym")
    assert -high == low
    assert high <= BIN


def test_memory_for_each_tensor() -> None:
    """At most 2^16 bins: of 8 bytes while counting, 12 in a file; a file holds only those in use."""
    random = np.random.default_rng(0)
    every = random.integers(0, 2**32, 4_000_000, np.uint32).view(np.float32)
    every = every[np.isfinite(every)]
    assert len(calibration(every)._core.to_bytes()) < 12 * 2**16
    few = random.normal(size=4_000_000).astype(np.float32)
    assert len(calibration(few)._core.to_bytes()) < 20_000
    one = np.full(4_000_000, 3, np.float32)
    assert len(calibration(one)._core.to_bytes()) < 100
