"""Writes the JSON Schema of what rustq prints and writes as JSON: docs/report.schema.json.

    python scripts/report_schema.py            # writes it
    python scripts/report_schema.py --check    # fails if it is not what would be written

It is read off the dataclasses: types from their annotations, descriptions from their docstrings.
What is a number there may be null: JSON has no infinity. tests/test_json_schema.py holds real
output against it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Any

from rustq.comparison import Comparison, OutputComparison
from rustq.fusion import Fusion
from rustq.page.facts import File, Scores
from rustq.ranking import LayerSensitivity, Sensitivity
from rustq.report import LayerReport, Report, TensorParams

PATH = Path(__file__).resolve().parents[1] / "docs" / "report.schema.json"
CLASSES = (
    Report,
    LayerReport,
    TensorParams,
    Comparison,
    OutputComparison,
    Sensitivity,
    LayerSensitivity,
    Fusion,
    File,
    Scores,
)
PLAIN = {bool: "boolean", int: "integer", str: "string"}
NUMBER: dict[str, Any] = {"type": ["number", "null"]}
DECIBELS = {**NUMBER, "description": "the same in dB"}
MORE: dict[type, dict[str, Any]] = {
    Report: {"summary": {"type": "string", "description": "all of it in one paragraph"}},
    Comparison: {
        "speedup": {**NUMBER, "description": "float time over quantized time, if both were taken"}
    },
    Sensitivity: {"sqnr_db": DECIBELS},
    LayerSensitivity: {"sqnr_db": DECIBELS},
}
"""What their `to_dict` adds."""


def schema_of(annotation: Any) -> dict[str, Any]:
    """The schema of the JSON form of a Python type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in PLAIN:
        return {"type": PLAIN[annotation]}
    if annotation is float:
        return dict(NUMBER)
    if annotation in CLASSES:
        return {"$ref": f"#/$defs/{annotation.__name__}"}
    if origin in (typing.Union, types.UnionType):
        (inner,) = (each for each in arguments if each is not type(None))
        return _or_null(schema_of(inner))
    if origin is tuple and arguments[-1] is not Ellipsis:
        items = [schema_of(each) for each in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if origin in (list, tuple):
        return {"type": "array", "items": schema_of(arguments[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": schema_of(arguments[1])}
    raise TypeError(f"no schema for {annotation}")


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type")
    if kind is None or "items" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    kinds = kind if isinstance(kind, list) else [kind]
    return {**schema, "type": [*kinds, *(["null"] if "null" not in kinds else [])]}


def definition(cls: type) -> dict[str, Any]:
    """The schema of a dataclass."""
    hints, told = typing.get_type_hints(cls), descriptions(cls)
    properties = {
        field.name: {**schema_of(hints[field.name]), "description": told[field.name]}
        for field in dataclasses.fields(cls)
    }
    properties |= MORE.get(cls, {})
    return closed(properties, cleandoc(cls.__doc__ or "").splitlines()[0])


def closed(properties: dict[str, Any], description: str) -> dict[str, Any]:
    """An object with these keys, all of them and no others."""
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def descriptions(cls: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each of its attributes."""
    _, _, attributes = cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.replace("`", "").split()) for name, text in entries}


def written() -> dict[str, Any]:
    """The whole schema: what `--report r.json` writes, and under `$defs` what is in it."""
    texts = {"type": "array", "items": {"type": "string"}}
    parts = {
        "report": {"$ref": "#/$defs/Report"},
        "comparison": {"$ref": "#/$defs/Comparison"},
        "scores": {"$ref": "#/$defs/Scores"},
        "fusion": {"$ref": "#/$defs/Fusion"},
    }
    shares = {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
        "description": "each int8 layer's share of the error of the outputs, if measured",
    }
    files = {"type": "array", "items": {"$ref": "#/$defs/File"}}
    strings = {"type": "object", "additionalProperties": {"type": "string"}}
    page = {
        **{name: {"anyOf": [part, {"type": "null"}]} for name, part in parts.items()},
        "shares": shares,
        "advice": {**texts, "description": "what to try next, the most important first"},
        "files": files,
        "versions": {**strings, "description": "of packages, Python and the machine"},
        "config": {"type": ["object", "null"], "description": "QuantConfig, every option"},
    }
    printed = {"files": texts, "report": {"$ref": "#/$defs/Report"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The report of rustq",
        **closed(page, "what `--report r.json` and `save_report('r.json')` write"),
        "$defs": {
            "Quantized": closed(printed, "what `rustq quantize --json` prints"),
            **{cls.__name__: definition(cls) for cls in CLASSES},
        },
    }


def main() -> int:
    """Command line."""
    text = json.dumps(written(), indent=2, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv:
        PATH.write_text(text, encoding="utf-8")
    elif not PATH.exists() or PATH.read_text(encoding="utf-8") != text:
        print(f"{PATH.name} is not up to date: run {Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
