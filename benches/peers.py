"""Other quantizers on the zoo: output SQNR and score, at several settings each.

    python benches/peers.py                                # all, and rustq: hours
    python benches/peers.py --tool nncf --case mnist_cnn   # some; both repeatable

Each tool has an environment of its own (`peers.toml`), made on first use in `peers/` beside the
zoo's downloads; torch, which three of them need, makes it some 7 GB. A tool is given the model
after onnxruntime's `quant_pre_process`, converted to operator set 17 if it is below 13, and the
case's calibration inputs. All results run in this environment's onnxruntime, on one thread and the
evaluation inputs.

The first table has a line for each model made: score, loss in points, SQNR of the outputs as they
come out of the integer kernels of this machine, and "in float", SQNR with onnxruntime's
optimizations off, where every operator computes in float between its QuantizeLinear and
DequantizeLinear: the same on every machine, while the integer kernels of x86 without VNNI saturate.
The second has each tool's best SQNR of either kind, chosen on the evaluation data, so optimistic.
`--results FILE` keeps what was measured, and what is in it is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import variants
import zoo
from accuracy import sqnr
from markdown import table
from peer_tools import SETTINGS

HERE = Path(__file__).parent
HEADER = ("case", "quantized by", "setting", "score", "loss", "SQNR dB", "in float", "seconds")
RUSTQ = {"asym": "asym", "sym": "sym"}


@dataclass(frozen=True)
class Result:
    """One case by one tool at one setting; without numbers where it failed."""

    case: str
    tool: str
    setting: str
    score: float = math.nan
    loss: float = math.nan
    sqnr: float = math.nan
    simulated: float = math.nan
    seconds: float = math.nan
    error: str = ""

    def row(self) -> Sequence[str]:
        """The cells of HEADER."""
        head = self.case, self.tool, self.setting
        if self.error:
            return *head, "fails", "", "", "", ""
        return (
            *head,
            f"{self.score:.4f}",
            f"{self.loss:.2f}",
            f"{self.sqnr:.1f}",
            f"{self.simulated:.1f}",
            f"{self.seconds:.0f}",
        )


def environment(tool: str, folder: Path) -> Path:
    """The Python of a tool's environment, which is made if it is not there."""
    python = folder / tool / "bin" / "python"
    if not python.exists():
        requirements = tomllib.loads((HERE / "peers.toml").read_text())[tool]
        uv = [sys.executable, "-m", "uv"]
        # uv keeps one copy of what several environments share.
        subprocess.run([*uv, "venv", "--quiet", "-p", sys.executable, folder / tool], check=True)
        subprocess.run([*uv, "pip", "install", "--quiet", "-p", python, *requirements], check=True)
    return python


@dataclass(frozen=True)
class Bench:
    """A case with what all tools share: prepared model, feeds as files, float outputs."""

    case: zoo.Case
    model: Path
    feeds: Path
    reference: list[zoo.Outputs]

    @classmethod
    def of(cls, case: zoo.Case, scratch: Path) -> Bench:
        """Prepare the model and write the feeds."""
        feeds = scratch / "feeds"
        feeds.mkdir()
        for number, feed in enumerate(case.calibration):
            np.savez(feeds / f"{number:05}.npz", **feed)
        return cls(case, variants.prepare(case.model, scratch), feeds, case.run())

    def measure(self, tool: str, setting: str, path: Path, seconds: float) -> Result:
        """Run what a tool made."""
        outputs = self.case.run(path)
        score = self.case.score(outputs)
        simulated = self.case.run(path, integers=False)
        return Result(
            case=self.case.name,
            tool=tool,
            setting=setting,
            score=score,
            loss=100 * (self.case.score(self.reference) - score),
            sqnr=sqnr(self.reference, outputs),
            simulated=sqnr(self.reference, simulated),
            seconds=seconds,
        )

    def attempt(self, tool: str, setting: str, python: Path, limit: float) -> Result:
        """Quantize with a tool and measure; whatever goes wrong is the result."""
        path = self.model.with_name("made.onnx")
        path.unlink(missing_ok=True)
        before = os.times()
        try:
            if tool == "rustq":
                variants.rustq(setting).quantize(self.case, path)
            else:
                paths = (self.model, self.feeds, path)
                command = [python, HERE / "peer_tools.py", tool, setting, *paths]
                subprocess.run(command, check=True, capture_output=True, timeout=limit, text=True)
            return self.measure(tool, setting, path, _cpu_seconds(before))
        except subprocess.CalledProcessError as failed:
            error = (failed.stderr.strip().splitlines() or [f"exit status {failed.returncode}"])[-1]
        except Exception as failed:
            error = f"{type(failed).__name__}: {failed}"
        print(f"{self.case.name}, {tool}, {setting}: {error}", file=sys.stderr, flush=True)
        return Result(self.case.name, tool, setting, error=" ".join(error.split())[:300])


def _cpu_seconds(before: os.times_result) -> float:
    """Processor time of this process and its children since then."""
    return sum(os.times()[:4]) - sum(before[:4])


def wanted(
    tools: Iterable[str], cases: Iterable[str], known: dict[tuple[str, str, str], Result]
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """What is not measured yet, case by case."""
    tools = list(tools)
    for case in cases:
        pairs = [(tool, s) for tool in tools for s in (SETTINGS | {"rustq": RUSTQ})[tool]]
        rest = [pair for pair in pairs if (case, *pair) not in known]
        if rest:
            yield case, rest


def best(results: Sequence[Result], tools: Sequence[str], cases: Sequence[str]) -> str:
    """Per case, the best SQNR of each tool at any of its settings: as run here / in float."""
    rows = []
    for case in cases:
        cells = [case]
        for tool in tools:
            mine = [r for r in results if (r.case, r.tool) == (case, tool) and not r.error]
            pair = [max(r.sqnr for r in mine), max(r.simulated for r in mine)] if mine else []
            cells.append(" / ".join(f"{figure:.1f}" for figure in pair) or "fails")
        rows.append(cells)
    return table(["case", *tools], rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    tools = ["rustq", *SETTINGS]
    parser.add_argument("--tool", action="append", choices=tools, help="default: all")
    parser.add_argument("--case", action="append", choices=list(zoo.CASES), help="default: all")
    parser.add_argument("--folder", type=Path, help="environments; default: peers/ in the cache")
    parser.add_argument("--results", type=Path, help="file of results, read and added to")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one model")
    parser.add_argument("--cache", help=f"downloads; else ${zoo.CACHE_VARIABLE}, else cache/")
    options = parser.parse_args()
    store = zoo.Store(options.cache)
    folder = options.folder or store.root / "peers"
    tools, cases = options.tool or tools, options.case or list(zoo.CASES)

    known = {}
    if options.results and options.results.exists():
        lines = map(json.loads, options.results.read_text().splitlines())
        known = {(r["case"], r["tool"], r["setting"]): Result(**r) for r in lines}
    pythons = {tool: environment(tool, folder) for tool in tools if tool != "rustq"}
    for name, pairs in wanted(tools, cases, known):
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench.of(zoo.load(name, store), Path(scratch))
            for tool, setting in pairs:
                print(f"{name}: {tool}, {setting}", file=sys.stderr, flush=True)
                result = bench.attempt(tool, setting, pythons.get(tool, Path()), options.limit)
                known[name, tool, setting] = result
                if options.results:
                    with options.results.open("a") as file:
                        file.write(json.dumps(asdict(result)) + "\n")
    results = [result for result in known.values() if result.tool in tools and result.case in cases]
    print(table(HEADER, (result.row() for result in results), names=3))
    print()
    print(best(results, tools, cases))


if __name__ == "__main__":
    main()
