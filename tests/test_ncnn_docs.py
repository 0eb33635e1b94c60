"""The page about ncnn: its commands run, and its C++ loads what they write."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import rustq
from builders import Net
from ncnn_runtime import Case, run
from rustq import demo
from rustq.cli import main

PAGE = (Path(__file__).parent.parent / "docs" / "ncnn.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The first code block in that language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page starts from: model.onnx, which reads `image`, and samples/."""
    net = Net()
    x = net.op("Relu", net.conv(net.input("image", "N", 3, 224, 224), 3, 16, strides=[4, 4]))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.conv(x, 16, 16)))
    rustq.load(net.model(net.linear(x, 16, 10))).save(tmp_path / "model.onnx")
    (tmp_path / "samples").mkdir()
    for i in range(4):
        sample = net.random.normal(size=(1, 3, 224, 224)).astype(np.float32)
        np.save(tmp_path / "samples" / f"{i}.npy", sample)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_write_what_ncnn_runs(folder: Path) -> None:
    lines = [shlex.split(line, comments=True) for line in block("sh").splitlines()]
    commands = [words for words in lines if words]
    assert len(commands) > 3
    for program, *words in commands:
        assert (program, main(words)) == ("rustq", 0), words
    written = sorted(path.name for path in folder.iterdir() if path.suffix in (".param", ".table"))
    assert written == ["model.float16.param", "model.param", "model.table"]
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    image = np.load(folder / "samples" / "0.npy")
    (output,) = rustq.load(folder / "model.onnx").outputs
    cases = [
        Case(folder / name, [{"image": image[0]}], [output.name])
        for name in ("model.param", "model.float16.param")
    ]
    in_int8, in_float = (found[0][0] for found in run(cases))
    assert np.abs(in_int8 - in_float).max() < 0.05 * np.abs(in_float).max()


def test_the_program_reads_what_the_example_writes() -> None:
    program, example = block("cpp"), block("python")
    (param,) = re.findall(r'load_param\("(.*?)"\)', program)
    (weights,) = re.findall(r'load_model\("(.*?)"\)', program)
    assert f'save("{param}")' in example
    assert Path(param).with_suffix(".bin").name == weights
    model = rustq.load(demo.model_path())
    assert re.findall(r'extractor\.input\("(.*?)"', program) == [v.name for v in model.inputs]
    assert re.findall(r'extractor\.extract\("(.*?)"', program) == [v.name for v in model.outputs]
