"""Constraints, logprobs and embeddings in the engine: with drafts, in batches, cut, cancelled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch

from rwkv_core.chat.reply import Preamble
from rwkv_core.chat.reply_stages import ContentConstraint
from rwkv_core.constraint import TokenConstraint
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.embedding import EmbeddedEvent, EmbeddingRequest
from rwkv_core.engine import Engine, FinishReason, GenerationRequest
from rwkv_core.errors import GenerationError, OptionError
from rwkv_core.grammar import Grammar, grammar_vocabulary, json_grammar
from rwkv_core.loading import load_model
from rwkv_core.logprobs import TokenLogprob
from rwkv_core.model import Model
from rwkv_core.row_cost import RowCost
from rwkv_core.sampler import SamplingOptions
from tests.tools.native import require_kernels
from tests.tools.receiver import Receiver
from tests.tools.waiting import wait_until

QUESTION = "User: My cat is called Tom, my dog Rex. Hi!\n\nAssistant:"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "cat": {"type": "string", "maxLength": 12},
        "ages": {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 4, "maxItems": 12},
    },
    "required": ["cat", "ages"],
    "additionalProperties": False,
}
WILD = SamplingOptions(temperature=2.0, top_k=0, top_p=1.0, seed=3)


@pytest.fixture(scope="module")
def model() -> Model:
    require_kernels()
    return load_model(EMBEDDED, kernels=True)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    engine = Engine(model, num_slots=4)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def grammar(model: Model) -> Grammar:
    vocabulary = grammar_vocabulary(model.tokenizer, model.config.vocab_size)
    return json_grammar(vocabulary, SCHEMA)


def wanted(model: Model, grammar: Grammar | None, **changes: Any) -> GenerationRequest:
    constraint = ContentConstraint(grammar, Preamble()) if grammar else None
    tokens = tuple(model.tokenizer.encode(QUESTION))
    return replace(GenerationRequest(tokens, WILD, 300, (), constraint=constraint), **changes)


def run(engine: Engine, request: GenerationRequest) -> Receiver:
    receiver = Receiver()
    engine.submit(request, receiver)
    receiver.wait()
    return receiver


def all_logprobs(receiver: Receiver) -> list[TokenLogprob]:
    shown = [each for event in receiver.texts for each in event.logprobs]
    return [*shown, *receiver.finished().logprobs]


def test_replies_fit_and_end_with_the_grammar(
    engine: Engine, model: Model, grammar: Grammar
) -> None:
    receivers = [Receiver() for _ in range(12)]  # more than slots
    for seed, receiver in enumerate(receivers):
        sampling = replace(WILD, seed=seed) if seed else SamplingOptions(temperature=0)
        engine.submit(wanted(model, grammar, sampling=sampling), receiver)
    for receiver in receivers:
        assert receiver.finished().reason is FinishReason.STOP
        jsonschema.validate(json.loads(receiver.text), SCHEMA)
    assert len({receiver.text for receiver in receivers}) > 6


def test_a_seed_says_the_same_with_drafts_and_in_company(
    engine: Engine, model: Model, grammar: Grammar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowCost, "share", lambda self, num_rows: 0.01)  # drafts are cheap
    # Lists of a few numbers repeat themselves, so that they are drafted.
    alone = run(engine, wanted(model, grammar)).text
    others = [Receiver() for _ in range(3)]
    for other in others:
        engine.submit(wanted(model, grammar, sampling=replace(WILD, seed=9)), other)
    assert run(engine, wanted(model, grammar)).text == alone
    num_drafted = 0
    for seed in range(5):
        sampling = replace(WILD, seed=seed, temperature=0.5)
        plain = run(engine, wanted(model, grammar, sampling=sampling))
        drafted = run(engine, wanted(model, grammar, sampling=sampling, max_draft_tokens=8))
        assert drafted.text == plain.text
        num_drafted += drafted.finished().stats.num_draft_tokens
    assert num_drafted


def test_a_limit_cuts_it_short(engine: Engine, model: Model, grammar: Grammar) -> None:
    receiver = run(engine, wanted(model, grammar, max_new_tokens=4))
    assert receiver.finished().reason is FinishReason.LENGTH
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(receiver.text)


def test_a_constraint_that_fails_ends_its_own_request(
    engine: Engine, model: Model, grammar: Grammar
) -> None:
    class Broken:
        is_complete = False

        def mask(self) -> torch.Tensor | None:
            raise GenerationError("too complex")

        def accept(self, token_id: int) -> None: ...

    class Impossible(Broken):
        def mask(self) -> torch.Tensor | None:
            return torch.zeros(model.config.vocab_size, dtype=torch.bool)

    good = Receiver()
    engine.submit(wanted(model, grammar), good)
    constraints: list[TokenConstraint] = [Broken(), Impossible()]
    for constraint, words in zip(constraints, ("too complex", "no token"), strict=True):
        failed = run(engine, wanted(model, None, constraint=constraint))
        assert words in str(failed.failure())
    assert good.finished().reason is FinishReason.STOP


def test_cancelled_within_a_grammar(engine: Engine, model: Model) -> None:
    vocabulary = grammar_vocabulary(model.tokenizer, model.config.vocab_size)
    endless = json_grammar(vocabulary, {"type": "string", "minLength": 100_000})
    receiver = Receiver()
    generation = engine.submit(wanted(model, endless, max_new_tokens=None), receiver)
    wait_until(lambda: len(receiver.text) > 50)
    generation.cancel()
    assert receiver.finished().reason is FinishReason.CANCELLED
    wait_until(lambda: engine.load.is_idle)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("drafts", [0, 8])
def test_logprobs_are_of_every_token_in_order(
    engine: Engine, model: Model, seed: int, drafts: int
) -> None:
    """At this temperature much of the text is no UTF-8, and held back."""
    sampling = replace(WILD, seed=seed, temperature=8.0)
    request = wanted(
        model, None, sampling=sampling, max_new_tokens=60, num_top_logprobs=3,
        stops=("no such stop", "e e e"), max_draft_tokens=drafts,
    )  # fmt: skip
    receiver = run(engine, request)
    found = all_logprobs(receiver)
    ids = list(receiver.finished().token_ids)
    if ids[-1] in model.tokenizer.eos_token_ids:
        ids.pop()
    assert [each.bytes for each in found] == [tuple(model.tokenizer.token_bytes(i)) for i in ids]
    text = b"".join(bytes(each.bytes) for each in found).decode("utf-8", "replace")
    assert text == receiver.text
    num_shown = num_named = 0
    for event in receiver.texts:  # a token comes with the text that its first character is in
        num_shown += len(event.text)
        num_named += len(event.logprobs)
        named = b"".join(bytes(each.bytes) for each in found[:num_named])
        assert len(named.decode("utf-8", "replace")) >= num_shown
    logits, _ = model.forward([*request.prompt_token_ids, *ids[:5]])
    expected = logits.double().log_softmax(0)
    if len(ids) > 5:
        assert found[5].logprob == pytest.approx(float(expected[ids[5]]))
        best = expected.topk(3)
        assert [each.logprob for each in found[5].top] == pytest.approx(best.values.tolist())
        assert [each.bytes for each in found[5].top] == [
            tuple(model.tokenizer.token_bytes(i)) for i in best.indices.tolist()
        ]


def test_a_stop_has_no_logprobs(engine: Engine, model: Model) -> None:
    whole = run(engine, wanted(model, None, num_top_logprobs=0))
    stop = whole.text[8:14]
    cut = run(engine, wanted(model, None, num_top_logprobs=0, stops=(stop,)))
    assert cut.text == whole.text.partition(stop)[0]
    found = b"".join(bytes(each.bytes) for each in all_logprobs(cut)).decode()
    assert found.startswith(cut.text)
    last = bytes(all_logprobs(cut)[-1].bytes).decode()
    assert len(found) < len(cut.text) + len(last)
    assert all(each.top == () for each in all_logprobs(cut))
    assert all_logprobs(run(engine, wanted(model, None))) == []


def test_embeddings_share_passes_with_replies(engine: Engine, model: Model) -> None:
    texts = [tuple(model.tokenizer.encode("word " * count + "end")) for count in (0, 3, 200, 700)]
    reply = Receiver()
    engine.submit(wanted(model, None), reply)
    receivers = [Receiver() for _ in texts]
    for text, receiver in zip(texts, receivers, strict=True):
        engine.embed(EmbeddingRequest(text), receiver)
    for text, receiver in zip(texts, receivers, strict=True):
        event = receiver.wait()
        assert isinstance(event, EmbeddedEvent)
        assert event.num_tokens == len(text)
        state = model.new_state()
        if text[:-1]:
            model.advance(text[:-1], state)
        assert torch.equal(event.vector, model.final_hidden(text[-1:], [state])[0])
    reply.finished()
    assert reply.text == run(engine, wanted(model, None)).text


def test_a_pass_that_fails_ends_its_own_embedding(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tuple(model.tokenizer.encode("7 " * 50))
    advance = Model.advance_batch

    def fail(self: Model, segments: Any, **options: Any) -> torch.Tensor:
        if any(tuple(each.token_ids.tolist()) == bad[: len(each.token_ids)] for each in segments):
            raise RuntimeError("injected")
        return advance(self, segments, **options)

    monkeypatch.setattr(Model, "advance_batch", fail)
    engine = Engine(model, num_slots=4)
    try:
        receivers = [Receiver() for _ in range(3)]
        good = tuple(model.tokenizer.encode("word " * 50))
        for text, receiver in zip((good, bad, good), receivers, strict=True):
            engine.embed(EmbeddingRequest(text), receiver)
        assert "injected" in str(receivers[1].failure())
        first, _, last = (receiver.wait() for receiver in receivers)
        assert isinstance(first, EmbeddedEvent)
        assert isinstance(last, EmbeddedEvent)
        assert torch.equal(first.vector, last.vector)
        for wrong in ((), (5, -1)):
            with pytest.raises(OptionError):
                engine.embed(EmbeddingRequest(wrong), Receiver())
    finally:
        engine.close()
