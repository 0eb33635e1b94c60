"""Times of rustq against onnxruntime and numpy, side by side in one run: `make bench`.

pytest-benchmark prints the ratios within each group. With benchmarks disabled these run once each,
as smoke tests. Nothing is downloaded: the network is a small CNN for 28 x 28 pictures with random
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

pytest.importorskip("onnxruntime")

import onnxruntime
import rustq
import variants
from zoo import Feed, graphs, runner

SAMPLES = 64
ELEMENTS = 1 << 18  # 1 MiB of float32: fits a second-level cache
SCALE, ZERO_POINT = np.float32(0.021), np.uint8(117)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    shapes = {
        "conv_layers.0": (32, 1, 3, 3),
        "conv_layers.3": (64, 32, 3, 3),
        "conv_layers.6": (128, 64, 3, 3),
        "fc_layers.0": (256, 1152),
        "fc_layers.2": (10, 256),
    }
    weights = {}
    for name, shape in shapes.items():
        spread = (2 / np.prod(shape[1:])) ** 0.5
        weights[f"{name}.weight"] = rng.normal(0, spread, shape).astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    path = tmp_path_factory.mktemp("model") / "cnn.onnx"
    onnx.save(graphs.digits_cnn(weights), path)
    return path


@pytest.fixture(scope="session")
def feeds() -> list[Feed]:
    rng = np.random.default_rng(1)
    return [{"image": rng.normal(size=(1, 1, 28, 28)).astype(np.float32)} for _ in range(SAMPLES)]


@pytest.fixture(scope="session")
def values() -> np.ndarray:
    return np.random.default_rng(2).normal(size=ELEMENTS).astype(np.float32)


@pytest.mark.benchmark(group="quantize a small CNN, 64 samples")
def test_float_inference(benchmark: BenchmarkFixture, model: Path, feeds: list[Feed]) -> None:
    def infer() -> None:
        run = runner(model)
        for feed in feeds:
            run(feed)

    benchmark(infer)


@pytest.mark.benchmark(group="quantize a small CNN, 64 samples")
@pytest.mark.parametrize("method", ["auto", "minmax", "percentile", "entropy"])
def test_rustq(
    benchmark: BenchmarkFixture, model: Path, feeds: list[Feed], tmp_path: Path, method: str
) -> None:
    config = rustq.QuantConfig(method=method, threads=1)
    benchmark(lambda: rustq.quantize(model, feeds, config=config).save(tmp_path / "int8.onnx"))
    assert (tmp_path / "int8.onnx").stat().st_size < model.stat().st_size / 2


@pytest.mark.benchmark(group="quantize a small CNN, 64 samples")
@pytest.mark.parametrize("method", ["MinMax", "Percentile", "Entropy"])
def test_onnxruntime(
    benchmark: BenchmarkFixture, model: Path, feeds: list[Feed], tmp_path: Path, method: str
) -> None:
    path = tmp_path / "int8.onnx"
    benchmark(lambda: variants.quantize_static(model, feeds, path, method=method))


def _numpy_quantize(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x / SCALE) + ZERO_POINT, 0, 255).astype(np.uint8)


def _one_node(kind: str, source: int, target: int) -> Callable[[np.ndarray], np.ndarray]:
    """QuantizeLinear or DequantizeLinear in ONNX Runtime."""
    parameters = [
        onnx.numpy_helper.from_array(np.asarray(SCALE), "scale"),
        onnx.numpy_helper.from_array(np.asarray(ZERO_POINT), "zero_point"),
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, ["x", "scale", "zero_point"], ["y"])],
        kind,
        [onnx.helper.make_tensor_value_info("x", source, [ELEMENTS])],
        [onnx.helper.make_tensor_value_info("y", target, [ELEMENTS])],
        parameters,
    )
    opset = onnx.helper.make_opsetid("", 17)
    made = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    return lambda x: session.run(None, {"x": x})[0]


FLOAT, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
QUANTIZERS: dict[str, Callable[[], Callable[[np.ndarray], np.ndarray]]] = {
    "rustq": lambda: lambda x: rustq.kernels.quantize(x, SCALE, ZERO_POINT, dtype="uint8"),
    "onnxruntime": lambda: _one_node("QuantizeLinear", FLOAT, UINT8),
    "numpy": lambda: _numpy_quantize,
}
DEQUANTIZERS: dict[str, Callable[[], Callable[[np.ndarray], np.ndarray]]] = {
    "rustq": lambda: lambda q: rustq.kernels.dequantize(q, SCALE, ZERO_POINT),
    "onnxruntime": lambda: _one_node("DequantizeLinear", UINT8, FLOAT),
    "numpy": lambda: lambda q: (q.astype(np.float32) - ZERO_POINT) * SCALE,
}


@pytest.mark.benchmark(group="quantize 1 MiB")
@pytest.mark.parametrize("tool", QUANTIZERS)
def test_quantize_kernel(benchmark: BenchmarkFixture, values: np.ndarray, tool: str) -> None:
    result = benchmark(QUANTIZERS[tool](), values)
    assert np.array_equal(result, _numpy_quantize(values))


@pytest.mark.benchmark(group="dequantize 1 MiB")
@pytest.mark.parametrize("tool", DEQUANTIZERS)
def test_dequantize_kernel(benchmark: BenchmarkFixture, values: np.ndarray, tool: str) -> None:
    result = benchmark(DEQUANTIZERS[tool](), _numpy_quantize(values))
    assert np.allclose(result, values, atol=SCALE * 0.51) or np.ptp(values) > 255 * SCALE


@pytest.mark.benchmark(group="min and max of 1 MiB")
@pytest.mark.parametrize("tool", ["rustq", "numpy"])
def test_min_max_kernel(benchmark: BenchmarkFixture, values: np.ndarray, tool: str) -> None:
    by_tool: dict[str, Callable[[np.ndarray], object]] = {
        "rustq": rustq.kernels.min_max,
        "numpy": lambda x: (x.min(), x.max()),
    }
    assert benchmark(by_tool[tool], values) == (values.min(), values.max())
