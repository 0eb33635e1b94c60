"""From facts to the page."""

from __future__ import annotations

from functools import cache

import jinja2
from markupsafe import escape

from rustq import text
from rustq.comparison import COST_HEADER, OUTPUT_HEADER
from rustq.page.advice import advice
from rustq.page.charts import profile
from rustq.page.facts import Facts, Sources, versions
from rustq.page.layers import rows

__all__ = ["framed", "render"]

RUNTIMES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "ncnn": "ncnn", "ascend": "CANN"}
"""What people call the targets' runtimes."""


def framed(facts: Facts) -> str:
    """The page in a frame of its own, for a notebook."""
    page = escape(render(facts, Sources()))
    return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'


def render(facts: Facts, sources: Sources) -> str:
    """The page as text."""
    report, comparison = facts.report, facts.comparison
    layers = rows(report, facts.shares, sources) if report else []
    return _template().render(
        report=report,
        comparison=comparison,
        scores=facts.scores,
        tiles=_tiles(facts),
        outputs=(OUTPUT_HEADER, comparison.output_rows()) if comparison else None,
        costs=(COST_HEADER, comparison.cost_rows()) if comparison else None,
        rows=layers,
        shares=facts.shares,
        profile=profile(_in_order(facts)),
        ranked=any(row.error_db is not None for row in layers),
        reasons=report.float_reasons() if report else {},
        products=report.float_reasons(heavy=True) if report else {},
        others=report.float_reasons(heavy=False) if report else {},
        fusion=facts.fusion,
        runtime=RUNTIMES[facts.fusion.runtime] if facts.fusion else "",
        advice=advice(facts),
        versions=versions(),
        files=[(f.what, f.name, text.size(f.bytes), f.sha256) for f in sources.fingerprints()],
        config=sources.config.to_dict() if sources.config else {},
        recipe=sources.recipe(report) if report else "",
        decibels=text.decibels,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rustq.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html")


def _in_order(facts: Facts) -> dict[str, float]:
    """The shares in the order of the network."""
    layers = facts.report.layers if facts.report else ()
    return {each.name: facts.shares[each.name] for each in layers if each.name in facts.shares}


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """The figures that people look for first: what, how much, and what it is about."""
    report, comparison, scores = facts.report, facts.comparison, facts.scores
    tiles = []
    if scores:
        tiles.append(("score", f"{scores.quantized:.4g}", f"float {scores.model:.4g}"))
    if facts.worst_db is not None and comparison:
        tiles.append(("output error", text.decibels(facts.worst_db), _outputs(comparison.samples)))
    if comparison:
        share = comparison.size_quantized / comparison.size_float
        tiles.append(("size", f"{100 * share:.0f} %", text.size(comparison.size_quantized)))
        if comparison.speedup is not None:
            speed = f"{comparison.speedup:.2f}×"
            tiles.append(("speed", speed, text.milliseconds(comparison.latency_quantized_ms)))
    elif report and report.size_before and report.size_after:
        share = report.size_after / report.size_before
        tiles.append(("size", f"{100 * share:.0f} %", text.size(report.size_after)))
    if report and (macs := report.mac_share()) is not None:
        tiles.append(("in int8", f"{100 * macs:.0f} %", "of the multiply-accumulates"))
    return tiles


def _outputs(samples: int) -> str:
    return f"SQNR of the worst output, {text.count(samples, 'sample')}"
