"""Mutants of models are quantized or refused in one line: a few of those that `make fuzz` goes on with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent.parent / "fuzz"
sys.path.insert(0, str(FUZZ))

import mutate  # noqa: E402


@pytest.mark.parametrize("path", sorted((FUZZ / "seeds" / "model").iterdir()), ids=lambda p: p.name)
def test_what_was_found_before(path: Path) -> None:
    assert not mutate.complaint(path.read_bytes())


def test_mutants(tmp_path: Path) -> None:
    """In a process of its own, which a crash would take."""
    command = [sys.executable, FUZZ / "mutate.py", "--seconds", "12", "--found", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.splitlines()[-1].split()[0]) > 5


def test_what_counts_as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import rustq

    def defect(_: bytes) -> None:
        raise rustq.InternalError("it is broken")

    monkeypatch.setattr(mutate, "VERBS", (defect,))
    assert "InternalError" in mutate.complaint(b"")
