"""The Chromium that the machine has, driven by Playwright, which brings none of its own here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium() -> Iterator[Browser]:
    assert CHROMIUM, "there is no Chromium: apt-get install chromium"
    # Its sandbox refuses to run for root, which one is in a container.
    is_sandboxed = os.geteuid() != 0
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(
            executable_path=CHROMIUM, chromium_sandbox=is_sandboxed
        ) as browser,
    ):
        yield browser
