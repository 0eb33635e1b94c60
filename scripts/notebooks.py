"""Runs the notebooks of examples/ again, or checks what is in them.

    python scripts/notebooks.py            # runs each, and writes what came out into it
    python scripts/notebooks.py --check    # fails if one was not run, or shows what it should not

What they write goes to examples/out/, which is not kept.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "examples"
MOST_BYTES = 100_000
"""In a notebook: outputs are to be read."""
PLACES = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|Users|mnt|var)/|[A-Z]:\\\\|0x[0-9a-f]{6,}"
)
"""Paths of a machine, and addresses in memory."""
SECONDS = 1800
"""For a cell."""


def run(path: Path) -> None:
    """Runs a notebook in its folder, and writes it with what came out.

    Raises:
        CellExecutionError: a cell failed; its text has the traceback.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=SECONDS, resources=resources, record_timing=False)
    client.coalesce_streams = True
    client.execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/jpeg", None)  # the same as a PNG
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


def faults(path: Path) -> Iterator[str]:
    """What is wrong with a notebook, one line each."""
    text = path.read_text(encoding="utf-8")
    if len(text) > MOST_BYTES:
        yield f"{len(text)} bytes, more than {MOST_BYTES}"
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    if [cell["execution_count"] for cell in code] != list(range(1, len(code) + 1)):
        yield "was not run from the first cell to the last"
    for cell in code:
        for output in cell["outputs"]:
            if output["output_type"] == "error" or output.get("name") == "stderr":
                yield f"cell {cell['execution_count']} failed or complains"
            for found in PLACES.findall(shown(output)):
                yield f"cell {cell['execution_count']} shows a place of the machine: {found}"


def shown(output: dict[str, Any]) -> str:
    """The text of an output."""
    texts = [output.get("text", "")]
    texts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "".join("".join(text) for text in texts)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of examples/ if none is named")
    parser.add_argument("--check", action="store_true", help="run nothing")
    options = parser.parse_args()
    wrong = 0
    for path in options.notebooks or sorted(FOLDER.glob("*.ipynb")):
        if not options.check:
            print(f"running {path.name}", flush=True)
            run(path.resolve())
        for fault in faults(path):
            wrong += 1
            print(f"{path.name}: {fault}", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
