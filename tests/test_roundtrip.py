"""Models come out as they went in: byte for byte, external data and unknown fields included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import rustq
from builders import Net, random_feeds, run
from onnx import helper

TEST_DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
MODELS = sorted(TEST_DATA.rglob("*.onnx"))


def test_the_wheel_has_models() -> None:
    assert len(MODELS) > 100


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_every_model_of_the_onnx_wheel(path: Path) -> None:
    content = path.read_bytes()
    assert rustq.load(path).to_bytes() == content
    assert rustq.load(content).to_bytes() == content


def sample() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", 1, 8, 8, 8)
    return net.model(net.op("Relu", net.batch_norm(net.conv(x, 8, 16), 16)))


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "bytearray", "proto", "model"])
def test_every_way_to_open(kind: str, tmp_path: Path) -> None:
    proto = sample()
    content, path = proto.SerializeToString(), tmp_path / "m.onnx"
    path.write_bytes(content)
    forms = {
        "path": path,
        "str": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "proto": proto,
        "model": rustq.load(path),
    }
    assert rustq.load(forms[kind]).to_bytes() == content
    assert rustq.load(forms[kind]).to_onnx() == proto


def test_save_writes_the_same_bytes(tmp_path: Path) -> None:
    content = sample().SerializeToString()
    assert rustq.load(content).save(tmp_path / "m.onnx") == [tmp_path / "m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_save_over_the_open_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(sample(), path)
    model = rustq.load(path)
    folded = rustq.fold(model)
    folded.save(path)
    assert model.to_onnx() == sample()
    assert rustq.load(path).to_bytes() == folded.to_bytes()


# ---------------------------------------------------------------------- external data
def save_external(model: onnx.ModelProto, path: Path, **options: object) -> None:
    onnx.save_model(model, path, save_as_external_data=True, size_threshold=0, **options)


def one_output(model: object, feed: dict[str, np.ndarray]) -> np.ndarray:
    return run(model, feed)[0]


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data(tmp_path: Path, one_file: bool) -> None:
    proto, path = sample(), tmp_path / "m.onnx"
    location = "weights.bin" if one_file else None
    save_external(sample(), path, all_tensors_to_one_file=one_file, location=location)
    opened, expected = rustq.load(path).to_onnx(), onnx.load(path)
    for tensor in expected.graph.initializer:
        tensor.ClearField("data_location")
    assert opened == expected
    (feed,) = random_feeds(proto, 1)
    np.testing.assert_array_equal(one_output(opened, feed), one_output(proto, feed))


def test_external_data_of_constant_nodes(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", 1, 4)
    value = helper.make_tensor("v", 1, [4], np.arange(4, dtype=np.float32).tobytes(), raw=True)
    net.nodes.append(helper.make_node("Constant", [], ["k"], value=value))
    path = tmp_path / "m.onnx"
    save_external(net.model(net.op("Add", x, "k")), path, convert_attribute=True)
    feed = {"x": np.ones((1, 4), np.float32)}
    np.testing.assert_array_equal(one_output(rustq.load(path), feed), [[1, 2, 3, 4]])
    np.testing.assert_array_equal(one_output(rustq.fold(path), feed), [[1, 2, 3, 4]])


def test_external_data_inside_a_subgraph(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "k"], ["y"])],
        "body",
        [],
        [helper.make_tensor_value_info("y", 1, [4])],
        [helper.make_tensor("k", 1, [4], np.arange(4, dtype=np.float32).tobytes(), raw=True)],
    )
    net = Net()
    net.input("x", 4)
    condition = net.constant(True, dtype=np.bool_)
    output = net.op("If", condition, then_branch=inner, else_branch=inner)
    path = tmp_path / "m.onnx"
    save_external(net.model(output), path)
    feed = {"x": np.ones(4, np.float32)}
    np.testing.assert_array_equal(one_output(rustq.load(path), feed), [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "gone.bin"}, "gone.bin"),
        ({"location": "../w.bin"}, "outside"),
        ({"location": "/etc/passwd"}, "outside"),
        ({"location": "w.bin", "offset": "9"}, "cut short"),
        ({"location": "w.bin", "length": "99"}, "cut short"),
        ({"location": "w.bin", "offset": "18446744073709551615", "length": "1"}, "cut short"),
        ({"location": "w.bin", "offset": "-1"}, "not a number"),
        ({"location": "w.bin", "length": "many"}, "not a number"),
        ({"offset": "0"}, "location"),
    ],
)
def test_bad_external_data(tmp_path: Path, entries: dict[str, str], reason: str) -> None:
    proto = sample()
    folder = tmp_path / "inside"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "w.bin").write_bytes(bytes(8))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises((rustq.ModelError, OSError), match=reason) as raised:
        rustq.load(path)
    assert isinstance(raised.value, OSError) == (entries.get("location") == "gone.bin")
    assert tensor.name in str(raised.value)


# ---------------------------------------------------------------------- unknown fields
def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def test_unknown_fields_are_reported() -> None:
    content = sample().SerializeToString()
    unknown = varint(9999 << 3 | 2) + varint(5) + b"extra"
    result = rustq.quantize(content + unknown)
    notes = [note for note in result.report.notes if f"{len(unknown)} bytes" in note]
    assert len(notes) == 1
    assert not [note for note in rustq.quantize(content).report.notes if "bytes" in note]
