"""What a page is made from, and the same as data."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rustq.comparison import Comparison
from rustq.config import QuantConfig
from rustq.fusion import Fusion
from rustq.plain import plain
from rustq.report import Report

if TYPE_CHECKING:
    from rustq.calibration import Calibration

__all__ = ["Facts", "File", "Scores", "Sources"]

PACKAGES = ("rustq", "onnxruntime", "onnx", "numpy")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a user's own metric says, higher is better.

    Attributes:
        model: of the float model.
        quantized: of the quantized model.
    """

    model: float
    quantized: float


@dataclass(frozen=True)
class Facts:
    """What was measured; anything may be missing.

    Attributes:
        report: what quantization did.
        comparison: how both models do on the same data.
        fusion: what the runtime makes of the quantized model.
        shares: each int8 layer's share of the error of the outputs, by its name; together 1.
        scores: a task metric of both models.
        seen: whether it was measured on what the quantized model was calibrated on.
    """

    report: Report | None = None
    comparison: Comparison | None = None
    fusion: Fusion | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    scores: Scores | None = None
    seen: bool = False

    @property
    def worst_db(self) -> float | None:
        """The lowest SQNR among the outputs."""
        outputs = self.comparison.outputs if self.comparison else ()
        return min((o.sqnr_db for o in outputs if o.sqnr_db is not None), default=None)

    @property
    def speedup(self) -> float | None:
        """Float time over quantized time."""
        return self.comparison.speedup if self.comparison else None


@dataclass(frozen=True, kw_only=True)
class File:
    """A file that a page is about.

    Attributes:
        what: what it is to the reader, such as "float model".
        name: its name, without the folder.
        bytes: its size.
        sha256: its hash, in hexadecimal.
    """

    what: str
    name: str
    bytes: int
    sha256: str

    @classmethod
    def read(cls, what: str, path: Path) -> File:
        """Looks at a file.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(what=what, name=path.name, bytes=path.stat().st_size, sha256=digest)


@dataclass(frozen=True)
class Sources:
    """Where the details of a page come from; anything may be missing.

    Attributes:
        calibration: of the histograms of activations.
        model: of the weights' integers: a serialized QDQ model.
        files: the files the page is about, by what they are to the reader.
        config: every choice that was made.
    """

    calibration: Calibration | None = None
    model: bytes = b""
    files: Mapping[str, Path] = field(default_factory=dict)
    config: QuantConfig | None = None

    def fingerprints(self) -> list[File]:
        """The files, and what was seen of the activations, with their hashes."""
        found = [File.read(what, path) for what, path in self.files.items()]
        if self.calibration is not None:
            seen = self.calibration._core.to_bytes()
            digest = hashlib.sha256(seen).hexdigest()
            found.append(File(what="calibration", name="", bytes=len(seen), sha256=digest))
        return found

    def recipe(self, report: Report) -> str:
        """The Python that makes the same again."""
        model = self.files.get("float model")
        arguments = [
            "model" if model is None else repr(model.name),
            *([] if report.samples is None else ["samples"]),
            *([f"scheme={report.scheme!r}"] if report.scheme in ("asym", "sym") else []),
            f"target={report.target!r}",
            *([f"config=rustq.{self._changes()}"] if self._changes() else []),
            *([] if report.max_drop is None else [f"max_drop={report.max_drop!r}"]),
        ]
        return f"rustq.quantize({', '.join(arguments)})"

    def _changes(self) -> str:
        """A configuration that differs from the default, as Python with what differs."""
        default = QuantConfig()
        changed = {
            name: value
            for name, value in vars(self.config or default).items()
            if value != getattr(default, name)
        }
        shown = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        return f"QuantConfig({shown})" if shown else ""


def versions() -> dict[str, str]:
    """What it ran on."""
    return {name: version(name) for name in PACKAGES} | {
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def contents(facts: Facts, sources: Sources, advice: list[str]) -> dict[str, Any]:
    """All that a page says, but for the histograms, as JSON-ready values."""
    return {
        "report": facts.report and facts.report.to_dict(),
        "comparison": facts.comparison and facts.comparison.to_dict(),
        "scores": plain(facts.scores),
        "shares": plain(facts.shares),
        "fusion": plain(facts.fusion),
        "advice": advice,
        "files": plain(sources.fingerprints()),
        "versions": versions(),
        "config": sources.config and sources.config.to_dict(),
    }
