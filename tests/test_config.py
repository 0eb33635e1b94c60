"""The knobs: their defaults, their checks and the matching of node names."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
from rustq.config import METHODS, QuantConfig
from rustq.images import ImageOptions


def test_defaults() -> None:
    config = QuantConfig()
    assert (config.method, config.percentile, config.weights) == ("auto", 99.99, "int8")
    assert config.per_channel is True
    assert config.exclude == config.exclude_op_types == ()
    assert config.providers == ("CPUExecutionProvider",)
    assert config.images is None
    assert config.threads is None


def test_frozen_keyword_only_hashable_replaceable() -> None:
    config = QuantConfig(exclude="a", images=ImageOptions(size=4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.method = "mse"  # type: ignore[misc]
    with pytest.raises(TypeError):
        QuantConfig("mse")  # type: ignore[call-arg]
    assert hash(config) == hash(dataclasses.replace(config))
    assert dataclasses.replace(config, method="mse").exclude == ("a",)


@pytest.mark.parametrize(
    ("knobs", "error", "message"),
    [
        ({"method": "kl"}, ValueError, f"unknown method 'kl': choose one of {', '.join(METHODS)}"),
        ({"method": None}, TypeError, "method must be one of auto, minmax"),
        (
            {"weights": "int3"},
            ValueError,
            "choose one of int8, float16, float32, int4, uint4, log2, binary",
        ),
        ({"percentile": 50}, ValueError, "above 50 and at most 100, got 50"),
        ({"percentile": 100.1}, ValueError, "above 50"),
        ({"percentile": float("nan")}, ValueError, "above 50"),
        ({"percentile": "99"}, TypeError, "percentile must be a number"),
        ({"percentile": True}, TypeError, "percentile must be a number"),
        ({"per_channel": 1}, TypeError, "per_channel must be True or False"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"threads": 1.0}, TypeError, "threads must be an int"),
        ({"exclude": 5}, TypeError, "exclude must be one or several of str or Pattern"),
        ({"exclude": ["a", 5]}, TypeError, "exclude must hold str or Pattern, got 5"),
        ({"exclude_op_types": [re.compile("a")]}, TypeError, "exclude_op_types must hold str"),
        ({"providers": ()}, ValueError, "providers must name at least one"),
        ({"images": {"size": 4}}, TypeError, "images must be a rustq.ImageOptions, got dict"),
    ],
)
def test_bad_values(knobs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        QuantConfig(**knobs)


@pytest.mark.parametrize("percentile", [50.1, 99.999, 100])
def test_percentile_bounds(percentile: float) -> None:
    assert QuantConfig(percentile=percentile).percentile == percentile


@pytest.mark.parametrize(
    ("exclude", "name", "expected"),
    [
        ("/head/Conv", "/head/Conv", True),
        ("/head/Conv", "/head/Conv_1", False),
        ("/head/*", "/head/a/b/Conv", True),
        ("/HEAD/*", "/head/Conv", False),
        ("layer[0]/Conv", "layer[0]/Conv", True),
        ("layer[01]", "layer1", True),
        (re.compile(r"Conv_\d+$"), "/head/Conv_12", True),
        (re.compile(r"^Conv"), "/head/Conv_12", False),
        (["a", re.compile("b")], "xbx", True),
        (("a", "b*"), "bc", True),
        ((name for name in ("a", "b")), "b", True),
        ((), "a", False),
        ("", "a", False),
    ],
)
def test_exclude(exclude: Any, name: str, expected: bool) -> None:
    config = QuantConfig(exclude=exclude)
    assert isinstance(config.exclude, tuple)
    assert config.excludes(name, "Conv") is expected


def test_exclude_op_types() -> None:
    config = QuantConfig(exclude_op_types="Gemm")
    assert config.excludes("a", "Gemm")
    assert not config.excludes("a", "Conv")


def test_unused_exclusions() -> None:
    config = QuantConfig(exclude=["a*", "z", re.compile("y$")])
    assert config.unused_exclusions(name for name in ("ab", "b")) == ("z", "y$")


def test_to_dict_is_json_ready() -> None:
    config = QuantConfig(exclude=re.compile("x"), images=ImageOptions(size=(4, 5), mean=(1, 2, 3)))
    values = json.loads(json.dumps(config.to_dict()))
    assert values["exclude"] == ["x"]
    assert values["images"]["size"] == [4, 5]
    assert values["method"] == "auto"


def test_image_options_normalise() -> None:
    options = ImageOptions(size=224, mean=(1, 2, 3), std=2)
    assert options.size == (224, 224)
    assert options.mean == (1.0, 2.0, 3.0)
    assert options.std == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "image size must be a positive int or (width, height), got 0"),
        ({"size": (1, 2, 3)}, "image size"),
        ({"size": (1, 2.5)}, "image size"),
        ({"layout": "CHW"}, "unknown image layout 'CHW': choose one of NCHW, NHWC"),
        ({"channels": "RGBA"}, "choose one of RGB, BGR, L"),
        ({"resize": "pad"}, "choose one of stretch, crop, letterbox"),
        ({"mean": (1, 2)}, "image mean must be 1 or 3 finite number(s), got (1, 2)"),
        ({"mean": (1, 2, 3), "channels": "L"}, "image mean must be 1 finite number(s)"),
        ({"std": (1, 0, 1)}, "std must not be 0"),
        ({"std": float("nan")}, "image std must be"),
        ({"scale": 0}, "scale must be a finite number other than 0"),
    ],
)
def test_bad_image_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageOptions(**options)


def test_what_runs_the_model() -> None:
    pair = ("CUDAExecutionProvider", {"device_id": 1})
    assert QuantConfig(providers=pair).providers == (pair,)
    config = QuantConfig(
        providers=[pair, "CPUExecutionProvider"], session_options={"a.b": 1}, runner=open
    )
    assert config.providers == (pair, "CPUExecutionProvider")
    values = config.to_dict()
    assert values["providers"] == [list(pair), "CPUExecutionProvider"]
    assert values["runner"] == "open"
    json.dumps(values)
    for bad in ({"providers": [("CUDA", 1)]}, {"session_options": "x"}, {"runner": 3}):
        with pytest.raises(TypeError, match=next(iter(bad))):
            QuantConfig(**bad)  # type: ignore[arg-type]
