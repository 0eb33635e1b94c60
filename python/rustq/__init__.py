"""rustq makes neural networks small and fast: an ONNX model in, a faithful INT8 model out.

```python
import rustq

result = rustq.quantize("model.onnx", data)     # data: arrays, an .npz, a folder of images, …
result.save("model.int8.onnx")
print(result.report.summary())
```
"""

from typing import TYPE_CHECKING, Any

from rustq._rustq import __version__

if TYPE_CHECKING:
    from rustq import kernels
    from rustq.api import calibrate, fold, load, quantize
    from rustq.calibration import Calibration
    from rustq.comparison import Comparison, compare
    from rustq.config import ImageOptions, QuantConfig
    from rustq.errors import (
        DataError,
        InternalError,
        ModelError,
        RustqError,
        UnsupportedError,
        WorkerError,
    )
    from rustq.folding import FoldedModel, FoldRecord
    from rustq.model import Model, QuantizedModel
    from rustq.ranking import Sensitivity, sensitivity
    from rustq.report import Report

__all__ = [
    "Calibration",
    "Comparison",
    "DataError",
    "FoldRecord",
    "FoldedModel",
    "ImageOptions",
    "InternalError",
    "Model",
    "ModelError",
    "QuantConfig",
    "QuantizedModel",
    "Report",
    "RustqError",
    "Sensitivity",
    "UnsupportedError",
    "WorkerError",
    "__version__",
    "calibrate",
    "compare",
    "fold",
    "kernels",
    "load",
    "quantize",
    "sensitivity",
]

_HOMES = {
    "api": ("calibrate", "fold", "load", "quantize"),
    "calibration": ("Calibration",),
    "comparison": ("Comparison", "compare"),
    "config": ("ImageOptions", "QuantConfig"),
    "folding": ("FoldedModel", "FoldRecord"),
    "errors": (
        "DataError",
        "InternalError",
        "ModelError",
        "RustqError",
        "UnsupportedError",
        "WorkerError",
    ),
    "model": ("Model", "QuantizedModel"),
    "ranking": ("Sensitivity", "sensitivity"),
    "report": ("Report",),
}
"""Where each public name lives. Modules are imported when one of their names is first used, so
that `import rustq` costs next to nothing. No module may be called like a public name."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in ("kernels", "torch"):
        return import_module(f"rustq.{name}")
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"rustq.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
