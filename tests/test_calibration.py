"""Calibration: exact, mergeable, small, and honest about bad data."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Array, Feed, Net, random_feeds, run
from rustq import Calibration
from zoo import classifier, transformer

METHODS = ("auto", "minmax", "percentile", "entropy", "mse", "ifmr")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return classifier()


@pytest.fixture(scope="module")
def feeds(model: onnx.ModelProto) -> list[Feed]:
    return random_feeds(model, 12)


def content(calibration: Calibration, folder: Path) -> bytes:
    calibration.save(folder / "cal")
    return (folder / "cal").read_bytes()


# ---------------------------------------------------------------------- order, shards, batches
def test_order_does_not_matter(model: onnx.ModelProto, feeds: list[Feed], tmp_path: Path) -> None:
    shuffled = feeds.copy()
    random.Random(0).shuffle(shuffled)
    first, second = rustq.calibrate(model, feeds), rustq.calibrate(model, shuffled)
    assert first == second
    assert hash(first) == hash(second)
    assert content(first, tmp_path) == content(second, tmp_path)
    assert first.samples == len(feeds)


@pytest.mark.parametrize("cuts", [(6,), (1, 2, 3), (11,), (4, 8)])
def test_shards_add_up(
    model: onnx.ModelProto, feeds: list[Feed], cuts: tuple[int, ...], tmp_path: Path
) -> None:
    bounds = [0, *cuts, len(feeds)]
    shards = [rustq.calibrate(model, feeds[a:b]) for a, b in pairwise(bounds)]
    whole = rustq.calibrate(model, feeds)
    merged, added = shards[0], shards[-1]
    for shard in shards[1:]:
        merged = merged.merge(shard)
    for shard in reversed(shards[:-1]):
        added = added + shard
    assert merged == added == whole
    assert content(merged, tmp_path) == content(whole, tmp_path)


def test_merging_leaves_both_alone(model: onnx.ModelProto, feeds: list[Feed]) -> None:
    first, second = (rustq.calibrate(model, feeds[i : i + 1]) for i in (0, 1))
    assert first != second
    first.merge(second)
    assert first == rustq.calibrate(model, feeds[:1])
    assert first.merge(first).samples == 2


def test_what_is_counted_does_not_depend_on_batches() -> None:
    model = classifier(batch="n")
    images = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    one, two = (rustq.calibrate(model, np.split(images, n)) for n in (8, 4))
    for tensor in one.tensors:
        np.testing.assert_allclose(
            one.range(tensor, "minmax"), two.range(tensor, "minmax"), rtol=1e-4
        )
    assert (one.samples, two.samples) == (8, 4)


def test_tensors_are_those_that_may_be_quantized(model: onnx.ModelProto, feeds: list[Feed]) -> None:
    calibration = rustq.calibrate(model, feeds[:1])
    assert calibration.tensors == tuple(sorted(calibration.tensors))
    made = {name for node in rustq.fold(model).to_onnx().graph.node for name in node.output}
    assert set(calibration.tensors) <= made | {"image"}
    assert "logits" in calibration.tensors
    assert repr(calibration) == f"<Calibration: {len(calibration.tensors)} tensors, 1 samples>"


def test_a_model_with_nothing_to_quantize() -> None:
    net = Net()
    model = net.model(net.op("Softmax", net.input("x", 2, 3)))
    calibration = rustq.calibrate(model, random_feeds(model, 2))
    assert (calibration.tensors, calibration.samples) == ((), 2)
    result = rustq.quantize(model, calibration)
    assert result.op_counts == {"Softmax": 1}


# ---------------------------------------------------------------------- the model it is of
def test_another_model_is_refused(model: onnx.ModelProto, feeds: list[Feed]) -> None:
    calibration = rustq.calibrate(model, feeds[:1])
    weights = onnx.ModelProto.FromString(model.SerializeToString())
    changed = next(t for t in weights.graph.initializer if t.name and len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(changed).copy()
    values.flat[0] += 1
    changed.CopyFrom(onnx.numpy_helper.from_array(values, changed.name))
    with pytest.raises(rustq.DataError, match=r"another model: its weights '.+' are others"):
        rustq.quantize(weights, calibration)
    with pytest.raises(rustq.DataError, match="different models: 0 nodes and"):
        calibration.merge(rustq.calibrate(weights, feeds[:1]))
    with pytest.raises(rustq.DataError, match="another model: it has no such node as"):
        rustq.quantize(transformer(), calibration)


def test_the_same_model_by_another_way(
    model: onnx.ModelProto, feeds: list[Feed], tmp_path: Path
) -> None:
    """Folded before, from a file, with other names of nodes: what is computed is the same."""
    calibration = rustq.calibrate(model, feeds[:1])
    calibration.save(tmp_path / "a.cal")
    renamed = onnx.ModelProto.FromString(model.SerializeToString())
    for number, node in enumerate(renamed.graph.node):
        node.name = f"node {number}"
    renamed.producer_name = "somebody"
    onnx.save(renamed, tmp_path / "model.onnx")
    for same in (renamed, tmp_path / "model.onnx", rustq.fold(model)):
        result = rustq.quantize(same, Calibration.load(tmp_path / "a.cal"))
        assert result.report.samples == 1


def test_nothing_merges_with_anything(model: onnx.ModelProto, feeds: list[Feed]) -> None:
    calibration = rustq.calibrate(model, feeds[:1])
    assert Calibration() + calibration == calibration + Calibration() == calibration


# ---------------------------------------------------------------------- files
def test_save_and_load(model: onnx.ModelProto, feeds: list[Feed], tmp_path: Path) -> None:
    calibration = rustq.calibrate(model, feeds)
    calibration.save(tmp_path / "a.cal")
    loaded = Calibration.load(str(tmp_path / "a.cal"))
    assert loaded == calibration
    for tensor in calibration.tensors:
        for method in METHODS:
            assert loaded.range(tensor, method) == calibration.range(tensor, method)
    assert [path.name for path in tmp_path.iterdir()] == ["a.cal"]
    assert (tmp_path / "a.cal").stat().st_size < 30_000 * len(calibration.tensors)


@pytest.mark.parametrize(
    "what", ["cut short", "a bit flipped", "longer", "empty", "another kind", "a model"]
)
def test_damaged_files(
    model: onnx.ModelProto, feeds: list[Feed], tmp_path: Path, what: str
) -> None:
    good = content(rustq.calibrate(model, feeds[:1]), tmp_path)
    middle = len(good) // 2
    bad = {
        "cut short": good[:-7],
        "a bit flipped": good[:middle] + bytes([good[middle] ^ 4]) + good[middle + 1 :],
        "longer": good + b"\0",
        "empty": b"",
        "another kind": b"\x93NUMPY" + bytes(100),
        "a model": model.SerializeToString(),
    }[what]
    path = tmp_path / "bad.cal"
    path.write_bytes(bad)
    with pytest.raises(rustq.DataError, match=r"bad\.cal") as raised:
        Calibration.load(path)
    assert "\n" not in str(raised.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.cal"):
        Calibration.load(tmp_path / "gone.cal")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Calibration().save(tmp_path / "nowhere" / "a.cal")


def test_empty_calibration(tmp_path: Path) -> None:
    Calibration().save(tmp_path / "a.cal")
    assert Calibration.load(tmp_path / "a.cal") == Calibration()


# ---------------------------------------------------------------------- ranges
def observed(values: Array) -> Calibration:
    """A calibration that has seen these values as tensor "x"."""
    net = Net()
    net.input("x", "n", 16)
    model = net.model(net.op("MatMul", "x", net.weight(16, 16, fan_in=10_000)))
    return rustq.calibrate(model, [values.reshape(-1, 16).astype(np.float32)])


def noise(values: Array, low: float, high: float, scheme: str) -> float:
    """Mean squared error of quantizing over this range, in numpy."""
    if scheme == "sym":
        scale, zero, limits = max(-low, high) / 127, 0, (-127, 127)
    else:
        scale = (high - low) / 255
        zero, limits = int(np.rint(-low / scale)), (0, 255)
    codes = np.clip(np.rint(values / scale) + zero, *limits)
    return float((((codes - zero) * scale - values) ** 2).mean())


def distributions() -> dict[str, Array]:
    draw, n = np.random.default_rng(0), 64_000
    outliers = draw.normal(size=n)
    outliers[:8] = [60, -50, 40, 30, -20, 20, 15, 70]
    return {
        "normal": draw.normal(size=n),
        "relu": np.maximum(draw.normal(size=n), 0),
        "laplace": draw.laplace(size=n) * 3 + 1,
        "outliers": outliers,
        "uniform": draw.uniform(-1, 3, n),
        "positive": draw.uniform(2, 3, n),
        "tiny": draw.normal(size=n) * 1e-20,
    }


DISTRIBUTIONS = distributions()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_minmax_is_exact(name: str) -> None:
    values = DISTRIBUTIONS[name].astype(np.float32)
    calibration = observed(values)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    assert calibration.range("x", "minmax") == (low, high)
    assert calibration.range("x", "minmax", scheme="sym") == (-max(-low, high), max(-low, high))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_is_numpys(name: str, percentile: float) -> None:
    """The share is kept inside a symmetric range; an asymmetric one loses it at both ends."""
    values = DISTRIBUTIONS[name]
    found = observed(values).range("x", "percentile", percentile=percentile, scheme="sym")
    least, most = (np.percentile(np.abs(values), percentile, method=m) for m in ("lower", "higher"))
    assert found[0] == -found[1]
    assert 0.98 * least <= found[1] <= 1.02 * most
    low, high = observed(values).range("x", "percentile", percentile=percentile)
    inside = ((values >= low * 1.01) & (values <= high * 1.01)).mean()
    assert inside >= 2 * percentile / 100 - 1 - 0.001
    assert low >= min(values.min(), 0) * 1.01
    assert high <= max(values.max(), 0) * 1.01
    if name == "outliers" and percentile < 99.95:
        assert high < 8


@pytest.mark.parametrize("scheme", ["asym", "sym"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_is_near_the_best(name: str, scheme: str) -> None:
    values = DISTRIBUTIONS[name].astype(np.float64)
    calibration = observed(values)
    full = calibration.range("x", "minmax", scheme=scheme)
    shares = [(a, b) for a in np.geomspace(0.05, 1, 30) for b in np.geomspace(0.05, 1, 30)]
    if scheme == "sym":
        shares = [(t, t) for t in np.geomspace(0.05, 1, 120)]
    best = min(noise(values, full[0] * a, full[1] * b, scheme) for a, b in shares)
    for method, slack in (("mse", 1.05), ("auto", 3.0), ("entropy", 100.0)):
        found = noise(values, *calibration.range("x", method, scheme=scheme), scheme)
        assert found <= slack * best, method


@pytest.mark.parametrize("scheme", ["asym", "sym"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_ifmr_is_its_definition(name: str, scheme: str) -> None:
    """The least error among 61 ranges whose upper end is 0.7 to 1.3 times the largest value."""
    values = DISTRIBUTIONS[name].astype(np.float64)
    calibration = observed(values)
    low, high = calibration.range("x", "minmax")
    largest = max(-low, high)
    candidates = [
        (-t * largest, t * largest) if scheme == "sym" else (low, t * high)
        for t in np.arange(0.7, 1.305, 0.01)
    ]
    best = min(noise(values, *candidate, scheme) for candidate in candidates)
    assert noise(values, *calibration.range("x", "ifmr", scheme=scheme), scheme) <= 1.05 * best


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-45, 1e38])
def test_constant_tensors_have_a_range(method: str, value: float) -> None:
    calibration = observed(np.full(64, value))
    for scheme in ("asym", "sym"):
        low, high = calibration.range("x", method, scheme=scheme)
        assert low <= 0 <= high
        assert np.isfinite([low, high]).all()
        if abs(value) > 1e-30:
            end = high if value > 0 else low
            assert 0.6 * abs(value) <= abs(end) <= 1.4 * abs(value)


def test_bad_questions() -> None:
    calibration = observed(np.ones(16))
    with pytest.raises(KeyError, match="nothing"):
        calibration.range("nothing")
    with pytest.raises(ValueError, match="kl"):
        calibration.range("x", "kl")
    with pytest.raises(ValueError, match="both"):
        calibration.range("x", scheme="both")
    for percentile in (0, 50, 101, float("nan")):
        with pytest.raises(ValueError, match="percentile"):
            calibration.range("x", "percentile", percentile=percentile)


# ---------------------------------------------------------------------- memory, progress, laziness
def test_observed_data_is_let_go(model: onnx.ModelProto) -> None:
    """A generator is consumed one sample at a time, and nothing of a sample is kept."""

    def stream(count: int) -> Iterator[Feed]:
        for seed in range(count):
            yield random_feeds(model, 1, seed)[0]

    def peak(count: int) -> int:
        tracemalloc.start()
        rustq.calibrate(model, stream(count))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(2)
    assert peak(60) < 1.2 * peak(6) + 100_000


def test_resident_memory_does_not_grow(model: onnx.ModelProto) -> None:
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096  # noqa: E731
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    feed = {"image": np.zeros((1, 3, 32, 32), np.float32)}
    seen: list[int] = []
    rustq.calibrate(
        model, (feed for _ in range(400)), progress=lambda done, _: seen.append(resident())
    )
    assert len(seen) == 400
    assert seen[-1] - seen[50] < 8_000_000


def test_progress_is_reported(model: onnx.ModelProto, feeds: list[Feed]) -> None:
    seen: list[tuple[int, int | None]] = []
    rustq.calibrate(model, feeds, progress=lambda *step: seen.append(step))
    assert seen == [(n + 1, len(feeds)) for n in range(len(feeds))]


# ---------------------------------------------------------------------- values that are not finite
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_data_that_is_not_finite(model: onnx.ModelProto, feeds: list[Feed], value: float) -> None:
    bad = {"image": feeds[0]["image"].copy()}
    bad["image"][0, 1, 2, 3] = value
    with pytest.raises(rustq.DataError, match=r'sample 2, input "image".*\[0, 1, 2, 3\]'):
        rustq.calibrate(model, [*feeds[:2], bad])


def test_activations_that_are_not_finite() -> None:
    net = Net()
    x = net.op("Log", net.input("x", 4, 16), out="logarithm")
    model = net.model(net.op("MatMul", x, net.weight(16, 16)))
    with pytest.raises(rustq.DataError, match="NaN or infinite values in tensor 'logarithm'"):
        rustq.quantize(model, [{"x": np.zeros((4, 16), np.float32)}])


@pytest.mark.parametrize("method", METHODS)
def test_constant_tensors_are_handled_and_noted(method: str) -> None:
    net = Net()
    x = net.op("Mul", net.input("x", 1, 32, 16, 16), net.input("zero", 1))
    y = net.conv(x, 32, 32)
    z = net.conv(net.op("Relu", net.op("Sub", y, net.constant(1e6)), out="dead"), 32, 32)
    model = net.model(z, y)
    feeds = [feed | {"zero": np.zeros(1, np.float32)} for feed in random_feeds(model, 3)]
    for scheme in ("asym", "sym"):
        result = rustq.quantize(
            model, feeds, scheme=scheme, config=rustq.QuantConfig(method=method)
        )
        onnx.checker.check_model(result.to_onnx(), full_check=True)
        notes = " ".join(result.report.notes)
        assert "'dead' was always 0" in notes
        for expected, found in zip(run(model, feeds[0]), run(result, feeds[0]), strict=True):
            np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_huge_activations() -> None:
    net = Net()
    x = net.input("x", 32, 64)
    model = net.model(
        net.op("MatMul", net.op("Mul", x, net.input("k", 1)), net.constant(np.eye(64)))
    )
    feed = random_feeds(model, 1)[0] | {"k": np.float32([1e37])}
    for method in METHODS:
        result = rustq.quantize(model, [feed], config=rustq.QuantConfig(method=method))
        found, expected = run(result, feed)[0], run(model, feed)[0]
        assert np.isfinite(found).all()
        assert np.abs(found / 1e37 - expected / 1e37).max() < 2


def test_integer_activations_are_left_out() -> None:
    model = transformer()
    calibration = rustq.calibrate(model, random_feeds(model, 1))
    assert "ids" not in calibration.tensors
    assert calibration.tensors


def test_a_data_loader_like_object(model: onnx.ModelProto, feeds: list[Feed]) -> None:
    class Loader:
        def __len__(self) -> int:
            return len(feeds)

        def __getitem__(self, index: int) -> Any:
            return feeds[index] if index < len(feeds) else self.fail()

        def fail(self) -> Any:
            raise IndexError

    assert rustq.calibrate(model, Loader()) == rustq.calibrate(model, feeds)
