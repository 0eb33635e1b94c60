"""Training with quantization in the loop, for PyTorch.

```py
import rustq.torch

net = rustq.torch.prepare_qat(net, loader)  # fake quantization, from ranges that rustq calibrates
...  # train a few epochs, as usual
rustq.torch.export(net, "net.qat.onnx")  # QuantizeLinear/DequantizeLinear pairs
rustq.quantize("net.qat.onnx").save("net.int8.onnx")  # or for any other target
```

See docs/qat.md.
"""

from __future__ import annotations

from rustq.frameworks import needed

__all__ = ["ActivationQuantizer", "WeightQuantizer", "export", "prepare_qat"]

with needed("torch"):
    from rustq.torch.exporting import export
    from rustq.torch.preparing import prepare_qat
    from rustq.torch.quantizers import ActivationQuantizer, WeightQuantizer
