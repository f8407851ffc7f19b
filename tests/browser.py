"""A real browser for tests of pages."""

from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which
from typing import Any

import pytest

BROWSER = which("chromium") or which("google-chrome")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium without a window; skips the test where there is none."""
    if BROWSER is None:
        pytest.skip("needs chromium or google-chrome: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()
