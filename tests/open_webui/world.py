"""What every scenario is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.open_webui.servers import Process
from tests.open_webui.web_page import WebPage
from tests.tools.registry import Registry
from tests.tools.waiting import TIMEOUT_S

DEMO = "rwkv7-demo:latest"


@dataclass(frozen=True)
class World:
    """One window of a browser, the servers behind it, and the folder for pictures of it."""

    web: WebPage
    anser: Process
    registry: Registry
    screenshots: Path

    def photograph(self, name: str) -> None:
        self.web.page.wait_for_timeout(1000)  # for what unfolds slowly; nothing depends on it
        self.web.page.screenshot(path=self.screenshots / f"{name}.png", animations="disabled")

    def metric(self, name: str) -> float:
        """The sum of a metric of Anser's over all of its labels."""
        page = httpx.get(f"{self.anser.url}/metrics", timeout=TIMEOUT_S).text
        families = text_string_to_metric_families(page)
        return sum(each.value for one in families for each in one.samples if each.name == name)

    def model_names(self) -> set[str]:
        """What Anser itself says it has."""
        models = httpx.get(f"{self.anser.url}/api/tags", timeout=TIMEOUT_S).json()["models"]
        return {model["name"] for model in models}
