"""A million nodes: how long it takes to find what is wrong, and to fold and quantize what is not.

    python benches/many_nodes.py [--nodes 1000000]

The models are those of tests/test_many_nodes.py: chains in which something is wrong in one place,
or nothing. Seconds of CPU time, after the model was opened.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rustq
from markdown import table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from test_many_nodes import CHAINS, HOSTILE, MANY, chain, model


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a piece of work, and what it returns or raises."""
    started = time.process_time()
    try:
        result = work()
    except rustq.ModelError as error:
        result = error
    return time.process_time() - started, result


def hostile() -> list[list[str]]:
    """A row for each model in which something is wrong."""
    rows = []
    for make, place in HOSTILE:
        content = make()
        opening, opened = seconds(lambda content=content: rustq.load(content))
        found, error = opening, opened
        if not isinstance(opened, rustq.ModelError):
            found, error = seconds(lambda opened=opened: rustq.quantize(opened))
        assert place in str(error), error
        rows.append([make.__name__.replace("_", " "), f"{opening:.2f}", f"{found:.2f}"])
    return rows


def valid(count: int) -> list[list[str]]:
    """A row for each chain in which nothing is wrong."""
    rows = []
    for kind, (op_type, initializers) in CHAINS.items():
        names = [tensor.name for tensor in initializers]
        content = model(chain(op_type, count, *names), f"x{count}", initializers)
        chain.cache_clear()
        opening, opened = seconds(lambda content=content: rustq.load(content))
        folding, folded = seconds(lambda opened=opened: rustq.fold(opened))
        left = f"{sum(folded.op_counts.values()):,}"
        del folded
        quantizing, _ = seconds(lambda opened=opened: rustq.quantize(opened))
        rows.append([kind, op_type, *(f"{s:.2f}" for s in (opening, folding, quantizing)), left])
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=MANY, help="of the chains that are valid")
    options = parser.parse_args()
    print(table(["wrong", "open s", "error after s"], hostile()))
    header = ["chain of", "operator", "open s", "fold s", "fold and quantize s", "nodes left"]
    print(table(header, valid(options.nodes), names=2))


if __name__ == "__main__":
    main()
