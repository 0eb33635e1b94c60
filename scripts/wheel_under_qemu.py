"""Runs rustq's aarch64 wheel under qemu-user: the README's example, in a Python for aarch64.

    python scripts/wheel_under_qemu.py dist/rustq-*aarch64.whl

Needs Debian with apt, dpkg and qemu-user. Python and its libraries for arm64 are Debian's packages,
and what rustq depends on is PyPI's wheels; both are unpacked into the cache, and nothing is
installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from test_wheel import example

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libbz2-1.0",
    "libc6",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libssl3",
    "libstdc++6",
    "libuuid1",
    "zlib1g",
)
"""What a Python needs to run rustq, of Debian 12."""

INTERPRETER = "usr/bin/python3.11"
RUNTIME = "onnxruntime==1.20.1"
"""Later ones crash in qemu 7.2, that of Debian 12, when they are imported."""

PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")


def system(folder: Path) -> Path:
    """A folder with a Python for aarch64, filled if it is not there yet."""
    if not (folder / INTERPRETER).exists():
        subprocess.run(["dpkg", "--add-architecture", "arm64"], check=True)
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        with tempfile.TemporaryDirectory() as downloads:
            folder.mkdir(parents=True, exist_ok=True)
            names = [f"{name}:arm64" for name in PACKAGES]
            subprocess.run(["apt-get", "download", "-qq", *names], cwd=downloads, check=True)
            for archive in sorted(Path(downloads).glob("*.deb")):
                subprocess.run(["dpkg-deb", "--extract", archive, folder], check=True)
    return folder


def dependencies(wheel: Path, folder: Path) -> Path:
    """A folder with the wheels that rustq depends on, for aarch64."""
    if not folder.exists():
        platforms = [f"--platform={name}" for name in PLATFORMS]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
        command += [
            *platforms,
            "--python-version=3.11",
            "--target",
            str(folder),
            str(wheel),
            RUNTIME,
        ]
        subprocess.run(command, check=True)
    return folder


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--cache", type=Path, default=ROOT / "cache" / "aarch64")
    options = parser.parse_args()
    root = system(options.cache / "system")
    libraries = dependencies(options.wheel, options.cache / "libraries")
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(options.wheel).extractall(folder)
        script = Path(folder) / "example.py"
        script.write_text(example(), encoding="utf-8")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([folder, str(libraries)]),
            "PYTHONHOME": str(root / "usr"),
        }
        command = ["qemu-aarch64", "-L", str(root), str(root / INTERPRETER), str(script)]
        subprocess.run(command, env=environment, cwd=folder, check=True)


if __name__ == "__main__":
    main()
