"""Sums and differences of numbers from 0 to 99, with steps that a tiny network can follow.

Every step is one of few facts: the sum of two digits, or the difference of a digit or a teen and a
digit. The ones, the tens and the carry all use the same table, so that little practice is enough.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rwkv_core.demo.phrasing import casual, phrases

_PLUS = phrases(
    """What is {a} + {b}? | What is {a} plus {b}? | {a} + {b} | {a}+{b} | {a} + {b} = ? | {a}+{b}= |
    {a} plus {b} | Calculate {a} + {b}. | Calculate {a} plus {b}. | Add {a} and {b}. | What is the
    sum of {a} and {b}? | How much is {a} + {b}? | How much is {a} plus {b}? | Compute {a} + {b}. |
    Can you add {a} and {b}? | What do you get if you add {a} and {b}? | Tell me {a} + {b}. | What's
    {a} + {b}? | What's {a} plus {b}? | Solve {a} + {b}. | Can you calculate {a} + {b}? | I need to
    know {a} + {b}. | Think step by step: {a} + {b} | What does {a} + {b} equal?"""
)
_MINUS = phrases(
    """What is {a} - {b}? | What is {a} minus {b}? | {a} - {b} | {a}-{b} | {a} - {b} = ? | {a}-{b}=
    | {a} minus {b} | Calculate {a} - {b}. | Calculate {a} minus {b}. | Subtract {b} from {a}. | How
    much is {a} - {b}? | How much is {a} minus {b}? | Compute {a} - {b}. | Take {b} away from {a}. |
    Can you subtract {b} from {a}? | Tell me {a} - {b}. | What's {a} - {b}? | What's {a} minus {b}?
    | Solve {a} - {b}. | Can you calculate {a} - {b}? | I need to know {a} - {b}. | Think step by
    step: {a} - {b} | What does {a} - {b} equal?"""
)
_PLUS_STORIES = (
    "If I have {a} {things} and buy {b} more, how many do I have?",
    "I have {a} {things} and get {b} more. How many {things} do I have now?",
    "There are {a} {things} on the table and {b} in the box. How many are there?",
    "I found {a} {things} today and {b} yesterday. How many did I find?",
)
_MINUS_STORIES = (  # only asked with b <= a
    "If I have {a} {things} and give away {b}, how many are left?",
    "I have {a} {things} and lose {b}. How many {things} do I have now?",
    "There are {a} {things} and I take {b} of them. How many are left?",
    "I had {a} {things} and sold {b}. How many do I still have?",
)
_THINGS = ("apples", "books", "coins", "eggs", "cookies", "pencils", "flowers", "stones")


_DRILLS = (
    "Solve these: {items}",
    "Calculate: {items}",
    "{items}",
    "What are {items}?",
    "Please work out {items}.",
)
_DRILL_SIZES = range(4, 13)


@dataclass(frozen=True)
class Problem:
    """A problem as the user puts it, the steps of the thought, the reply and the answer."""

    ask: str
    steps: str
    reply: str
    answer: int


def problem(rng: random.Random) -> Problem:
    """A random problem with numbers from 0 to 99, mostly of two digits."""
    a, b = _number(rng), _number(rng)
    is_sum = rng.random() < 0.5
    if rng.random() < 0.12:
        template = rng.choice(_PLUS_STORIES if is_sum else _MINUS_STORIES)
        if not is_sum:
            a, b = max(a, b), min(a, b)
        ask = casual(rng, template).format(a=a, b=b, things=rng.choice(_THINGS))
        return _solve(ask, a, b, is_sum)
    return _solve(_ask(rng, a, b, is_sum), a, b, is_sum)


def small_problem(rng: random.Random) -> Problem:
    """One of the facts that the steps of a thought are made of, to be known by heart."""
    a, b, is_sum = _fact(rng)
    return _solve(_ask(rng, a, b, is_sum), a, b, is_sum)


def drill(rng: random.Random) -> tuple[str, str]:
    """Several facts asked for at once, and the reply: much practice in a short text."""
    facts = [_fact(rng) for _ in range(rng.choice(_DRILL_SIZES))]
    sums = [f"{a} + {b}" if is_sum else f"{a} - {b}" for a, b, is_sum in facts]
    results = [a + b if is_sum else a - b for a, b, is_sum in facts]
    reply = ", ".join(f"{each} = {result}" for each, result in zip(sums, results, strict=True))
    return rng.choice(_DRILLS).format(items=", ".join(sums)), f"{reply}."


def _fact(rng: random.Random) -> tuple[int, int, bool]:
    """(a, b, whether to add): two digits, or a difference whose result is a digit."""
    a, b = rng.randrange(10), rng.randrange(10)
    is_sum = rng.random() < 0.5
    return (a, b, True) if is_sum else (a + b, b, False)


def _ask(rng: random.Random, a: int, b: int, is_sum: bool) -> str:
    return casual(rng, rng.choice(_PLUS if is_sum else _MINUS)).format(a=a, b=b)


def _solve(ask: str, a: int, b: int, is_sum: bool) -> Problem:
    answer = a + b if is_sum else a - b
    steps = addition_steps(a, b) if is_sum else subtraction_steps(a, b)
    return Problem(ask, steps, f"{a} {'+' if is_sum else '-'} {b} = {answer}.", answer)


def addition_steps(a: int, b: int) -> str:
    """ "47 + 38: ones 7 + 8 = 15, write 5, carry 1. tens 4 + 3 = 7, 7 + 1 = 8. Result 85."."""
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    carry = ", carry 1" if ones > 9 else ""
    carried = f", {tens} + 1 = {tens + 1}" if ones > 9 else ""
    return (
        f"{a} + {b}: ones {a % 10} + {b % 10} = {ones}, write {ones % 10}{carry}. "
        f"tens {a // 10} + {b // 10} = {tens}{carried}. Result {a + b}."
    )


def subtraction_steps(a: int, b: int) -> str:
    """A negative result is found by swapping first, which the thought says, and by why."""
    if a >= b:
        return f"{a} - {b}: {_compare(a, b)}. {_borrow_steps(a, b)} Result {a - b}."
    return f"{a} - {b}: {_compare(a, b)}, swap to {b} - {a}. {_borrow_steps(b, a)} Result {a - b}."


def _compare(a: int, b: int) -> str:
    """Which number is larger: the tens decide, and the ones if the tens are equal."""
    tens = f"tens {a // 10} {_relation(a // 10, b // 10)} {b // 10}"
    if a // 10 != b // 10:
        return tens
    return f"{tens}, ones {a % 10} {_relation(a % 10, b % 10)} {b % 10}"


def _relation(a: int, b: int) -> str:
    if a == b:
        return "="
    return ">" if a > b else "<"


def _borrow_steps(a: int, b: int) -> str:
    """Ones, then tens, of a - b for a >= b. A borrowed ten is taken from a's tens first."""
    x, y, tens = a % 10, b % 10, a // 10
    if x >= y:
        return f"ones {x} - {y} = {x - y}. tens {tens} - {b // 10} = {tens - b // 10}."
    return (
        f"ones {x} < {y}, so 1{x} - {y} = {10 + x - y}, borrow 1. "
        f"tens {tens} - 1 = {tens - 1}, {tens - 1} - {b // 10} = {tens - 1 - b // 10}."
    )


def _number(rng: random.Random) -> int:
    return rng.randrange(10) if rng.random() < 0.12 else rng.randrange(100)
