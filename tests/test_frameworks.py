"""Models and data of other frameworks: what is told without them, and what is said when they are missing.

The frameworks themselves are in tests/frameworks, which `make test-frameworks` runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rustq
from builders import Net
from rustq import frameworks
from rustq.frameworks.data import fitted, is_data_set


def of_package(package: str, name: str, **members: Any) -> Any:
    """An object whose class says it is of another package."""
    return type(name, (), {"__module__": f"{package}.somewhere", **members})()


@pytest.mark.parametrize(
    ("model", "module"),
    [
        (of_package("torch", "Module"), "torch"),
        (of_package("keras", "Model"), "keras"),
        ("net.keras", "keras"),
        (Path("net.H5"), "keras"),
        ("net.onnx", None),
        (b"", None),
        (of_package("torchvision", "Module"), None),
    ],
)
def test_a_model_is_told_without_its_framework(model: Any, module: str | None) -> None:
    found = frameworks.framework_of(model)
    assert (found and found.module) == module


def test_a_folder_is_a_saved_model_if_it_looks_like_one(tmp_path: Path) -> None:
    assert frameworks.framework_of(tmp_path) is None
    (tmp_path / "saved_model.pb").touch()
    found = frameworks.framework_of(tmp_path)
    assert found is not None and found.module == "tensorflow"


@pytest.mark.parametrize(("package", "extra"), [("keras", "keras"), ("tensorflow", "tensorflow")])
def test_a_missing_package_is_named_with_its_extra(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("rustq.frameworks.tensorflow.find_spec", lambda name: None)
    model = tmp_path / ("net.keras" if package == "keras" else "net")
    if package == "keras":
        model.touch()
    else:
        model.mkdir()
        (model / "saved_model.pb").touch()
    with pytest.raises(rustq.UnsupportedError, match=rf"{package}.*pip install 'rustq\[{extra}\]'"):
        rustq.load(model)


def test_a_module_without_an_example() -> None:
    with pytest.raises(rustq.DataError, match="example_inputs"):
        rustq.load(of_package("torch", "Module"))
    with pytest.raises(TypeError, match="not a path"):
        rustq.quantize(of_package("torch", "Module"), "samples.npz")


def test_every_extra_is_declared() -> None:
    import tomllib

    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    for framework in frameworks.FRAMEWORKS:
        assert framework.extra in project["optional-dependencies"]


def model() -> Any:
    net = Net(1)
    x = net.input("x", "n", 8)
    return net.model(net.linear(x, 8, 4))


def test_labels_of_a_data_set_are_left_out() -> None:
    rows = [(np.full((2, 8), i, np.float32), np.zeros(2)) for i in range(3)]
    loader = of_package("torch", "DataLoader", __iter__=lambda _: iter(rows), __len__=lambda _: 3)
    assert is_data_set(loader) and not is_data_set(rows)
    calibration = rustq.calibrate(model(), loader)
    assert calibration.samples == 3
    assert calibration.range("x", method="minmax") == (0, 2)
    with pytest.raises(rustq.DataError, match="if the others are labels"):
        rustq.calibrate(model(), rows)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ((1, 2, 3), (1, 2)),
        ({"a": 1, "b": 2, "label": 3}, {"a": 1, "b": 2}),
        (({"a": 1, "b": 2, "id": 4}, 3), {"a": 1, "b": 2}),
        (((1, 2), 3), (1, 2)),
        ((1, 2), (1, 2)),
    ],
)
def test_what_of_a_sample_two_inputs_take(sample: Any, expected: Any) -> None:
    data = fitted(of_package("datasets", "Dataset", __iter__=lambda _: iter([sample])), ["a", "b"])
    assert next(iter(data)) == expected
