"""Links that work in the repository and on the site: scripts/site_pages.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="make docs installs it")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
site_pages = pytest.importorskip("site_pages")
notebooks = pytest.importorskip("notebooks")


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("README.md", "index.md"),
        ("docs/ncnn.md", "ncnn.md"),
        ("docs/report.png", "report.png"),
        ("CONTRIBUTING.md", "repository/CONTRIBUTING.md"),
        ("benches/README.md", "repository/benches/README.md"),
        ("src/export.rs", "repository/src/export.rs.md"),
    ],
)
def test_every_file_has_a_place(path: str, place: str) -> None:
    assert site_pages.site_path(path) == place
    assert site_pages.repository_path(place) == path


@pytest.mark.parametrize(
    ("page", "link", "moved"),
    [
        ("README.md", "[x](docs/ncnn.md#load-it)", "[x](ncnn.md#load-it)"),
        ("README.md", "![x](docs/report.png)", "![x](report.png)"),
        ("docs/ncnn.md", "[x](../src/export.rs)", "[x](repository/src/export.rs.md)"),
        ("docs/ncnn.md", "[x](../README.md)", "[x](index.md)"),
        ("docs/ncnn.md", "[x](../benches)", "[x](repository/benches/README.md)"),
        ("benches/README.md", "[x](../docs/ncnn.md)", "[x](../../ncnn.md)"),
        ("docs/ncnn.md", "[x](https://example.org/a.md)", "[x](https://example.org/a.md)"),
        ("docs/ncnn.md", "[x](#load-it)", "[x](#load-it)"),
        ("docs/ncnn.md", "[x](missing.md)", "[x](missing.md)"),
        ("docs/ncnn.md", "`[x](../src/export.rs)`", "`[x](../src/export.rs)`"),
        ("docs/ncnn.md", "```\n[x](../README.md)\n```", "```\n[x](../README.md)\n```"),
    ],
)
def test_links_lead_to_the_same_file(page: str, link: str, moved: str) -> None:
    assert site_pages.moved(link, page) == moved


def test_a_source_file_is_shown_as_it_is() -> None:
    text = (ROOT / "src/export.rs").read_text(encoding="utf-8")
    page = site_pages.shown("src/export.rs", text)
    assert text in page and "rust" in page.splitlines()[2]


def notebook(*outputs: dict[str, object], count: int = 1) -> str:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "[a guide](../docs/ncnn.md)"]},
        {
            "cell_type": "code",
            "source": ["print(1)\n", "2"],
            "execution_count": count,
            "outputs": outputs,
        },
    ]
    return json.dumps({"cells": cells})


PRINTED = {"output_type": "stream", "name": "stdout", "text": ["1\n"]}
RETURNED = {"output_type": "execute_result", "data": {"text/plain": ["2"]}}
PICTURE = "iVBORw0K" * 1000  # longer than a file's name may be
DRAWN = {
    "output_type": "display_data",
    "data": {"image/png": PICTURE, "text/plain": ["<Image>"]},
}


def test_a_notebook_is_a_page() -> None:
    page = site_pages.shown("examples/a.ipynb", notebook(PRINTED, RETURNED, DRAWN))
    assert page.startswith("# Title\n[a guide](../docs/ncnn.md)\n\n~~~~~~python\nprint(1)\n2\n")
    assert "~~~~~~text\n1\n2\n~~~~~~" in page
    assert f"(data:image/png;base64,{PICTURE})" in page and "<Image>" not in page
    assert "[a guide](../../ncnn.md)" in site_pages.moved(page, "examples/a.ipynb")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("not run", notebook(PRINTED, count=2)),
        ("complains", notebook({**PRINTED, "name": "stderr"})),
        ("failed", notebook({"output_type": "error"})),
        ("place", notebook({**PRINTED, "text": ["/home/somebody/model.onnx"]})),
        ("place", notebook({**PRINTED, "text": ["<Model at 0x7f2a91c0d5e0>"]})),
        ("bytes", notebook({**PRINTED, "text": ["much " * 50_000]})),
    ],
)
def test_what_a_notebook_should_not_show(fault: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "n.ipynb"
    path.write_text(text, encoding="utf-8")
    assert any(fault in line for line in notebooks.faults(path))
    path.write_text(notebook(PRINTED, RETURNED, DRAWN), encoding="utf-8")
    assert list(notebooks.faults(path)) == []
