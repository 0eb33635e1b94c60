"""Every float32 bit pattern through rustq.kernels and ONNX Runtime: `make exhaustive`, minutes.

Each pair of a scale and a zero point is a line, printed at the end with the number of differences;
any makes the exit status 1.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
from builders import Array, Net
from rustq import kernels

STEP = 1 << 20  # so that each pair finds its input in the cache
SHARES = 64  # after each of which progress is printed
SCALES = (1.0, 0.1, 1 / 3, 0.00392157, 1e-20, 1.2e-38, 1e-42, 3e38)
ZEROS = {"int8": (0, -128, 127), "uint8": (0, 128, 255)}
PAIRS = [
    *((dtype, scale, zero) for dtype in ZEROS for zero in ZEROS[dtype] for scale in SCALES),
    ("int16", 1e-3, 7),
    ("uint16", 0.7, 40_000),
]


def peer(dtype: str, scale: float, zero: int) -> Callable[[Array], Array]:
    """QuantizeLinear in ONNX Runtime, on the thread that calls it."""
    net = Net()
    net.input("x", STEP)
    s, z = net.constant(scale), net.constant(zero, dtype=np.dtype(dtype))
    q = net.op("QuantizeLinear", "x", s, z)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(net.model(q, opset=21).SerializeToString(), options)
    return lambda x: session.run(None, {"x": x})[0]


def differences(start: int, end: int, peers: list[Callable[[Array], Array]]) -> list[int]:
    """How many of these bit patterns differ, for each pair."""
    found = [0] * len(PAIRS)
    for first in range(start, end, STEP):
        x = np.arange(first, first + STEP, dtype=np.uint32).view(np.float32)
        for i, (dtype, scale, zero) in enumerate(PAIRS):
            ours = kernels.quantize(x, scale, zero, dtype=dtype)
            found[i] += int(np.count_nonzero(ours != peers[i](x)))
    return found


def main() -> int:
    """Compares, the patterns shared out among threads."""
    peers = [peer(*pair) for pair in PAIRS]
    share, began, totals = (1 << 32) // SHARES, time.monotonic(), np.zeros(len(PAIRS), np.int64)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shares = pool.map(lambda i: differences(i * share, (i + 1) * share, peers), range(SHARES))
        for done, found in enumerate(shares, 1):
            totals += found
            seconds = time.monotonic() - began
            print(f"{done}/{SHARES} {seconds:.0f} s, {totals.sum()} differences", flush=True)
    for (dtype, scale, zero), total in zip(PAIRS, totals, strict=True):
        print(f"{dtype:6} scale {scale:<12g} zero point {zero:<6} differences {total}")
    return bool(totals.any())


if __name__ == "__main__":
    sys.exit(main())
