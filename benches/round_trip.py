"""Whether every model of the zoo comes out of rustq as it went in.

    python benches/round_trip.py [CASE ...]

Each is loaded from its file and from bytes, written, and compared with the file: its bytes, which
may differ where the file has another order than that of protobuf, and its message. Its data are
then moved into a file beside it and back. Exit status 1 if a message or those data differ.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnx
import rustq
from markdown import table
from zoo import CASES, load


def comparison(path: Path) -> list[str]:
    """Of a model after a round trip: its bytes, and what is the same."""
    content = path.read_bytes()
    model = rustq.load(path)
    written = model.to_bytes()
    expected = onnx.load_model_from_string(content)
    with tempfile.TemporaryDirectory() as folder:
        beside = Path(folder) / "m.onnx"
        model.save(beside, external_data=True)
        back = rustq.load(beside).to_bytes()
    same = {
        "bytes": written == content == rustq.load(content).to_bytes(),
        "message": onnx.load_model_from_string(written) == expected,
        "external": back == written,
    }
    return [f"{len(content):,}", *("yes" if equal else "no" for equal in same.values())]


def main() -> None:
    """Command line."""
    rows = [[name, *comparison(load(name).model)] for name in sys.argv[1:] or CASES]
    print(table(["case", "bytes", "same bytes", "same message", "with external data"], rows))
    if any("no" in row[3:] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
