"""Writes `fuzz/seeds/`: small models and calibrations to begin with, from the zoo of the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import rustq
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import builders  # noqa: E402
import zoo  # noqa: E402

LARGEST = 16_000
MODELS = (
    *(zoo.branching, zoo.looping, zoo.constant_nodes, zoo.initializers_as_inputs, zoo.recurrent),
    *(zoo.shared_weights, zoo.nameless, zoo.odd_biases, zoo.taken_names, zoo.custom_operator),
    *(zoo.already_quantized, zoo.squeeze_and_excite),
)


def folding() -> onnx.ModelProto:
    """Something for most families of rules."""
    net = builders.Net()
    x = net.batch_norm(net.conv(net.input("x", 1, 3, 6, 6), 3, 4), 4)
    x = net.op("Mul", net.op("Pad", x, net.constant([0] * 8, dtype=np.int64)), net.constant(2.0))
    x = net.op("Transpose", net.op("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
    x = net.op("GlobalAveragePool", net.op("Clip", x, net.constant(0.0), net.constant(6.0)))
    x = net.linear(net.op("Flatten", net.op("Relu", x)), 4, 8)
    x = net.op("Sub", net.linear(net.op("Identity", x), 8, 8, "MatMul"), net.weight(8))
    return net.model(net.op("Reshape", x, net.constant([2, 4], dtype=np.int64)))


def external() -> onnx.ModelProto:
    """Weights in `w.bin`, which has 100 bytes."""
    net = builders.Net()
    model = net.model(net.op("MatMul", net.input("x", 1, 4), net.weight(4, 4, name="w")))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "16", "length": "64"}.items():
        tensor.external_data.add(key=key, value=value)
    return model


def everything() -> onnx.ModelProto:
    """Functions, training, sparse weights, quantization annotations, metadata."""
    model = folding()
    model.functions.add(name="f", domain="own", input=["a"], output=["b"]).node.append(
        helper.make_node("Relu", ["a"], ["b"])
    )
    model.functions[0].opset_import.add(version=17)
    model.metadata_props.add(key="k", value="v")
    model.training_info.add().algorithm.CopyFrom(helper.make_graph([], "step", [], []))
    sparse = model.graph.sparse_initializer.add(dims=[3, 3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([1, 2]), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([1, 5])))
    model.graph.quantization_annotation.add(tensor_name="x")
    return model


def main() -> None:
    """Writes the files."""
    folder = HERE / "seeds"
    for made in (*MODELS, folding, external, everything):
        content = made().SerializeToString()
        if len(content) <= LARGEST:
            (folder / "model").mkdir(parents=True, exist_ok=True)
            (folder / "model" / f"{made.__name__}.onnx").write_bytes(content)
    model = folding()
    calibration = rustq.calibrate(model, builders.random_feeds(model, 2))
    (folder / "calibration").mkdir(exist_ok=True)
    calibration.save(folder / "calibration" / "folding.calibration")


if __name__ == "__main__":
    main()
