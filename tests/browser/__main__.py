"""Pictures of a page: `python -m tests.browser PAGE FOLDER`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.browser.chromium import Chromium

page, folder = Path(sys.argv[1]).absolute(), Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
with tempfile.TemporaryDirectory() as profile:
    browser = Chromium(Path(profile))
    try:
        for width in (400, 1200, 2000):
            for scheme in ("light", "dark"):
                browser.open(page, width=width, scheme=scheme)
                browser.screenshot(folder / f"{width}-{scheme}.png")
                sys.stdout.write(f"{folder / f'{width}-{scheme}.png'}\n")
    finally:
        browser.close()
