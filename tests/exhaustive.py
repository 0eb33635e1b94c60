"""Every float32 bit pattern through rustq.kernels and ONNX Runtime: `make exhaustive`, minutes.

Any difference is printed and makes the exit status 1.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort
from builders import Net
from rustq import kernels

STEP = 1 << 24
PAIRS = [
    (dtype, scale, zero)
    for dtype, zeros in {"int8": (0, -128, 127), "uint8": (0, 128, 255)}.items()
    for zero in zeros
    for scale in (1.0, 0.1, 1 / 3, 0.00392157, 1e-20, 1.2e-38, 1e-42, 3e38)
] + [("int16", 1e-3, 7), ("uint16", 0.7, 40_000)]


def session(dtype: str, scale: float, zero: int) -> ort.InferenceSession:
    net = Net()
    net.input("x", STEP)
    s, z = net.constant(scale), net.constant(zero, dtype=np.dtype(dtype))
    q = net.op("QuantizeLinear", "x", s, z)
    return ort.InferenceSession(net.model(q, opset=21).SerializeToString())


def main() -> int:
    """Compares, one pair of a scale and a zero point after the other."""
    different = 0
    for dtype, scale, zero in PAIRS:
        peer, differences = session(dtype, scale, zero), 0
        for start in range(0, 1 << 32, STEP):
            x = np.arange(start, start + STEP, dtype=np.uint32).view(np.float32)
            (expected,) = peer.run(None, {"x": x})
            found = kernels.quantize(x, scale, zero, dtype=dtype)
            differences += int(np.count_nonzero(found != expected))
        print(
            f"{dtype:6} scale {scale:<12g} zero point {zero:<6} differences {differences}",
            flush=True,
        )
        different += differences
    return different > 0


if __name__ == "__main__":
    sys.exit(main())
