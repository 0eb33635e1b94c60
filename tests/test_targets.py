"""What all targets share: schemes, names of files, and that files are written together or not at all."""

from pathlib import Path

import pytest
import rustq
from rustq import _rustq, demo
from rustq.targets import TARGETS, Target

SYMMETRIC = Target("runtime", ("sym",), suffix=".main")


def test_each_target_has_a_module_and_a_default_scheme() -> None:
    for name, target in TARGETS.items():
        assert target.name == name
        assert target.scheme(None) == target.schemes[0]


def test_a_scheme_that_the_target_cannot_run() -> None:
    assert SYMMETRIC.scheme(None) == "sym"
    with pytest.raises(
        rustq.UnsupportedError, match=r"runtime cannot run scheme 'asym', only 'sym'"
    ):
        SYMMETRIC.scheme("asym")
    with pytest.raises(ValueError, match="asym, sym"):
        SYMMETRIC.scheme("both")


@pytest.mark.parametrize(
    ("path", "companion"),
    [
        ("a.main", "a.table"),
        ("a.b.main", "a.b.table"),
        ("folder.main/a.main", "folder.main/a.table"),
    ],
)
def test_companions_share_the_stem(path: str, companion: str) -> None:
    assert SYMMETRIC.companion(Path(path), ".table") == Path(companion)


def test_another_suffix() -> None:
    with pytest.raises(ValueError, match=r"a\.onnx: a model for runtime ends in \.main"):
        SYMMETRIC.companion(Path("a.onnx"), ".table")
    assert TARGETS["onnxruntime"].companion(Path("a.ort"), ".table") == Path("a.ort.table")


def test_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    model = _rustq.Model.open(demo.model_path())
    first, second = tmp_path / "first", tmp_path / "missing" / "second"
    first.write_bytes(b"before")
    with pytest.raises(FileNotFoundError, match="second"):
        _rustq.write_together([(first, model), (second, b"content")])
    assert first.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [first]
    second.parent.mkdir()
    _rustq.write_together([(first, model), (second, b"content")])
    assert first.read_bytes() == model.to_bytes()
    assert second.read_bytes() == b"content"
