"""The report: built from records, told in words, as a table and as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rustq import text
from rustq.report import LayerReport, Report, TensorParams


def record(name: str, op_type: str = "Conv", **more: Any) -> dict[str, Any]:
    return {"name": name, "op_type": op_type, "quantized": True, **more}


def sample_report() -> Report:
    weight = {
        "name": "w",
        "dtype": "int8",
        "scale": [0.5, 0.25],
        "zero_point": [0, 0],
        "axis": 0,
    }
    image = {"name": "x", "dtype": "uint8", "scale": 0.1, "zero_point": 3, "range": [-0.3, 25.2]}
    return Report.from_records(
        [
            record(
                "a", inputs=[image, weight], weight_sqnr_db=40.0, macs=900, reason="per channel"
            ),
            record("b", macs=90, activation_sqnr_db=float("inf")),
            record("c", quantized=False, reason="excluded by the configuration", macs=10),
            record("d", "Softmax", quantized=False, reason="loses accuracy in int8"),
            record("e", "Gemm", macs=0),
        ],
        notes=["tensor t is constant zero"],
        size_before=4_000_000,
        size_after=1_040_000,
        opset_before=11,
        opset_after=17,
        scheme="asym",
        target="onnxruntime",
        method="auto",
        samples=16,
        seconds=1.25,
        versions={"rustq": "0.1.0"},
    )


def test_from_records() -> None:
    report = sample_report()
    first = report.layers[0]
    assert first.inputs[0] == TensorParams(
        name="x", dtype="uint8", scale=(0.1,), zero_point=(3,), range=(-0.3, 25.2)
    )
    assert first.inputs[1].scale == (0.5, 0.25)
    assert first.inputs[1].axis == 0
    assert report.layers[1].inputs == ()


@pytest.mark.parametrize("bad", [{"nmae": "x"}, {"op_type": "Conv"}, record("a", colour="red")])
def test_records_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        LayerReport.from_record(bad)
    with pytest.raises(TypeError):
        Report.from_records([], colour="red")


def test_summary() -> None:
    assert sample_report().summary() == (
        "2 of 3 convolutions and 1 of 1 matrix product in int8 (99.0 % of the"
        " multiply-accumulates). Left in float: 1 (excluded by the configuration)."
        " 4.0 MB became 1.0 MB (26 %) in 1.2 s."
    )


def test_summary_without_macs_or_layers() -> None:
    assert Report.from_records([record("a")]).summary() == "1 of 1 convolution in int8."
    assert "No convolution" in Report.from_records([]).summary()
    assert "No convolution" in Report.from_records([record("a", "Add")]).summary()


def test_float_reasons_most_frequent_first() -> None:
    layers = [
        record(name, op, quantized=False, reason=reason)
        for name, op, reason in [
            ("a", "Conv", "one"),
            ("b", "Add", "two"),
            ("c", "Add", "two"),
            ("d", "Add", ""),
        ]
    ]
    report = Report.from_records(layers)
    assert list(report.float_reasons().items()) == [
        ("two", ["b", "c"]),
        ("one", ["a"]),
        ("no reason recorded", ["d"]),
    ]
    assert report.float_reasons(heavy=True) == {"one": ["a"]}
    assert report.op_counts() == {"Conv": (0, 1), "Add": (0, 3)}


def test_text() -> None:
    shown = str(sample_report())
    lines = shown.splitlines()
    assert lines[0] == sample_report().summary()
    assert lines[-1] == "note: tensor t is constant zero"
    assert "40.0 dB" in shown
    assert "exact" in shown
    assert "loses accuracy in int8" in shown


def test_json() -> None:
    values = json.loads(sample_report().to_json())
    assert values["summary"] == sample_report().summary()
    assert values["layers"][0]["inputs"][0]["scale"] == [0.1]
    assert values["layers"][1]["activation_sqnr_db"] is None  # infinite
    assert values["layers"][2]["reason"] == "excluded by the configuration"
    assert values["versions"] == {"rustq": "0.1.0"}
    assert values["opset_before"] == 11


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (14_215_560, "14.2 MB"), (10**12, "1.0 TB")],
)
def test_size(count: int, expected: str) -> None:
    assert text.size(count) == expected


def test_table_is_aligned() -> None:
    assert text.table(("a", "long"), [("xyz", "1")]) == "a    long\n---  ----\nxyz  1"
    assert text.table(("a",), []) == "a\n-"
