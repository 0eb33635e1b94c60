"""Weights in files beside the model: written with it or not at all, read from anywhere the format allows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import rustq
from builders import Net, random_feeds, run
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data
from rustq import cli, runner
from rustq.runner import Observation


def network(width: int = 40) -> onnx.ModelProto:
    """Two products by large weights, one by small ones, and a branch with weights of its own."""
    net = Net()
    x = net.input("x", 2, width)
    x = net.op("MatMul", x, net.weight(width, width, fan_in=width, name="first"))
    x = net.op("MatMul", x, net.weight(width, 4, fan_in=width, name="second"))
    x = net.op("MatMul", x, net.weight(4, 4, name="small"))
    branch = helper.make_graph(
        [helper.make_node("Gemm", [x, "inside"], ["result"])],
        "branch",
        [],
        [helper.make_tensor_value_info("result", 1, None)],
        [
            numpy_helper.from_array(
                np.random.default_rng(1).normal(size=(4, 400)).astype("f4"), "inside"
            )
        ],
    )
    held = numpy_helper.from_array(np.arange(800, dtype=np.float32).reshape(2, 400), "held")
    net.nodes.append(helper.make_node("Constant", [], ["k"], value=held))
    y = net.op("If", net.constant(True, dtype=np.bool_), then_branch=branch, else_branch=branch)
    return net.model(net.op("Add", y, "k"))


def tensors(graph: onnx.GraphProto) -> list[TensorProto]:
    found = list(graph.initializer)
    for attribute in (a for node in graph.node for a in node.attribute):
        found += [attribute.t] if attribute.HasField("t") else []
        found += tensors(attribute.g) if attribute.HasField("g") else []
    return found


def references(path: Path) -> dict[str, dict[str, str]]:
    model = onnx.load(path, load_external_data=False)
    external = filter(uses_external_data, tensors(model.graph))
    return {t.name: {entry.key: entry.value for entry in t.external_data} for t in external}


def test_a_model_and_its_data(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "m.onnx"
    assert rustq.load(model).save(path, external_data=True) == [path, tmp_path / "m.onnx.data"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    found = references(path)
    assert set(found) == {"first", "inside", "held"}
    for entries in found.values():
        assert entries["location"] == "m.onnx.data"
        assert int(entries["offset"]) % 4096 == 0
    assert path.stat().st_size < 3000
    assert rustq.load(path).to_onnx() == model
    onnx.checker.check_model(path)
    (feed,) = random_feeds(model, 1)
    (expected,) = run(model, feed)
    (found_by_path,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, feed
    )
    np.testing.assert_array_equal(found_by_path, expected)


def test_small_models_stay_in_one_file_unless_asked(tmp_path: Path) -> None:
    content, path = network().SerializeToString(), tmp_path / "m.onnx"
    for choice in (None, False):
        assert rustq.load(content).save(path, external_data=choice) == [path]
        assert path.read_bytes() == content


def test_a_quantized_model(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "q.onnx"
    result = rustq.quantize(model)
    assert result.save(path, external_data=True) == [path, tmp_path / "q.onnx.data"]
    assert rustq.load(path).to_bytes() == result.to_bytes()
    (feed,) = random_feeds(model, 1)
    made = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(made.run(None, feed)[0], run(result, feed)[0])


def test_saving_over_a_model_never_changes_data_that_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    opened = rustq.load(rustq.load(network()).save(path, external_data=True)[0])
    before = opened.to_bytes()
    files = rustq.load(network(48)).save(path, external_data=True)
    assert files == [path, tmp_path / "m.onnx.1.data"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.onnx", "m.onnx.1.data"]
    assert opened.to_bytes() == before
    assert rustq.load(path).to_onnx() == network(48)
    # Back to the first name; the same content again is not written again; then into the model.
    assert rustq.load(network()).save(path, external_data=True)[1] == tmp_path / "m.onnx.data"
    content = path.read_bytes()
    assert rustq.load(path).save(path, external_data=True) == [path, tmp_path / "m.onnx.data"]
    assert path.read_bytes() == content
    assert rustq.load(path).save(path) == [path]
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_data_of_another_model_is_left_alone(tmp_path: Path) -> None:
    path, other = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    other.write_bytes(b"precious")
    assert rustq.load(network()).save(path, external_data=True)[1].name == "m.onnx.1.data"
    assert rustq.load(network()).save(path) == [path]
    assert other.read_bytes() == b"precious"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]


def test_data_that_a_copy_refers_to_stay(tmp_path: Path) -> None:
    path, copy = tmp_path / "m.onnx", tmp_path / "copy.onnx"
    rustq.load(network()).save(path, external_data=True)
    copy.write_bytes(path.read_bytes())
    rustq.load(network(48)).save(path, external_data=True)
    assert rustq.load(copy).to_onnx() == network()
    assert rustq.load(path).to_onnx() == network(48)


def test_quantizing_a_model_onto_itself(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "m.onnx"
    rustq.load(model).save(path, external_data=True)
    result = rustq.quantize(path)
    result.save(path, external_data=True)
    assert rustq.load(path).to_bytes() == rustq.quantize(model).to_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_data_in_many_files_with_offsets(tmp_path: Path) -> None:
    model = network()
    stored = onnx.ModelProto.FromString(model.SerializeToString())
    for number, tensor in enumerate(tensors(stored.graph)):
        name, offset = f"part {number % 2}.bin", 13 * number
        (tmp_path / "sub").mkdir(exist_ok=True)
        place = tmp_path / "sub" / name
        data = bytearray(place.read_bytes() if place.exists() else b"").ljust(offset, b"?")
        offset = len(data)
        place.write_bytes(bytes(data) + tensor.raw_data + b"behind")
        entries = {"location": f"sub/{name}", "offset": offset, "length": len(tensor.raw_data)}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
    path = tmp_path / "m.onnx"
    onnx.save(stored, path)
    assert rustq.load(path).to_onnx() == model


def test_the_model_may_be_reached_through_a_link(tmp_path: Path) -> None:
    """Caches of downloads are folders of links to files with other names."""
    (tmp_path / "store").mkdir()
    (tmp_path / "shown").mkdir()
    rustq.load(network()).save(tmp_path / "store" / "m.onnx", external_data=True)
    for name in ("m.onnx", "m.onnx.data"):
        (tmp_path / "store" / name).rename(tmp_path / "store" / f"{name}.blob")
        (tmp_path / "shown" / name).symlink_to(tmp_path / "store" / f"{name}.blob")
    assert rustq.load(tmp_path / "shown" / "m.onnx").to_onnx() == network()


def broken(tmp_path: Path, **changes: str) -> Path:
    path = rustq.load(network()).save(tmp_path / "m.onnx", external_data=True)[0]
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = changes.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"location": ""}, ("without a location",)),
        ({"location": "../../etc/passwd"}, ("../../etc/passwd", "outside")),
        ({"location": "/etc/passwd"}, ("/etc/passwd", "outside")),
        ({"location": "sub/../../m"}, ("outside",)),
        ({"length": "99999999"}, ("m.onnx.data", "cut short", "99999999")),
        ({"offset": str(2**64 - 1)}, ("m.onnx.data", "cut short")),
        ({"offset": str(2**64)}, ("m.onnx.data", "offset", "not a number")),
        ({"offset": "-1"}, ("offset", "not a number")),
        ({"length": "many"}, ("length", "not a number")),
    ],
)
def test_data_that_is_not_there(
    tmp_path: Path, changes: dict[str, str], parts: tuple[str, ...]
) -> None:
    with pytest.raises(rustq.ModelError) as raised:
        rustq.load(broken(tmp_path, **changes))
    text = str(raised.value)
    assert "\n" not in text
    for part in ("'first'", *parts):
        assert part in text


@pytest.mark.parametrize(
    ("location", "reason"),
    [("gone.bin", "No such file"), (".", "directory"), ("pipe", "not a regular file")],
)
def test_data_that_cannot_be_read(tmp_path: Path, location: str, reason: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=reason) as raised:
        rustq.load(broken(tmp_path, location=location))
    assert "'first'" in str(raised.value)
    assert str(tmp_path / location) in str(raised.value)


def test_a_message_without_its_data(tmp_path: Path) -> None:
    path = rustq.load(network()).save(tmp_path / "m.onnx", external_data=True)[0]
    without = onnx.load(path, load_external_data=False)
    with pytest.raises(rustq.ModelError, match=r"'first'.*opened by its path"):
        rustq.quantize(without)


def test_a_short_file(tmp_path: Path) -> None:
    _, data = rustq.load(network()).save(tmp_path / "m.onnx", external_data=True)
    os.truncate(data, 100)
    with pytest.raises(rustq.ModelError, match=r"tensor 'first'.*'m\.onnx\.data' is cut short"):
        rustq.load(tmp_path / "m.onnx")


def test_weights_that_do_not_fill_their_shape(tmp_path: Path) -> None:
    with pytest.raises(rustq.ModelError, match=r"tensor 'first'.* shape"):
        rustq.quantize(broken(tmp_path, length="6396"))


@pytest.mark.parametrize("way", Observation.WAYS)
def test_calibration_reads_weights_where_they_are(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 64, 8, 8), 64, 64)
    model = net.model(x)
    feeds = random_feeds(model, 2)
    path = rustq.load(model).save(tmp_path / "m.onnx", external_data=True)[0]
    assert rustq.calibrate(path, feeds) == rustq.calibrate(model, feeds)

    def observed(source: object) -> rustq.Calibration:
        core = rustq.load(source)._core
        observation = Observation(core, rustq.QuantConfig(), (way,))
        assert observation.way == way
        observation.run(feeds, seen := rustq._rustq.Calibration(core))
        return rustq.Calibration(seen)

    expected = observed(model)
    assert rustq.load(path)._core.referring()[1] == tmp_path
    monkeypatch.setattr(runner, "LARGE", 10_000)
    for source in (path, model):  # in a file, and in memory
        assert observed(source) == expected


STATIC = """
import sys, threading, time
import numpy as np
import rustq
from rustq import runner

def own():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem"))

def watch():
    global peak
    while True:
        peak = max(peak, own())
        time.sleep(0.001)

runner.LARGE = 1 << 20
feeds = [{"x": np.full((2, 2048), number, np.float32)} for number in range(2)]
config = rustq.QuantConfig(method="minmax")
rustq.quantize(sys.argv[2], feeds, config=config)  # what is loaded and kept once
before = peak = own()
threading.Thread(target=watch, daemon=True).start()
rustq.quantize(sys.argv[1], feeds, config=config).save(sys.argv[3])
print(peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_static_quantization_takes_no_copy_of_the_weights(tmp_path: Path) -> None:
    paths = []
    for layers in (10, 1):
        net = Net()
        y = net.input("x", 2, 2048)
        for _ in range(layers):
            y = net.op("MatMul", y, net.weight(2048, 2048, fan_in=2048))
        path = tmp_path / f"{layers}.onnx"
        paths.append(rustq.load(net.model(y)).save(path, external_data=True)[0])
    size = (tmp_path / "10.onnx.data").stat().st_size
    command = [sys.executable, "-c", STATIC, *map(str, paths), str(tmp_path / "int8.onnx")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    # The integers, of a quarter of the size, and what is at work.
    assert int(done.stdout) < size // 2, (int(done.stdout), size)
    assert (tmp_path / "int8.onnx").stat().st_size < size // 3


def test_data_that_were_replaced_are_not_referred_to(tmp_path: Path) -> None:
    path, data = rustq.load(network()).save(tmp_path / "m.onnx", external_data=True)
    opened = rustq.load(path)
    content = data.read_bytes()
    data.unlink()
    assert opened._core.referring()[1] is None
    data.write_bytes(content[:-1])
    assert opened._core.referring()[1] is None


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    assert cli.main(["fold", str(path), "-o", str(tmp_path / "f.onnx"), "--external-data"]) == 0
    assert "f.onnx.data" in capsys.readouterr().out
    assert cli.main(["quantize", str(path), "-o", str(tmp_path / "q.onnx"), "--external-data"]) == 0
    assert "q.onnx.data" in capsys.readouterr().out
    assert cli.main(["quantize", str(path), "-o", str(tmp_path / "q.onnx")]) == 0
    assert not (tmp_path / "q.onnx.data").exists()
