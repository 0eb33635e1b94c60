"""The exceptions of rustq.

Bad arguments are `ValueError` or `TypeError`, and files that cannot be opened or written are
`OSError`s; everything else that can go wrong with what a user hands over is one of the errors
below. The Rust core raises the same classes.
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "InternalError",
    "ModelError",
    "RustqError",
    "UnsupportedError",
    "WorkerError",
]


class RustqError(Exception):
    """Base of the errors rustq raises on purpose; the message is one line."""


class ModelError(RustqError):
    """The model is damaged, not ONNX, or inconsistent; the message says where."""


class DataError(RustqError):
    """The data does not fit the model; the message names the sample, file or input."""


class UnsupportedError(RustqError):
    """The request is sound, but this version of rustq, or the target, cannot do it."""


class WorkerError(RustqError):
    """A worker of an executor died; the message says which samples it had."""


class InternalError(RustqError):
    """A defect of rustq: please report the message, and the model if you can."""
