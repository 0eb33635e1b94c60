"""The arithmetic that an Ascend chip deploys, from a float model and its record file alone.

The record is read by protobuf's own text parser. Each layer it names is replaced by

    q = clip(round(x / scale_d) + offset_d, -128, 127)
    y = layer(q - offset_d, round(w / scale_w), round(b / (scale_d * scale_w))) * scale_d * scale_w

with standard operators on whole numbers held in floats, as the toolkit's own simulation does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import helper, numpy_helper

FIELDS = (
    ("scale_d", 1, "TYPE_FLOAT", "LABEL_OPTIONAL"),
    ("offset_d", 2, "TYPE_INT32", "LABEL_OPTIONAL"),
    ("scale_w", 3, "TYPE_FLOAT", "LABEL_REPEATED"),
    ("offset_w", 4, "TYPE_INT32", "LABEL_REPEATED"),
    ("shift_bit", 5, "TYPE_UINT32", "LABEL_REPEATED"),
    ("skip_fusion", 6, "TYPE_BOOL", "LABEL_OPTIONAL"),
)


def _record_class() -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="record.proto", package="record")
    value = file.message_type.add(name="Value")
    for name, number, kind, label in FIELDS:
        value.field.add(
            name=name, number=number, type=getattr(kinds, kind), label=getattr(kinds, label)
        )
    entry = file.message_type.add(name="Entry")
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    nested = {"type": kinds.TYPE_MESSAGE}
    entry.field.add(
        name="value", number=2, type_name=".record.Value", label=kinds.LABEL_OPTIONAL, **nested
    )
    whole = file.message_type.add(name="Record")
    whole.field.add(
        name="record", number=1, type_name=".record.Entry", label=kinds.LABEL_REPEATED, **nested
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("record.Record"))


def read_record(text: str) -> dict[str, Any]:
    """The entries of a record file by node name; unknown fields and double names are errors."""
    parsed = text_format.Parse(text, _record_class()())
    entries = {entry.key: entry.value for entry in parsed.record}
    assert len(entries) == len(parsed.record), "a node has two entries"
    return entries


def simulated(model: onnx.ModelProto, entries: dict[str, Any]) -> onnx.ModelProto:
    """`model` with the deployed arithmetic in the place of the layers that `entries` names."""
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names), "node names are not unique"
    assert set(entries) <= set(names), "an entry names no node"
    out = onnx.ModelProto()
    out.CopyFrom(model)
    nodes = list(out.graph.node)
    out.graph.ClearField("node")
    for node in nodes:
        if node.name in entries:
            _deploy(out.graph, node, entries[node.name], weights)
        else:
            out.graph.node.append(node)
    return out


def _deploy(graph: onnx.GraphProto, node: onnx.NodeProto, entry: Any, weights: Any) -> None:
    scale_d, scale_w = np.float32(entry.scale_d), np.array(entry.scale_w, np.float32)
    assert scale_d > 0 and (scale_w > 0).all() and -128 <= entry.offset_d <= 127
    assert list(entry.offset_w) == [0] * len(scale_w)

    def constant(part: str, value: Any) -> str:
        name = f"{node.name}:{part}"
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def add(op_type: str, part: str, *inputs: str, output: str = "") -> str:
        output = output or f"{node.name}:{part}"
        graph.node.append(helper.make_node(op_type, inputs, [output], f"{node.name}:{part}"))
        return output

    offset = constant("offset", entry.offset_d)
    x = add("Div", "divided", node.input[0], constant("scale", scale_d))
    x = add("Add", "moved", add("Round", "rounded", x), offset)
    x = add("Clip", "clipped", x, constant("least", -128), constant("most", 127))
    x = add("Sub", "whole", x, offset)

    per_weight, per_output = _broadcast(node, weights[node.input[1]], scale_w)
    whole = np.clip(np.round(weights[node.input[1]] / per_weight), -128, 127)
    inputs = [x, constant("weights", whole)]
    if len(node.input) > 2 and node.input[2]:
        bias = np.round(weights[node.input[2]].astype(np.float64) / (np.float64(scale_d) * scale_w))
        assert np.abs(bias).max() <= 2**31 - 1
        inputs.append(constant("bias", bias))
    inner = f"{node.name}:sums"
    layer = onnx.NodeProto()
    layer.CopyFrom(node)
    del layer.input[:], layer.output[:]
    layer.input.extend(inputs)
    layer.output.append(inner)
    graph.node.append(layer)
    add("Mul", "real", inner, constant("real_scale", scale_d * per_output), output=node.output[0])


def _broadcast(node: onnx.NodeProto, weight: Any, scale: Any) -> tuple[Any, Any]:
    """The scales in shapes that fit the weights, and the outputs."""
    if len(scale) == 1:
        return scale[0], scale[0]
    rest = [1] * (weight.ndim - 2)
    per_output = scale.reshape([1, -1, *rest])
    if node.op_type == "Conv":
        assert len(scale) == weight.shape[0], "one scale for each output channel"
        return scale.reshape([-1, 1, *rest]), per_output
    assert node.op_type == "ConvTranspose", f"{node.op_type} takes one scale"
    group = next((a.i for a in node.attribute if a.name == "group"), None)
    assert group is not None, "a ConvTranspose needs its group written out"
    assert len(scale) == weight.shape[1] * group, "one scale for each output channel"
    per_group = scale.reshape(group, 1, weight.shape[1], *rest)
    rows = np.broadcast_to(per_group, (group, weight.shape[0] // group, weight.shape[1], *rest))
    return rows.reshape(weight.shape[0], weight.shape[1], *rest), per_output
