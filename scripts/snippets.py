"""Runs the Python in Markdown files, so that what they show works.

    python scripts/snippets.py README.md docs/*.md

The python blocks of a file run in order, in one namespace and a folder of their own. What they
print is thrown away; a failure has the file's name and line in its traceback.
"""

from __future__ import annotations

import contextlib
import io
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
        above = "\n" * text.count("\n", 0, block.start(1))  # so that line numbers are the file's
        exec(compile(above + block[1], str(file), "exec"), namespace)
    return len(blocks)


def main() -> None:
    """Command line."""
    files = [Path(name).resolve() for name in sys.argv[1:]]
    count = 0
    for file in files:
        printed = contextlib.redirect_stdout(io.StringIO())
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), printed:
            count += run(file)
    print(f"{count} snippets of {len(files)} files ran")


if __name__ == "__main__":
    main()
