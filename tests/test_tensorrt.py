"""TensorRT: where pairs go, what they hold, the lint of every rule, and the calibration cache.

NVIDIA's own parser is asked in test_tensorrt_parser.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
import zoo
from builders import Net, random_feeds, run, sqnr
from click.testing import CliRunner
from onnx import helper, numpy_helper
from rustq import QuantConfig, demo
from rustq.cli import commands
from rustq.targets.tensorrt import lint


def quantized(model: Any, feeds: Any = None, **knobs: Any) -> onnx.ModelProto:
    data = rustq.calibrate(model, feeds or random_feeds(model))  # nothing tried on samples
    knobs = {"noise_price": 0, **knobs}
    made = rustq.quantize(model, data, target="tensorrt", config=QuantConfig(**knobs)).to_onnx()
    onnx.checker.check_model(made, full_check=True)
    return made


def constants(model: onnx.ModelProto) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def readers(model: onnx.ModelProto) -> set[tuple[str, int]]:
    """The inputs that read an activation through a pair: name of the node, position."""
    made = {name: node for node in model.graph.node for name in node.output}
    found = set()
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            dequantize = made.get(name)
            if dequantize and dequantize.op_type == "DequantizeLinear":
                quantize = made.get(dequantize.input[0])
                if quantize and quantize.op_type == "QuantizeLinear":
                    found.add((node.name, index))
    return found


def scale_of(model: onnx.ModelProto, node: str, index: int) -> float:
    made = {name: n for n in model.graph.node for name in n.output}
    reader = next(n for n in model.graph.node if n.name == node)
    return float(constants(model)[made[reader.input[index]].input[1]])


MODELS = zoo.USUAL


@pytest.mark.parametrize("name", MODELS)
def test_the_result_is_close_to_float_and_keeps_every_rule(name: str) -> None:
    model = MODELS[name]()
    feeds = random_feeds(model)
    made = quantized(model, feeds)
    assert lint(made) == []
    assert made.opset_import[0].version == 17 and made.ir_version <= 10
    assert [i.name for i in made.graph.input] == [i.name for i in model.graph.input]
    for expected, found in zip(run(model, feeds[0]), run(made, feeds[0]), strict=True):
        assert sqnr(expected, found) > 22


@pytest.mark.parametrize("name", MODELS)
def test_what_the_pairs_hold(name: str) -> None:
    made = quantized(MODELS[name]())
    values, counted = constants(made), 0
    for node in made.graph.node:
        assert node.domain == "" and not node.op_type.startswith(("QLinear", "Dynamic"))
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        counted += 1
        scale, zero = values[node.input[1]], values[node.input[2]]
        assert scale.dtype == np.float32 and (scale > 0).all()
        assert zero.dtype == np.int8 and not zero.any() and zero.shape == scale.shape
        integers = values.get(node.input[0])
        if integers is None:
            assert scale.shape == ()
        else:
            assert integers.dtype == np.int8 and integers.min() >= -127
            axis = next(a.i for a in node.attribute if a.name == "axis")
            assert scale.shape == (integers.shape[axis],)
    assert counted


def test_weights_are_absmax_over_127_and_biases_stay() -> None:
    model = zoo.classifier()
    folded, made = rustq.fold(model).to_onnx(), quantized(model)
    before, after = constants(folded), constants(made)
    convolutions = [node for node in folded.graph.node if node.op_type == "Conv"]
    for node in convolutions:
        weight, name = before[node.input[1]], node.input[1]
        most = np.abs(weight).reshape(len(weight), -1).max(1)
        np.testing.assert_allclose(after[f"{name}_scale"], most / 127, rtol=1e-6)
        shape = (-1, 1, 1, 1)
        whole = np.round(weight / after[f"{name}_scale"].reshape(shape))
        np.testing.assert_array_equal(after[f"{name}_quantized"], whole)
        np.testing.assert_array_equal(after[node.input[2]], before[node.input[2]])


def place(build: Callable[[Net], str], **knobs: Any) -> set[tuple[str, int]]:
    net = Net()
    return readers(quantized(net.model(build(net)), **knobs))


def test_nothing_behind_a_convolution_and_the_skip_of_an_add() -> None:
    def block(net: Net, swapped: bool = False) -> str:
        x = net.op("Relu", net.conv(net.input("image", 1, 16, 8, 8), 16, 16), name="relu")
        y = net.op("Relu", net.conv(x, 16, 16, name="a"))
        y = net.conv(y, 16, 16, name="b")
        y = net.op("Add", *((x, y) if swapped else (y, x)), name="add")
        return net.conv(net.op("Relu", y), 16, 16, name="c")

    expected = {("n_conv0", 0), ("a", 0), ("b", 0), ("c", 0)}
    assert place(block) == expected | {("add", 1)}
    assert place(lambda net: block(net, swapped=True)) == expected | {("add", 0)}
    assert place(block, exclude="add") == expected
    assert place(block, exclude="b") == (expected - {("b", 0)})


def test_two_convolutions_meet_in_an_add() -> None:
    def down(net: Net) -> str:
        x = net.input("image", 1, 16, 8, 8)
        a, b = net.conv(x, 16, 16, name="a"), net.conv(x, 16, 16, 1, name="b")
        return net.op("Relu", net.op("Add", a, b, name="add"))

    assert place(down) == {("a", 0), ("b", 0), ("add", 1)}


def test_an_add_of_no_convolution_stays_float() -> None:
    def no_branch(net: Net) -> str:
        x = net.input("image", 1, 16, 8, 8)
        y = net.op("Sigmoid", net.conv(x, 16, 16, name="a"))
        return net.op("Add", y, net.op("Relu", x))

    assert place(no_branch) == {("a", 0)}


def test_one_pair_in_front_of_max_pool() -> None:
    def pools(net: Net) -> str:
        x = net.op("Relu", net.conv(net.input("image", 1, 16, 8, 8), 16, 16, name="a"))
        pooled = net.op("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, name="pool")
        again = net.op("MaxPool", pooled, kernel_shape=[3, 3], pads=[1] * 4, name="again")
        return net.op("Add", net.conv(again, 16, 16, name="b"), pooled, name="add")

    assert place(pools) == {("a", 0), ("pool", 0)}


def test_average_pools_behind_a_layer() -> None:
    def pools(net: Net) -> str:
        x = net.input("image", 1, 16, 8, 8)
        y = net.op("AveragePool", x, kernel_shape=[2, 2], name="early")
        y = net.op("Relu", net.conv(y, 16, 16, name="a"))
        return net.op("GlobalAveragePool", y, name="late")

    assert place(pools) == {("a", 0), ("late", 0)}


def test_one_scale_around_concat_and_resize() -> None:
    net = Net()
    x = net.input("image", 1, 16, 8, 8)
    a = net.op("Relu", net.conv(x, 16, 16, name="a"))
    big = net.op("Mul", net.conv(x, 16, 16, name="b"), net.constant(7.0))
    up = net.op("Resize", net.op("Concat", a, big, axis=1, name="inner"), "",
                net.constant([1, 1, 2, 2]), mode="nearest", name="resize")  # fmt: skip
    other = net.op("Resize", net.op("Sigmoid", x, out="gate"), "", net.constant([1, 1, 2, 2]))
    joined = net.op("Concat", up, other, axis=1, name="outer")
    made = quantized(net.model(net.conv(joined, 48, 16, name="c")))
    joints = {("inner", 0), ("inner", 1), ("resize", 0), ("outer", 0), ("outer", 1), ("c", 0)}
    assert joints <= readers(made)
    assert len({scale_of(made, *joint) for joint in joints}) == 1
    assert scale_of(made, "c", 0) != scale_of(made, "a", 0)


def test_products_of_two_activations() -> None:
    made = quantized(zoo.transformer())
    products = [node.name for node in made.graph.node if node.op_type == "MatMul"]
    assert {(name, 0) for name in products} <= readers(made)
    assert sum((name, 1) in readers(made) for name in products) == 2


@pytest.mark.parametrize(
    ("inputs", "outputs", "more", "taken"),
    [
        (3, 16, {}, True),
        (3, 12, {}, False),
        (16, 12, {}, True),
        (12, 12, {}, False),
        (32, 32, {"group": 32}, True),
        (12, 12, {"group": 12}, False),
        (32, 32, {"group": 32, "kernel": 1}, False),
    ],
)
def test_tiny_convolutions_stay_float(
    inputs: int, outputs: int, more: dict[str, int], taken: bool
) -> None:
    net = Net()
    x = net.op("Sigmoid", net.input("image", 1, inputs, 8, 8))
    x = x if inputs > 3 else "image"
    model = net.model(net.conv(x, inputs, outputs, name="it", **more))
    config = QuantConfig(noise_price=0)
    made = rustq.quantize(model, random_feeds(model), target="tensorrt", config=config)
    layer = next(layer for layer in made.report.layers if layer.name == "it")
    assert layer.quantized == taken
    assert taken or "no quick int8 kernel" in layer.reason


@pytest.mark.parametrize(("rows", "width", "taken"), [(1, 32, False), (4, 32, True), (4, 8, False)])
def test_products_that_are_a_matter_of_memory_stay_float(
    rows: int, width: int, taken: bool
) -> None:
    for batch in (rows, "batch"):
        net = Net()
        model = net.model(net.linear(net.input("x", batch, 32), 32, width))
        feeds = random_feeds(model, batch=rows)
        config = QuantConfig(noise_price=0)
        made = rustq.quantize(model, feeds, target="tensorrt", config=config)
        assert made.report.layers[0].quantized == taken


def test_noise_has_a_price() -> None:
    net = Net()
    x = net.input("image", 1, 16, 8, 8)
    quiet = net.conv(x, 16, 32, name="quiet")
    sparse = net.op("Exp", net.op("Mul", x, net.constant(3.0)))
    model = net.model(net.op("Add", quiet, net.conv(sparse, 16, 32, name="sparse")))
    feeds = random_feeds(model)

    def layers(price: float) -> dict[str, Any]:
        config = QuantConfig(noise_price=price, method="minmax")
        report = rustq.quantize(model, feeds, target="tensorrt", config=config).report
        return {layer.name: layer for layer in report.layers if layer.op_type == "Conv"}

    levels = {name: layer.activation_sqnr_db or 0 for name, layer in layers(0).items()}
    noisy, other = sorted(levels, key=levels.__getitem__)
    # Each saves half of its half of the time.
    between = 0.25 * 10 ** ((levels[noisy] + levels[other]) / 20)
    assert {name: layer.quantized for name, layer in layers(between).items()} == {
        noisy: False,
        other: True,
    }
    assert "noise" in layers(between)[noisy].reason
    assert not any(layer.quantized for layer in layers(1e9).values())


def test_dynamic_batch_is_kept() -> None:
    model = zoo.classifier(batch="batch")
    made = quantized(model)
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for batch in (1, 5):
        feed = random_feeds(model, count=1, batch=batch)[0]
        assert sqnr(run(model, feed)[0], run(made, feed)[0]) > 22


def test_float16() -> None:
    for model in (zoo.classifier(), zoo.detector(), zoo.transformer()):
        feeds = random_feeds(model)
        made = quantized(model, feeds, high_precision="fp16")
        assert made.opset_import[0].version == 19 and lint(made) == []
        kinds = {t.data_type for t in made.graph.initializer if t.name.endswith("_scale")}
        assert kinds == {onnx.TensorProto.FLOAT16}
        outputs = {o.type.tensor_type.elem_type for o in made.graph.output}
        assert outputs == {onnx.TensorProto.FLOAT}
        for expected, found in zip(run(model, feeds[0]), run(made, feeds[0]), strict=True):
            assert found.dtype == np.float32 and sqnr(expected, found) > 20


def test_float16_scales_are_those_the_weights_were_rounded_with() -> None:
    model = zoo.mobile()
    made, folded = quantized(model, high_precision="fp16"), rustq.fold(model).to_onnx()
    before, after = constants(folded), constants(made)
    for node in folded.graph.node:
        if node.op_type == "Conv":
            name = node.input[1]
            scale = after[f"{name}_scale"].astype(np.float32).reshape(-1, 1, 1, 1)
            np.testing.assert_array_equal(
                after[f"{name}_quantized"], np.round(before[name] / scale)
            )


@pytest.mark.parametrize("build", [zoo.branching, zoo.looping])
def test_float16_and_subgraphs(build: Callable[[], onnx.ModelProto]) -> None:
    with pytest.raises(rustq.ModelError, match="bodies of If, Loop and Scan"):
        quantized(build(), high_precision="fp16")


def test_the_cache_has_the_scales_of_the_pairs(tmp_path: Path) -> None:
    model = zoo.classifier()
    config = QuantConfig(tensorrt_version="8.6.1")
    result = rustq.quantize(model, random_feeds(model), target="tensorrt", config=config)
    files = result.save(tmp_path / "net.onnx")
    assert [file.name for file in files] == ["net.onnx", "net.cache"]
    header, *lines = files[1].read_text().splitlines()
    assert header == "TRT-8601-EntropyCalibration2"
    cached = dict(line.split(": ") for line in lines)
    made = result.to_onnx()
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear":
            scale = constants(made)[node.input[1]]
            assert cached[node.input[0]] == struct.pack(">f", scale).hex()
    assert "image" in cached and "logits" in cached


def test_a_scale_in_the_cache_is_absmax_over_127(tmp_path: Path) -> None:
    net = Net()
    model = net.model(net.conv(net.input("image", 1, 3, 8, 8), 3, 16))
    feed = {"image": np.linspace(-1, 0.5, 192, dtype=np.float32).reshape(1, 3, 8, 8)}
    config = QuantConfig(method="minmax")
    files = rustq.quantize(model, [feed], target="tensorrt", config=config).save(
        tmp_path / "n.onnx"
    )
    assert "\nimage: 3c010204\n" in files[1].read_text()


def test_what_it_refuses() -> None:
    model = zoo.classifier()
    feeds = random_feeds(model)
    with pytest.raises(
        rustq.UnsupportedError, match="tensorrt cannot run scheme 'asym', only 'sym'"
    ):
        rustq.quantize(model, feeds, target="tensorrt", scheme="asym")
    with pytest.raises(rustq.UnsupportedError, match=r"tensorrt .* without calibration data"):
        rustq.quantize(model, target="tensorrt")
    with pytest.raises(ValueError, match=r"TensorRT 11\.0 has no calibration cache"):
        quantized(model, feeds, tensorrt_version="11.0")
    with pytest.raises(rustq.UnsupportedError, match="high_precision is for the target tensorrt"):
        rustq.quantize(model, feeds, config=QuantConfig(high_precision="fp16"))
    with pytest.raises(ValueError, match="high_precision"):
        QuantConfig(high_precision="int3")


# What the parser refuses or misreads, one change at a time.


def broken(change: Callable[[onnx.ModelProto, Any], None]) -> list[str]:
    model = quantized(zoo.classifier())
    nodes = {"quantize": [], "dequantize": [], "weights": [], "Conv": []}  # type: ignore[var-annotated]
    values = constants(model)
    for node in model.graph.node:
        kind = {"QuantizeLinear": "quantize", "DequantizeLinear": "dequantize"}.get(node.op_type)
        kind = "weights" if kind == "dequantize" and node.input[0] in values else kind
        nodes.setdefault(kind or node.op_type, []).append(node)
    change(model, nodes)
    return lint(model)


def replace(model: onnx.ModelProto, node: onnx.NodeProto, index: int, value: Any) -> None:
    name = f"new{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    node.input[index] = name


def put(index: int, value: Any, kind: str = "quantize") -> Callable[[onnx.ModelProto, Any], None]:
    return lambda model, nodes: replace(model, nodes[kind][0], index, value)


def run_time_scale(model: onnx.ModelProto, nodes: Any) -> None:
    name = nodes["quantize"][0].input[1]
    model.graph.node.insert(0, helper.make_node("Abs", [name], ["run_time"]))
    nodes["quantize"][0].input[1] = "run_time"


def no_zero_point(model: onnx.ModelProto, nodes: Any) -> None:
    del nodes["quantize"][0].input[2]


def empty_zero_point(model: onnx.ModelProto, nodes: Any) -> None:
    nodes["quantize"][0].input[2] = ""


def no_axis(model: onnx.ModelProto, nodes: Any) -> None:
    nodes["weights"][1].ClearField("attribute")


def wrong_axis(model: onnx.ModelProto, nodes: Any) -> None:
    square = nodes["weights"][1]
    square.attribute[0].i = 1


def quantized_bias(model: onnx.ModelProto, nodes: Any) -> None:
    channels = len(constants(model)[nodes["Conv"][0].input[2]])
    for name, value in (("b", np.ones(channels, np.int32)), ("s", np.ones(channels, np.float32)),
                        ("z", np.zeros(channels, np.int32))):  # fmt: skip
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["b", "s", "z"], ["real"], axis=0)
    )
    nodes["Conv"][0].input[2] = "real"


def lowest_weight(model: onnx.ModelProto, nodes: Any) -> None:
    weights = constants(model)[nodes["weights"][0].input[0]].copy()
    weights.flat[0] = -128
    replace(model, nodes["weights"][0], 0, weights)


def unsigned_weights(model: onnx.ModelProto, nodes: Any) -> None:
    weights = constants(model)[nodes["weights"][0].input[0]]
    replace(model, nodes["weights"][0], 0, weights.view(np.uint8))


def pair_before_relu(model: onnx.ModelProto, nodes: Any) -> None:
    relu = nodes["Relu"][0]
    inner = relu.input[0]
    scale, zero = nodes["quantize"][0].input[1:]
    at = list(model.graph.node).index(relu)
    relu.input[0] = "d"
    model.graph.node.insert(at, helper.make_node("DequantizeLinear", ["q", scale, zero], ["d"]))
    model.graph.node.insert(at, helper.make_node("QuantizeLinear", [inner, scale, zero], ["q"]))


def other_operator(op_type: str, domain: str = "") -> Callable[[onnx.ModelProto, Any], None]:
    def change(model: onnx.ModelProto, nodes: Any) -> None:
        nodes["quantize"][0].op_type = op_type
        nodes["quantize"][0].domain = domain

    return change


def joined_scales(model: onnx.ModelProto, nodes: Any) -> None:
    reader = nodes["quantize"][2]
    first, second = nodes["dequantize"][:2]
    model.graph.node.append(
        helper.make_node("Concat", [first.output[0], second.output[0]], ["j"], axis=1)
    )
    model.graph.node.append(helper.make_node("QuantizeLinear", ["j", *reader.input[1:]], ["k"]))


def old_opset(model: onnx.ModelProto, nodes: Any) -> None:
    model.opset_import[0].version = 12


def new_format(model: onnx.ModelProto, nodes: Any) -> None:
    model.ir_version = 11


BROKEN = {
    "a zero point that is not 0": put(2, np.int8(3)),
    "a zero point that is not int8": put(2, np.uint8(0)),
    "zero point that is not int8": put(2, np.int16(0)),
    "no constant zero point": no_zero_point,
    "has no constant zero point": empty_zero_point,
    "1 scales, but 2 zero points": put(2, np.zeros(2, np.int8)),
    "not positive and finite": put(1, np.float32(0)),
    "scale that is not positive": put(1, np.float32(-1)),
    "scale that is not a float constant": run_time_scale,
    "scale per channel for an activation": put(1, np.ones(3, np.float32)),
    "float16 scale below operator set 19": put(1, np.float16(1)),
    "another scale than": put(1, np.float32(2)),
    "no axis": no_axis,
    "its channels are axis 0": wrong_axis,
    "quantized bias": quantized_bias,
    "holds -128": lowest_weight,
    "which is not int8": unsigned_weights,
    "kept from the layer": pair_before_relu,
    "is DynamicQuantizeLinear": other_operator("DynamicQuantizeLinear"),
    "is QLinearConv": other_operator("QLinearConv"),
    "of the domain 'com.microsoft'": other_operator("QuantizeLinear", "com.microsoft"),
    "joins values of different scales": joined_scales,
    "operator set 12": old_opset,
    "IR version 11": new_format,
}


@pytest.mark.parametrize("message", BROKEN)
def test_lint_finds(message: str) -> None:
    findings = broken(BROKEN[message])
    assert any(message in finding for finding in findings), findings


def test_command_line_prints_what_to_run_on_the_device(tmp_path: Path) -> None:
    samples = tmp_path / "samples.npz"
    np.savez(samples, image=demo.calibration()[0]["image"][:8])
    model = tmp_path / "digits.onnx"
    model.write_bytes(Path(demo.model_path()).read_bytes())
    arguments = ["quantize", str(model), "--data", str(samples), "--target", "tensorrt"]
    for more, flags in (((), "--int8 --fp16"), (("--high-precision", "fp16"), "--stronglyTyped")):
        done = CliRunner().invoke(commands, [*arguments, *more])
        assert done.exit_code == 0, done.output
        shown = done.output.replace("\n", " ")
        assert f"next: trtexec --onnx={tmp_path}/digits.int8.onnx" in shown and flags in shown
        assert "--minShapes=image:1x1x16x16 --optShapes=image:8x1x16x16" in shown
    assert (tmp_path / "digits.int8.cache").exists()
    wrong = CliRunner().invoke(commands, [*arguments, "--scheme", "asym"])
    assert wrong.exit_code == 1


def test_dimensions_keep_names_but_not_question_marks(tmp_path: Path) -> None:
    model = zoo.classifier(batch="batch")
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "?"
    made = quantized(model, random_feeds(zoo.classifier()))
    dims = made.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param for dim in dims] == ["batch", "", "", ""]
    assert [dim.dim_value for dim in dims] == [0, 3, 0, 0]
