"""The comparison of two models in ONNX Runtime, on models whose figures are known."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rustq import _rustq
from rustq.comparison import compare
from rustq.errors import DataError, ModelError
from rustq.latency import interleaved_medians


def scaled(
    factor: float, *, name: str = "x", outputs: tuple[str, ...] = ("y",), offset: float = 0.0
) -> onnx.ModelProto:
    """A model with `y = x * factor + offset`, on rows of four."""
    nodes = []
    for output in outputs:
        nodes += [
            helper.make_node("Mul", [name, "factor"], [f"{output}_scaled"]),
            helper.make_node("Add", [f"{output}_scaled", "offset"], [output]),
        ]
    values = [
        helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 4]) for output in outputs
    ]
    graph = helper.make_graph(
        nodes,
        "scaled",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4])],
        values,
        [
            helper.make_tensor("factor", TensorProto.FLOAT, [], [factor]),
            helper.make_tensor("offset", TensorProto.FLOAT, [], [offset]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rows(count: int = 20) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.import_module("rustq.comparison"),
        "interleaved_medians",
        lambda first, second: interleaved_medians(first, second, seconds=0, least=2),
    )


def test_equal_models() -> None:
    result = compare(scaled(1).SerializeToString(), scaled(1), rows())
    (output,) = result.outputs
    assert output.sqnr_db == math.inf
    assert output.cosine == pytest.approx(1)
    assert output.max_abs_error == output.mean_abs_error == 0
    assert output.top1_agreement == 1
    assert output.values == 80
    assert result.samples == 3
    assert result.threads == 1
    assert result.latency_float_ms > 0


def test_known_error() -> None:
    x = rows()
    (output,) = compare(scaled(1), scaled(0.9), x).outputs
    assert output.sqnr_db == pytest.approx(20, abs=1e-4)
    assert output.cosine == pytest.approx(1)
    assert output.max_abs_error == pytest.approx(0.1 * np.abs(x).max(), rel=1e-4)
    assert output.mean_abs_error == pytest.approx(0.1 * np.abs(x).mean(), rel=1e-4)
    (output,) = compare(scaled(1), scaled(-1), x).outputs
    assert output.cosine == pytest.approx(-1)
    assert output.top1_agreement is not None
    assert output.top1_agreement < 0.2


def test_zero_output_and_values_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rustq, "MISSING_INSTRUCTIONS", None)
    (output,) = compare(scaled(0), scaled(1), rows()).outputs
    assert output.sqnr_db is output.cosine is None
    result = compare(scaled(1), scaled(1, offset=math.inf), rows())
    assert result.outputs == ()
    assert result.notes == (
        "the 20 rows of the data are fed 8 at a time: 3 samples",
        'output "y": 80 value(s) are finite in only one model',
    )


def test_times_without_fast_integer_instructions_come_with_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for missing, count in ((None, 0), ("VNNI", 1)):
        monkeypatch.setattr(_rustq, "MISSING_INSTRUCTIONS", missing)
        result = compare(scaled(1), scaled(1), [rows(2)])
        assert sum("this processor lacks" in note for note in result.notes) == count
        assert str(result).count("lacks VNNI") == count


def test_paths_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(scaled(1), path)
    result = compare(path, str(path), [rows(2)])
    assert result.size_float == result.size_quantized == path.stat().st_size
    with pytest.raises(FileNotFoundError):
        compare(tmp_path / "no.onnx", path, [rows(2)])


def test_text_and_json() -> None:
    result = compare(scaled(1, outputs=("y", "z")), scaled(1, outputs=("z", "y")), rows())
    assert [output.name for output in result.outputs] == ["y", "z"]
    shown = str(result)
    assert "exact" in shown
    assert "100.00 %" in shown
    assert "latency, 1 thread" in shown
    values = json.loads(result.to_json())
    assert values["outputs"][0]["sqnr_db"] is None
    assert values["speedup"] == pytest.approx(result.speedup)


def test_outputs_by_order_if_renamed() -> None:
    (output,) = compare(scaled(1), scaled(1, outputs=("renamed",)), rows()).outputs
    assert output.name == "y"


def test_models_that_differ_in_form() -> None:
    with pytest.raises(ModelError, match=r"different inputs: x .* against other"):
        compare(scaled(1), scaled(1, name="other"), rows())
    with pytest.raises(ModelError, match="different outputs: y against a, b"):
        compare(scaled(1), scaled(1, outputs=("a", "b")), rows())


def test_data_is_checked() -> None:
    with pytest.raises(DataError, match="the data is empty"):
        compare(scaled(1), scaled(1), [])
    with pytest.raises(DataError, match=r"takes \[N, 4\], the array is \[2, 5\]"):
        compare(scaled(1), scaled(1), [np.zeros((2, 5), np.float32)])


def test_progress() -> None:
    calls: list[tuple[int, int | None]] = []
    compare(
        scaled(1),
        scaled(1),
        rows(),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_medians_are_taken_in_turns() -> None:
    calls: list[str] = []
    first, second = interleaved_medians(
        lambda: calls.append("a"), lambda: calls.append("b"), seconds=0, least=3
    )
    assert calls == list("ab" + "ab" + "ba" + "ab")
    assert first >= 0
    assert second >= 0
