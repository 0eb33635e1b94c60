"""The download cache: pinned public packages, unpacked once, each into a folder of its own.

A folder appears in the cache only when it is complete: it is filled beside its final place and
renamed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
DEFAULT_CACHE = HERE.parents[1] / "cache"
CACHE_VARIABLE = "RUSTQ_CACHE"

Kind = Literal["wheel", "sdist", "debian"]


def cache_folder(given: str | Path | None = None) -> Path:
    """The cache to use: an explicit folder, else $RUSTQ_CACHE, else `cache/` in the repository."""
    return Path(given or os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).resolve()


class Store:
    """Packages named in sources.toml, and files derived from them, below one root folder."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = cache_folder(root)
        self.pins: dict[str, dict[str, str]] = tomllib.loads((HERE / "sources.toml").read_text())

    def package(self, kind: Kind, key: str) -> Path:
        """The folder with the contents of one package."""
        pin = self.pins[kind][key]
        fill = _fill_from_debian if kind == "debian" else _fill_from_pip(sdist=kind == "sdist")
        return self.derive(f"{kind}/{pin}", lambda folder: fill(pin, folder))

    def find(self, kind: Kind, key: str, pattern: str) -> Path:
        """The first file (in path order) of a package that matches a glob pattern."""
        found = sorted(self.package(kind, key).rglob(pattern))
        if not found:
            raise FileNotFoundError(f"no {pattern} in {self.pins[kind][key]}")
        return found[0]

    def derive(self, relative: str, fill: Callable[[Path], None]) -> Path:
        """`root/relative`, created by `fill(path)` unless it is there already."""
        final = self.root / relative
        if not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=final.parent, prefix=".partial-") as scratch:
                partial = Path(scratch) / final.name
                fill(partial)
                partial.rename(final)
        return final


def _fill_from_pip(*, sdist: bool) -> Callable[[str, Path], None]:
    choice = ["--no-binary=:all:"] if sdist else []

    def fill(requirement: str, folder: Path) -> None:
        with tempfile.TemporaryDirectory() as downloads:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *choice]
            subprocess.run([*pip, "--dest", downloads, requirement], check=True)
            (archive,) = Path(downloads).iterdir()
            if archive.suffix in {".whl", ".zip"}:
                zipfile.ZipFile(archive).extractall(folder)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(folder, filter="data")

    return fill


def _fill_from_debian(name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        download = ["apt-get", "download", "-qq", name]
        if subprocess.run(download, cwd=downloads, capture_output=True, check=False).returncode:
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(download, cwd=downloads, check=True)
        (archive,) = Path(downloads).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", archive, folder], check=True)
