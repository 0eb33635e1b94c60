"""Models and data of the frameworks that people train in.

A row of `FRAMEWORKS` says how objects of one are told, and which module here exports them. None is
a dependency: a module is imported when an object of its framework turns up, or a file that only it
can read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rustq.errors import UnsupportedError
from rustq.readers import adapted

__all__ = ["FRAMEWORKS", "Framework", "example", "exported", "framework_of", "needed"]


@dataclass(frozen=True)
class Framework:
    """A framework.

    Attributes:
        module: of this package, with `export(model, samples)`, which returns the bytes of an
            ONNX model, or its path where it is one already.
        classes: of models: the package of their module and their names; subclasses count.
        suffixes: of the files that only it can read.
        is_folder: whether a folder is one of its models.
        extra: of this distribution, which installs what the export needs.
        samples: how many samples of the data the export looks at.
    """

    module: str
    classes: tuple[tuple[str, str], ...]
    suffixes: tuple[str, ...] = ()
    is_folder: Callable[[Path], bool] = field(default=lambda _: False)
    extra: str = ""
    samples: int = 0

    def takes(self, model: Any) -> bool:
        """Whether `model` is of this framework."""
        if isinstance(model, str | os.PathLike):
            path = Path(model)
            return path.suffix.lower() in self.suffixes or (path.is_dir() and self.is_folder(path))
        return any(
            (base.__module__.partition(".")[0], base.__name__) in self.classes
            for base in type(model).__mro__
        )

    def export(self, model: Any, samples: list[Any]) -> Any:
        """The model as ONNX."""
        with needed(self.extra):
            return import_module(f"{__name__}.{self.module}").export(model, samples)


FRAMEWORKS = (
    Framework("torch", (("torch", "Module"),), extra="torch", samples=2),
    Framework(
        "keras",
        (("keras", "Model"), ("keras", "Functional"), ("tf_keras", "Model")),
        suffixes=(".keras", ".h5", ".hdf5"),
        extra="keras",
    ),
    Framework(
        "tensorflow",
        (),
        is_folder=lambda folder: (folder / "saved_model.pb").is_file(),
        extra="tensorflow",
    ),
)


def framework_of(model: Any) -> Framework | None:
    """The framework that a model is of; `None` for ONNX."""
    return next((framework for framework in FRAMEWORKS if framework.takes(model)), None)


def exported(model: Any, data: Any = None) -> tuple[Any, Any]:
    """A model in a form that `rustq.load` takes, and the data, of which an iterator's first samples
    may have been looked at; a data reader in a form that can be iterated.

    Raises:
        UnsupportedError: a package that exports it is not installed; the message says how it is.
        ModelError: the framework cannot export it.
        DataError: it needs an example of its inputs, and there is none.
        OSError: a file cannot be read.
    """
    data = adapted(data)
    framework = framework_of(model)
    if framework is None:
        return model, data
    samples, data = example(data, framework.samples)
    return framework.export(model, samples), data


def example(data: Any, count: int) -> tuple[list[Any], Any]:
    """The first samples of data, and data that still have them."""
    from rustq.calibration import Calibration

    if data is None or not count or isinstance(data, Calibration):
        return [], data
    if isinstance(data, Iterator):
        samples = list(islice(data, count))
        return samples, chain(samples, data)
    from rustq.frameworks.data import first_samples

    return first_samples(data, count), data


class needed:
    """Turns a package that is missing inside the block into an `UnsupportedError` that names the
    extra of this distribution which brings it."""

    def __init__(self, extra: str) -> None:
        self._extra = extra

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Reports a missing package."""
        if isinstance(error, ModuleNotFoundError) and self._extra:
            install = f"pip install 'rustq[{self._extra}]'"
            raise UnsupportedError(
                f"this needs {error.name}, which is not installed: {install}"
            ) from error
