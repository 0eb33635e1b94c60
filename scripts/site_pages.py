"""Pages of the site that are files of the repository outside of docs/: a hook of MkDocs.

Links in the documentation are those that work in the repository: to other pages, to the README, to
source files. On the site the README is the home page, and every file outside of docs/ that a page
links to becomes a page itself, so that the site is whole without the repository.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|data:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
CODE = re.compile(
    r"^(?P<fence>```+|~~~+)[^\n]*\n.*?^(?P=fence)$|(?<!`)`[^`\n]+`(?!`)", re.MULTILINE | re.DOTALL
)
LANGUAGES = {".py": "python", ".rs": "rust", ".toml": "toml", ".yml": "yaml"}


def on_files(files: Files, config: Any) -> Files:
    """Adds the home page, and a page for each file outside of docs/ that is reached by links."""
    pages = {f"docs/{file.src_uri}" for file in files.documentation_pages()}
    pages |= {"README.md"}
    todo = sorted(pages)
    while todo:
        page = todo.pop()
        if not page.startswith("docs/"):
            text = (ROOT / page).read_text(encoding="utf-8")
            files.append(File.generated(config, site_path(page), content=shown(page, text)))
        for target in linked(page):
            if target not in pages and not target.startswith("docs/"):
                pages.add(target)
                todo.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns the links of a page into those of the site."""
    return moved(markdown, repository_path(page.file.src_uri))


def site_path(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def repository_path(place: str) -> str:
    """The reverse of `site_path`."""
    if place == "index.md":
        return "README.md"
    if not place.startswith("repository/"):
        return f"docs/{place}"
    path = place.removeprefix("repository/")
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def linked(path: str) -> list[str]:
    """The files of the repository that a Markdown file links to."""
    if not path.endswith((".md", ".ipynb")):
        return []
    text = CODE.sub("", shown(path, (ROOT / path).read_text(encoding="utf-8")))
    targets = (_target(path, match[1]) for match in LINK.finditer(text))
    return sorted({target for target in targets if (ROOT / target).is_file()})


def moved(text: str, path: str) -> str:
    """The text of a file with the links of the site instead of those of the repository."""
    start = posixpath.dirname(site_path(path)) or "."

    def link(match: re.Match[str]) -> str:
        target = _target(path, match[1])
        if not (ROOT / target).is_file():
            return match[0]
        return posixpath.relpath(site_path(target), start) + (match[2] or "")

    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [LINK.sub(link, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(link, text[end:])])


def shown(path: str, text: str) -> str:
    """What the page of a file says: itself, or, where it is no Markdown, its source; of a notebook
    its cells and what they gave."""
    if path.endswith(".md"):
        return text
    if path.endswith(".ipynb"):
        return "\n\n".join(part for cell in json.loads(text)["cells"] for part in _cell(cell))
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n~~~~~~{language}\n{text}\n~~~~~~\n"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    """A cell of a notebook, and its outputs, as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"~~~~~~python\n{source}\n~~~~~~"
    printed = ""
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
        else:
            printed += "".join(output.get("text", data.get("text/plain", "")))
    if printed:
        yield f"~~~~~~text\n{printed.rstrip()}\n~~~~~~"


def _target(path: str, link: str) -> str:
    """The file that a link from another file leads to, both from the root of the repository."""
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    readme = f"{found}/README.md"
    return readme if (ROOT / readme).is_file() else found
