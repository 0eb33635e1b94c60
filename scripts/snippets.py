"""Runs the Python in Markdown files, so that what they show works.

    python scripts/snippets.py README.md docs/*.md

The ```` ```python ```` blocks of a file run in order, in one namespace and an empty folder. Lines that start with
`#:` behind a `print` are what it has to print.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(file: Path) -> int:
    """Runs the blocks of one file and returns how many there are."""
    text = file.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "snippet"}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        above = text.count("\n", 0, block.start(1))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * above + block[1], str(file), "exec"), namespace)
        expected = re.findall(r"^#: ?(.*)$", block[1], re.MULTILINE)
        if expected and printed.getvalue().splitlines() != expected:
            sys.exit(f"{file}:{above + 1}: printed\n{printed.getvalue()}")
    return len(blocks)


def main() -> None:
    """Command line."""
    files = [Path(name).resolve() for name in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        count = sum(run(file) for file in files)
        os.chdir("/")
    print(f"{count} snippets of {len(files)} files ran")


if __name__ == "__main__":
    main()
