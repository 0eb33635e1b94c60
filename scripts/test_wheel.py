"""Installs a wheel, or the source distribution, into an empty environment and runs the README's
example there.

    python scripts/test_wheel.py dist/rustq-*.whl

The environment is new, outside of the repository, and has nothing but what pip brings for the
wheel; what it imports is checked to come from there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from snippets import BLOCK

README = Path(__file__).resolve().parents[1] / "README.md"
CHECKS = """
import platform, sysconfig
assert rustq.__file__.startswith(sysconfig.get_path("purelib")) or {elsewhere}, rustq.__file__
assert result.report.mac_share() > 0.9
error = rustq.compare(model, result, samples).outputs[0].sqnr_db
assert error > 25, error
print(f"rustq {{rustq.__version__}} on {{platform.machine()}}: output SQNR {{error:.1f}} dB")
"""


def example(*, elsewhere: bool = True) -> str:
    """The first Python block of the README, and what has to be true after it.

    Args:
        elsewhere: whether rustq may be in another place than the environment's packages.
    """
    block = BLOCK.search(README.read_text("utf-8"))
    assert block, "README.md has no Python in it"
    return block[1] + CHECKS.format(elsewhere=elsewhere)


def main() -> int:
    """Command line."""
    for distribution in map(Path, sys.argv[1:]):
        print(f"{distribution.name}:", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            venv.create(Path(folder) / "venv", with_pip=True)
            binaries = Path(folder) / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
            python, work = str(binaries / "python"), Path(folder) / "work"
            work.mkdir()
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, str(distribution.resolve())], check=True)
            script = Path(folder) / "example.py"
            script.write_text(example(elsewhere=False), encoding="utf-8")
            subprocess.run([python, "-I", str(script)], cwd=work, check=True)
            subprocess.run([str(binaries / "rustq"), "demo"], cwd=work, check=True)
    return 0 if sys.argv[1:] else 2


if __name__ == "__main__":
    raise SystemExit(main())
