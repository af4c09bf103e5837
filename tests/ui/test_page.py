"""The page at `/ui` in a real browser, on a real server with real models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")
from playwright.sync_api import Browser, Locator, Page, Route, expect

from server.settings import Settings
from server.store.store import Store
from tests.tools.chromium import CHROMIUM, chromium
from tests.tools.running_server import (
    DEMO,
    ENDLESS,
    TIMEOUT_S,
    RunningServer,
    needs_demo,
    running,
    wait_until,
)
from tests.tools.server_models import add_endless_model
from tests.tools.session_client import chat, stored, user

pytestmark = [
    needs_demo,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (apt-get install chromium)"),
]

TIMEOUT_MS = TIMEOUT_S * 1000
KEY = "schlüssel-1"
INTERVAL_MS = 2000  # of the page's looks at the server
HTML = "<img src=x onerror=document.title='owned'><b>bold</b>"
expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("ui")
    models = folder / "models"
    add_endless_model(Store(models), ENDLESS, folder)
    return Settings(models=models, states=folder / "states", device="cpu")


@pytest.fixture(scope="module")
def server(settings: Settings) -> Iterator[RunningServer]:
    with running(settings) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab of its own, in which nothing goes wrong and nothing is asked of other servers."""
    with browser.new_context(viewport={"width": 1280, "height": 860}) as context:
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: _note_problem(problems, message.text))
        hosts = set[str]()
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.clock.install()
        yield page
        assert problems == []
        assert hosts == {page.url.split("/")[2]}
        assert page.title() == "Anser"


def _note_problem(problems: list[str], text: str) -> None:
    # Chromium writes down each request that fails; here some are meant to.
    if not text.startswith("Failed to load resource"):
        problems.append(text)


def visit(page: Page, server: RunningServer) -> None:
    page.goto(f"{server.url}/ui")
    expect(page.get_by_role("status")).to_have_text("Connected")
    expect(page.get_by_role("combobox", name="Model")).to_contain_text(DEMO)


def choose(page: Page, model: str) -> None:
    page.get_by_role("combobox", name="Model").select_option(label=model)


def name_session(page: Page, name: str) -> None:
    field = page.get_by_role("textbox", name="Session")
    field.fill(name)
    field.press("Tab")


def say(page: Page, text: str) -> Locator:
    """Sends a message with the keyboard; the reply, which may still be coming."""
    replies = page.get_by_role("article", name="Model")
    count = replies.count()
    box = page.get_by_role("textbox", name="Message")
    box.fill(text)
    box.press("Enter")
    expect(replies).to_have_count(count + 1)
    return replies.last


def ended(reply: Locator) -> Locator:
    expect(reply).not_to_have_attribute("aria-busy", "true")
    return reply


def ask_for(page: Page, **more: Any) -> None:
    """Adds to what the page asks of a chat what it has no field for."""

    def change(route: Route) -> None:
        body = route.request.post_data_json
        assert isinstance(body, dict)
        route.continue_(post_data=body | more)

    page.route("**/api/chat", change)


def look(page: Page) -> None:
    """Lets the page look at the server once more."""
    with page.expect_response("**/metrics"):
        page.clock.fast_forward(INTERVAL_MS)


def test_a_chat_and_what_it_does_to_the_server(page: Page, server: RunningServer) -> None:
    visit(page, server)
    ask_for(page, options={"temperature": 0})
    speed = page.get_by_role("img", name="Tokens per second")
    first = page.get_by_role("img", name="Time to first token")
    expect(first).to_have_attribute("aria-label", re.compile("nothing yet"))
    expect(page.get_by_role("region", name="Loaded models")).to_contain_text("None.")
    expect(page.get_by_role("switch", name="Think")).to_be_checked()
    reply = ended(say(page, "What is 47 + 38?"))
    expect(reply.locator(".content")).to_have_text("47 + 38 = 85.")
    thought = reply.locator(".thought")
    expect(thought).to_be_hidden()
    reply.get_by_text("Thought", exact=True).click()
    expect(thought).to_be_visible()
    expect(thought).to_contain_text("ones 7 + 8 = 15")
    expect(reply.locator(".note")).to_have_text(re.compile(r"\d+ tokens · .* tokens/s · first"))

    page.get_by_role("switch", name="Think").uncheck()
    box = page.get_by_role("textbox", name="Message")
    box.fill("My name is Ada.")
    box.press("Shift+Enter")
    expect(box).to_have_value("My name is Ada.\n")
    box.press("Enter")
    expect(box).to_have_value("")
    ended(page.get_by_role("article", name="Model").nth(1))
    again = ended(say(page, "What is my name?"))
    expect(again.locator(".content")).to_contain_text("Ada")
    expect(page.locator("details")).to_have_count(1)

    look(page)
    models = page.get_by_role("region", name="Loaded models").get_by_role("row")
    expect(models.nth(1)).to_have_text(re.compile(rf"{DEMO}.*MB0 of \d+in \d"))
    memory = page.get_by_role("region", name="Memory")
    expect(memory).to_contain_text(re.compile(r"Live slots0 B0 of \d+ in use"))
    expect(memory).to_contain_text(re.compile(r"Cache in memory[\d.]+ [kM]B of .*\d+ states"))
    expect(memory).to_contain_text(re.compile(r"Cache on disk[\d.]+ [kM]?B of .*\d+ states"))
    expect(speed).to_have_attribute("aria-label", re.compile(r"at most [1-9]"))
    expect(first).to_have_attribute("aria-label", re.compile(r"at most .* m?s"))
    assert page.locator("#first-token path.bars").get_attribute("d")


def test_a_session_and_text_that_looks_like_html(page: Page, server: RunningServer) -> None:
    said = {"role": "assistant", "content": HTML, "thinking": HTML}
    chat(server, [user(HTML), said, user("Hello!")], "markup")
    visit(page, server)
    row = page.get_by_role("region", name="Sessions").get_by_role("row", name="markup")
    state_bytes = server.context.manager.loaded()[0].state_bytes
    expect(row).to_have_text(re.compile(rf"markup{DEMO}\d+{state_bytes // 1000} kB.*(ago|now)"))
    page.get_by_role("button", name="markup").click()
    expect(page.get_by_role("article")).to_have_count(4)
    assert page.locator(".content").all_text_contents()[:2] == [HTML, HTML]
    assert page.locator(".thought").all_text_contents() == [HTML]
    ask_for(page, format={"const": HTML})
    streamed = ended(say(page, HTML))
    expect(streamed.locator(".content")).to_have_text(f'"{HTML}"')
    expect(page.locator("main :is(img, b)")).to_have_count(0)
    assert [each["content"] for each in stored(server, "markup")][-2:] == [HTML, f'"{HTML}"']

    name_session(page, "not a name")
    refused = page.get_by_role("alert").filter(has_text="invalid session")
    expect(refused).to_be_visible()


def test_stop(page: Page, server: RunningServer) -> None:
    visit(page, server)
    choose(page, ENDLESS)
    reply = say(page, "one")
    expect(reply.locator(".content, .thought").first).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(reply.locator(".note")).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    engines = [each.engine for each in server.context.manager.loaded()]
    wait_until(lambda: all(engine.load.is_idle for engine in engines))

    name_session(page, "stopped")
    reply = say(page, "two")
    expect(reply.locator(".content, .thought").first).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(reply.locator(".note")).to_have_text("stopped · no part of the chat")
    assert server.http.get("/api/sessions/stopped").status_code == 404


def test_it_rests_unseen_and_fits_a_narrow_dark_screen(page: Page, server: RunningServer) -> None:
    visit(page, server)
    set_hidden = """is => {
        Object.defineProperty(document, 'hidden', {get: () => is, configurable: true});
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    page.evaluate(set_hidden, True)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.clock.fast_forward(10 * INTERVAL_MS)
    assert requests == []
    with page.expect_response("**/metrics"):
        page.evaluate(set_hidden, False)
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.set_viewport_size({"width": 340, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 340
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport()


def test_speed_is_what_happened_between_two_looks(page: Page, server: RunningServer) -> None:
    """Of all models together; a server that has begun anew counts from nothing."""
    visit(page, server)

    def look(tokens: int, num_begun: int, waited_s: float) -> str:
        return f"""# HELP anser_inter_token_seconds_count Not 9.
anser_inter_token_seconds_count{{model="a"}} {tokens}
anser_inter_token_seconds_count{{model="b\\"}} \\\\"}} 5.0
anser_time_to_first_token_seconds_count{{model="a"}} {num_begun}
anser_time_to_first_token_seconds_sum{{model="a"}} {waited_s}
"""

    speeds = page.evaluate(
        """async (pages) => {
            const { Metrics, between } = await import('/ui/metrics.js');
            const looks = pages.map((page, at) => new Metrics(page, 2000 * at));
            return looks.slice(1).map((after, at) => between(looks[at], after));
        }""",
        [look(10, 1, 1), look(28, 3, 1.5), look(28, 3, 1.5), look(3, 1, 9)],
    )
    assert speeds == [
        {"tokenRate": 10, "firstTokenSeconds": 0.25},
        {"tokenRate": 0, "firstTokenSeconds": None},
        None,
    ]


def test_a_restart_and_a_key(page: Page, settings: Settings, tmp_path: Path) -> None:
    settings = Settings(models=settings.models, states=tmp_path, device="cpu")
    status = page.get_by_role("status")
    with running(settings) as server:
        visit(page, server)
        port = int(server.url.rpartition(":")[2])
    page.clock.fast_forward(INTERVAL_MS)
    expect(status).to_have_text("Not reachable, trying again")
    reply = ended(say(page, "Hello!"))
    expect(reply.get_by_role("alert")).to_have_text("The server is not reachable. Try again.")
    expect(page.get_by_role("textbox", name="Message")).to_have_value("Hello!")
    with running(Settings(**{**vars(settings), "api_keys": (KEY,)}), port):
        page.clock.fast_forward(INTERVAL_MS)
        dialog = page.get_by_role("dialog", name="This server asks for a key")
        dialog.get_by_label("Key", exact=True).fill("wrong")
        dialog.get_by_role("button", name="Use key").click()
        expect(dialog.get_by_role("alert")).to_contain_text("does not accept")
        dialog.get_by_label("Key", exact=True).fill(KEY)
        dialog.get_by_label("Key", exact=True).press("Enter")
        expect(status).to_have_text("Connected")
        expect(dialog).to_be_hidden()
        page.reload()
        expect(status).to_have_text("Connected")
        expect(ended(say(page, "Hello!")).locator(".content")).not_to_be_empty()
