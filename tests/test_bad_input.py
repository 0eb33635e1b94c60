"""Bad input: one clear line that names what is wrong, of the right exception type, and no harm done."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
import test_many_nodes as many_nodes
from builders import Feed, Net, random_feeds, run
from onnx import TensorProto, helper, numpy_helper
from rustq import cli
from zoo import classifier, transformer


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return classifier()


@pytest.fixture(scope="module")
def feeds(model: onnx.ModelProto) -> list[Feed]:
    return random_feeds(model, 2)


def one_line(raised: Any, *parts: str) -> None:
    text = str(raised.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


# ---------------------------------------------------------------------- files that are no models
CONTENT = classifier().SerializeToString()
NO_MODELS = {
    "empty": b"",
    "text": b"hello, I am not a model\n",
    "zeros": bytes(100),
    "ones": b"\xff" * 100,
    "png": b"\x89PNG\r\n\x1a\n" + bytes(range(200)),
    "zip": b"PK\x03\x04" + bytes(60),
    "truncated by one": CONTENT[:-1],
    "truncated": CONTENT[: len(CONTENT) // 2],
    "only the header": CONTENT[:20],
    "no graph": helper.make_model(onnx.GraphProto()).SerializeToString()[:4],
    "a tensor": helper.make_tensor("t", 1, [2], [1, 2]).SerializeToString(),
    "nested too deep": b"\x3a\x02" * 5000,
}
VERBS: dict[str, Callable[[Any], Any]] = {
    "load": rustq.load,
    "fold": rustq.fold,
    "quantize": rustq.quantize,
    "calibrate": lambda model: rustq.calibrate(model, [np.zeros(1, np.float32)]),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", NO_MODELS)
def test_no_model(kind: str, verb: str, tmp_path: Path) -> None:
    path = tmp_path / "weird.onnx"
    path.write_bytes(NO_MODELS[kind])
    with pytest.raises(rustq.ModelError) as raised:
        VERBS[verb](path)
    one_line(raised, str(path), "not an ONNX model")
    with pytest.raises(rustq.ModelError) as raised:
        VERBS[verb](NO_MODELS[kind])
    one_line(raised, "not an ONNX model")


@pytest.mark.parametrize("verb", VERBS)
def test_missing_file_and_folder(verb: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        VERBS[verb](tmp_path / "gone.onnx")
    assert Path(raised.value.filename) == tmp_path / "gone.onnx"
    with pytest.raises(OSError, match=str(tmp_path)):
        VERBS[verb](tmp_path)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("value", [None, 3, object(), ["m.onnx"], {"graph": 1}])
def test_what_is_no_model_at_all(verb: str, value: Any) -> None:
    with pytest.raises(TypeError, match=r"model must be a path, bytes, an onnx\.ModelProto"):
        VERBS[verb](value)


def test_every_cut_of_a_file_is_an_error_or_a_model() -> None:
    for length in range(0, len(CONTENT), 997):
        try:
            rustq.fold(CONTENT[:length])
        except rustq.ModelError as error:
            assert "\n" not in str(error)


# ---------------------------------------------------------------------- models that contradict themselves
def hostile(dims: list[int], raw: bytes = b"") -> TensorProto:
    return TensorProto(name="w", dims=dims, data_type=TensorProto.FLOAT, raw_data=raw)


def with_weights(tensor: TensorProto, op_type: str = "Conv", **attributes: Any) -> onnx.ModelProto:
    """x -> op(w) -> Mul by 2, so that folding and quantizing both look at the weights."""
    nodes = [
        helper.make_node(op_type, ["x", "w"], ["y"], name="layer", **attributes),
        helper.make_node("Mul", ["y", "two"], ["z"]),
    ]
    two = numpy_helper.from_array(np.float32(2), "two")
    x, z = (
        helper.make_tensor_value_info(name, 1, [1, 4, 4, 4][: 4 if op_type == "Conv" else 2])
        for name in "xz"
    )
    graph = helper.make_graph(nodes, "g", [x], [z], [tensor, two])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


HOSTILE = {
    "huge": hostile([1 << 40, 4, 3, 3]),
    "overflowing": hostile([1 << 62, 1 << 62, 3, 3]),
    "largest": hostile([(1 << 63) - 1] * 4),
    "negative": hostile([-4, 4, 3, 3]),
    "too little data": hostile([4, 4, 3, 3], bytes(16)),
    "too much data": hostile([4, 4, 1, 1], bytes(16 * 4 + 4)),
    "odd data": hostile([4, 4, 1, 1], bytes(16 * 4 - 1)),
}


ANSWERS = (rustq.ModelError, rustq.DataError, rustq.UnsupportedError)  # not InternalError


VERBS_OF_A_MODEL = (
    rustq.fold,
    rustq.quantize,
    lambda model: rustq.quantize(model, rustq.Calibration()),
)


def survives(model: onnx.ModelProto) -> None:
    """Folds and quantizes a model, which may be an error of rustq's, in one line, but no other."""
    for verb in VERBS_OF_A_MODEL:
        try:
            verb(model)
        except ANSWERS as error:
            assert "\n" not in str(error)


def hostile_dimensions() -> None:
    for tensor in HOSTILE.values():
        for op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            shorter = TensorProto()
            shorter.CopyFrom(tensor)
            if op_type in ("MatMul", "Gemm"):
                del shorter.dims[2:]
            survives(with_weights(shorter, op_type))


def senseless_groups() -> None:
    for op_type in ("Conv", "ConvTranspose"):
        for group in (0, -1, 3, 7, 1 << 40, (1 << 63) - 1):
            survives(with_weights(hostile([4, 4, 1, 1], bytes(64)), op_type, group=group))


def cycle() -> None:
    nodes = [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Identity", ["b"], ["a"]),
             helper.make_node("Relu", ["a"], ["y"])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", 1, [1])])
    survives(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.mark.parametrize("attack", [hostile_dimensions, senseless_groups, cycle])
def test_hostile_models(attack: Callable[[], None]) -> None:
    """In a process of its own, because a wild allocation or an endless loop would take this one."""
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import test_bad_input as t; t.{attack.__name__}()"
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize(
    ("dims", "size"), [([4, 4], 60), ([4, 4], 63), ([4, 4], 68), ([-4, 4], 64)]
)
def test_weights_that_do_not_fill_their_shape_are_named(dims: list[int], size: int) -> None:
    model = with_weights(hostile(dims, bytes(size)), "MatMul")
    with pytest.raises(rustq.ModelError) as raised:
        rustq.quantize(model)
    one_line(raised, "'w'", "shape")
    with pytest.raises(rustq.ModelError) as raised:
        rustq.quantize(model, [np.zeros((1, 4), np.float32)])
    one_line(raised)


def test_nodes_without_an_operator() -> None:
    """Two bytes of a file each."""
    model = with_weights(hostile([4, 4], bytes(64)), "MatMul")
    graph = b"\x0a\x00" * 50_000 + model.graph.SerializeToString()
    model.ClearField("graph")
    content = model.SerializeToString() + many_nodes.field(7, graph)
    for verb in (rustq.fold, rustq.quantize):
        started = time.process_time()
        with pytest.raises(rustq.ModelError, match="node 0, '', has no operator") as raised:
            verb(content)
        assert time.process_time() - started < 2
        one_line(raised)


@pytest.mark.parametrize("number", [1, 5, 11], ids=["node", "initializer", "input"])
def test_empty_messages_by_the_million(number: int) -> None:
    """Two bytes of a file each, and hundreds in memory."""
    model = with_weights(hostile([4, 4], bytes(64)), "MatMul")
    content = model.SerializeToString() + many_nodes.field(
        7, many_nodes.field(number, b"") * 2_000_000
    )
    for verb in (rustq.load, rustq.fold, rustq.quantize):
        started = time.process_time()
        with pytest.raises(rustq.ModelError, match="times the memory of the file") as raised:
            verb(content)
        assert time.process_time() - started < 1
        one_line(raised)


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("declared", [False, True])
def test_shapes_with_a_billion_entries(declared: bool, opset: int) -> None:
    """onnx would make a list of them, here and in its converter."""
    model = with_weights(hostile([4, 4], bytes(64)), "MatMul")
    model.opset_import[0].version = opset
    graph = model.graph
    if declared:
        graph.input.append(helper.make_tensor_value_info("v", TensorProto.INT64, [10**9]))
        graph.node.append(helper.make_node("Expand", ["x", "v"], ["u"]))
    else:
        graph.initializer.append(numpy_helper.from_array(np.array([10**9]), "length"))
        graph.node.append(helper.make_node("ConstantOfShape", ["length"], ["v"]))
        if opset < 13:
            graph.node.append(helper.make_node("Unsqueeze", ["v"], ["u"], axes=[0]))
        else:
            graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
            graph.node.append(helper.make_node("Unsqueeze", ["v", "axes"], ["u"]))
    graph.output.append(onnx.ValueInfoProto(name="u"))
    started = time.process_time()
    survives(model)
    assert time.process_time() - started < 3


@pytest.mark.parametrize("opset", [2, 11, 17])
def test_a_slice_of_a_negative_dimension_does_not_end_the_process(opset: int) -> None:
    """onnx/onnx#8481: its inference takes -1, which some exporters write for any length, for one."""
    net = Net()
    x = net.input("x", -1, 8)
    bounds = ([0], [1], [0])
    if opset < 10:
        y = net.op("Slice", x, **dict(zip(("starts", "ends", "axes"), bounds, strict=True)))
    else:
        y = net.op("Slice", x, *(net.constant(bound, dtype=np.int64) for bound in bounds))
    output = helper.make_tensor_value_info(net.op("Relu", y), TensorProto.FLOAT, None)
    graph = helper.make_graph(net.nodes, "net", net.inputs, [output], net.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    folded = rustq.fold(model).to_onnx()
    assert folded.graph.input[0] == model.graph.input[0]
    rustq.quantize(model)


def test_more_dimensions_than_arrays_have() -> None:
    started = time.process_time()
    with pytest.raises(rustq.ModelError) as raised:
        rustq.quantize(with_weights(hostile([1] * 1_000_000, bytes(4)), "MatMul"))
    one_line(raised, "'w'", "1000000 dimensions")
    assert time.process_time() - started < 2
    rustq.quantize(with_weights(hostile([1] * 64, bytes(4)), "MatMul"))


def test_two_weights_of_one_name() -> None:
    model = with_weights(hostile([4, 4], bytes(64)), "MatMul")
    model.graph.initializer.append(hostile([4, 4], bytes(64)))
    rustq.fold(model)
    model.graph.initializer.append(hostile([4, 4], b"\x01" * 64))
    with pytest.raises(rustq.ModelError) as raised:
        rustq.fold(model)
    one_line(raised, "'w'", "two different")


def test_a_long_name_is_shortened() -> None:
    model = with_weights(hostile([4, 5], bytes(64)), "MatMul")
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "n" * 1_000_000
    started = time.perf_counter()
    with pytest.raises(rustq.ModelError) as raised:
        rustq.quantize(model)
    assert time.perf_counter() - started < 5
    assert len(str(raised.value)) < 2000
    one_line(raised, "'nnn", "needs 20 values")


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose", "MatMul", "Gemm"])
@pytest.mark.parametrize(
    "dims", [[], [4], [0, 4], [4, 4, 1], [0, 0, 0, 0], [4, 0, 3, 3], [1, 1, 1, 1, 1]]
)
def test_weights_of_any_rank(op_type: str, dims: list[int]) -> None:
    count = int(np.prod(dims, dtype=int))
    model = with_weights(hostile(dims, np.ones(count, np.float32).tobytes()), op_type)
    survives(model)
    good = with_weights(hostile([4, 4, 1, 1], bytes(64)))
    calibration = rustq.calibrate(good, [np.ones((1, 4, 4, 4), np.float32)])
    with suppress(*ANSWERS):
        rustq.quantize(model, calibration)


@pytest.mark.parametrize("field", ["input", "output"])
@pytest.mark.parametrize("keep", [0, 1])
def test_nodes_that_lack_inputs_or_outputs(field: str, keep: int) -> None:
    """Every node of two models in turn loses its inputs or outputs: an error or not, but no panic."""
    net = Net()
    x = net.op(
        "Clip",
        net.op("Add", net.input("x", 1, 4), net.constant(3.0)),
        net.constant(0.0),
        net.constant(6.0),
    )
    x = net.op("Mul", net.op("Div", x, net.constant(6.0)), net.op("Identity", x))
    x = net.op("Sub", net.op("MatMul", net.op("Dropout", x), net.weight(4, 4)), net.weight(4))
    small = net.model(net.op("Gemm", x, net.weight(4, 4)))
    for original in (classifier(), small):
        calibration = rustq.calibrate(original, random_feeds(original, 1))
        for index in range(len(original.graph.node)):
            broken = onnx.ModelProto()
            broken.CopyFrom(original)
            del getattr(broken.graph.node[index], field)[keep:]
            survives(broken)
            with suppress(*ANSWERS):
                rustq.quantize(broken, calibration)


def test_a_model_that_onnx_runtime_refuses() -> None:
    net = Net()
    model = net.model(net.op("Relu", net.input("x", 1, 4)))
    model.graph.node[0].op_type = "Rleu"
    with pytest.raises(rustq.ModelError) as raised:
        rustq.quantize(model, [np.zeros((1, 4), np.float32)])
    one_line(raised, "ONNX Runtime", "Rleu")


# ---------------------------------------------------------------------- what onnx is asked to do
def calling(levels: int, calls: int) -> onnx.ModelProto:
    """Functions of which each calls the one before so many times."""
    own = [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
    names = [f"f{level}" for level in range(levels)]
    functions = [
        helper.make_function(
            "own", names[0], ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], own
        )
    ]
    for inner, name in itertools.pairwise(names):
        values = ["a", *(f"v{k}" for k in range(calls - 1)), "b"]
        nodes = [
            helper.make_node(inner, [x], [y], domain="own") for x, y in itertools.pairwise(values)
        ]
        functions.append(helper.make_function("own", name, ["a"], ["b"], nodes, own))
    net = Net()
    x = net.op("MatMul", net.input("x", 1, 4), net.weight(4, 4))
    model = net.model(net.op("Relu", x))
    model.graph.node[-1].op_type, model.graph.node[-1].domain = names[-1], "own"
    model.functions.extend(functions)
    model.opset_import.append(own[0])
    return model


def test_functions_that_would_fill_the_memory() -> None:
    few = rustq.quantize(calling(4, 3))
    assert few.to_onnx().graph.node[-1].op_type == "Relu"
    started = time.process_time()
    with pytest.raises(rustq.ModelError, match="functions cannot be inlined") as raised:
        rustq.quantize(calling(60, 2))
    one_line(raised, "bytes")
    with pytest.raises(rustq.ModelError, match="levels") as raised:
        rustq.quantize(calling(5000, 1))
    one_line(raised, "'f4")
    assert time.process_time() - started < 5


def test_functions_that_call_each_other() -> None:
    model = calling(2, 1)
    model.functions[0].node[0].op_type = "f1"
    model.functions[0].node[0].domain = "own"
    with pytest.raises(rustq.ModelError, match="calls itself") as raised:
        rustq.quantize(model)
    one_line(raised, "'f1'")


def test_an_attribute_of_another_type() -> None:
    """onnx's converter, which an old operator set calls for, would take the process down."""
    net = Net()
    x = net.op("MatMul", net.input("x", 1, 4), net.weight(4, 4))
    model = net.model(net.op("Squeeze", x, axes=[0]), opset=11)
    assert any(layer.quantized for layer in rustq.quantize(model).report.layers)
    model.graph.node[1].attribute[0].type = onnx.AttributeProto.FLOAT
    report = rustq.quantize(model).report
    assert any("axes" in note and "could not be converted" in note for note in report.notes)


# ---------------------------------------------------------------------- weights that are not finite
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("where", "scheme"),
    [
        (where, scheme)
        for where in ("conv weight", "conv bias", "gemm weight", "gemm bias")
        for scheme in ("asym", "sym")
    ]
    + [("gemm weight", "dynamic")],
)
def test_weights_that_are_not_finite(value: float, where: str, scheme: str) -> None:
    net = Net()
    shapes = {
        "conv weight": (32, 16, 3, 3),
        "conv bias": (32,),
        "gemm weight": (32, 64),
        "gemm bias": (64,),
    }
    for name, shape in shapes.items():
        array = net.random.normal(size=shape)
        if name == where:
            array.flat[5] = value
        net.constant(array, name)
    x = net.op("Conv", net.input("x", 1, 16, 16, 16), "conv weight", "conv bias")
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    model = net.model(net.op("Gemm", x, "gemm weight", "gemm bias"))
    data = None if scheme == "dynamic" else random_feeds(model, 1)
    with pytest.raises(rustq.ModelError) as raised:
        rustq.quantize(model, data, scheme="sym" if scheme == "sym" else "asym")
    one_line(raised, where, "finite")


# ---------------------------------------------------------------------- data that does not fit
IMAGE = np.zeros((1, 3, 32, 32), np.float32)


@pytest.mark.parametrize(
    ("data", "error", "parts"),
    [
        ([], rustq.DataError, ["empty"]),
        (iter(()), rustq.DataError, ["empty"]),
        (np.zeros((0, 3, 32, 32), np.float32), rustq.DataError, ["no samples", "image"]),
        ([{"img": IMAGE}], rustq.DataError, ['no input "img"', '"image"', "sample 0"]),
        ([{"imgae": IMAGE}], rustq.DataError, ['did you mean "image"']),
        ([{}], rustq.DataError, ['"image" is missing']),
        ([{"image": IMAGE, "more": IMAGE}], rustq.DataError, ['no input "more"']),
        ([IMAGE[:, :2]], rustq.DataError, ["[1, 3, 32, 32]", "[1, 2, 32, 32]"]),
        ([IMAGE.transpose(0, 2, 3, 1)], rustq.DataError, ["transpose(0, 3, 1, 2)"]),
        ([IMAGE[0, 0]], rustq.DataError, ["[32, 32]"]),
        ([IMAGE.astype(np.uint8)], rustq.DataError, ["uint8", "float32"]),
        ([IMAGE.astype(object)], rustq.DataError, ["Python objects"]),
        ([IMAGE.astype(complex)], rustq.DataError, ["complex128"]),
        ([np.full_like(IMAGE, np.nan)], rustq.DataError, ["NaN", "image", "[0, 0, 0, 0]"]),
        ([IMAGE, np.full_like(IMAGE, -np.inf)], rustq.DataError, ["infinite", "sample 1"]),
        ([np.full(IMAGE.shape, 1e300)], rustq.DataError, ["1e+300", "float32"]),
        ([(IMAGE, IMAGE)], rustq.DataError, ["2 arrays for 1 input"]),
        ([None], rustq.DataError, ["NoneType"]),
        (3, TypeError, ["data must be"]),
        (b"raw", TypeError, ["data must be"]),
        ("gone.npz", FileNotFoundError, ["gone.npz"]),
    ],
)
def test_data_that_does_not_fit(
    model: onnx.ModelProto, data: Any, error: type[Exception], parts: list[str]
) -> None:
    for verb in (rustq.quantize, rustq.calibrate):
        if isinstance(data, list | np.ndarray | str | bytes | int) or verb is rustq.quantize:
            with pytest.raises(error) as raised:
                verb(model, data)
            one_line(raised, *parts)


def test_indices_out_of_range_are_named() -> None:
    model = transformer()
    (feed,) = random_feeds(model, 1)
    feed["ids"][0, 0] = 999
    with pytest.raises(rustq.DataError) as raised:
        rustq.quantize(model, [feed])
    one_line(raised, "sample 0")


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_integers_are_cast_where_they_fit(dtype: Any) -> None:
    model = transformer()
    (feed,) = random_feeds(model, 1)
    rustq.calibrate(model, [feed | {"ids": feed["ids"].astype(dtype)}])
    with pytest.raises(rustq.DataError, match=r'input "ids".*float32'):
        rustq.calibrate(model, [feed | {"ids": feed["ids"].astype(np.float32)}])


# ---------------------------------------------------------------------- arguments
@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"scheme": "both"}, ValueError, ["'both'", "asym", "sym"]),
        ({"target": "tpu"}, ValueError, ["'tpu'", "onnxruntime"]),
        ({"target": "ncnn", "scheme": "asym"}, rustq.UnsupportedError, ["ncnn", "sym"]),
        ({"executor": object()}, TypeError, ["executor"]),
        ({"config": {"method": "mse"}}, TypeError, ["config", "QuantConfig"]),
        (
            {"config": rustq.QuantConfig(weights="log2"), "target": "ncnn", "scheme": "sym"},
            rustq.UnsupportedError,
            ["log2", "ncnn"],
        ),
        (
            {"config": rustq.QuantConfig(block_size=0), "target": "ascend"},
            rustq.UnsupportedError,
            ["block_size", "onnxruntime"],
        ),
    ],
)
def test_bad_arguments(
    model: onnx.ModelProto,
    feeds: list[Feed],
    arguments: dict[str, Any],
    error: type[Exception],
    parts: list[str],
) -> None:
    with pytest.raises(error) as raised:
        rustq.quantize(model, feeds, **arguments)
    one_line(raised, *parts)


@pytest.mark.parametrize(
    ("knobs", "error"),
    [
        ({"method": "kl"}, ValueError),
        ({"percentile": 0}, ValueError),
        ({"threads": 0}, ValueError),
        ({"exclude": 3}, TypeError),
        ({"colour": "red"}, TypeError),
    ],
)
def test_bad_knobs(knobs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(knobs))):
        rustq.QuantConfig(**knobs)


def test_arguments_are_checked_before_the_work(feeds: list[Feed]) -> None:
    with pytest.raises(ValueError, match="scheme"):
        rustq.quantize("gone.onnx", "gone.npz", scheme="both")


def test_unknown_providers_are_named(model: onnx.ModelProto, feeds: list[Feed]) -> None:
    with pytest.raises((ValueError, rustq.RustqError), match="NoSuchProvider") as raised:
        rustq.calibrate(model, feeds, config=rustq.QuantConfig(providers="NoSuchProvider"))
    one_line(raised)


# ---------------------------------------------------------------------- saving
def test_save_into_a_missing_folder(model: onnx.ModelProto, tmp_path: Path) -> None:
    for save in (rustq.load(model).save, rustq.quantize(model).save):
        with pytest.raises(FileNotFoundError, match="nowhere") as raised:
            save(tmp_path / "nowhere" / "q.onnx")
        assert ".rustq-" not in str(raised.value)


def test_save_over_a_folder(model: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "q.onnx").mkdir()
    with pytest.raises(OSError, match=r"q\.onnx"):
        rustq.load(model).save(tmp_path / "q.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["q.onnx"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_save_into_a_read_only_folder(model: onnx.ModelProto, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        rustq.load(model).save(tmp_path / "q.onnx")


def test_save_onto_the_input(model: onnx.ModelProto, feeds: list[Feed], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    result = rustq.quantize(path, feeds)
    before = path.stat().st_ino
    result.save(path)
    assert path.read_bytes() == result.to_bytes()
    assert path.stat().st_ino != before  # a new file in its place, never the old one rewritten
    np.testing.assert_array_equal(run(rustq.load(path), feeds[0])[0], run(result, feeds[0])[0])


def test_permissions_and_links_survive(model: onnx.ModelProto, tmp_path: Path) -> None:
    path, link = tmp_path / "m.onnx", tmp_path / "link.onnx"
    onnx.save(model, path)
    path.chmod(0o640)
    link.symlink_to(path)
    rustq.fold(path).save(path)
    assert path.stat().st_mode & 0o777 == 0o640
    rustq.fold(path).save(link)
    assert rustq.load(link).op_counts == rustq.load(path).op_counts


# ---------------------------------------------------------------------- the command line
@pytest.fixture
def files(model: onnx.ModelProto, feeds: list[Feed], tmp_path: Path) -> tuple[Path, Path]:
    path, data = tmp_path / "m.onnx", tmp_path / "data.npz"
    onnx.save(model, path)
    np.savez(data, image=np.concatenate([feed["image"] for feed in feeds]))
    return path, data


def failed(capsys: pytest.CaptureFixture[str], arguments: list[object], *parts: str) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err


@pytest.mark.parametrize("command", ["quantize", "fold", "inspect"])
@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "missing"])
def test_cli_bad_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, kind: str
) -> None:
    path = tmp_path / "bad.onnx"
    if kind != "missing":
        path.write_bytes(NO_MODELS[kind])
    failed(capsys, [command, path], str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == [] if kind == "missing" else ["bad.onnx"]


def test_cli_unwritable_output_is_found_first(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = files

    def worked(*_: Any, **__: Any) -> None:
        raise AssertionError("the work was started")

    for verb in ("quantize", "calibrate", "fold"):
        monkeypatch.setattr(rustq, verb, worked)
    folder = model.parent / "folder"
    folder.mkdir()
    for output, part in (
        (folder, "folder"),
        (model.parent / "nowhere" / "x", "nowhere"),
        (model / "x", "m.onnx"),
    ):
        failed(capsys, ["quantize", model, "--data", data, "-o", output], part)
        failed(capsys, ["calibrate", model, "--data", data, "-o", output], part)
        failed(capsys, ["fold", model, "-o", output], part)


def test_cli_output_is_the_input(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path], feeds: list[Feed]
) -> None:
    model, data = files
    for arguments in (["fold", model], ["quantize", model, "--data", data]):
        assert cli.main([*map(str, arguments), "-o", str(model)]) == 0
        onnx.checker.check_model(onnx.load(model), full_check=True)
        assert run(rustq.load(model), feeds[0])[0].shape == (1, 10)
    assert sorted(path.name for path in model.parent.iterdir()) == ["data.npz", "m.onnx"]


def test_cli_failure_keeps_the_old_output(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path]
) -> None:
    model, data = files
    output = model.parent / "out.onnx"
    output.write_bytes(b"precious")
    np.savez(data, image=np.full((1, 3, 32, 32), np.nan, np.float32))
    failed(capsys, ["quantize", model, "--data", data, "-o", output], "NaN", "data.npz")
    assert output.read_bytes() == b"precious"


def interrupted(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """Starts the command line, and interrupts it once it reads the data."""
    marker = folder / "started"
    code = (
        # Whoever started the tests may have them ignore interrupts, which is inherited.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import pathlib, sys, rustq.data as data\n"
        "items = data.Feeds.items\n"
        "def marked(self, first=0):\n"
        f"    pathlib.Path({str(marker)!r}).touch()\n"
        # Read once: Python ignores an interrupt that meets the destructor of a file just closed.
        "    samples = [list(item) for item in items(self, first)]\n"
        "    return (item for _ in range(10**6) for item in samples)\n"
        "data.Feeds.items = marked\n"
        "from rustq.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    return process


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("command", ["quantize", "calibrate"])
@pytest.mark.parametrize("before", [None, b"precious"])
def test_ctrl_c_leaves_no_half_file(
    files: tuple[Path, Path], command: str, before: bytes | None
) -> None:
    model, data = files
    output = model.parent / "out"
    if before is not None:
        output.write_bytes(before)
    process = interrupted(
        [command, str(model), "--data", str(data), "-o", str(output)], model.parent
    )
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err.strip()) == (130, "", "error: interrupted")
    left = {path.name for path in model.parent.iterdir()} - {"m.onnx", "data.npz", "started"}
    assert left == (set() if before is None else {"out"})
    assert before is None or output.read_bytes() == before


def test_a_name_with_a_line_break_leaves_the_message_in_one_line() -> None:
    model = onnx.ModelProto(ir_version=8)
    model.opset_import.add(version=17)
    model.graph.node.add(name="a\nb")
    with pytest.raises(rustq.ModelError, match=r"^node 0, 'a\\nb', has no operator$"):
        rustq.fold(model.SerializeToString())
    net = Net()
    model = net.model(net.op("Relu", net.input("a\nb", 1, "length")))
    with pytest.raises(rustq.UnsupportedError, match=r"input 'a\\nb' is .*--input-shape a\\nb=1x…"):
        rustq.quantize(model, target="ncnn")
