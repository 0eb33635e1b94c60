"""What training with quantization in the loop wins back: the table of docs/qat.md.

    .venv-frameworks/bin/python benches/qat.py

A small mobile network (tests/frameworks/mobile.py) is trained on scikit-learn's digits, and its
channels made uneven without changing its function, as they are in many mobile networks: one scale
for a tensor then does not fit. Scores are of 397 test images, in percent; training has a fixed
seed.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "frameworks"))

import rustq
import rustq.torch
import torch
from digits import TEST, TRAIN, accuracy
from mobile import Mobile, score, trained, uneven

IMAGES = TEST[0][:, None]
CALIBRATION = [torch.from_numpy(TRAIN[0][i : i + 64, None]) for i in range(0, 256, 64)]
CASES = (
    ("8, one scale", {"per_channel": False}),
    ("8, one scale, learned", {"per_channel": False, "learn_scales": True}),
    ("4, for each channel, learned", {"weight_bits": 4}),
    ("3, for each channel, learned", {"weight_bits": 3}),
)


def main() -> None:
    """Command line."""
    net = uneven(trained(Mobile(), 15, 3e-3), math.log(10))
    print(f"float {score(net):.1f}")
    plain = rustq.QuantConfig(
        per_channel=False, method="minmax", bias_correction=False, equalize=False, noise_price=0
    )
    for name, config in (("one scale, no corrections", plain), ("default", rustq.QuantConfig())):
        result = rustq.quantize(net, CALIBRATION, config=config)
        print(f"rustq, {name}: {accuracy(result, IMAGES):.1f}")
    for name, options in CASES:
        qat = rustq.torch.prepare_qat(net, CALIBRATION, **options)
        before = score(qat)
        trained(qat, 15, 1e-3, fresh=False)
        with tempfile.TemporaryDirectory() as folder:
            path = rustq.torch.export(qat, Path(folder, "net.onnx"))
            result = rustq.quantize(path)
        row = (name, before, score(qat), accuracy(result, IMAGES))
        print("| {} | {:.1f} | {:.1f} | {:.1f} |".format(*row), flush=True)


if __name__ == "__main__":
    main()
