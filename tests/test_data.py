"""The forms of data people have, and what is said when they do not fit the model."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rustq.cuts import BATCH
from rustq.data import Feeds, InputInfo, feeds, inputs_of
from rustq.errors import DataError, UnsupportedError
from rustq.images import ImageOptions

FLOAT = np.dtype("float32")
IMAGE = [InputInfo("image", FLOAT, ("N", 3, 4, 6))]
ONE_IMAGE = [InputInfo("image", FLOAT, (1, 3, 4, 6))]
TWO = [
    InputInfo("ids", np.dtype("int64"), ("N", "length")),
    InputInfo("mask", np.dtype("int64"), ("N", "length")),
]
RECURRENT = [
    InputInfo("x", FLOAT, (1, 8)),
    InputInfo("h", FLOAT, (2, 1, 4)),
]


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def shapes(stream: Feeds, name: str = "image") -> list[tuple[int, ...]]:
    return [feed[name].shape for feed in stream]


# ---------------------------------------------------------------------- samples
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: {"image": x},
        lambda x: (x,),
        lambda x: [x],
        lambda x: {"image": x.tolist()},
        lambda x: SimpleNamespace(detach=lambda: SimpleNamespace(numpy=lambda: x)),
        lambda x: SimpleNamespace(__dlpack__=0, __array__=0, numpy=lambda: x),
        lambda x: x.astype(">f4"),
        lambda x: np.asfortranarray(x),
        lambda x: x[0],  # a sample without its batch axis
    ],
)
def test_forms_of_a_sample(wrap: Any) -> None:
    x = noise(1, 3, 4, 6)
    stream = feeds([wrap(x)] * 3, IMAGE)
    assert len(stream) == stream.length == 3
    for _ in range(2):  # a list can be iterated again
        for feed in stream:
            assert list(feed) == ["image"]
            np.testing.assert_array_equal(feed["image"], x)
            assert feed["image"].dtype == FLOAT
            assert feed["image"].dtype.isnative
            assert feed["image"].flags.c_contiguous


def test_bfloat16_tensor_goes_through_float() -> None:
    class Tensor:
        def numpy(self) -> Any:
            raise TypeError("Got unsupported ScalarType BFloat16")

        def float(self) -> Any:
            return SimpleNamespace(numpy=lambda: noise(1, 3, 4, 6))

    assert shapes(feeds([Tensor()], IMAGE)) == [(1, 3, 4, 6)]


def test_tuple_in_input_order() -> None:
    (feed,) = feeds([([[1, 2]], [[3, 4]])], TWO)
    assert feed["ids"].tolist() == [[1, 2]]
    assert feed["mask"].tolist() == [[3, 4]]


def test_generator_can_be_consumed_once() -> None:
    stream = feeds((noise(1, 3, 4, 6) for _ in range(2)), IMAGE)
    assert stream.length is None
    assert bool(stream)
    assert len(list(stream)) == 2
    with pytest.raises(DataError, match="already consumed: pass a list"):
        list(stream)


def test_generator_is_read_lazily() -> None:
    seen = []

    def samples() -> Iterator[Any]:
        for number in range(5):
            seen.append(number)
            yield noise(1, 3, 4, 6)

    next(iter(feeds(samples(), IMAGE)))
    assert seen == [0]


def test_own_iterable_without_a_usable_len() -> None:
    class Loader:
        def __len__(self) -> int:
            raise TypeError

        def __iter__(self) -> Iterator[Any]:
            return iter([noise(2, 3, 4, 6)] * 2)

    stream = feeds(Loader(), IMAGE)
    assert stream.length is None
    assert shapes(stream) == shapes(stream) == [(2, 3, 4, 6)] * 2


def test_batches_of_the_user_stay_unless_the_batch_is_fixed() -> None:
    batches = [noise(20, 3, 4, 6), noise(3, 3, 4, 6)]
    assert shapes(feeds(batches, IMAGE)) == [(20, 3, 4, 6), (3, 3, 4, 6)]
    assert shapes(feeds(batches, ONE_IMAGE)) == [(1, 3, 4, 6)] * 23


def test_data_set_that_is_only_indexed() -> None:
    class Photos:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, number: int) -> Any:
            return np.full((3, 4, 6), number, np.float32)  # never raises IndexError

    stream = feeds(Photos(), IMAGE)
    assert stream.length == 2
    assert [feed["image"].max() for feed in stream] == [0, 1]


# ---------------------------------------------------------------------- whole arrays
def test_array_is_split_along_a_dynamic_batch() -> None:
    x = noise(2 * BATCH + 1, 3, 4, 6)
    stream = feeds(x, IMAGE)
    parts = [feed["image"] for feed in stream]
    assert [len(part) for part in parts] == [BATCH, BATCH, 1]
    assert stream.length == 3
    np.testing.assert_array_equal(np.concatenate(parts), x)


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (5, 1, 3, 4, 6)])
def test_stack_for_a_fixed_batch(shape: tuple[int, ...]) -> None:
    x = noise(*shape)
    parts = [feed["image"] for feed in feeds({"image": x}, ONE_IMAGE)]
    np.testing.assert_array_equal(np.stack(parts), x.reshape(5, 1, 3, 4, 6))


def test_inputs_without_samples_are_fed_again_each_time() -> None:
    x, h = noise(5, 1, 8), noise(2, 1, 4)
    stream = feeds({"x": x, "h": h}, RECURRENT)
    assert stream.length == 5
    for number, feed in enumerate(stream):
        np.testing.assert_array_equal(feed["x"], x[number])
        np.testing.assert_array_equal(feed["h"], h)


def test_stacks_of_every_input() -> None:
    x, h = noise(5, 1, 8), noise(5, 2, 1, 4)
    for number, feed in enumerate(feeds({"x": x, "h": h}, RECURRENT)):
        np.testing.assert_array_equal(feed["h"], h[number])


def test_dynamic_batch_beside_a_stack_keeps_step() -> None:
    inputs = [InputInfo("a", FLOAT, (1, 2)), InputInfo("b", FLOAT, ("N", 2))]
    stream = feeds({"a": noise(4, 2), "b": noise(8, 2)}, inputs)
    assert [feed["b"].shape for feed in stream] == [(2, 2)] * 4


@pytest.mark.parametrize(
    "inputs",
    [
        # Different first axes: no common batch. A dynamic axis elsewhere may be the batch.
        [InputInfo("a", FLOAT, ("N", 2)), InputInfo("b", FLOAT, ("M", 2))],
        [InputInfo("a", FLOAT, ("N", 2)), InputInfo("b", FLOAT, (1, "N"))],
    ],
)
def test_what_shares_no_first_axis_is_one_feed(inputs: list[InputInfo]) -> None:
    arrays = {"a": noise(20, 2), "b": noise(20, 2) if inputs[1].shape == ("M", 2) else noise(1, 20)}
    assert [feed["a"].shape for feed in feeds(arrays, inputs)] == [(20, 2)]


def test_scalar_input_and_unknown_rank() -> None:
    inputs = [InputInfo("x", FLOAT, None), InputInfo("rate", np.dtype("int64"), ())]
    (feed,) = feeds([{"x": noise(2, 3), "rate": 16000}], inputs)
    assert feed["x"].shape == (2, 3)
    assert feed["rate"].shape == ()


# ---------------------------------------------------------------------- files
def test_npy(tmp_path: Path) -> None:
    x = noise(11, 3, 4, 6)
    np.save(tmp_path / "x.npy", x)
    for path in (tmp_path / "x.npy", str(tmp_path / "x.npy"), tmp_path):
        stream = feeds(path, IMAGE)
        assert stream.length == 2
        np.testing.assert_array_equal(np.concatenate([feed["image"] for feed in stream]), x)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("fortran", [False, True])
def test_npz(tmp_path: Path, save: Any, fortran: bool) -> None:
    ids, mask = np.arange(60).reshape(20, 3), np.ones((20, 3), np.int64)
    if fortran:
        ids = np.asfortranarray(ids)
    path = tmp_path / "feeds.npz"
    save(path, ids=ids, mask=mask)
    stream = feeds(path, TWO)
    assert stream.length == 3
    np.testing.assert_array_equal(np.concatenate([feed["ids"] for feed in stream]), ids)
    save(path, ids, mask)  # numpy's own names, in input order
    np.testing.assert_array_equal(np.concatenate([feed["ids"] for feed in stream]), ids)


def test_folder_is_sorted_and_reads_subfolders(tmp_path: Path) -> None:
    for number, name in enumerate(["b/1.npy", "a.npz", "c.npy", ".hidden.npy", "notes.txt"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        x = np.full((1, 3, 4, 6), number, np.float32)
        if path.suffix == ".npz":
            np.savez(path, image=x)
        elif path.suffix == ".npy":
            np.save(path, x)
        else:
            path.write_text("not data")
    stream = feeds(tmp_path, IMAGE)
    assert stream.length == 3
    assert [feed["image"][0, 0, 0, 0] for feed in stream] == [1, 0, 2]


def test_list_of_paths(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", noise(1, 3, 4, 6))
    picture(tmp_path / "x.png")
    assert len(list(feeds([tmp_path / "x.npy", str(tmp_path / "x.png")], IMAGE))) == 2


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    x = np.zeros((256, 3, 64, 64), np.float32)  # 12.6 MB
    np.save(path, x) if suffix == ".npy" else np.savez(path, image=x)
    stream = feeds(path, [InputInfo("image", FLOAT, (1, 3, 64, 64))])
    tracemalloc.start()
    try:
        assert sum(1 for _ in stream) == 256
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------- images
def picture(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(pixels).convert(mode).save(path)


def test_images_follow_the_model(tmp_path: Path) -> None:
    for name in ("b.png", "a.bmp"):
        picture(tmp_path / name)
    stream = feeds(tmp_path, IMAGE)
    assert stream.length == 2
    assert len(stream.notes) == 1
    assert "6x4 RGB NCHW" in stream.notes[0]
    assert "--images-mean" in stream.notes[0]
    expected = np.arange(72, dtype=np.float32).reshape(4, 6, 3).transpose(2, 0, 1)[None] / 255
    for feed in stream:
        np.testing.assert_allclose(feed["image"], expected, rtol=1e-6)
        assert feed["image"].flags.c_contiguous


def test_image_options(tmp_path: Path) -> None:
    picture(tmp_path / "x.png", (4, 4))
    inputs = [InputInfo("image", FLOAT, (None, None, None, None))]
    options = ImageOptions(
        size=4, layout="NHWC", channels="BGR", mean=(1, 2, 3), std=(2, 2, 4), scale=1
    )
    stream = feeds(tmp_path / "x.png", inputs, options)
    assert stream.notes == ()
    (feed,) = stream
    rgb = np.arange(48, dtype=np.float32).reshape(4, 4, 3)
    np.testing.assert_array_equal(feed["image"], [(rgb[:, :, ::-1] - (1, 2, 3)) / (2, 2, 4)])


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((1, 1, 4, 6), "float32", (1, 1, 4, 6)),
        ((1, 4, 6, 3), "uint8", (1, 4, 6, 3)),
        ((3, 4, 6), "float16", (3, 4, 6)),
        ((2, 3, 4, 6), "float32", (2, 3, 4, 6)),
    ],
)
def test_images_for_other_inputs(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, expected: tuple[int, ...]
) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    info = InputInfo("image", np.dtype(dtype), shape)
    for feed in feeds(tmp_path, [info]):
        assert feed["image"].shape == expected
        assert feed["image"].dtype == dtype
        assert feed["image"].max() > (1 if dtype == "uint8" else 0)


@pytest.mark.parametrize("resize", ["stretch", "crop", "letterbox"])
def test_resize_gives_the_size(tmp_path: Path, resize: str) -> None:
    Image.new("RGB", (40, 10), (255, 0, 0)).save(tmp_path / "x.png")
    (feed,) = feeds(tmp_path, IMAGE, ImageOptions(resize=resize))
    red = feed["image"][0, 0]
    assert red.shape == (4, 6)
    if resize == "letterbox":
        assert red[0, 0] == pytest.approx(114 / 255)
        assert red[2, 3] == 1
    else:
        assert (red == 1).all()


def test_images_open_one_at_a_time(tmp_path: Path) -> None:
    for number in range(20):
        picture(tmp_path / f"{number}.png")
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("counts open files through /proc")
    before = len(list(descriptors.iterdir()))
    for _ in feeds(tmp_path, IMAGE):
        assert len(list(descriptors.iterdir())) <= before + 3


# ---------------------------------------------------------------------- casts
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        ("float32", "float16"),
        ("int64", "float32"),
        ("bool", "float32"),
        ("int64", "int32"),
        ("uint8", "int64"),
        ("int64", "uint8"),
        ("bool", "int64"),
        ("int64", "bool"),
    ],
)
def test_safe_casts(source: str, target: str) -> None:
    x = np.array([[0, 1, 1]], source)
    (feed,) = feeds([x], [InputInfo("x", np.dtype(target), (1, 3))])
    assert feed["x"].dtype == target
    assert feed["x"].tolist() == x.tolist()


def test_bfloat16_input() -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    (feed,) = feeds([np.ones((1, 3), np.float32)], [InputInfo("x", bfloat16, (1, 3))])
    assert feed["x"].dtype == bfloat16
    with pytest.raises(DataError, match="NaN"):
        list(feeds([np.full((1, 3), np.nan)], [InputInfo("x", bfloat16, (1, 3))]))


@pytest.mark.parametrize(
    ("value", "target", "message"),
    [
        (np.array([[1, 2]], np.uint8), "float32", r"uint8.*float32.*/ 255"),
        (np.ones((1, 2), np.float32), "int64", r'float32.*int64.*\.astype\("int64"\)'),
        (np.array([[1, 2**40]]), "int32", r"1 to 1099511627776 do not fit int32"),
        (np.array([[-1, 2]]), "uint8", r"-1 to 2 do not fit uint8"),
        (np.array([[1, 2**24 + 1]]), "float32", r"not exact in float32"),
        (np.array([[1, 1e300]]), "float32", r"1e\+300 at index \[0, 1\] does not fit float32"),
        (np.array([[1, 1e6]], np.float32), "float16", r"\[0, 1\] does not fit float16"),
        (np.array([["a", "b"]]), "float32", r"holds text"),
        (np.array([[b"a", None]], object), "float32", r"holds Python objects"),
        (np.array([[1, 2]], np.complex64), "float32", r"holds complex64 values"),
    ],
)
def test_unsafe_casts_are_errors(value: Any, target: str, message: str) -> None:
    stream = feeds([np.zeros((1, 2), target), value], [InputInfo("x", np.dtype(target), (1, 2))])
    with pytest.raises(DataError, match=f'^sample 1, input "x": .*{message}'):
        list(stream)


# ---------------------------------------------------------------------- errors
def test_strings_are_refused() -> None:
    info = InputInfo("text", np.dtype(object), (None,))
    with pytest.raises(DataError, match='sample 0, input "text": the model takes strings'):
        list(feeds([np.array(["a"])], [info]))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"imagee": 0}, r'no input "imagee"; it has "image": did you mean "image"\?'),
        ({"image": 0, "other": 0}, r'no input "other"; it has "image"'),
        ({}, r'input "image" is missing'),
        ((0, 0), r"2 arrays for 1 input.*labels.*for x, _ in loader"),
        (None, r"cannot turn a NoneType"),
        (b"bytes", r"cannot turn a bytes"),
        ([[[1, 2], [3]]], r"into an array"),
        (noise(1, 3, 4), r"takes \[N, 3, 4, 6\], the array is \[1, 3, 4\]"),
        (noise(1, 3, 5, 6), r"takes \[N, 3, 4, 6\], the array is \[1, 3, 5, 6\]"),
        (noise(1, 4, 6, 3), r"move it with x\.transpose\(0, 3, 1, 2\)"),
        (noise(0, 3, 4, 6), r"no samples"),
        (np.full((1, 3, 4, 6), np.nan, np.float32), r"NaN at index \[0, 0, 0, 0\] \(72 of 72"),
        (np.full((1, 3, 4, 6), -np.inf, np.float32), r"an infinite value at index"),
    ],
)
def test_sample_that_does_not_fit(sample: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(feeds([noise(1, 3, 4, 6), sample], IMAGE))
    assert str(caught.value).startswith("sample 1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (np.zeros((1, 3)), r'one array for 2 inputs \("ids", "mask"\): pass a dict'),
        ((np.zeros((1, 3)),), r"1 arrays for 2 input"),
        ({"ids": [[1]]}, r'input "mask" is missing'),
    ],
)
def test_sample_for_several_inputs(sample: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(feeds([sample], TWO))


def test_nan_in_a_file_names_the_rows(tmp_path: Path) -> None:
    x = noise(20, 3, 4, 6)
    x[BATCH + 2, 1, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    message = rf'x\.npy, rows from {BATCH}, input "image": NaN at index \[2, 1, 0, 0\] \(1 of'
    with pytest.raises(DataError, match=message):
        list(feeds(tmp_path / "x.npy", IMAGE))


def test_empty_data(tmp_path: Path) -> None:
    empties: list[Any] = [[], (), {}.values()]
    for empty in empties:
        with pytest.raises(DataError, match="the data is empty"):
            feeds(empty, IMAGE)
    with pytest.raises(DataError, match="the data is empty"):
        list(feeds(iter([]), IMAGE))
    with pytest.raises(DataError, match="no samples"):
        feeds(noise(0, 3, 4, 6), IMAGE)
    with pytest.raises(DataError, match=r"no \.npy, \.npz or image files"):
        feeds(tmp_path, IMAGE)
    np.save(tmp_path / "x.npy", noise(0, 3, 4, 6))
    with pytest.raises(DataError, match=r"x\.npy.*no samples"):
        feeds(tmp_path, IMAGE)


@pytest.mark.parametrize("data", [5, b"bytes", None])
def test_not_data(data: Any) -> None:
    with pytest.raises(TypeError, match="data must be an iterable of samples"):
        feeds(data, IMAGE)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.png", "nowhere", "x.csv"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        list(feeds(tmp_path / name, IMAGE))


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.png", "x.jpg", "x.csv"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
def test_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        list(feeds(tmp_path / name, IMAGE))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png"])
def test_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".png":
        picture(path)
    else:
        (np.save if suffix == ".npy" else np.savez)(path, noise(9, 3, 4, 6))
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"x\{suffix}"):
            list(feeds(path, IMAGE))


def test_flipped_byte_in_npz_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, image=np.zeros((4, 3, 4, 6), np.float32))
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.npz.*CRC"):
        list(feeds(path, IMAGE))


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    for suffix, save in ((".npy", np.save), (".npz", np.savez)):
        save(tmp_path / f"x{suffix}", np.array([{}], object))
        with pytest.raises(DataError):
            list(feeds(tmp_path / f"x{suffix}", [InputInfo("arr_0", FLOAT, (None,))]))


def test_errors_of_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", picture=noise(1, 3, 4, 6))
    with pytest.raises(DataError, match=r'x\.npz: the model has no input "picture"'):
        feeds(tmp_path / "x.npz", IMAGE)
    np.save(tmp_path / "x.npy", noise(1, 3))
    with pytest.raises(DataError, match=r"x\.npy: one array for 2 inputs.*use \.npz"):
        feeds(tmp_path / "x.npy", TWO)
    picture(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"both arrays .* and images"):
        feeds(tmp_path, IMAGE)
    with pytest.raises(DataError, match="one input, this one has 2"):
        feeds(tmp_path / "x.png", TWO)


def test_samples_that_do_not_divide() -> None:
    four = [InputInfo("x", FLOAT, (4, 2))]
    with pytest.raises(DataError, match="10 samples do not divide into batches of 4"):
        feeds(noise(10, 2), four)
    with pytest.raises(DataError, match='different numbers of samples: "x" 5, "h" 4'):
        feeds({"x": noise(5, 1, 8), "h": noise(4, 2, 1, 4)}, RECURRENT)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 3, "H", "W"), None, r"no fixed height and width.*--images-size"),
        ((1, 3, 4, 6), ImageOptions(size=8), r"takes images of 6x4, but the size asked for is 8x8"),
        ((1, 3, 4, 6), ImageOptions(channels="L"), r"has 3 channels in NCHW, but images give 1"),
        ((1, 5, 4, 6), None, r"has 5 channels"),
        ((1, 1, 4, 6), ImageOptions(mean=(1, 2, 3)), r"1 channel\(s\).*3 numbers"),
        ((1, 10), None, r"does not take images"),
    ],
)
def test_image_options_against_the_model(
    tmp_path: Path, shape: Any, options: ImageOptions | None, message: str
) -> None:
    picture(tmp_path / "x.png")
    with pytest.raises(DataError, match=message):
        feeds(tmp_path, [InputInfo("image", FLOAT, shape)], options)


def test_integer_images_must_fit(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    info = InputInfo("image", np.dtype("uint8"), (1, 3, 4, 6))
    with pytest.raises(DataError, match=r"x\.png.*uint8, but the pixels become"):
        list(feeds(tmp_path, [info], ImageOptions(mean=100)))


def test_images_must_fill_the_batch(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match="3 images do not divide into the model's batches of 2"):
        feeds(tmp_path, [InputInfo("image", FLOAT, (2, 3, 4, 6))])


# ---------------------------------------------------------------------- sessions
class FakeSession:
    def __init__(self, *types: str) -> None:
        self._types = types

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=t, type=t, shape=["N", 2, None]) for t in self._types]

    def get_outputs(self) -> list[Any]:
        return []

    def run(self, outputs: list[str] | None, feed: Any, /) -> list[Any]:
        return []


def test_inputs_of_a_session() -> None:
    types = ["tensor(float)", "tensor(double)", "tensor(int64)", "tensor(bool)", "tensor(string)"]
    infos = inputs_of(FakeSession(*types))
    assert [info.dtype for info in infos] == ["float32", "float64", "int64", "bool", "object"]
    assert infos[0].shape == ("N", 2, None)
    with pytest.raises(UnsupportedError, match="seq"):
        inputs_of(FakeSession("seq(tensor(float))"))


def test_an_interrupt_while_a_file_is_closed_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are closed by the iteration: in a destructor Python would ignore the interrupt."""
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 1, 2), np.float32))
    leave, armed = zipfile.ZipFile.__exit__, []

    def interrupted(file: zipfile.ZipFile, *error: Any) -> None:
        leave(file, *error)
        if armed:
            raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "__exit__", interrupted)
    iterator = iter(feeds(tmp_path / "x.npz", [InputInfo("x", np.dtype(np.float32), (1, 2))]))
    for _ in range(3):
        next(iterator)
    armed.append(True)
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
