"""The report as an HTML page: what it says, and that it needs nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import rustq
from rustq import cli, demo
from rustq.fusion import Fusion, fusion
from rustq.page import comparison_page, quantization_page
from rustq.page.advice import ADVICE, Facts, advice
from rustq.page.charts import histogram
from rustq.page.render import Sources, render
from rustq.report import Report

VOID = {"meta", "input", "path", "rect"}


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
    assert 0 < tensors // 2 < page.count("<svg") <= tensors


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


def test_in_a_notebook_and_from_the_result(result: rustq.QuantizedModel, tmp_path: Path) -> None:
    framed = Page(result.report._repr_html_())
    ((tag, _, inner),) = [entry for entry in framed.attributes if entry[1] == "srcdoc"]
    assert (tag, "layers" in Page(inner).ids) == ("iframe", True)
    path = result.save_report(tmp_path / "r.html")
    assert "layers" in Page(path.read_text()).ids


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


def test_advice_follows_from_the_facts() -> None:
    assert advice(Facts()) == []
    few = Report.from_records([], scheme="asym", samples=3)
    assert any("16 samples" in line for line in advice(Facts(report=few)))
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
