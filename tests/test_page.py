"""The report as an HTML page: what it says, and that it needs nothing but itself."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rustq
from onnx import TensorProto, helper, numpy_helper
from rustq import cli, demo
from rustq.fusion import Fusion, fusion
from rustq.fusion_rules import expected
from rustq.page import comparison_page, quantization_page
from rustq.page.advice import ADVICE, advice
from rustq.page.charts import histogram
from rustq.page.facts import Facts, Sources
from rustq.page.reading import read_report
from rustq.page.render import render
from rustq.preparing import prepared
from rustq.report import Report

VOID = {"meta", "input"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps the text and the attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.ids: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def result() -> rustq.QuantizedModel:
    return rustq.quantize(demo.model_path(), demo.calibration())


@pytest.fixture(scope="module")
def page(result: rustq.QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "r.html"
    files = {"float model": demo.model_path()}
    data = demo.calibration()
    assert quantization_page(path, result, model=demo.model_path(), data=data, files=files) == path
    return path.read_text()


def test_it_says_what_is_asked_in_that_order(page: str, result: rustq.QuantizedModel) -> None:
    parsed = Page(page)
    sections = ["good", "fast", "layers", "float", "fusion", "next", "repeat"]
    assert [name for name in parsed.ids if name in sections] == sections
    assert result.report.summary() in parsed.text
    for layer in result.report.layers:
        assert layer.name in parsed.text
    assert rustq.__version__ in parsed.text
    assert re.search(r"[0-9a-f]{64}", parsed.text)


def test_it_needs_nothing_from_elsewhere(page: str) -> None:
    parsed = Page(page)
    assert not [entry for entry in parsed.attributes if entry[1] in {"src", "href", "srcset"}]
    assert "http" not in page.replace("http-equiv", "")
    assert "url(" not in page


def test_a_chart_for_each_quantized_tensor(page: str, result: rustq.QuantizedModel) -> None:
    tensors = sum(len(x.inputs) + len(x.outputs) for x in result.report.layers)
    weights = sum(x.weight_sqnr_db is not None for x in result.report.layers)
    assert page.count("<figcaption>weights ") == weights > 8
    seen = page.count("<figcaption>reads ") + page.count("<figcaption>makes ")
    assert tensors // 2 < seen <= tensors
    assert page.count("<svg") == weights + seen + 1  # the profile


def test_names_are_escaped() -> None:
    layer = {
        "name": "<script>alert(1)</script>",
        "op_type": "Conv",
        "quantized": False,
        "reason": "&",
    }
    page = render(Facts(report=Report.from_records([layer])), Sources())
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_five_hundred_layers_stay_small() -> None:
    layers = [{"name": f"layer{i}", "op_type": "Conv", "quantized": True} for i in range(500)]
    assert len(render(Facts(report=Report.from_records(layers)), Sources())) < 500_000


def test_a_page_about_a_comparison(result: rustq.QuantizedModel, tmp_path: Path) -> None:
    (path,) = result.save(tmp_path / "q.onnx")
    compared = rustq.compare(demo.model_path(), path, demo.calibration())
    page = comparison_page(tmp_path / "c.html", compared, path).read_text()
    parsed = Page(page)
    assert {"good", "fast", "fusion", "next"} <= set(parsed.ids)
    assert compared.outputs[0].name in parsed.text
    model, data = demo.model_path(), demo.calibration()
    page = comparison_page(tmp_path / "c.html", compared, path, model=model, data=data).read_text()
    parsed = Page(page)
    assert {"layers", "float"} <= set(parsed.ids)
    assert page.count("<figcaption>weights ") > 8


def test_layers_read_off_a_file_are_those_of_the_report(result: rustq.QuantizedModel) -> None:
    folded = prepared(rustq.load(demo.model_path()))
    found = read_report(folded, result.to_bytes())
    assert found is not None
    layers = {layer.name: layer for layer in found.layers}
    for layer in result.report.layers:
        same = layers[layer.name]
        assert (same.quantized, same.weights) == (layer.quantized, layer.weights)
        if same.outputs:
            assert same.outputs[0].name == layer.outputs[0].name
            assert same.outputs[0].scale == pytest.approx(layer.outputs[0].scale)
            assert same.outputs[0].zero_point == layer.outputs[0].zero_point
    assert {layer.op_type for layer in found.layers if layer.name not in layers} <= {"Relu"}
    assert read_report(folded, demo.model_path().read_bytes()) is None


def test_another_tools_file(tmp_path: Path) -> None:
    """Its values have the float model's names, and so it is told what it does, layer by layer."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = iter(demo.calibration())

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    folded, path = tmp_path / "float.onnx", tmp_path / "theirs.onnx"
    rustq.fold(demo.model_path()).save(folded)
    quantize_static(folded, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    compared = rustq.compare(folded, path, demo.calibration())
    page = tmp_path / "r.json"
    comparison_page(page, compared, path, model=folded, data=demo.calibration())
    found = json.loads(page.read_text())
    convolutions = [x for x in found["report"]["layers"] if x["op_type"] == "Conv"]
    assert len(convolutions) == 10 and all(x["quantized"] for x in convolutions)
    assert sum(found["shares"].values()) == pytest.approx(1)


def test_in_a_notebook_and_from_the_result(result: rustq.QuantizedModel, tmp_path: Path) -> None:
    framed = Page(result.report._repr_html_())
    ((tag, _, inner),) = [entry for entry in framed.attributes if entry[1] == "srcdoc"]
    assert (tag, "layers" in Page(inner).ids) == ("iframe", True)
    path = result.save_report(tmp_path / "r.html")
    assert "layers" in Page(path.read_text()).ids


def test_scores_and_shares(result: rustq.QuantizedModel, tmp_path: Path) -> None:
    model, data = demo.model_path(), demo.calibration()
    file = result.save_report(
        tmp_path / "r.json",
        model=model,
        data=data,
        metric=lambda run: demo.accuracy(lambda x: run(x)[0]),
    )
    found = json.loads(file.read_text())
    assert found["scores"]["model"] == pytest.approx(0.99, abs=0.01)
    assert found["scores"]["quantized"] == pytest.approx(0.99, abs=0.01)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert set(found["shares"]) == {x.name for x in result.report.layers if x.quantized}
    measured = rustq.sensitivity(model, data)
    noises = {layer.name: layer.noise / measured.noise for layer in measured.layers}
    assert found["shares"] == pytest.approx(noises, abs=0.05)
    assert found["report"] == result.report.to_dict()


def test_what_it_says_to_repeat_it_does_the_same(tmp_path: Path) -> None:
    config = rustq.QuantConfig(method="percentile", percentile=99.9, exclude=["wide_conv"])
    model, samples = demo.model_path(), demo.calibration()
    result = rustq.quantize(model, samples, scheme="sym", config=config)
    recipe = Sources(files={"float model": model}, config=config).recipe(result.report)
    assert repr(model.name) in recipe
    again = eval(recipe.replace(repr(model.name), "model"), {**vars(), "rustq": rustq})
    assert again.to_bytes() == result.to_bytes()


def in_process_and_read_off(
    tmp_path: Path, config: rustq.QuantConfig, data: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the page says of a model just quantized, and of its file when it is compared."""
    model, samples = demo.model_path(), demo.calibration()
    result = rustq.quantize(model, data, config=config)
    page = result.save_report(tmp_path / "made.json", model=model, data=samples, config=config)
    (path,) = result.save(tmp_path / "int8.onnx")
    compared, read = rustq.compare(model, path, samples), tmp_path / "read.json"
    comparison_page(read, compared, path, model=model, data=samples)
    return json.loads(page.read_text()), json.loads(read.read_text())


def test_shares_where_channels_are_on_one_scale(tmp_path: Path) -> None:
    config = rustq.QuantConfig(method="minmax", equalize=True)
    made, read = in_process_and_read_off(tmp_path, config, demo.calibration())
    divided = [x for x in made["report"]["layers"] if "on one scale" in str(x["corrections"])]
    assert len(divided) > 5
    assert sum(made["shares"].values()) == pytest.approx(1)
    # The scales of the channels are those of the report here, and found by the weights there.
    assert read["shares"] == pytest.approx(made["shares"], abs=0.005)


@pytest.mark.parametrize(
    ("weights", "activations", "quant_format"),
    [
        *product(["int4", "uint4", "log2", "binary", "int8"], ["int8", "float32"], ["auto"]),
        ("int4", "int8", "qdq"),
    ],
)
def test_number_formats_are_read_off(
    tmp_path: Path, weights: str, activations: str, quant_format: str
) -> None:
    config = rustq.QuantConfig(
        weights=weights, activations=activations, quant_format=quant_format, method="minmax"
    )
    made, read = in_process_and_read_off(tmp_path, config, demo.calibration())
    formats = [
        {x["name"]: (x["quantized"], x["weights"]) for x in page["report"]["layers"]}
        for page in (made, read)
    ]
    assert formats[1] == formats[0] | {n: k for n, k in formats[1].items() if n not in formats[0]}
    assert read["report"]["weights"] == weights
    assert read["shares"] == pytest.approx(made["shares"], abs=0.005)


def test_a_dynamic_model_is_read_off(tmp_path: Path) -> None:
    made, read = in_process_and_read_off(tmp_path, rustq.QuantConfig(), None)
    for page in (made, read):
        done = {x["name"]: x["weights"] for x in page["report"]["layers"] if x["quantized"]}
        assert done == {"classifier": "int8"}


# ---------------------------------------------------------------------- parts
@pytest.mark.parametrize(
    "low, high", [(-1.0, 3.0), (0.0, 0.0), (2.0, 2.0), (0.0, 1e-40), (-3e38, 3e38)]
)
@pytest.mark.parametrize("clip", [None, (0.0, 1.0), (-5.0, 5.0), (0.0, 0.0)])
def test_charts_of_any_range(low: float, high: float, clip: tuple[float, float] | None) -> None:
    for counts in ([], [0, 0], [0, 7, 10**12, 1]):
        chart = str(histogram(counts, low, high, clip=clip, step=0.1))
        Page(chart)
        assert "nan" not in chart and "inf" not in chart.replace("info", "")


def test_what_is_clipped_is_shaded() -> None:
    assert str(histogram([1, 2], -2, 2, clip=(-1, 2))).count('class="cut"') == 1
    assert str(histogram([1, 2], -2, 2, clip=(-1, 1))).count('class="cut"') == 2
    assert "cut" not in str(histogram([1, 2], -2, 2, clip=(-3, 3)))


def test_histograms_of_a_calibration() -> None:
    calibration = rustq.calibrate(demo.model_path(), demo.calibration())
    for tensor in calibration.tensors:
        counts, edges = calibration.histogram(tensor, bins=50)
        assert counts.shape == (50,) and edges.shape == (51,)
        low, high = calibration.range(tensor, "minmax")
        assert (min(edges[0], 0), max(edges[-1], 0)) == pytest.approx((low, high))
    images = np.concatenate([feed[demo.INPUT] for feed in demo.calibration()])
    counts, edges = calibration.histogram(demo.INPUT, bins=20)
    expected, _ = np.histogram(images, bins=20)
    assert counts.sum() == images.size
    assert np.abs(np.cumsum(counts) - np.cumsum(expected)).max() < 0.01 * images.size
    with pytest.raises(ValueError, match="bins"):
        calibration.histogram(demo.INPUT, bins=0)
    with pytest.raises(KeyError):
        calibration.histogram("nothing")


def test_fusion_is_what_onnx_runtime_did(result: rustq.QuantizedModel) -> None:
    found = fusion(result.to_bytes())
    convolutions = [x for x in result.report.layers if x.op_type == "Conv" and x.quantized]
    assert found.kernels["QLinearConv"] == len(convolutions)
    assert all(kind in ("quantized", "dequantized") for _, kind, _ in found.conversions)
    plain = fusion(demo.model_path())
    assert plain.kernels == {} and plain.conversions == ()


def qdq(*nodes: tuple[str, str, str], outputs: str = "y") -> bytes:
    """A graph of nodes `(operator, inputs, output)`, with a pair as `("QDQ", input, output)`."""
    made = []
    for op_type, inputs, output in nodes:
        if op_type == "QDQ":
            made.append(helper.make_node("QuantizeLinear", [inputs, "scale"], [f"{output}_q"]))
            made.append(helper.make_node("DequantizeLinear", [f"{output}_q", "scale"], [output]))
        else:
            made.append(helper.make_node(op_type, inputs.split(), [output]))
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ["x", *outputs.split()]
    ]
    constants = [numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")]
    constants.append(numpy_helper.from_array(np.float32(0.1), "scale"))
    graph = helper.make_graph(made, "pairs", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def test_fusion_by_the_rules_of_other_runtimes() -> None:
    chain = qdq(
        ("QDQ", "x", "a"),
        ("Conv", "a w", "b"),
        ("Relu", "b", "c"),
        ("QDQ", "c", "d"),
        ("Conv", "d w", "y"),
    )
    for target in ("tensorrt", "ncnn"):
        found = expected(chain, target)
        assert found is not None and found.kernels == {"Conv": 2} and found.floats == {"Relu": 1}
        assert found.conversions == (("x", "quantized", "Conv"),)  # only the input
    # A residual sum is fused into the convolution in front of it: by TensorRT.
    skip = qdq(
        ("QDQ", "x", "a"),
        ("Conv", "a w", "b"),
        ("Add", "b a", "c"),
        ("QDQ", "c", "d"),
        ("Conv", "d w", "y"),
    )
    found = expected(skip, "tensorrt")
    assert found is not None and found.kernels == {"Conv": 2, "Add": 1}
    assert len(found.conversions) == 1
    found = expected(skip, "ncnn")
    assert found is not None and found.floats == {"Add": 1}
    assert ("a_q", "dequantized", "Add") in found.conversions
    assert ("c", "quantized", "Conv") in found.conversions
    # A function that is fused nowhere stands between.
    between = qdq(("QDQ", "x", "a"), ("Conv", "a w", "b"), ("Softmax", "b", "c"), ("QDQ", "c", "y"))
    found = expected(between, "tensorrt")
    assert found is not None
    assert found.conversions[1] == ("c", "quantized", "an output")
    assert expected(demo.model_path().read_bytes(), "tensorrt") is None
    assert expected(chain, "ascend") is None


def test_advice_names_the_layer_that_spoils_it() -> None:
    even = {f"layer{i}": 0.2 for i in range(5)}
    assert advice(Facts(shares=even)) == []
    (line,) = advice(Facts(shares={**even, "head": 0.6}))
    assert "exclude=['head']" in line


def test_advice_follows_from_the_facts() -> None:
    assert advice(Facts()) == []
    few = Report.from_records([], scheme="asym", samples=3)
    assert any("16 feeds" in line for line in advice(Facts(report=few)))
    busy = Fusion(kernels={"QLinearConv": 1}, floats={}, conversions=(("a", "quantized", "x"),) * 2)
    assert any("conversions" in line for line in advice(Facts(fusion=busy)))
    assert all(text.endswith(".") for _, text in ADVICE)


# ---------------------------------------------------------------------- command line
def test_from_the_command_line(tmp_path: Path) -> None:
    data = tmp_path / "data.npy"
    np.save(data, np.concatenate([feed[demo.INPUT] for feed in demo.calibration()]))
    report, quantized = tmp_path / "r.html", tmp_path / "q.onnx"
    model = str(demo.model_path())
    arguments = [
        "quantize",
        model,
        "--data",
        str(data),
        "-o",
        str(quantized),
        "--report",
        str(report),
    ]
    assert cli.main(arguments) == 0
    assert "good" in Page(report.read_text()).ids
    arguments = ["compare", model, str(quantized), "--data", str(data), "--report", str(report)]
    assert cli.main(arguments) == 0
    assert "fusion" in Page(report.read_text()).ids
    assert cli.main(["quantize", model, "-o", str(quantized), "--report", str(tmp_path)]) == 1
