"""The report in Chromium: what is seen, what the keyboard reaches, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from onnx import TensorProto, helper, numpy_helper
from rustq import demo
from rustq.page import comparison_page, quantization_page

pytest.importorskip("playwright", reason="make test-browser installs it")
import browser as chromium

if chromium.CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

OPEN_MS, ANSWER_MS = 1000, 200
"""What a page about 500 layers may take to open, and to sort or search."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, data = demo.model_path(), demo.calibration()
    return rustq.quantize(model, data).save_report(
        tmp_path_factory.mktemp("report") / "r.html", model=model, data=data
    )


def deep(layers: int = 500) -> bytes:
    """A chain of convolutions."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "image"
    for index in range(layers):
        shape = (32, 32 if index else 3, 3, 3)
        weight = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"weight{index}"))
        names = [value, f"weight{index}"], [f"sum{index}"]
        nodes.append(
            helper.make_node(
                "Conv", *names, name=f"/block{index // 10}/conv{index}", pads=[1, 1, 1, 1]
            )
        )
        value = f"value{index}"
        nodes.append(helper.make_node("Relu", names[1], [value]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 16, 16])
        for name, channels in (("image", 3), (value, 32))
    ]
    graph = helper.make_graph(nodes, "deep", ends[:1], ends[1:], weights)
    return onnx.helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


@pytest.fixture(scope="module")
def long_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, rng = deep(), np.random.default_rng(1)
    data = [rng.normal(size=(1, 3, 16, 16)).astype(np.float32) for _ in range(4)]
    config = rustq.QuantConfig(method="minmax", noise_price=0.0)
    result = rustq.quantize(model, data, config=config)
    assert sum(layer.quantized for layer in result.report.layers) > 490
    return result.save_report(
        tmp_path_factory.mktemp("long") / "r.html", model=model, data=data, config=config
    )


# ------------------------------------------------------------------------------ what is seen
@pytest.mark.parametrize("size", [chromium.DESKTOP, chromium.PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_disk(browser: Any, report: Path, scheme: str, size: Any) -> None:
    with chromium.opened(browser, report, scheme=scheme, size=size, offline=True) as (page, wrong):
        assert page.locator("h1").is_visible()
        assert page.locator(".tiles li").count() == 4
        assert page.locator(".profile svg .bars").count() > 5
        page.locator("#table .open").first.click()
        charts = page.locator("#table .detail svg")
        assert charts.count() >= 2
        for chart in charts.all():
            box = chart.bounding_box()
            assert box is not None and box["width"] > 100 and box["height"] > 30
            assert chart.locator(".bars").bounding_box()["height"] > 10  # type: ignore[index]
        dark = page.evaluate(LUMINANCE, "body") < 0.1
        assert dark == (scheme == "dark")
        assert wrong == []


LUMINANCE = """(selector) => {
  const colour = getComputedStyle(document.querySelector(selector)).backgroundColor;
  const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => (Number(part) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}"""

CONTRAST = """() => {
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => (Number(part) / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = luminance(getComputedStyle(document.body).backgroundColor);
  const ratio = (colour) => {
    const [low, high] = [luminance(colour), behind].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const texts = [...document.querySelectorAll("p, td, th, li, b, h2, summary, code")];
  return [Math.min(...texts.map((element) => ratio(getComputedStyle(element).color))),
    ratio(getComputedStyle(document.querySelector("svg .bars")).fill)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Any, report: Path, scheme: str) -> None:
    """What WCAG 2 asks at level AA: 4.5 for text, 3 for graphics."""
    with chromium.opened(browser, report, scheme=scheme) as (page, _):
        text, graphics = page.evaluate(CONTRAST)
        assert text >= 4.5
        assert graphics >= 3


def test_a_phone_is_never_scrolled_sideways(browser: Any, report: Path, long_report: Path) -> None:
    for file in (report, long_report):
        for width in (320, 375):
            size = {"width": width, "height": 700}
            with chromium.opened(browser, file, size=size) as (page, _):
                for button in page.locator("#table .open").all()[:3]:
                    button.click()
                for details in page.locator("details").all():
                    details.locator("summary").first.click()
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                cell = page.locator("#table tbody tr").first.locator("td").nth(1)
                assert cell.is_visible()
                box = cell.bounding_box()
                assert box is not None and box["x"] + box["width"] <= width


def test_without_scripts_all_charts_are_there(browser: Any, report: Path) -> None:
    with chromium.opened(browser, report, java_script_enabled=False) as (page, wrong):
        assert page.locator("#charts svg").count() > 20
        assert page.locator("#charts svg").first.is_visible()
        assert wrong == []


def test_a_comparison_and_a_notebook(browser: Any, tmp_path: Path) -> None:
    model, data = demo.model_path(), demo.calibration()
    result = rustq.quantize(model, data)
    (quantized,) = result.save(tmp_path / "q.onnx")
    compared = rustq.compare(model, quantized, data)
    file = comparison_page(tmp_path / "c.html", compared, quantized)
    with chromium.opened(browser, file) as (page, wrong):
        assert page.locator("#good + table").is_visible()
        assert wrong == []
    notebook = tmp_path / "n.html"
    notebook.write_text(f"<!doctype html><title>n</title>{result.report._repr_html_()}", "utf-8")
    with chromium.opened(browser, notebook) as (page, wrong):
        framed = page.frame_locator("iframe")
        assert framed.locator("#table tbody tr").count() == len(result.report.layers)
        assert [each for each in wrong if each != "about:srcdoc"] == []


@pytest.mark.parametrize("target", ["tensorrt", "ncnn", "ascend"])
def test_other_runtimes(browser: Any, target: str, tmp_path: Path) -> None:
    model, data = demo.model_path(), demo.calibration()
    result = rustq.quantize(model, data, target=target)
    file = quantization_page(tmp_path / "r.html", result, model=model, data=data)
    with chromium.opened(browser, file) as (page, wrong):
        assert page.locator("#table tbody tr").count() == len(result.report.layers)
        assert page.locator("#fusion").count() == (target != "ascend")
        assert wrong == []


# ------------------------------------------------------------------------------ what it answers to
def names(page: Any) -> list[str]:
    """The layers that are seen, in order."""
    rows = page.locator("#table tbody tr:not(.detail):visible td.name")
    return [text.strip() for text in rows.all_inner_texts()]


def bare(names: list[str]) -> list[str]:
    return [name.lstrip("▸▾ ").strip() for name in names]


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def test_with_the_keyboard_alone(browser: Any, report: Path) -> None:
    with chromium.opened(browser, report) as (page, wrong):
        assert page.evaluate("document.activeElement === document.body")
        press(page, "Tab")
        assert page.evaluate("document.activeElement.id") == "search"
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        press(page, "Tab")
        heads = page.locator("#table thead th")
        assert page.evaluate("document.activeElement.textContent") == "layer"
        everything = bare(names(page))
        press(page, "Enter")
        assert heads.first.get_attribute("aria-sort") == "ascending"
        assert bare(names(page)) == sorted(everything)
        press(page, "Space")
        assert heads.first.get_attribute("aria-sort") == "descending"
        assert bare(names(page)) == sorted(everything, reverse=True)
        assert page.locator("#table th[aria-sort]").count() == 1
        for _ in range(heads.count()):
            press(page, "Tab")
        assert page.evaluate("document.activeElement.className") == "open"
        press(page, "Enter")
        assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
        assert page.locator("#table .detail:visible").count() == 1
        press(page, "Space")
        assert page.locator("#table .detail:visible").count() == 0
        assert wrong == []


def test_search_leaves_what_matches(browser: Any, report: Path) -> None:
    with chromium.opened(browser, report) as (page, _):
        everything = names(page)
        page.locator("#table .open").first.click()
        page.locator("#search").fill("GEMM")
        assert bare(names(page)) == ["classifier"]
        assert page.locator("#shown").inner_text() == f"1 of {len(everything)} layers"
        assert page.locator("#table .detail:visible").count() == 0
        page.locator("#search").fill("nothing is called so")
        assert names(page) == []
        page.locator("#search").fill("")
        assert len(names(page)) == len(everything)
        assert page.locator("#table .detail:visible").count() == 1


def test_sorting_by_numbers(browser: Any, report: Path) -> None:
    with chromium.opened(browser, report) as (page, _):
        for title in ("share", "weights", "activations", "MACs"):
            for sign in (1, -1):
                page.get_by_role("button", name=title, exact=True).click()
                cells = page.locator(f"#table tbody td[data-label={title}]")
                keys = [cell.get_attribute("data-key") for cell in cells.all()]
                known = [float(key) for key in keys if key]
                assert known == sorted(known, reverse=sign < 0) and len(set(known)) > 2
                assert keys[len(known) :] == [""] * (len(keys) - len(known))


# ------------------------------------------------------------------------------ how long it takes
class Work:
    """The time in milliseconds that the page's main thread works: scripts, style, layout, paint.

    It is the processor's time, so that what else the machine does counts little.
    """

    def __init__(self, page: Any) -> None:
        self._tools = page.context.new_cdp_session(page)
        self._tools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def total(self) -> float:
        metrics = self._tools.send("Performance.getMetrics")["metrics"]
        return 1000 * next(m["value"] for m in metrics if m["name"] == "TaskDuration")

    def of(self, action: Callable[[], object]) -> float:
        before = self.total()
        action()
        return self.total() - before


SORT = "document.querySelectorAll('#table th button')[{}].click(); document.body.clientHeight"
SEARCH = """const box = document.getElementById('search'); box.value = '{}';
box.dispatchEvent(new Event('input')); document.body.clientHeight"""
ACTIONS = {
    "sort by name": SORT.format(0),
    "sort by a number": SORT.format(4),
    "search": SEARCH.format("block12"),
    "search for nothing": SEARCH.format(""),
}


def test_five_hundred_layers(browser: Any, long_report: Path, capsys: Any) -> None:
    with chromium.opened(browser, long_report) as (page, wrong):
        work = Work(page)
        opening = work.of(page.reload)
        assert page.locator("#table tbody tr").count() == 500
        answers: dict[str, float] = {}
        for _ in range(3):
            for what, action in ACTIONS.items():
                took = work.of(lambda action=action: page.evaluate(f"() => {{ {action} }}"))
                answers[what] = min(answers.get(what, took), took)
        with capsys.disabled():
            shown = ", ".join(f"{what} {took:.0f} ms" for what, took in answers.items())
            size = long_report.stat().st_size / 1e6
            print(f"\n500 layers, {size:.1f} MB: open and ready {opening:.0f} ms; {shown}")
        assert opening < OPEN_MS
        assert max(answers.values()) < ANSWER_MS
        rows = page.locator("#table tbody tr:visible")
        assert rows.count() == 100
        page.get_by_role("button", name="Show all 500 layers").click()
        assert rows.count() == 500
        assert not page.locator("#all").is_visible()
        assert wrong == []
