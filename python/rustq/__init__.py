"""rustq makes neural networks small and fast: an ONNX model in, a faithful INT8 model out.

```python
import rustq

result = rustq.quantize("model.onnx", data)     # data: arrays, an .npz, a folder of images, …
result.save("model.int8.onnx")
print(result.report.summary())
```
"""

from rustq import kernels
from rustq._rustq import __version__
from rustq.api import calibrate, fold, load, quantize
from rustq.calibration import Calibration
from rustq.compare import Comparison, compare
from rustq.config import ImageOptions, QuantConfig
from rustq.errors import DataError, ModelError, RustqError, UnsupportedError
from rustq.model import Model, QuantizedModel
from rustq.report import Report

__all__ = [
    "Calibration",
    "Comparison",
    "DataError",
    "ImageOptions",
    "Model",
    "ModelError",
    "QuantConfig",
    "QuantizedModel",
    "Report",
    "RustqError",
    "UnsupportedError",
    "__version__",
    "calibrate",
    "compare",
    "fold",
    "kernels",
    "load",
    "quantize",
]
