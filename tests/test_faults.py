"""A full disk, a killed process, a folder that must not be written to: what was there before is still there, whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import rustq
from builders import Net

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs resource limits and signals")


def network(seed: int = 0) -> onnx.ModelProto:
    net = Net(seed)
    x = net.op("MatMul", net.input("x", 1, 300), net.weight(300, 300, fan_in=300))
    return net.model(net.op("Mul", x, net.constant(2.0)))


def python(code: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


FULL = """
import resource, sys, rustq
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
model = rustq.quantize(sys.argv[1]) if sys.argv[3] == "quantize" else rustq.fold(sys.argv[1])
try:
    model.save(sys.argv[1], external_data=sys.argv[4] == "beside")
except OSError as error:
    print(error.filename)
"""


@pytest.mark.parametrize("where", ["inside", "beside"])
@pytest.mark.parametrize("verb", ["fold", "quantize"])
def test_a_file_that_may_not_grow(tmp_path: Path, verb: str, where: str) -> None:
    path = tmp_path / "m.onnx"
    rustq.load(network()).save(path, external_data=where == "beside")
    before = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}
    output, errors = python(FULL, path, 50_000, verb, where).communicate(timeout=60)
    assert errors == ""
    assert output.startswith(str(path))
    assert {entry: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def mounted() -> tuple[str, ...]:
    """How to run a command where it may mount file systems, if that is possible here."""
    command = ("unshare", "--user", "--map-root-user", "--mount")
    probe = (*command, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt")
    done = shutil.which("unshare") and subprocess.run(probe, capture_output=True, check=False)
    return command if done and done.returncode == 0 else ()


def test_a_full_disk(tmp_path: Path) -> None:
    if not (before := mounted()):
        pytest.skip("file systems cannot be mounted here")
    source, disk = tmp_path / "m.onnx", tmp_path / "disk"
    onnx.save(network(), source)
    disk.mkdir()
    code = f"""
import os, shutil, subprocess
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", {str(disk)!r}], check=True)
path = shutil.copy({str(source)!r}, {str(disk)!r})
os.environ["TMPDIR"] = {str(disk)!r}
import sys
sys.argv = ["", path, "0", "fold", "inside"]
exec({FULL!r})
assert open(path, "rb").read() == open({str(source)!r}, "rb").read()
assert os.listdir({str(disk)!r}) == ["m.onnx"], os.listdir({str(disk)!r})
"""
    output, errors = python(code, before=before).communicate(timeout=60)
    assert errors == ""
    assert output.strip() == str(disk / "m.onnx")


def test_a_read_only_file_system(tmp_path: Path) -> None:
    if not (before := mounted()):
        pytest.skip("file systems cannot be mounted here")
    source, disk = tmp_path / "m.onnx", tmp_path / "disk"
    onnx.save(network(), source)
    disk.mkdir()
    code = f"""
import os, shutil, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", {str(disk)!r}], check=True)
path = shutil.copy({str(source)!r}, {str(disk)!r})
subprocess.run(["mount", "-o", "remount,ro", {str(disk)!r}], check=True)
sys.argv = ["", path, "0", "fold", "beside"]
exec({FULL!r})
assert open(path, "rb").read() == open({str(source)!r}, "rb").read()
assert os.listdir({str(disk)!r}) == ["m.onnx"], os.listdir({str(disk)!r})
"""
    output, errors = python(code, before=before).communicate(timeout=60)
    assert errors == ""
    assert output.strip().startswith(str(disk / "m.onnx"))


KILLED = """
import sys, rustq
models = [rustq.load(path) for path in sys.argv[2:]]
print("ready", flush=True)
while True:
    for model in models:
        model.save(sys.argv[1], external_data=True)
"""


def test_a_killed_process(tmp_path: Path) -> None:
    """Whatever the moment, the file is one of the two models, with its data."""
    sources = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for seed, source in enumerate(sources):
        onnx.save(network(seed), source)
    whole = {rustq.load(source).to_bytes() for source in sources}
    path = tmp_path / "out" / "m.onnx"
    path.parent.mkdir()
    draw = random.Random(0)
    for _ in range(8):
        process = python(KILLED, path, *sources)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.02, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        if path.exists():
            assert rustq.load(path).to_bytes() in whole
    assert path.exists()


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    before = path.read_bytes()
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError) as raised:
            rustq.fold(path).save(path, external_data=True)
        assert str(path) in str(raised.value)
    finally:
        tmp_path.chmod(0o755)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == before
