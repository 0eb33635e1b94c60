"""The command line: what it prints and writes, its exit status, and its one line for an error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rustq
from builders import Net
from rustq import cli, demo
from rustq.progress import reporting


class Ran:
    """What one run of the command line gave."""

    def __init__(self, status: int, captured: Any) -> None:
        self.status = status
        self.out: str = captured.out
        self.err: str = captured.err

    def json(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.out)
        return values


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Ran:
        status = cli.main([str(argument) for argument in arguments])
        return Ran(status, capsys.readouterr())

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "digits.onnx"
    path.write_bytes(demo.model_path().read_bytes())
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "digits.npz"
    images = np.concatenate([feed[demo.INPUT] for feed in demo.calibration()])
    arrays: dict[str, Any] = {demo.INPUT: images[:64]}
    np.savez(path, **arrays)
    return path


def failed(ran: Ran, *parts: str, status: int = 1) -> None:
    """Checks for the status and exactly one `error: …` line that holds all the parts."""
    assert ran.status == status
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    for part in parts:
        assert part in ran.err


# ---------------------------------------------------------------------- usage
def test_version_and_help(run: Any) -> None:
    assert run("--version").out.startswith("rustq ")
    for command in ("quantize", "calibrate", "sensitivity", "fold", "inspect", "compare", "demo"):
        ran = run(command, "--help")
        assert ran.status == 0
        assert f"rustq {command}" in ran.out


def test_no_command_shows_help(run: Any) -> None:
    ran = run()
    assert ran.status == 2
    assert ran.out == ""
    assert "Commands:" in ran.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("quantise",), "quantise"),
        (("quantize",), "MODEL"),
        (("quantize", "m.onnx", "--scheme", "both"), "asym"),
        (("quantize", "m.onnx", "--target", "tpu"), "onnxruntime"),
        (("quantize", "m.onnx", "--method", "kl"), "entropy"),
        (("quantize", "m.onnx", "--percentile", "20"), "above 50 and at most 100"),
        (("quantize", "m.onnx", "--threads", "0"), "threads"),
        (("quantize", "m.onnx", "--workers", "0"), "workers"),
        (("quantize", "m.onnx", "--images-size", "big"), "not a size such as 224"),
        (("quantize", "m.onnx", "--images-size", "4x0"), "image size must be a positive int"),
        (("quantize", "m.onnx", "--images-mean", "a,b"), "not a number"),
        (("quantize", "m.onnx", "--images-mean", "1,2"), "image mean must be 1 or 3"),
        (("quantize", "m.onnx", "--images-scale", "1/0"), "not a number"),
        (("quantize", "m.onnx", "--images-std", "0"), "std must not be 0"),
        (("calibrate", "m.onnx"), "--data"),
        (("compare", "m.onnx"), "QUANTIZED"),
        (("inspect", "m.onnx", "--colour"), "--colour"),
    ],
)
def test_wrong_usage(run: Any, arguments: tuple[str, ...], part: str) -> None:
    failed(run(*arguments), part, "--help", status=2)


# ---------------------------------------------------------------------- quantize
def test_quantize_static(run: Any, model: Path, data: Path) -> None:
    ran = run("quantize", model, "--data", data)
    assert (ran.status, ran.err) == (0, "")
    output = model.with_name("digits.int8.onnx")
    assert output.stat().st_size < model.stat().st_size
    assert "in int8" in ran.out
    assert f"wrote {output}" in ran.out
    assert f"next: rustq compare {model} {output} --data OTHER_DATA\n      on samples" in ran.out


def test_quantize_dynamic(run: Any, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    ran = run("quantize", model, "-o", output)
    assert (ran.status, ran.err) == (0, "")
    assert output.exists()
    assert ran.out.endswith("--data OTHER_DATA\n")


@pytest.mark.parametrize(
    "options",
    [
        ("--scheme", "sym"),
        ("--method", "percentile", "--percentile", "99.9"),
        ("--per-tensor",),
        ("--exclude", "*", "--exclude", "other"),
        ("--threads", "1"),
    ],
)
def test_quantize_options(run: Any, model: Path, data: Path, options: tuple[str, ...]) -> None:
    assert run("quantize", model, "--data", data, *options).status == 0


def test_quantize_json_is_the_only_output(run: Any, model: Path, data: Path) -> None:
    ran = run("quantize", model, "--data", data, "--json")
    assert (ran.status, ran.err) == (0, "")
    values = ran.json()
    assert values["files"] == [str(model.with_name("digits.int8.onnx"))]
    assert values["report"]["layers"]
    assert values["report"]["scheme"] == "asym"


def test_excluded_layers_are_told(run: Any, model: Path, data: Path) -> None:
    ran = run("quantize", model, "--data", data, "--exclude", "*")
    assert "stay float because" in ran.out


def test_quantize_onto_the_model_itself(run: Any, model: Path, data: Path) -> None:
    size = model.stat().st_size
    assert run("quantize", model, "--data", data, "-o", model).status == 0
    assert model.stat().st_size < size


def test_workers_and_resume(run: Any, model: Path, data: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("here", "there", "kept", "again")]
    here, there, kept, again = paths
    assert run("calibrate", model, "--data", data, "-o", here).status == 0
    arguments = ("calibrate", model, "--data", data, "--resume", kept)
    assert run(*arguments, "--workers", 2, "-o", there).status == 0
    assert run(*arguments, "-o", again).status == 0
    assert here.read_bytes() == there.read_bytes() == again.read_bytes()
    int8 = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path, more in zip(int8, ((), ("--workers", 2)), strict=True):
        assert run("quantize", model, "--data", data, "-o", path, *more).status == 0
    assert int8[0].read_bytes() == int8[1].read_bytes()
    kept.write_bytes(b"something else")
    failed(run(*arguments, "-o", again), "kept: not a file to resume a calibration from")


def test_calibration_file_is_data(run: Any, model: Path, data: Path, tmp_path: Path) -> None:
    calibration = tmp_path / "digits.calibration"
    ran = run("calibrate", model, "--data", data, "-o", calibration)
    assert (ran.status, ran.err) == (0, "")
    assert f"next: rustq quantize {model} --data {calibration}" in ran.out
    # Without a method, samples are also run to choose one.
    for given, path in ((calibration, "a.onnx"), (data, "b.onnx")):
        arguments = ("quantize", model, "--data", given, "--method", "mse", "-o", tmp_path / path)
        assert run(*arguments).status == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_images_as_data(run: Any, model: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        image.new("L", (20, 20), 80 * number).save(folder / f"{number}.png")
    ran = run("quantize", model, "--data", folder, "--images-mean", "1/2", "--images-size", "16")
    assert (ran.status, ran.err) == (0, "")
    assert "--data OTHER_DATA --images-size 16x16 --images-mean 0.5" in ran.out
    assert "images are read as 16x16 L NCHW" in run("quantize", model, "--data", folder).out


# ---------------------------------------------------------------------- the other commands
def test_fold(run: Any, model: Path, tmp_path: Path) -> None:
    ran = run("fold", model, "-o", tmp_path / "folded.onnx")
    assert (ran.status, ran.err) == (0, "")
    assert "BatchNormalization" in ran.out
    assert "BatchNormalization" not in rustq.load(tmp_path / "folded.onnx").op_counts
    values = run("fold", model, "--json").json()
    assert values["nodes_after"] < values["nodes_before"]


def test_fold_says_what_stays(run: Any, tmp_path: Path) -> None:
    net = Net()
    y = net.op("Sigmoid", net.conv(net.input("x", 1, 3, 8, 8), 3, 4))
    onnx.save(net.model(net.batch_norm(y, 4, name="norm")), tmp_path / "net.onnx")
    ran = run("fold", tmp_path / "net.onnx")
    assert "norm" in ran.out and "its input comes from Sigmoid" in ran.out
    told = json.loads(run("fold", tmp_path / "net.onnx", "--json").out)
    assert [record["node"] for record in told["folding"] if record["declined"]] == ["norm"]


def test_inspect(run: Any, model: Path) -> None:
    ran = run("inspect", model)
    assert (ran.status, ran.err) == (0, "")
    for part in ("opset", demo.INPUT, "Conv", "candidates for int8", "BatchNormalization to fold"):
        assert part in ran.out
    values = run("inspect", model, "--json").json()
    assert values["inputs"][0]["name"] == demo.INPUT
    assert values["op_counts"]["Conv"] > 0
    assert values["weight_bytes"] > 0


def test_sensitivity(run: Any, model: Path, data: Path) -> None:
    ran = run("sensitivity", model, "--data", data, "--top", 1)
    assert (ran.status, ran.err) == (0, "")
    for part in ("output SQNR", "share of noise", "more, see --top", "layers in int8"):
        assert part in ran.out
    values = run("sensitivity", model, "--data", data, "--json").json()
    noises = [layer["noise"] for layer in values["layers"]]
    assert noises == sorted(noises, reverse=True)
    assert sum(noises) == pytest.approx(values["noise"])


def test_a_limit_on_the_error(run: Any, model: Path, data: Path) -> None:
    values = run("quantize", model, "--data", data, "--max-drop", "1e-4", "--json").json()
    report = values["report"]
    assert report["drop"] <= report["max_drop"] == 1e-4
    assert any(layer["reason"] == "kept float for max_drop=0.0001" for layer in report["layers"])
    failed(run("quantize", model, "--data", data, "--max-drop", "-1"), "--max-drop", status=2)
    failed(run("quantize", model, "--max-drop", "1"), "samples are needed")


def test_compare(run: Any, model: Path, data: Path) -> None:
    run("quantize", model, "--data", data)
    quantized = model.with_name("digits.int8.onnx")
    ran = run("compare", model, quantized, "--data", data)
    assert (ran.status, ran.err) == (0, "")
    for part in (
        "SQNR",
        "cosine",
        "top-1",
        "latency, 1 thread",
        "size",
        "operators run on integers",
    ):
        assert part in ran.out
    values = run("compare", model, quantized, "--data", data, "--json").json()
    assert values["samples"] == 8
    assert values["outputs"][0]["sqnr_db"] > 15
    assert values["speedup"] > 0


def test_demo(run: Any) -> None:
    ran = run("demo")
    assert (ran.status, ran.err) == (0, "")
    for part in ("accuracy", "size", "latency", "next: rustq quantize"):
        assert part in ran.out
    values = run("demo", "--json").json()
    assert values["accuracy"][1] > values["accuracy"][0] - 0.02
    assert values["bytes"][1] < values["bytes"][0]


# ---------------------------------------------------------------------- failures
@pytest.mark.parametrize("command", ["quantize", "fold", "inspect"])
def test_missing_model(run: Any, tmp_path: Path, command: str) -> None:
    failed(run(command, tmp_path / "no.onnx"), "no.onnx", "No such file")


@pytest.mark.parametrize("content", [b"", b"this is not a protobuf", b"\x00" * 100])
def test_model_that_is_none(run: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    failed(run("inspect", tmp_path / "bad.onnx"), "bad.onnx")
    failed(run("quantize", tmp_path / "bad.onnx"), "bad.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


def test_missing_data(run: Any, model: Path, tmp_path: Path) -> None:
    failed(run("quantize", model, "--data", tmp_path / "no.npz"), "no.npz", "No such file")
    failed(run("quantize", model, "--data", tmp_path / "no"), "no")


def test_data_that_does_not_fit(run: Any, model: Path, data: Path) -> None:
    np.savez(data, picture=np.zeros((4, 1, 16, 16), np.float32))
    failed(run("quantize", model, "--data", data), str(data), '"picture"', f'"{demo.INPUT}"')
    arrays: dict[str, Any] = {demo.INPUT: np.full((4, 1, 16, 16), np.nan, np.float32)}
    np.savez(data, **arrays)
    failed(run("quantize", model, "--data", data), "NaN", f'"{demo.INPUT}"')
    assert not model.with_name("digits.int8.onnx").exists()


def test_neither_data_nor_calibration(run: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2,3")
    failed(run("quantize", model, "--data", tmp_path / "x.csv"), "x.csv")


def test_output_is_checked_before_the_work(run: Any, tmp_path: Path) -> None:
    # The model does not exist either: that the output is at fault shows which was looked at first.
    for command in ("quantize", "fold"):
        ran = run(command, "no.onnx", "-o", tmp_path / "none" / "x.onnx")
        failed(ran, "there is no folder", str(tmp_path / "none"))
        failed(run(command, "no.onnx", "-o", tmp_path), "is a folder")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_output_folder_not_writable(run: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    failed(run("quantize", "no.onnx", "-o", tmp_path / "x.onnx"), "not writable")


def test_interrupt_leaves_nothing(
    run: Any, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(done: int, total: int | None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("rustq.collecting.reporting", lambda progress, what: nullcontext(pressed))
    before = sorted(model.parent.iterdir())
    for command in ("quantize", "calibrate"):
        ran = run(command, model, "--data", data)
        assert (ran.status, ran.out, ran.err.strip()) == (130, "", "error: interrupted")
    assert sorted(model.parent.iterdir()) == before


def test_unexpected_error_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object) -> None:
        raise RuntimeError("first line\n  second line")

    monkeypatch.setattr(rustq, "load", broken)
    failed(run("inspect", "m.onnx"), "RuntimeError: first line second line")
    monkeypatch.setenv("RUSTQ_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        run("inspect", "m.onnx")


def test_reader_that_goes_away(model: Path) -> None:
    command = [sys.executable, "-m", "rustq", "inspect", str(model)]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# ---------------------------------------------------------------------- progress
def test_progress_off_a_terminal_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (True, False):
        with reporting(progress, "work") as report:
            report(1, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_callable_is_handed_through() -> None:
    calls: list[tuple[int, int | None]] = []
    with reporting(lambda done, total: calls.append((done, total)), "work") as report:
        report(1, None)
    assert calls == [(1, None)]


def test_progress_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with reporting(True, "calibrating") as report:
        for done in range(1, 4):
            report(done, 2)  # one more than was announced
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "calibrating" in captured.err
    assert "3/3" in captured.err
    with pytest.raises(KeyboardInterrupt), reporting(True, "work"):
        raise KeyboardInterrupt


def test_import_is_light() -> None:
    modules = "rustq, rustq.comparison, rustq.config, rustq.data, rustq.progress, rustq.report, sys"
    heavy = "{'onnx', 'onnxruntime', 'rich', 'click', 'PIL', 'difflib', 'statistics'}"
    code = f"import {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
