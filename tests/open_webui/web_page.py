"""Open WebUI as somebody sees it: its page in a browser, by the names that it gives its parts."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Locator, Page, expect

# Generous: the machine may be busy with something else.
PATIENCE_MS = 240_000


class WebPage:
    """One window. Whatever it waits for and does not see within PATIENCE_MS is an error."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        page.set_default_timeout(PATIENCE_MS)
        page.set_default_navigation_timeout(PATIENCE_MS)

    @property
    def replies(self) -> Locator:
        """What the model said, one element for each message that is shown."""
        return self.page.locator(".chat-assistant")

    @property
    def questions(self) -> Locator:
        return self.page.locator(".chat-user")

    @property
    def thoughts(self) -> Locator:
        """The lines that thoughts fold into."""
        return self.replies.get_by_role("button", name=re.compile("^Thought for"))

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def create_first_account(self, name: str, email: str, password: str) -> None:
        """The one that becomes the administrator."""
        self.page.goto(self.url)
        self.button("Get started").click()
        self.page.locator("#name").fill(name)
        self.page.locator("#email").fill(email)
        self.page.locator("#password").fill(password)
        self.button("Create Admin Account").click()
        self.button("Okay, Let's Go!").click()
        expect(self.page.get_by_role("dialog")).to_have_count(0)

    def new_chat(self, model: str) -> None:
        self.page.goto(f"{self.url}/?model={model}")
        expect(self.page.locator("#model-selector-model-button")).to_contain_text(model)

    def send(self, text: str) -> None:
        """Sends the next message; does not wait for the reply to it."""
        box = self.page.locator("#chat-input")
        box.click()
        self.page.keyboard.type(text)
        expect(box).to_contain_text(text)
        self.page.keyboard.press("Enter")

    def ask(self, text: str) -> str:
        """Sends the next message and waits for the whole reply."""
        count = self.replies.count()
        self.send(text)
        expect(self.replies).to_have_count(count + 1)
        return self.wait_for_reply()

    def wait_for_reply(self) -> str:
        """The last reply, once it is whole."""
        expect(self.button("Regenerate").last).to_be_visible()
        expect(self.button("Stop")).to_have_count(0)
        text: str = self.replies.last.inner_text()
        return text

    def regenerate(self) -> str:
        self.button("Regenerate").last.click()
        self.page.get_by_text("Try Again", exact=True).click()
        expect(self.page.get_by_text("2/2", exact=True)).to_be_visible()
        return self.wait_for_reply()

    def edit(self, number: int, text: str) -> str:
        """Sends another text in place of a question; the reply to it."""
        question = self.questions.nth(number)
        question.hover()
        question.locator(".edit-user-message-button").click()
        self.page.locator("textarea[id^=message-edit]").fill(text)
        self.page.locator("#messages-container").get_by_role("button", name="Send").click()
        expect(self.questions.nth(number)).to_contain_text(text)
        return self.wait_for_reply()

    def set_think(self, value: str) -> None:
        """Goes through Default, On, Custom and Off until it is there."""
        label = self.page.get_by_text("think (Ollama)", exact=True)
        if not label.is_visible():
            self.page.get_by_label("Controls", exact=True).click()
        row = label.locator("xpath=ancestor::div[.//button][1]")
        for _ in range(4):
            if value in row.inner_text():
                return
            before = row.inner_text()
            label.click()
            expect(row).not_to_have_text(before, use_inner_text=True)
        raise AssertionError(f"{value!r} is none of the values that `think` may have")

    def open_model_manager(self) -> Locator:
        """The dialog in which an administrator pulls, creates and deletes Ollama's models."""
        self.page.goto(f"{self.url}/admin/settings/connections")
        self.button("Manage").click()
        return self.page.get_by_role("dialog").last

    def expect_notice(self, text: str) -> None:
        expect(self.page.locator("[data-sonner-toast]", has_text=text).first).to_be_visible()

    def api(self, method: str, path: str, body: object = None) -> Any:
        """An answer of Open WebUI's own API, asked as the user who is signed in."""
        token = self.page.evaluate("localStorage.token")
        response = self.page.request.fetch(
            f"{self.url}{path}",
            method=method,
            data=body,
            headers={"Authorization": f"Bearer {token}"},
        )
        assert response.ok, f"{path}: {response.status} {response.text()}"
        return response.json()
