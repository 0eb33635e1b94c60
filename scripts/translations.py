"""Checks that the pages in Simplified Chinese are in step with the English ones.

    python scripts/translations.py

A page and its translation have to have the same code blocks, the same headings by level, the same
links by where they lead, and tables of the same shape with the same numbers. What the sentences
say no script can compare.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "README.zh-CN.md",
    **{
        f"docs/{name}.md": f"docs/zh/{name}.md"
        for name in ("ascend", "ncnn", "tensorrt", "tutorial")
    },
}
"""Page: translation."""

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def code(text: str) -> list[str]:
    """The code blocks."""
    return FENCE.findall(text)


def headings(text: str) -> list[str]:
    """The levels of the headings."""
    return re.findall(r"^#+(?= )", FENCE.sub("", text), re.MULTILINE)


def rows(text: str) -> list[str]:
    """Of each row of a table, how many cells it has and its numbers outside of words in quotes."""
    found = re.findall(r"^ *\|.*\|$", FENCE.sub("", text), re.MULTILINE)
    return [
        f"{row.count('|')} cells, numbers {' '.join(sorted(NUMBER.findall(row)))}" for row in found
    ]


def links(text: str, page: str) -> list[str]:
    """The pages and files that are linked to, each once, by the name of the English page."""
    english = {translation: original for original, translation in PAGES.items()}
    targets = set()
    for target in LINK.findall(FENCE.sub("", text)):
        if not target.startswith("http"):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        targets.add(english.get(target, target))
    return sorted(targets - {page, english.get(page, page), PAGES.get(page, page)})


def differences(original: str, translation: str) -> list[str]:
    """What is not in step, a line each."""
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in (original, translation)]
    compared: dict[str, Callable[[str, str], list[str]]] = {
        "code block": lambda text, _: code(text),
        "heading": lambda text, _: headings(text),
        "table row": lambda text, _: rows(text),
        "link": links,
    }
    found = []
    for kind, of in compared.items():
        both = zip_longest(of(texts[0], original), of(texts[1], translation))
        for number, (here, there) in enumerate(both, 1):
            if here != there:
                found.append(f"{translation}: {kind} {number} is {there!r}, in {original} {here!r}")
                break
    return found


def main() -> int:
    """Command line."""
    found = [
        line
        for original, translation in PAGES.items()
        for line in differences(original, translation)
    ]
    print("\n".join(found) or f"{len(PAGES)} translations are in step")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
