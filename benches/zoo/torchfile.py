"""Reads the tensors of a PyTorch checkpoint (.pth) without PyTorch.

A checkpoint is a pickle that describes tensors as views of numbered storages, plus the storages'
raw bytes: in a zip archive (PyTorch >= 1.6), or one after another behind the pickle (older). The
unpickler here resolves only the four names such a file needs, so nothing in the file can run code.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _View(NamedTuple):
    """A tensor before its storage is known; offset and strides count elements."""

    storage: tuple[str, np.dtype[Any]]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, storages: dict[str, bytes]) -> np.ndarray:
        key, dtype = self.storage
        flat = np.frombuffer(storages[key], dtype)[self.offset :]
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape or min(self.strides, default=0) < 0 or reach >= len(flat):
            raise ValueError(f"a tensor of shape {self.shape} does not fit its storage")
        strides = [step * dtype.itemsize for step in self.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, strides))


def _rebuild(storage: Any, offset: int, shape: Any, strides: Any, *_: object) -> _View:
    return _View(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a checkpoint")

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype[Any]]:
        _, dtype, key, *_ = pid  # ("storage", dtype, key, device, length, ...)
        return key, dtype


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint's state dict, by name."""
    views, storages = (_read_zip if zipfile.is_zipfile(path) else _read_stream)(path)
    return {name: view.read(storages) for name, view in views.items()}


def _read_zip(path: Path) -> tuple[dict[str, _View], dict[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        views = _Unpickler(io.BytesIO(archive.read(index))).load()
        folder = index.removesuffix("data.pkl") + "data/"
        keys = {view.storage[0] for view in views.values()}
        return views, {key: archive.read(folder + key) for key in keys}


def _read_stream(path: Path) -> tuple[dict[str, _View], dict[str, bytes]]:
    with path.open("rb") as file:
        _magic, _protocol, _system, views, keys = (_Unpickler(file).load() for _ in range(5))
        dtypes = dict(view.storage for view in views.values())
        storages = {}
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            storages[key] = file.read(count * dtypes[key].itemsize)
    return views, storages
