"""Scenarios of an administrator who looks after the models."""

from __future__ import annotations

from tests.open_webui.world import DEMO, World
from tests.tools.registry import DEMO_PATH
from tests.tools.waiting import wait_until

_POET = "rwkv7-demo-poet"
_MISSING = "team/rwkv7-missing:latest"


def pull(world: World) -> None:
    """The pull dialog shows what went wrong, and pulls what is there."""
    dialog = world.web.open_model_manager()
    name = dialog.get_by_placeholder("Enter model tag (e.g. mistral:7b)")
    button = name.locator("xpath=ancestor::div[.//button][1]").get_by_role("button")
    name.fill(f"{world.registry.host}/{_MISSING}")
    button.click()
    world.web.expect_notice("pull model manifest: file does not exist")
    pulled = f"{world.registry.host}/{DEMO_PATH}"
    name.fill(pulled)
    button.click()
    world.web.expect_notice("successfully downloaded")
    assert pulled in world.model_names()
    world.photograph("manager")


def create(world: World) -> None:
    """A model made of another one, and a chat with it; a wrong one says why."""
    dialog = world.web.open_model_manager()
    name = dialog.get_by_placeholder("Enter model tag (e.g. my-modelfile)")
    for source, notice in (("rwkv7-none/x:y/z", "invalid model name"), (DEMO, "success")):
        name.fill(_POET)
        dialog.locator("textarea").fill(f'{{"from": "{source}", "system": "Answer briefly."}}')
        dialog.get_by_role("button", name="Create Model").click()
        world.web.expect_notice(notice)
    wait_until(lambda: f"{_POET}:latest" in world.model_names())
    world.web.new_chat(f"{_POET}:latest")
    reply = world.web.ask("Who are you?")
    assert "rwkv7-demo" in reply, reply


def delete(world: World) -> None:
    """A model that goes, here and in Anser."""
    dialog = world.web.open_model_manager()
    options = dialog.locator("select").get_by_role("option")
    value = options.filter(has_text=_POET).get_attribute("value")
    dialog.locator("select").select_option(value)
    dialog.get_by_role("button", name="Delete Model").click()
    world.web.button("Confirm").click()
    world.web.expect_notice("Deleted")
    assert f"{_POET}:latest" not in world.model_names()
