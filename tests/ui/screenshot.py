"""A picture of the page at `/ui`, with a server that has had five minutes of real chats.

python -m tests.ui.screenshot tests/ui/screenshot.png
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from playwright.sync_api import Page, ViewportSize

from server.settings import Settings
from tests.tools.chromium import chromium
from tests.tools.running_server import DEMO, TIMEOUT_S, RunningServer, running

_MINUTES = 5.0
_SIZE = ViewportSize(width=1200, height=940)
_SESSIONS = ("tea-with-ada", "homework", "holiday-plans")
_SAID = ("Hello!", "My name is Ada.", "What is my name?", "What is 47 + 38?", "What is 60 - 25?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--minutes", type=float, default=_MINUTES)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(models=Path(folder) / "models", states=Path(folder) / "states")
        with running(settings) as server, chromium() as browser:
            page = browser.new_page(
                viewport=_SIZE, color_scheme="dark" if options.dark else "light"
            )
            page.set_default_timeout(TIMEOUT_S * 1000)
            page.goto(f"{server.url}/ui")
            _chat_for(server, options.minutes * 60)
            _chat_on(page)
            page.screenshot(path=options.file)


def _chat_for(server: RunningServer, seconds: float) -> None:
    """Chats in sessions, some at once, with pauses as people make them."""
    rng = random.Random(0)
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(len(_SESSIONS)) as pool:
        while time.monotonic() < end:
            for session in rng.sample(_SESSIONS, rng.randint(1, len(_SESSIONS))):
                messages = [{"role": "user", "content": rng.choice(_SAID)}]
                pool.submit(
                    server.answer, "/api/chat", model=DEMO, session=session, messages=messages
                )
            time.sleep(rng.uniform(1, 8))


def _chat_on(page: Page) -> None:
    for text in ("My name is Ada.", "What is my name?", "What is 47 + 38?"):
        thinks = text.endswith("8?")
        page.get_by_role("switch", name="Think").set_checked(thinks)
        page.get_by_role("textbox", name="Message").fill(text)
        page.get_by_role("button", name="Send").click()
        page.get_by_role("button", name="Send").wait_for()
    page.get_by_text("Thought", exact=True).click()
    with page.expect_response("**/metrics"):
        pass


if __name__ == "__main__":
    main()
