"""Sessions as files: another server goes on from one, or says what is wrong with it."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors
import torch
from torch import Tensor

from rwkv_core.cache import ModelKey, Snapshot
from rwkv_core.cache.state_file import DecodedState, decode_state, encode_state
from rwkv_core.executor import Segment
from rwkv_core.model import Model
from rwkv_core.state import State
from server.settings import Settings
from server.store.demo_model import DEMO_FILE
from server.store.names import ModelName
from server.store.stored_model import ModelParts, write_model
from tests.tools.running_server import (
    DEMO,
    ENDLESS,
    TIMEOUT_S,
    RunningServer,
    needs_demo,
    running,
    wait_until,
)
from tests.tools.session_client import chat, error_of, num_read, stored, user

pytestmark = needs_demo

SYSTEM = {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."}
NEW = "What is my name?"
# "Assistant", ":", " <", "think" and the like: what a prompt has after the user's words.
A_HANDFUL = 10


@pytest.fixture(scope="module")
def here(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    states = tmp_path_factory.mktemp("here")
    with running(Settings(models=models, device="cpu", states=states)) as server:
        yield server


@pytest.fixture(scope="module")
def there(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Another server with the same models, and with states of its own."""
    states = tmp_path_factory.mktemp("there")
    with running(Settings(models=models, device="cpu", states=states)) as server:
        yield server


@pytest.fixture(scope="module")
def data(here: RunningServer) -> bytes:
    """A session's file."""
    chat(here, [SYSTEM, user("My name is Ada.")], "moving")
    chat(here, [user("My cat is Tom.")], "moving")
    return get(here, "moving")


def get(server: RunningServer, session: str) -> bytes:
    response = server.http.get(f"/api/sessions/{session}/state")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    assert int(response.headers["content-length"]) == len(response.content)
    return response.content


def put(server: RunningServer, session: str, data: bytes, **params: str) -> httpx.Response:
    return server.http.put(f"/api/sessions/{session}/state", content=data, params=params)


def refused(server: RunningServer, status: int, data: bytes, **params: str) -> str:
    response = put(server, "refused", data, **params)
    assert response.status_code == status, response.text
    assert server.http.get("/api/sessions/refused").status_code == 404
    return error_of(response.json())


def decoded(data: bytes) -> DecodedState:
    return decode_state(BytesIO(data), len(data))


def encoded(state: DecodedState, **changes: Any) -> bytes:
    """The file of a state with some parts changed, and a checksum that is right."""
    key = changes.get("key", state.head.key)
    tokens = changes.get("tokens", state.tokens)
    snapshot = changes.get("snapshot", state.snapshot)
    file = encode_state(key, tokens, snapshot, state.head.kind, changes.get("note", state.note))
    return b"".join(file.parts)


def with_note(data: bytes, **changes: Any) -> bytes:
    state = decoded(data)
    return encoded(state, note=json.dumps(json.loads(state.note) | changes).encode())


def num_new(server: RunningServer, text: str) -> int:
    encode = server.context.manager.loaded()[0].model.tokenizer.encode
    return len(encode(f"User: {text}\n\n")) + A_HANDFUL


def test_another_server_goes_on(here: RunningServer, there: RunningServer, data: bytes) -> None:
    before = stored(here, "moving")
    response = put(there, "moved", data)
    assert response.status_code == 201
    assert response.json()["session"] == "moved"
    assert response.json()["message_count"] == len(before)
    assert stored(there, "moved") == before
    expected = chat(here, [*before, user(NEW)])
    answer = chat(there, [user(NEW)], "moved")
    assert answer["message"] == expected["message"]
    assert answer["prompt_eval_count"] == expected["prompt_eval_count"]
    assert num_read(answer) <= num_new(there, NEW)
    # The next turn, a fork, and the way back.
    assert num_read(chat(there, [user("Hello!")], "moved")) <= num_new(there, "Hello!") + 20
    there.post("/api/sessions/moved/fork", session="fork", at=len(before))
    assert num_read(chat(there, [user("What is 2 + 2?")], "fork")) <= num_new(
        there, "What is 2 + 2?"
    )
    again = get(there, "moved")
    assert put(here, "back", again).status_code == 201
    assert put(here, "back", again).status_code == 200
    assert stored(here, "back") == stored(there, "moved")


def test_any_reader_of_safetensors_reads_it(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "session.safetensors"
    path.write_bytes(data)
    with safetensors.safe_open(path, "pt") as file:
        note = json.loads(file.get_tensor("note").numpy().tobytes())
        assert file.metadata()["format"] == "anser-state"
    assert note["model"] == "rwkv7-demo:latest"
    assert [each["role"] for each in note["messages"]] == [
        "system", "user", "assistant", "user", "assistant"
    ]  # fmt: skip


def test_a_state_that_the_cache_has_no_more_is_computed(
    models: Path, tmp_path: Path, there: RunningServer
) -> None:
    settings = Settings(models=models, device="cpu", states=tmp_path)
    with running(settings) as server:
        chat(server, [user("My name is Ada.")], "old")
        before = decoded(get(server, "old"))
    for file in (tmp_path / "snapshots").iterdir():
        file.unlink()
    with running(settings) as server:
        after = decoded(get(server, "old"))
        assert after.tokens.tolist() == before.tokens.tolist()
        assert torch.equal(after.snapshot.state.wkv, before.snapshot.state.wkv)
        assert torch.equal(after.snapshot.logits, before.snapshot.logits)


def test_a_state_that_does_not_fit(models: Path) -> None:
    with running(Settings(models=models, device="cpu", states_memory=1000)) as server:
        chat(server, [user("My name is Ada.")], "large")
        response = server.http.get("/api/sessions/large/state")
        assert response.status_code == 507
        assert "ANSER_STATES_MEMORY" in error_of(response.json())


def test_no_messages_no_state(here: RunningServer, data: bytes) -> None:
    here.post("/api/sessions/moving/fork", session="empty", at=0)
    response = here.http.get("/api/sessions/empty/state")
    # A format may begin every prompt alike, and then even that has a state.
    assert response.status_code in (200, 400)


def test_a_state_of_another_model(there: RunningServer, data: bytes) -> None:
    error = refused(there, 409, data, model=ENDLESS)
    assert error.startswith("the saved state is of model 'rwkv7-demo:latest' (")
    assert "not of 'endless:latest' (" in error
    assert refused(there, 404, data, model="none") == "model 'none' not found"
    assert "not found" in refused(there, 404, with_note(data, model="no-such-model"))
    key = decoded(data).head.key
    strange = encoded(decoded(data), key=ModelKey("0" * 64, key.numerics))
    assert "(000000000000)" in refused(there, 409, strange)


def test_a_state_of_another_processor_will_do(there: RunningServer, data: bytes) -> None:
    state = decoded(data)
    foreign = encoded(state, key=ModelKey(state.head.key.model, "0" * 64))
    assert put(there, "foreign", foreign).status_code == 201
    assert num_read(chat(there, [user(NEW)], "foreign")) <= num_new(there, NEW)


def test_a_model_that_reads_the_messages_in_another_way(there: RunningServer, data: bytes) -> None:
    store = there.context.store
    name = ModelName.parse("rwkv7-demo-pirate")
    write_model(store, name, store.add_blob(DEMO_FILE), ModelParts(system="You are a pirate."))
    try:
        assert put(there, "pirate", data, model="rwkv7-demo-pirate").status_code == 201
        messages = json.loads(decoded(data).note)["messages"]
        # Without a system message of their own they are read behind the model's.
        shorter = with_note(data, messages=messages[1:])
        assert "not behind its messages" in refused(there, 409, shorter, model="rwkv7-demo-pirate")
    finally:
        store.manifest_path(name).unlink()


def test_a_session_is_not_replaced_by_one_of_another_model(
    there: RunningServer, data: bytes
) -> None:
    chat(there, [user("Hello!")], "taken", model=ENDLESS, options={"num_predict": 2})
    before = stored(there, "taken")
    response = put(there, "taken", data)
    assert response.status_code == 409
    assert error_of(response.json()) == "session 'taken' belongs to model 'endless:latest'"
    assert stored(there, "taken") == before


@pytest.mark.parametrize("keeps_on_disk", [True, False])
def test_a_forged_state_deceives_nobody_else(
    here: RunningServer, models: Path, tmp_path: Path, data: bytes, keeps_on_disk: bool
) -> None:
    """Its checksum is right, its tokens are those of its messages, but its state is another's."""
    chat(here, [SYSTEM, user("My name is Bob.")], f"liar-{keeps_on_disk}")
    liar = decoded(get(here, f"liar-{keeps_on_disk}"))
    forged = encoded(decoded(data), snapshot=liar.snapshot)
    messages = json.loads(decoded(data).note)["messages"]
    settings = Settings(models=models, device="cpu", states=tmp_path if keeps_on_disk else None)
    expected = chat(here, [*messages, user(NEW)])["message"]
    assert "Ada" in expected["content"]
    with running(settings) as server:
        assert put(server, "forged", forged).status_code == 201
        assert put(server, "sound", data).status_code == 201
        assert "Bob" in chat(server, [user(NEW)], "forged")["message"]["content"]
        wait_until(lambda: server.context.manager.loaded()[0].engine.load.is_idle)
        honest = chat(server, [*messages, user(NEW)])
        assert honest["prompt_cached_count"] == 0
        assert honest["message"] == expected
        server.post("/api/sessions/forged/fork", session="fork", at=len(messages))
        assert "Bob" in chat(server, [user(NEW)], "fork")["message"]["content"]
        assert chat(server, [user(NEW)], "sound")["message"] == expected
    if keeps_on_disk:
        with running(settings) as server:
            assert chat(server, [*messages, user(NEW)])["message"] == expected
            again = chat(server, [*messages, user(NEW)], "forged", options={"num_predict": 1})
            assert num_read(again) <= A_HANDFUL


def test_damaged_files(there: RunningServer, data: bytes) -> None:
    rng = random.Random(0)
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    note = data.index(b'{"model"')
    ends = [0, 1, 7, 8, 9, header_bytes - 1, header_bytes, note, len(data) - 1]
    for end in (*ends, *(rng.randrange(len(data)) for _ in range(10))):
        assert "saved state" in refused(there, 400, data[:end])
    blanks = len(data[:header_bytes]) - len(data[:header_bytes].rstrip(b" "))
    places = [
        *rng.sample(range(header_bytes - blanks), 25),
        *rng.sample(range(note, len(data)), 10),
    ]
    for place in (*places, *(rng.randrange(header_bytes, note) for _ in range(15))):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        response = put(there, "refused", bytes(damaged))
        assert response.status_code in (400, 404, 409), (place, response.text)
        assert error_of(response.json())
        assert there.http.get("/api/sessions/refused").status_code == 404
    assert "saved state" in refused(there, 400, data + b"\0")
    assert "saved state" in refused(there, 400, rng.randbytes(5000))
    assert "saved state" in refused(there, 400, b'{"messages": []}')


def test_notes_that_are_no_sessions(there: RunningServer, data: bytes) -> None:
    state = decoded(data)
    notes = [b"", b"x", b"[]", b"{}", b"null", b"[" * 100_000, b"\xff" * 8, b'{"model": "', b"NaN"]
    for note in notes:
        assert put(there, "refused", encoded(state, note=note)).status_code in (400, 404)
    wrong: list[dict[str, Any]] = [
        {"model": 1},
        {"messages": {}},
        {"messages": [1]},
        {"messages": [{"role": "nobody"}]},
        {"messages": [{"role": "user", "content": 1}]},
        {"tools": 1},
        {"tools": [{"function": 1}]},
    ]
    for changes in wrong:
        refused(there, 400, with_note(data, **changes))
    assert "too large" in refused(there, 400, encoded(state, note=b"x" * (5 << 20)))
    long = [user("x" * (3 << 20)), user("x" * (2 << 20))]
    assert "too large" in refused(there, 400, with_note(data, messages=long))
    # Tokens that are not those of the messages.
    refused(there, 409, with_note(data, messages=[user("Hello!")]))
    refused(there, 409, encoded(state, tokens=state.tokens[::-1].copy()))


def test_states_that_are_no_numbers_or_do_not_fit(there: RunningServer, data: bytes) -> None:
    state = decoded(data)
    bad = state.snapshot.state.clone()
    bad.wkv.view(-1)[5] = float("nan")
    assert "not finite" in refused(
        there, 400, encoded(state, snapshot=Snapshot(bad, state.snapshot.logits))
    )
    config = there.context.manager.loaded()[0].model.config
    for other in (replace(config, n_layer=2), replace(config, vocab_size=99)):
        snapshot = Snapshot(State.zeros(other), torch.zeros(other.vocab_size))
        assert "shape" in refused(there, 400, encoded(state, snapshot=snapshot))


def test_files_that_are_too_large(
    there: RunningServer, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.sessions.uploads.MAX_FILE_BYTES", len(data) - 1)
    assert "at most" in refused(there, 413, data)
    url = "/api/sessions/refused/state"
    pieces = (data[start : start + 1000] for start in range(0, len(data), 1000))
    response = there.http.put(url, content=pieces)  # no length is said beforehand
    assert response.status_code == 413
    monkeypatch.setattr("server.sessions.uploads.MAX_FILE_BYTES", len(data))
    assert put(there, "fits", data).status_code == 201


def test_a_client_that_leaves_in_the_middle_of_its_file(there: RunningServer, data: bytes) -> None:
    url = httpx.URL(there.url)
    head = (
        "PUT /api/sessions/refused/state HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    for _ in range(3):
        with socket.create_connection((url.host, url.port or 80), TIMEOUT_S) as connection:
            connection.sendall(head.encode() + data[: len(data) // 2])
    assert put(there, "after", data).status_code == 201
    assert there.http.get("/api/sessions/refused").status_code == 404
    folder = there.context.settings.states
    assert folder is not None
    names = {each.name.partition("-")[0] for each in folder.iterdir()}
    assert names == {"index.sqlite", "sessions.sqlite", "snapshots"}


def test_a_turn_in_a_session_that_is_replaced_is_not_kept(
    there: RunningServer, data: bytes
) -> None:
    assert put(there, "replaced", data).status_code == 201
    before = stored(there, "replaced")
    body = {
        "model": DEMO, "messages": [user("Hello!")], "session": "replaced",
        "options": {"num_predict": 4000, "stop": [], "temperature": 0},
    }  # fmt: skip
    with there.http.stream("POST", "/api/chat", json=body) as response:
        lines = response.iter_lines()
        first = json.loads(next(lines))
        assert put(there, "replaced", data).status_code == 200
        last = json.loads([*lines][-1])
    assert first
    if "error" in last:  # it was quicker than the reply
        assert "was changed" in last["error"]
        assert stored(there, "replaced") == before


def test_a_client_that_leaves_while_its_state_is_computed(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read = 0
    advance_batch = Model.advance_batch

    def counting(model: Model, segments: Sequence[Segment], **options: Any) -> Tensor:
        nonlocal num_read
        num_read += sum(len(segment.token_ids) for segment in segments)
        return advance_batch(model, segments, **options)

    length = 100_000
    options = {"num_predict": 1}
    with running(Settings(models=models, device="cpu")) as server:
        store = server.context.sessions
        chat(server, [user("x")], "far", model=ENDLESS, options=options)
        database = store._store
        assert database is not None
        session = database.get("far")
        assert session is not None
        body = json.dumps(user("x" * length))
        database.replace(replace(session, id="far"), [body])
        monkeypatch.setattr(Model, "advance_batch", counting)
        url = httpx.URL(server.url)
        with socket.create_connection((url.host, url.port or 80), TIMEOUT_S) as connection:
            connection.sendall(b"GET /api/sessions/far/state HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_until(lambda: num_read > 0)
        engine = server.context.manager.loaded()[0].engine
        wait_until(lambda: engine.load.is_idle)
        assert num_read < length
        assert chat(server, [user("x")], "near", model=ENDLESS, options=options)["done"]
