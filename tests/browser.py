"""Chromium without a window, for what only a browser can tell."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

DESKTOP, PHONE = {"width": 1100, "height": 1000}, {"width": 375, "height": 812}


@contextmanager
def browser() -> Iterator[Browser]:
    """The system's Chromium. It has no sandbox of its own: it opens nothing but what we wrote."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def opened(
    browser: Browser, file: Path, *, scheme: Any = "light", size: Any = None, **options: Any
) -> Iterator[tuple[Page, list[str]]]:
    """A file in a tab, from disk, and what goes wrong there: errors, warnings, requests for
    anything else."""
    wrong: list[str] = []
    context = browser.new_context(color_scheme=scheme, viewport=size or DESKTOP, **options)
    page = context.new_page()
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("request", lambda sent: wrong.append(sent.url) if sent.url != file.as_uri() else None)
    page.goto(file.as_uri())
    try:
        yield page, wrong
    finally:
        context.close()
