"""Collects the licences of the crates that are compiled into the wheel.

    python scripts/licences.py            # writes THIRD-PARTY-LICENCES.txt
    python scripts/licences.py --check    # fails if the file there is another

Crates that only run while rustq is built or tested (macros, build scripts, development tools) are
not in the wheel and not in the list. A text that several crates have is there once, with their
names above it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "THIRD-PARTY-LICENCES.txt"
NAMES = re.compile(r"^(licen[cs]e|copying|notice|unlicense)", re.IGNORECASE)
HEAD = """\
rustq's wheels contain code of the crates below, and of the standard library of Rust (The
Rust Project Developers, Apache-2.0 OR MIT, https://github.com/rust-lang/rust). Where a crate is
under one licence or another, rustq takes Apache-2.0 if that is among them. Written by
scripts/licences.py.
"""
RULE = "-" * 100


def metadata() -> dict[str, Any]:
    """What cargo knows of the crate and all it may depend on, on any platform."""
    command = ["cargo", "metadata", "--locked", "--format-version=1", "--features=python"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def linked(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The packages that are part of the library, by name and version."""
    packages = {package["id"]: package for package in facts["packages"]}
    nodes = {node["id"]: node for node in facts["resolve"]["nodes"]}
    seen: set[str] = set()
    todo = [facts["resolve"]["root"]]
    while todo:
        found = todo.pop()
        if found in seen or is_macro(packages[found]):
            continue
        seen.add(found)
        todo += [
            each["pkg"]
            for each in nodes[found]["deps"]
            if any(kind["kind"] is None for kind in each["dep_kinds"])
        ]
    seen.discard(facts["resolve"]["root"])
    return sorted((packages[i] for i in seen), key=lambda p: (p["name"], p["version"]))


def is_macro(package: dict[str, Any]) -> bool:
    """Whether this crate runs in the compiler."""
    return any("proc-macro" in target["kind"] for target in package["targets"])


def texts(package: dict[str, Any]) -> list[str]:
    """The licence files of a package, as text."""
    folder = Path(package["manifest_path"]).parent
    files = sorted(path for path in folder.iterdir() if path.is_file() and NAMES.match(path.name))
    return [file.read_text(encoding="utf-8", errors="replace").strip() for file in files]


def collected() -> str:
    """The whole file."""
    packages = linked(metadata())
    owners: dict[str, tuple[str, list[str]]] = {}
    lines = [HEAD]
    for package in packages:
        name = f"{package['name']} {package['version']}"
        found = texts(package)
        missing = "" if found else f"; its package has no licence file, by {authors(package)}"
        where = package["repository"] or package["homepage"] or ""
        lines.append(f"{name}: {package['license']}{missing} {where}".rstrip())
        for text in found:
            owners.setdefault(" ".join(text.split()), (text, []))[1].append(name)
    for text, names in owners.values():
        lines += ["", RULE, ", ".join(names), RULE, "", text]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def authors(package: dict[str, Any]) -> str:
    """Who wrote it, as far as the package tells."""
    return ", ".join(package["authors"]) or "its authors"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if it differs")
    text = collected()
    if not parser.parse_args().check:
        FILE.write_text(text, encoding="utf-8")
    elif not FILE.is_file() or FILE.read_text(encoding="utf-8") != text:
        print(f"{FILE.name} is not what scripts/licences.py collects: run it")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
