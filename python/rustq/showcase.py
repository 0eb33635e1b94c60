"""The demonstration: the model that ships with rustq, in float and in int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rustq import text
from rustq.latency import about_this_processor, interleaved_medians
from rustq.progress import Progress

__all__ = ["DemoResult", "run_demo"]

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Float against int8 on the test set of the demo.

    Attributes:
        summary: what quantization did, in one paragraph.
        accuracy: share of the test images told right, float and int8.
        bytes: size of the models.
        latency_ms: median time of a batch of 64 images on one thread, run by turns.
        notes: what the times depend on, one line each.
    """

    summary: str
    accuracy: tuple[float, float]
    bytes: tuple[int, int]
    latency_ms: tuple[float, float]
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The figures as text: what, float, int8, and how they relate."""
        points = 100 * (self.accuracy[1] - self.accuracy[0])
        share = 100 * self.bytes[1] / self.bytes[0]
        speedup = self.latency_ms[0] / self.latency_ms[1]
        right, sizes, times = (
            [f"{100 * value:.2f} %" for value in self.accuracy],
            [text.size(value) for value in self.bytes],
            [text.milliseconds(value) for value in self.latency_ms],
        )
        return [
            ("accuracy", right[0], right[1], f"{points:+.2f} points"),
            ("size", sizes[0], sizes[1], f"{share:.0f} %"),
            (
                f"latency, batch {BATCH}, 1 thread",
                times[0],
                times[1],
                f"{speedup:.2f}x {'faster' if speedup >= 1 else '(slower)'}",
            ),
        ]


def run_demo(progress: bool | Progress = False) -> DemoResult:
    """Quantizes the demo model with default settings and measures both models."""
    import rustq
    from rustq import demo
    from rustq.runner import session

    path = demo.model_path()
    result = rustq.quantize(path, demo.calibration(), progress=progress)
    quantized = result.to_bytes()
    sessions = [session(source, threads=1) for source in (path, quantized)]

    def run(which: int, images: Any) -> Any:
        return sessions[which].run(None, {demo.INPUT: images})[0]

    batch = demo.test_set()[0][:BATCH]
    return DemoResult(
        summary=result.report.summary(),
        accuracy=(
            demo.accuracy(lambda images: run(0, images)),
            demo.accuracy(lambda images: run(1, images)),
        ),
        bytes=(path.stat().st_size, len(quantized)),
        latency_ms=interleaved_medians(lambda: run(0, batch), lambda: run(1, batch)),
        notes=tuple(about_this_processor()),
    )
