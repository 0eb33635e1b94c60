"""Where rustq and NVIDIA's modelopt put pairs for TensorRT, tensor by tensor.

    python benches/placement.py [MODEL.onnx …]    # needs requirements-modelopt.txt

Without arguments: ResNet-18 and the mixed net of networks.py. Both quantize the model as rustq
folds it, from the same data, with all that TensorRT can take (noise_price=0). A tensor counts as
quantized where some operator reads it through a pair. Also has modelopt read the calibration cache,
and compares the scales it takes from there with those of our pairs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import networks
import numpy as np
import onnx
import rustq
from markdown import table
from onnx import numpy_helper

SAMPLES = 8
HEADER = ("model", "both", "only rustq", "only modelopt", "cache read back")


def quantized_reads(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Activations that are read through a pair, and the operators that do."""
    made = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    reads: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            dequantize = made.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantize = made.get(dequantize.input[0])
            if quantize is not None and quantize.input[0] not in constants:
                reads.setdefault(quantize.input[0], []).append(node.op_type)
    return reads


def scales(model: onnx.ModelProto) -> dict[str, float]:
    """The scale of each quantized activation."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = node.attribute[0].t
    return {
        node.input[0]: float(numpy_helper.to_array(values[node.input[1]]).reshape(-1)[0])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in values
    }


def modelopt(
    path: Path, data: dict[str, np.ndarray], folder: Path, **more: object
) -> onnx.ModelProto:
    """What NVIDIA's tool makes of a model."""
    from modelopt.onnx.quantization import quantize

    target = folder / "modelopt.onnx"
    quantize(str(path), quantize_mode="int8", calibration_data=data, calibration_method="max",
             calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=str(target),
             log_level="ERROR", **more)  # fmt: skip
    return onnx.load(target)


def shown(names: set[str], graph: onnx.ModelProto, reads: dict[str, list[str]]) -> str:
    """Tensors, as what makes them and what reads their pairs."""
    made = {name: node.op_type for node in graph.graph.node for name in node.output}
    kinds: dict[str, int] = {}
    for name in names:
        kind = f"{made.get(name, 'input')} → {', '.join(sorted(set(reads[name])))}"
        kinds[kind] = kinds.get(kind, 0) + 1
    return "; ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


def compare(path: Path, folder: Path) -> Iterator[str]:
    """The cells of a line."""
    folded = folder / "folded.onnx"
    rustq.fold(path).save(folded)
    random = np.random.default_rng(0)
    value = rustq.load(folded).inputs[0]
    shape = [length if isinstance(length, int) else 1 for length in value.shape or ()]
    samples = [random.normal(size=shape).astype(np.float32) for _ in range(SAMPLES)]
    config = rustq.QuantConfig(noise_price=0, method="minmax")
    result = rustq.quantize(folded, samples, target="tensorrt", config=config)
    cache = result.save(folder / "ours.onnx")[1]
    data = {value.name: np.concatenate(samples)}
    mine, theirs = result.to_onnx(), modelopt(folded, data, folder)
    ours, others = quantized_reads(mine), quantized_reads(theirs)
    graph = onnx.load(folded)
    yield path.stem
    yield str(len(set(ours) & set(others)))
    yield shown(set(ours) - set(others), graph, ours)
    yield shown(set(others) - set(ours), graph, others)
    read = scales(modelopt(folded, data, folder, calibration_cache_path=str(cache)))
    written = scales(mine)
    same = sum(
        np.float32(read[name]) == np.float32(written[name]) for name in set(read) & set(written)
    )
    yield f"{same} of {len(set(read) & set(written))} scales equal"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, lines = Path(scratch), []
        for name in () if options.models else ("resnet18", "mixed"):
            onnx.save(networks.NETWORKS[name](), folder / f"{name}.onnx")
            options.models.append(folder / f"{name}.onnx")
        for path in options.models:
            print(path.stem, file=sys.stderr, flush=True)
            lines.append(list(compare(path, folder)))
    print(table(HEADER, lines))


if __name__ == "__main__":
    main()
