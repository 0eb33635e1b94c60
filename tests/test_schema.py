"""Models made of every field of the ONNX schema, with any values, come out as they went in."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import rustq
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = st.sampled_from(["", "x", "y", "w", "body", "ä", "a/b:0"]) | st.text(max_size=8)
INT64 = st.integers(-(2**63), 2**63 - 1)
SCALARS = {
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: INT64,
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_STRING: NAMES,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=20),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
}
DEEPEST = 5


def value(draw: st.DrawFn, field: FieldDescriptor, depth: int, fill: float) -> Any:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return draw(st.sampled_from([entry.number for entry in field.enum_type.values]))
    return draw(SCALARS[field.type])


def build(draw: st.DrawFn, message: Message, depth: int, fill: float) -> None:
    """Fills some of the fields, those of the messages within too."""
    for field in message.DESCRIPTOR.fields:
        nested = field.type == FieldDescriptor.TYPE_MESSAGE
        if (nested and depth >= DEEPEST) or draw(st.floats(0, 1)) > fill:
            continue
        if field.is_repeated:
            entries = getattr(message, field.name)
            for _ in range(draw(st.integers(0, 2))):
                if nested:
                    build(draw, entries.add(), depth + 1, fill * 0.6)
                else:
                    entries.append(value(draw, field, depth, fill))
        elif nested:
            getattr(message, field.name).SetInParent()
            build(draw, getattr(message, field.name), depth + 1, fill * 0.6)
        else:
            setattr(message, field.name, value(draw, field, depth, fill))


def without_references(message: Message) -> None:
    """Data in other files is there only if those are; other tests have it."""
    for field, content in message.ListFields():
        if field.name == "data_location":
            message.ClearField("data_location")
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for one in content if field.is_repeated else [content]:
                without_references(one)


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    model = onnx.ModelProto()
    build(draw, model, 0, draw(st.sampled_from([0.3, 0.6, 1.0])))
    model.graph.SetInParent()
    model.opset_import.add(version=draw(INT64), domain=draw(NAMES))
    return model


CAREFUL = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@CAREFUL
@given(models())
def test_random_models(model: onnx.ModelProto) -> None:
    content = model.SerializeToString()
    assert rustq.load(content).to_bytes() == content


@CAREFUL
@given(models())
def test_random_models_are_folded_and_quantized_or_refused(model: onnx.ModelProto) -> None:
    content = model.SerializeToString()
    for verb in (rustq.fold, rustq.quantize):
        try:
            made = verb(content).to_onnx()
        except rustq.InternalError:
            raise
        except rustq.RustqError as error:
            assert "\n" not in str(error)
            continue
        for field in (
            "metadata_props",
            "doc_string",
            "functions",
            "training_info",
            "producer_name",
        ):
            kept = getattr(made, field) == getattr(model, field)
            assert kept or (model.functions and verb is rustq.quantize), field


def descriptors(descriptor: Descriptor, found: dict[str, Descriptor]) -> dict[str, Descriptor]:
    if descriptor.full_name not in found:
        found[descriptor.full_name] = descriptor
        for field in descriptor.fields:
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                descriptors(field.message_type, found)
    return found


ALL = descriptors(onnx.ModelProto.DESCRIPTOR, {})
FIELDS = [(name, field.name) for name, d in sorted(ALL.items()) for field in d.fields]


def ways(name: str) -> list[tuple[str, ...]]:
    """The shortest way of fields from the model to a message of that name."""
    queue: list[tuple[Descriptor, tuple[str, ...]]] = [(onnx.ModelProto.DESCRIPTOR, ())]
    seen = set()
    while queue:
        descriptor, way = queue.pop(0)
        if descriptor.full_name == name:
            return [way]
        if descriptor.full_name not in seen:
            seen.add(descriptor.full_name)
            for field in descriptor.fields:
                if field.type == FieldDescriptor.TYPE_MESSAGE:
                    queue.append((field.message_type, (*way, field.name)))
    return []


@pytest.mark.parametrize(("name", "field_name"), FIELDS)
def test_every_field_of_the_schema(name: str, field_name: str) -> None:
    """One model for each: nothing of the schema that onnx has here is unknown to rustq."""
    model = onnx.ModelProto()
    model.graph.SetInParent()
    model.opset_import.add(version=17)
    message: Message = model
    for step in ways(name)[0]:
        field = message.DESCRIPTOR.fields_by_name[step]
        inner = getattr(message, step)
        message = inner.add() if field.is_repeated else inner
        message.SetInParent()
    field = message.DESCRIPTOR.fields_by_name[field_name]
    inner = getattr(message, field_name)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        inner.add() if field.is_repeated else inner.SetInParent()
    else:
        kinds = {FieldDescriptor.TYPE_STRING: "text", FieldDescriptor.TYPE_BYTES: b"bytes"}
        content = kinds.get(field.type, 1 if field_name != "data_location" else 0)
        inner.append(content) if field.is_repeated else setattr(message, field_name, content)
    content = model.SerializeToString()
    loaded = rustq.load(content)
    assert loaded._core.undeclared_bytes == 0
    assert loaded.to_bytes() == content


@pytest.mark.parametrize("kind", [k for k in onnx.TensorProto.DataType.values() if k])
def test_every_type_of_tensor(kind: int) -> None:
    tensor = onnx.TensorProto(name="t", dims=[3], data_type=kind)
    if kind == onnx.TensorProto.STRING:
        tensor.string_data.extend([b"a", b"", b"\xff"])
    else:
        tensor.raw_data = bytes(range(24))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["t"], ["y"])],
        "g",
        [],
        [onnx.helper.make_tensor_value_info("y", kind, [3])],
        [tensor],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)])
    assert rustq.load(model).to_onnx() == model
    for verb in (rustq.fold, rustq.quantize):
        assert list(verb(model).to_onnx().graph.initializer) == [tensor]
