"""One server that is measured: replies, its memory, and whether it has anything to do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from server.bench.results import Memory, Reply
from server.cli.client import Client
from server.cli.errors import CommandError

Message: TypeAlias = Mapping[str, Any]

_BUSY = "anser_engine_busy"
_IDLE_POLL_S = 0.02
_IDLE_TIMEOUT_S = 120.0


class Asker:
    """A client of one model. Use one for each thread."""

    def __init__(
        self, client: Client, model: str, num_predict: int, *, has_drafts: bool = True
    ) -> None:
        """Replies are greedy, and have at most `num_predict` tokens. Without drafts, each of them
        takes a pass of its own, whatever the text is.
        """
        self._client = client
        self._model = model
        self._options = {"temperature": 0, "seed": 1, "num_predict": num_predict}
        if not has_drafts:
            self._options["draft_num_predict"] = 0

    def can_think(self) -> bool:
        return "thinking" in self._client.show(self._model)["capabilities"]

    def warm_up(self) -> None:
        """Has the model loaded, and everything done for the first time."""
        self._client.load({"model": self._model})
        self.ask([{"role": "user", "content": "Hello!"}], think=False)
        self.wait_until_idle()

    def ask(self, messages: Sequence[Message], *, think: bool) -> Reply:
        """Raises CommandError when the server fails, or says nothing at all."""
        request: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "options": self._options,
            "think": think,
        }
        return _measured(self._client, request)

    def memory(self) -> Memory:
        page = self._page()
        resident = page.get(("process_resident_memory_bytes", ""))
        states = sum(page[("anser_state_bytes", tier)] for tier in ("memory", "slots"))
        return Memory(None if resident is None else int(resident), int(states))

    def wait_until_idle(self) -> None:
        """Until the server has nothing to read ahead either."""
        deadline = time.monotonic() + _IDLE_TIMEOUT_S
        while any(value for (name, _), value in self._page().items() if name == _BUSY):
            if time.monotonic() > deadline:
                raise CommandError("the server is busy with something else than this measurement")
            time.sleep(_IDLE_POLL_S)

    def _page(self) -> dict[tuple[str, str], float]:
        """Values by name and tier or model; those of other labels are of no use here."""
        return {
            (sample.name, sample.labels.get("tier") or sample.labels.get("model") or ""): (
                sample.value
            )
            for family in text_string_to_metric_families(self._client.metrics())
            for sample in family.samples
        }


def _measured(client: Client, request: Mapping[str, Any]) -> Reply:
    begin = time.perf_counter()
    contents, thoughts, times = [], [], []
    final: Mapping[str, Any] = {}
    for chunk in client.chat(request):
        message = chunk["message"]
        if message["content"] or message.get("thinking"):
            times.append(time.perf_counter())
            contents.append(message["content"])
            thoughts.append(message.get("thinking", ""))
        final = chunk
    if not times or not final.get("done"):
        raise CommandError("the model said nothing, so that nothing can be timed; raise -n")
    return Reply(
        content="".join(contents),
        thinking="".join(thoughts),
        num_prompt_tokens=final["prompt_eval_count"],
        num_cached_tokens=final["prompt_cached_count"],
        num_tokens=final["eval_count"],
        begin_s=begin,
        first_s=times[0] - begin,
        gaps_s=tuple(later - earlier for earlier, later in pairwise(times)),
        prefill_s=final.get("prompt_eval_duration", 0) / 1e9,
        decode_s=final.get("eval_duration", 0) / 1e9,
    )
