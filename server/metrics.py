"""What the server counts and times as it happens, for `GET /metrics`.

Labels are few: routes are those of the route table, methods the usual ones, and models those that
have been loaded, by the names that they are stored under.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from contextvars import ContextVar
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rwkv_core.cache import CacheStatistics, StateCache
from rwkv_core.engine import Event, FinishedEvent, TextEvent
from server.wire.errors import CLIENT_CLOSED_REQUEST

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_OTHER = "other"  # a method that nobody uses, a path that is no route's

# Seconds. A first token takes a few milliseconds where all of a prompt is known, and minutes where
# a book is read; the tokens after it come some hundred a second to a few.
_FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_INTER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class ServerMetrics:
    """The counters of one server, in a registry of its own. Safe for several threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.caches = CacheTotals()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "anser_http_requests",
            "Requests by route, method, status, and the model that was loaded for them.",
            ("route", "method", "status", "model"),
            registry=self.registry,
        )
        self._replies = Counter(
            "anser_replies",
            "Replies by how they ended: stop, length, cancelled or failed.",
            ("model", "reason"),
            registry=self.registry,
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, reused or not.")
        self._reused_tokens = self._counter(
            "reused_tokens", "Tokens of prompts that were not read, as their state was there."
        )
        self._generated_tokens = self._counter("generated_tokens", "Tokens sampled.")
        self._first_token = self._histogram(
            "time_to_first_token_seconds",
            "From the arrival of a request to the first text of its reply.",
            _FIRST_TOKEN_BUCKETS,
        )
        self._inter_token = self._histogram(
            "inter_token_seconds",
            "Between the tokens of a reply as the engine delivers them.",
            _INTER_TOKEN_BUCKETS,
        )

    def count_request(self, route: str, method: str, status: int, model: str) -> None:
        """`model` is empty for a request that has loaded none."""
        method = method if method in _METHODS else _OTHER
        self._requests.labels(route, method, str(status), model).inc()

    def watch(self, model: str, start_ns: int) -> ReplyWatch:
        """For the reply to a request that came at `start_ns` (monotonic clock)."""
        return ReplyWatch(self, model, start_ns)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(f"anser_{name}", help, ("model",), registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"anser_{name}", help, ("model",), registry=self.registry, buckets=buckets)

    def _end_reply(self, model: str, event: Event) -> None:
        reason = event.reason.value if isinstance(event, FinishedEvent) else "failed"
        self._replies.labels(model, reason).inc()
        if isinstance(event, FinishedEvent):
            self._prompt_tokens.labels(model).inc(event.stats.num_prompt_tokens)
            self._reused_tokens.labels(model).inc(event.stats.num_cached_tokens)
            self._generated_tokens.labels(model).inc(event.stats.num_generated_tokens)


class ReplyWatch:
    """Called with the events of one reply, in their order, on the thread that delivers them."""

    def __init__(self, metrics: ServerMetrics, model: str, start_ns: int) -> None:
        self._metrics = metrics
        self._model = model
        self._before_ns = start_ns
        self._first = metrics._first_token.labels(model)
        self._later = metrics._inter_token.labels(model)
        self._has_begun = False

    def __call__(self, event: Event) -> None:
        if not isinstance(event, TextEvent):
            self._metrics._end_reply(self._model, event)
            return
        now_ns = time.monotonic_ns()
        seconds, self._before_ns = (now_ns - self._before_ns) / 1e9, now_ns
        if not self._has_begun:
            self._has_begun = True
            self._first.observe(seconds)
            return
        # Text that may become a stop, and part of a character, wait for the tokens after them.
        num_tokens = len(event.token_ids)
        for _ in range(num_tokens):
            self._later.observe(seconds / num_tokens)


class CacheTotals:
    """The statistics of all state caches, those of models that are gone included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._live: set[StateCache] = set()
        self._gone: Tally[str] = Tally()

    def add(self, cache: StateCache) -> None:
        with self._lock:
            self._live.add(cache)

    def retire(self, cache: StateCache) -> None:
        """Nobody uses it any more: keeps its counts and lets it go."""
        with self._lock:
            if cache in self._live:
                self._live.remove(cache)
                self._gone.update(_counts(cache.statistics()))

    def statistics(self) -> CacheStatistics:
        """Counts never fall; what is held now is that of live caches."""
        with self._lock:
            live = [cache.statistics() for cache in self._live]
            counts = Tally(self._gone)
        for each in live:
            counts.update(_counts(each))
        return CacheStatistics(
            **{name: counts[name] for name in _COUNTS},
            num_snapshots=sum(each.num_snapshots for each in live),
            num_bytes=sum(each.num_bytes for each in live),
            budget=max((each.budget for each in live), default=0),  # they share it
        )


# The fields of CacheStatistics that only grow.
_COUNTS = (
    "num_lookups",
    "num_memory_hits",
    "num_disk_hits",
    "num_tokens_looked_up",
    "num_tokens_reused",
    "num_evicted",
)


def _counts(statistics: CacheStatistics) -> dict[str, int]:
    return {name: getattr(statistics, name) for name in _COUNTS}


@dataclass
class _Current:
    """The request that a task is working for."""

    model: str = ""


_current: ContextVar[_Current] = ContextVar("current_request")


def note_model(name: str) -> None:
    """The request at hand has had this model loaded. No effect where no request is at hand."""
    current = _current.get(None)
    if current is not None:
        current.model = name


class RequestCounter:
    """Counts every request, those that are refused before they reach a route too."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_CLOSED_REQUEST  # stands if no answer is ever begun

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        current = _Current()
        token = _current.set(current)
        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            status = 500
            raise
        finally:
            _current.reset(token)
            route = getattr(scope.get("route"), "path", _OTHER)
            self._metrics.count_request(route, scope["method"], status, current.model)
