"""Open WebUI in a real browser on top of Anser: what people do there, checked step by step.

    python -m tests.open_webui [--open-webui COMMAND] [--chromium COMMAND] [--only SCENARIO …]

Starts `anser serve` and Open WebUI on free ports with folders that are removed afterwards. Needs
the packages `open-webui` (in an environment of its own) and `playwright`, and Chromium. Prints a
line for each scenario; ends with 1 if one failed.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from server.store.demo_model import ensure_demo_model
from server.store.store import Store
from tests.open_webui import chats, manager
from tests.open_webui.servers import anser_running, open_webui_running
from tests.open_webui.web_page import PATIENCE_MS, WebPage
from tests.open_webui.world import DEMO, World
from tests.tools.registry import DEMO_PATH, Registry, registry_running

# In this order: the first makes the account, some go on in the chat of the one before, and
# from `title_and_tags` on there is a model for titles.
SCENARIOS: tuple[Callable[[World], None], ...] = (
    chats.first_account,
    chats.models_in_the_list,
    chats.thought_folds,
    chats.second_turn,
    chats.regenerate,
    chats.edit,
    chats.title_and_tags,
    chats.stop,
    chats.think_on_and_off,
    chats.several_at_once,
    chats.openai_connection,
    manager.pull,
    manager.create,
    manager.delete,
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.open_webui", description=__doc__)
    parser.add_argument("--open-webui", default="open-webui", help="its command")
    parser.add_argument("--chromium", default="chromium", help="the browser's command")
    parser.add_argument("--only", nargs="+", metavar="SCENARIO", help="only these")
    parser.add_argument("--screenshots", type=Path, default=Path(__file__).parent / "screenshots")
    arguments = parser.parse_args()
    names = {chats.first_account.__name__, *(arguments.only or ())}
    scenarios = [each for each in SCENARIOS if not arguments.only or each.__name__ in names]
    open_webui, chromium = _command(arguments.open_webui), _command(arguments.chromium)
    arguments.screenshots.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end as well
    with _world(open_webui, chromium, arguments.screenshots) as world:
        num_passed = 0
        for scenario in scenarios:
            is_good = _passes(scenario, world)
            num_passed += is_good
            if scenario is chats.first_account and not is_good:
                break  # nothing else can be tried
    print(f"{num_passed} of {len(scenarios)} scenarios passed")
    return 0 if num_passed == len(scenarios) else 1


def _passes(scenario: Callable[[World], None], world: World) -> bool:
    start = time.monotonic()
    try:
        scenario(world)
        verdict = "ok"
    except Exception:  # the other scenarios still have something to say
        traceback.print_exc()
        verdict = "FAILED"
    duration_s = time.monotonic() - start
    print(f"{verdict:6} {duration_s:6.1f} s  {scenario.__name__}: {scenario.__doc__}", flush=True)
    return verdict == "ok"


@contextmanager
def _world(open_webui: str, chromium: str, screenshots: Path) -> Iterator[World]:
    expect.set_options(timeout=PATIENCE_MS)
    with (
        tempfile.TemporaryDirectory(prefix="anser-open-webui-") as folder,
        anser_running(Path(folder, "anser")) as anser,
        open_webui_running(open_webui, Path(folder, "open-webui"), anser.url) as server,
        _registry(Path(folder, "registry")) as registry,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium)
        context = browser.new_context(viewport={"width": 1100, "height": 700})
        page = context.new_page()
        yield World(WebPage(page, server.url), anser, registry, screenshots)
        browser.close()


@contextmanager
def _registry(folder: Path) -> Iterator[Registry]:
    """A registry that offers the demo model."""
    store = Store(folder)
    ensure_demo_model(store)
    with registry_running() as registry:
        registry.add_model(store, DEMO, DEMO_PATH)
        yield registry


def _command(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        sys.exit(f"there is no command {name!r}; its path can be given as an option (--help)")
    return path


if __name__ == "__main__":
    sys.exit(main())
