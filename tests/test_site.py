"""Links that work in the repository and on the site: scripts/site_pages.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="make docs installs it")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
site_pages = pytest.importorskip("site_pages")


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
