"""`GET /metrics`: what it counts, what it shows of this moment, and that its labels stay few."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.settings import Settings
from tests.tools.running_server import ENDLESS, RunningServer, running, wait_until

MODEL = f"{ENDLESS}:latest"
OPTIONS = {"temperature": 0, "num_predict": 10}


@pytest.fixture
def server(models: Path, tmp_path: Path) -> Iterator[RunningServer]:
    """A server of its own, with one slot, that has counted nothing yet."""
    settings = Settings(models=models, device="cpu", num_parallel=1, states=tmp_path / "states")
    with running(settings) as server:
        yield server


class Page:
    """The numbers of one scrape."""

    def __init__(self, server: RunningServer) -> None:
        response = server.http.get("/metrics")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/plain; version=")
        self.samples = [
            sample
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
        ]
        keys = [(each.name, tuple(sorted(each.labels.items()))) for each in self.samples]
        assert len(set(keys)) == len(keys)

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels; a label's first use makes a sample."""
        found = [each for each in self.samples if each.name == f"anser_{name}"]
        assert found, f"no {name}"
        return sum(each.value for each in found if labels.items() <= each.labels.items())

    def labels(self, name: str) -> set[str]:
        return {value for each in self.samples for key, value in each.labels.items() if key == name}


def ask(server: RunningServer, prompt: str, **changes: Any) -> dict[str, Any]:
    answer = server.answer(
        "/api/generate", model=ENDLESS, prompt=prompt, raw=True, options=OPTIONS, **changes
    )
    engine = server.context.manager.loaded()[0].engine
    wait_until(lambda: engine.load.is_idle)
    return answer


def wait_for_requests(server: RunningServer, count: int, **labels: str) -> None:
    """A request is counted when its response is over, which its client may know sooner."""
    wait_until(lambda: Page(server).value("http_requests_total", **labels) >= count)


def test_replies_are_counted_and_timed(server: RunningServer) -> None:
    first = ask(server, "a b c")
    again = ask(server, "a b c")
    wait_for_requests(server, 2, route="/api/generate", model=MODEL)
    page = Page(server)
    assert page.value("replies_total", model=MODEL, reason="length") == 2
    counts = {
        "prompt_tokens_total": "prompt_eval_count",
        "reused_tokens_total": "prompt_cached_count",
        "generated_tokens_total": "eval_count",
    }
    for name, field in counts.items():
        assert page.value(name, model=MODEL) == first[field] + again[field]
    assert page.value("reused_tokens_total") == first["prompt_eval_count"]
    assert page.value("time_to_first_token_seconds_count") == 2
    # One gap before each token but the first, unless characters were incomplete at the end.
    num_gaps = page.value("inter_token_seconds_count")
    assert 0 < num_gaps <= first["eval_count"] + again["eval_count"] - 2
    seconds = page.value("time_to_first_token_seconds_sum") + page.value("inter_token_seconds_sum")
    assert 0 < seconds * 1e9 <= first["total_duration"] + again["total_duration"]


@contextmanager
def endless_request(server: RunningServer) -> Iterator[None]:
    """A client that sends a request, reads nothing, and goes away at the end."""
    body = json.dumps(
        {"model": ENDLESS, "prompt": "a", "raw": True, "options": {"num_predict": -1}}
    )
    url = urlsplit(server.url)
    head = f"POST /api/generate HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {len(body)}"
    with socket.create_connection((url.hostname, url.port or 0)) as connection:
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        yield


def test_slots_queue_and_memory(server: RunningServer) -> None:
    ask(server, "a")
    loaded = server.context.manager.loaded()[0]
    with endless_request(server):
        wait_until(lambda: Page(server).value("slots_in_use", model=MODEL) == 1)
        with endless_request(server):
            wait_until(lambda: Page(server).value("queue_length", model=MODEL) == 1)
            page = Page(server)
            assert page.value("slots") == 1
            assert page.value("engine_busy") == 1
            assert page.value("state_bytes", tier="slots") == loaded.model.new_state().nbytes
            assert page.value("weight_bytes", model=MODEL) == loaded.num_bytes
    wait_until(lambda: Page(server).value("replies_total", reason="cancelled") == 2)
    wait_until(lambda: Page(server).value("engine_busy") == 0)
    page = Page(server)
    assert page.value("slots_in_use") == page.value("queue_length") == 0
    assert page.value("state_bytes", tier="slots") == 0


def test_states_by_tier_and_hits_that_outlive_their_model(server: RunningServer) -> None:
    ask(server, "a b c")
    ask(server, "a b c")
    # Idle, and nothing waits: so all that was to be written is.
    wait_until(lambda: Page(server).value("state_bytes", tier="disk_queue") == 0)
    page = Page(server)
    cache = server.context.manager.loaded()[0].cache.statistics()
    assert page.value("cache_lookups_total", result="memory") == cache.num_memory_hits > 0
    assert page.value("cache_lookups_total", result="miss") > 0
    assert page.value("cache_reused_tokens_total") == cache.num_tokens_reused > 0
    assert page.value("states", tier="memory") == cache.num_snapshots
    assert page.value("states", tier="disk") == page.value("states_written_total") > 0
    files = [*(server.context.settings.states or Path()).glob("snapshots/*.safetensors")]
    assert page.value("state_bytes", tier="disk") == sum(each.stat().st_size for each in files)
    assert page.value("state_bytes", tier="memory") == cache.num_bytes
    assert cache.num_bytes <= page.value("state_budget_bytes", tier="memory")
    server.unload_all()
    wait_until(lambda: Page(server).value("state_bytes", tier="memory") == 0)
    gone = Page(server)
    assert gone.value("loaded_models") == 0
    assert gone.value("cache_reused_tokens_total") == cache.num_tokens_reused
    ask(server, "a b c")
    again = Page(server)
    assert again.value("cache_lookups_total", result="disk") == 1
    assert again.value("cache_reused_tokens_total") > cache.num_tokens_reused


def test_nothing_that_a_client_makes_up_is_a_label(server: RunningServer) -> None:
    ask(server, "a")
    for number in range(3):
        server.http.get(f"/made/up/{number}")
        server.http.request(f"MADE{number}", "/api/tags")
        server.post("/api/generate", model=f"made-up-{number}", prompt="a")
        server.http.get(f"/{number}", headers={"host": "elsewhere.com"})
        server.answer("/api/generate", model=ENDLESS.upper(), prompt="a", options=OPTIONS)
    Page(server)
    wait_for_requests(server, 17)
    page = Page(server)
    assert page.labels("model") == {"", MODEL}
    assert page.labels("method") == {"GET", "POST", "other"}
    assert page.labels("route") == {"/api/tags", "/api/generate", "/metrics", "other"}
    assert page.value("http_requests_total", route="other", status="404") == 3
    assert page.value("http_requests_total", route="other", status="403") == 3
    assert page.value("http_requests_total", method="other", status="405") == 3
    assert page.value("http_requests_total", route="/api/generate", status="404", model="") == 3


def test_who_may_read_it(server: RunningServer) -> None:
    assert server.http.get("/metrics", headers={"host": "elsewhere.com"}).status_code == 403
    elsewhere = {"origin": "https://elsewhere.com"}
    assert server.http.get("/metrics", headers=elsewhere).status_code == 403
    assert server.http.head("/metrics").status_code == 200
    assert server.post("/metrics").status_code == 405
