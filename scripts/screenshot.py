"""Takes the picture of the report that the README shows: docs/report.png.

    make screenshot

The report is that of the model that ships with rustq, opened in Chromium. Figures of speed are
those of the machine: take it where nothing else runs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import rustq
from rustq import demo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import browser as chromium

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "report.png"
SIZE = {"width": 1040, "height": 1480}
FEED, FEEDS = 64, 4
OPENED = 2
"""Layers whose charts are shown, the first of the table."""


def main() -> int:
    """Command line."""
    if chromium.CHROMIUM is None:
        print("there is no Chromium (Debian: apt install chromium)", file=sys.stderr)
        return 1
    model, images = demo.model_path(), demo.test_set()[0]
    test = [images[start : start + FEED] for start in range(0, FEED * FEEDS, FEED)]
    result = rustq.quantize(model, demo.calibration())
    with tempfile.TemporaryDirectory() as folder, chromium.browser() as browser:
        file = result.save_report(
            Path(folder) / "report.html",
            model=model,
            data=test,
            metric=lambda run: demo.accuracy(lambda x: run(x)[0]),
        )
        with chromium.opened(browser, file, size=SIZE) as (page, wrong):
            for button in page.locator("#table .open").all()[:OPENED]:
                button.click()
            page.screenshot(path=PICTURE)
    print(*wrong, f"wrote {PICTURE.relative_to(ROOT)}", sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
