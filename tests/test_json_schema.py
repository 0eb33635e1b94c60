"""What is printed and written as JSON, held against its schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rustq
from jsonschema import Draft202012Validator, ValidationError
from rustq import cli, demo

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "report.schema.json").read_text("utf-8"))


def check(value: Any, of: str = "") -> None:
    """Raises where a value does not fit the schema, or one of its definitions."""
    schema = {"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{of}"} if of else SCHEMA
    Draft202012Validator(schema).validate(value)


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for definition in SCHEMA["$defs"].values():
        assert definition["description"]
        for name, entry in definition["properties"].items():
            assert entry.get("description") or "$ref" in entry or name == "files", name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("json")
    np.save(made / "data.npy", np.concatenate([feed[demo.INPUT] for feed in demo.calibration()]))
    return made


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert cli.main([str(each) for each in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, out = demo.model_path(), folder / "data.npy", folder / "q.onnx"
    page = folder / "r.json"
    check(
        printed(capsys, "quantize", model, "--data", data, "-o", out, "--report", page, "--json"),
        "Quantized",
    )
    found = json.loads(page.read_text("utf-8"))
    check(found)
    assert found["comparison"] and found["shares"] and found["fusion"]["kernels"]
    check(
        printed(capsys, "compare", model, out, "--data", data, "--report", page, "--json"),
        "Comparison",
    )
    check(json.loads(page.read_text("utf-8")))
    check(printed(capsys, "sensitivity", model, "--data", data, "--json"), "Sensitivity")


@pytest.mark.parametrize(
    "target, options",
    [
        ("onnxruntime", {}),
        ("onnxruntime", {"data": None}),
        ("onnxruntime", {"scheme": "sym", "max_drop": 0.001}),
        ("onnxruntime", {"config": rustq.QuantConfig(weights="int4")}),
        ("tensorrt", {}),
        ("ncnn", {}),
        ("ascend", {}),
    ],
)
def test_every_kind_of_result(target: str, options: dict[str, Any], tmp_path: Path) -> None:
    options = {"data": demo.calibration(), **options}
    result = rustq.quantize(demo.model_path(), target=target, **options)
    check(result.report.to_dict(), "Report")
    check(json.loads(result.save_report(tmp_path / "r.json").read_text("utf-8")))


def test_what_does_not_fit_is_told() -> None:
    good = rustq.quantize(demo.model_path()).report.to_dict()
    check(good, "Report")
    for change in (
        lambda report: report.pop("layers"),
        lambda report: report.update(colour="red"),
        lambda report: report["layers"][0].update(quantized="yes"),
        lambda report: report["layers"][1].pop("name"),
    ):
        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises(ValidationError):
            check(bad, "Report")
