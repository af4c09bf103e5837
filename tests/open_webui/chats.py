"""Scenarios of somebody who chats."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.open_webui.servers import ENDLESS, OPENAI_PREFIX, TASK_MODEL
from tests.open_webui.web_page import WebPage
from tests.open_webui.world import DEMO, World
from tests.tools.waiting import wait_until

_CANCELLED = "the client has gone; its generation is cancelled"  # in Anser's log
_TITLE = "A small sum"
_TAG = "Arithmetic"
_FOLLOW_UP = "What is 6 + 7?"
# One object that answers all three questions; the model can say nothing else.
_TASKS = {
    "title": {"const": _TITLE},
    "tags": {"type": "array", "items": {"const": _TAG}, "minItems": 1, "maxItems": 1},
    "follow_ups": {"type": "array", "items": {"const": _FOLLOW_UP}, "minItems": 1, "maxItems": 1},
}


def first_account(world: World) -> None:
    """The first account becomes the administrator's."""
    world.web.create_first_account("Anna", "anna@example.org", "of-one-run")


def models_in_the_list(world: World) -> None:
    """Both connections' models are offered."""
    page = world.web.page
    page.locator("#model-selector-model-button").click()
    for name in (DEMO, f"{ENDLESS}:latest", f"{OPENAI_PREFIX}.{DEMO}"):
        expect(page.get_by_label(f"Select {name} model", exact=True)).to_be_visible()
    world.photograph("models")
    page.keyboard.press("Escape")


def thought_folds(world: World) -> None:
    """A thought folds into one line, which opens again."""
    web = world.web
    web.new_chat(DEMO)
    reply = web.ask("What is 47 + 38?")
    assert "85" in reply, reply
    assert reply.startswith("Thought for"), reply
    folded = len(reply)
    web.thoughts.click()
    wait_until(lambda: len(web.replies.last.inner_text()) > folded)
    world.photograph("thought")


def second_turn(world: World) -> None:
    """A second turn knows what the first one said, and reads only what is new."""
    web = world.web
    web.new_chat(DEMO)
    web.ask("My name is Anna and I live in Oslo.")
    cached = world.metric("anser_cache_reused_tokens_total")
    reply = web.ask("What is my name?")
    assert "Anna" in reply, reply
    assert world.metric("anser_cache_reused_tokens_total") > cached
    reply = web.ask("Where do I live?")
    assert "Oslo" in reply, reply
    world.photograph("chat")


def regenerate(world: World) -> None:
    """A second reply to the same question."""
    reply = world.web.regenerate()
    assert "Oslo" in reply, reply


def edit(world: World) -> None:
    """Another first message makes another chat; the old one stays beside it."""
    web = world.web
    web.edit(0, "My name is Eva and I live in Rome.")
    expect(web.questions).to_have_count(1)
    reply = web.ask("What is my name?")
    assert "Eva" in reply, reply
    assert "Anna" not in reply, reply


def stop(world: World) -> None:
    """A reply streams until it is stopped; Anser stops with it."""
    web = world.web
    web.new_chat(f"{ENDLESS}:latest")
    count = world.anser.count(_CANCELLED)
    web.send("Hello!")
    expect(web.button("Stop")).to_be_visible()
    lengths = [0]
    for _ in range(3):
        wait_until(lambda: len(web.replies.last.inner_text()) > lengths[-1])
        lengths.append(len(web.replies.last.inner_text()))
    web.button("Stop").click()
    expect(web.button("Stop")).to_have_count(0)
    assert len(web.replies.last.inner_text()) >= lengths[-1]
    wait_until(lambda: world.anser.count(_CANCELLED) > count)


def think_on_and_off(world: World) -> None:
    """The switch among the chat's parameters."""
    web = world.web
    web.new_chat(DEMO)
    web.set_think("Off")
    reply = web.ask("My name is Anna.")
    assert "Anna" in reply, reply
    expect(web.thoughts).to_have_count(0)
    world.photograph("think-off")
    web.set_think("On")
    reply = web.ask("What is my name?")
    assert "Anna" in reply, reply
    expect(web.thoughts).to_have_count(1)


def title_and_tags(world: World) -> None:
    """Open WebUI asks for a title, tags and what to ask next; a grammar makes them JSON."""
    web = world.web
    schema = {
        "type": "object",
        "properties": _TASKS,
        "required": list(_TASKS),
        "additionalProperties": False,
    }
    web.api(
        "POST",
        "/api/v1/models/create",
        {
            "id": TASK_MODEL,
            "base_model_id": DEMO,
            "name": "Tasks",
            "meta": {},
            "params": {"format": schema, "think": False},
        },
    )
    web.new_chat(DEMO)
    web.ask("What is 5 + 6?")
    expect(web.page).to_have_title(re.compile(_TITLE))
    expect(web.page.get_by_text(_FOLLOW_UP).first).to_be_visible()
    chat = web.page.url.rpartition("/")[2]
    wait_until(lambda: _TAG.lower() in str(web.api("GET", f"/api/v1/chats/{chat}/tags")).lower())
    world.photograph("title")


def several_at_once(world: World) -> None:
    """Chats in several windows, each with a sum of its own."""
    sums = {"What is 47 + 38?": "85", "What is 15 + 26?": "41", "What is 5 + 6?": "11"}
    context = world.web.page.context
    windows = [WebPage(context.new_page(), world.web.url) for _ in sums]
    for window in windows:
        window.new_chat(DEMO)
    for window, question in zip(windows, sums, strict=True):
        window.send(question)
    for window, answer in zip(windows, sums.values(), strict=True):
        window.wait_for_reply()
        expect(window.replies.last).to_contain_text(f"= {answer}.")
    for window in windows:
        window.page.close()


def openai_connection(world: World) -> None:
    """The same over /v1/chat/completions."""
    web = world.web
    web.new_chat(f"{OPENAI_PREFIX}.{DEMO}")
    web.ask("My name is Anna and I live in Oslo.")
    count = world.anser.count('"/v1/chat/completions"')
    reply = web.ask("What is my name?")
    assert "Anna" in reply, reply
    expect(web.thoughts).to_have_count(2)
    assert world.anser.count('"/v1/chat/completions"') > count
