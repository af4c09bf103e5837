"""Sums and differences of numbers from 0 to 99, with steps that a tiny network can follow.

Every step looks at two digits and a carry only, so each can be read off what was just written.
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
_DRILL_SIZES = range(4, 11)


@dataclass(frozen=True)
class Problem:
    """A problem as the user puts it, the steps of the thought, the reply and the answer."""

    ask: str
    steps: str
    reply: str
    answer: int


def problem(rng: random.Random) -> Problem:
    """A random problem; its numbers are evenly spread, about one in five is a single digit."""
    a, b = _number(rng), _number(rng)
    is_sum = rng.random() < 0.5
    if rng.random() < 0.12:
        template = rng.choice(_PLUS_STORIES if is_sum else _MINUS_STORIES)
        if not is_sum:
            a, b = max(a, b), min(a, b)
        ask = casual(rng, template).format(a=a, b=b, things=rng.choice(_THINGS))
    else:
        template = rng.choice(_PLUS if is_sum else _MINUS)
        ask = casual(rng, template).format(a=a, b=b)
    answer = a + b if is_sum else a - b
    sign = "+" if is_sum else "-"
    steps = addition_steps(a, b) if is_sum else subtraction_steps(a, b)
    return Problem(ask, steps, f"{a} {sign} {b} = {answer}.", answer)


def drill(rng: random.Random) -> tuple[str, str]:
    """Several small sums asked for at once, and their results.

    They are the single steps of longer problems, written as there. One thought holds two or three
    of the about 600 that there are; here many of them come in a short text.
    """
    steps = [_step(rng) for _ in range(rng.choice(_DRILL_SIZES))]
    items = ", ".join(ask for ask, _ in steps)
    reply = ", ".join(f"{ask} = {result}" for ask, result in steps)
    return rng.choice(_DRILLS).format(items=items), f"{reply}."


def _step(rng: random.Random) -> tuple[str, int]:
    """One digit with another, and a carry or borrow for the tens."""
    a, b, carry = rng.randrange(10), rng.randrange(10), rng.randrange(2)
    form = rng.randrange(4)
    if form == 0:
        return f"{a} + {b}", a + b
    if form == 1:
        return f"{a} + {b} + {carry}", a + b + carry
    if form == 2:
        total = a + b if rng.random() < 0.5 else max(a, b)
        return f"{total} - {b if total >= b else a}", total - b if total >= b else total - a
    high = max(a, b, carry)
    low = min(a, b, high - carry)
    return f"{high} - {low} - {carry}", high - low - carry


def addition_steps(a: int, b: int) -> str:
    """ "47 + 38: ones 7 + 8 = 15, write 5, carry 1. tens 4 + 3 + 1 = 8. Result 85."."""
    ones = a % 10 + b % 10
    carry = ones // 10
    tens = a // 10 + b // 10 + carry
    return (
        f"{a} + {b}: ones {a % 10} + {b % 10} = {ones}, write {ones % 10}, carry {carry}. "
        f"tens {a // 10} + {b // 10} + {carry} = {tens}. Result {a + b}."
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
    """Ones, then tens, of a - b for a >= b."""
    x, y = a % 10, b % 10
    borrow = int(x < y)
    ones = (
        f"ones {x} < {y}, so 1{x} - {y} = {10 + x - y}" if borrow else f"ones {x} - {y} = {x - y}"
    )
    tens = a // 10 - b // 10 - borrow
    return f"{ones}, borrow {borrow}. tens {a // 10} - {b // 10} - {borrow} = {tens}."


def _number(rng: random.Random) -> int:
    return rng.randrange(10) if rng.random() < 0.12 else rng.randrange(100)
