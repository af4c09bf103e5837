"""Facts a user tells about themselves, and the questions that ask for them later."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from rwkv_core.demo.phrasing import casual, phrases
from rwkv_core.demo.words import CITIES, COLORS, NAMES, PET_NAMES, PETS, different, proper_name


class Slot(Enum):
    """What a user can tell."""

    NAME = "name"
    CITY = "city"
    PET = "pet"
    COLOR = "color"
    NUMBER = "number"


ORDER = tuple(Slot)


@dataclass(frozen=True)
class Fact:
    """`value` is the name, city, pet's name, colour or number; `kind` is the animal."""

    slot: Slot
    value: str
    kind: str = ""


Facts = dict[Slot, Fact]


@dataclass(frozen=True)
class Turn:
    """What the user says, what the demo answers and thinks, and the values the answer must hold."""

    ask: str
    reply: str
    thought: str
    values: tuple[str, ...] = ()


_TELL: Mapping[Slot, tuple[str, ...]] = {
    Slot.NAME: phrases(
        """My name is {v}. | I am {v}. | I'm {v}. | Call me {v}. | Hi, I am {v}. | Hello, my name is
        {v}. | You can call me {v}. | Please call me {v}. | Hello, I'm {v}! | People call me {v}. |
        My name's {v}. | Hi! My name is {v}. | The name is {v}."""
    ),
    Slot.CITY: phrases(
        """I live in {v}. | My home is in {v}. | I am from {v}. | I come from {v}. | My city is {v}.
        | I am living in {v}. | I'm from {v}. | My hometown is {v}. | I have a flat in {v}. | The
        city I live in is {v}."""
    ),
    Slot.PET: phrases(
        """I have a {k} called {v}. | My {k} is called {v}. | My {k}'s name is {v}. |
        I have a {k} named {v}. | I have a {k}. Its name is {v}. | The name of my {k} is {v}. |
        My pet is a {k} called {v}. | I own a {k}, {v}."""
    ),
    Slot.COLOR: phrases(
        """My favorite color is {v}. | I like {v} best. | I love the color {v}. | My favourite
        colour is {v}. | The color I like most is {v}. | {v} is my favorite color. | My best color
        is {v}."""
    ),
    Slot.NUMBER: phrases(
        """My number is {v}. | My favorite number is {v}. | Remember the number {v}. |
        Please remember the number {v}. | My lucky number is {v}. | The number is {v}. |
        The secret number is {v}. | Keep the number {v} in mind. | I chose the number {v}."""
    ),
}
_CORRECT: Mapping[Slot, tuple[str, ...]] = {
    Slot.NAME: phrases("Actually, my name is {v}. | Sorry, my name is {v}. | No, call me {v}."),
    Slot.CITY: phrases("I moved to {v}. | Now I live in {v}. | Actually, I live in {v}."),
    Slot.PET: phrases("Now I have a {k} called {v}. | Actually, my {k} is called {v}."),
    Slot.COLOR: phrases("Actually, my favorite color is {v}. | Now I like {v} best."),
    Slot.NUMBER: phrases("The number is now {v}. | Actually, my number is {v}."),
}
_ACKNOWLEDGE: Mapping[Slot, str] = {
    Slot.NAME: "Nice to meet you, {v}!",
    Slot.CITY: "{v} sounds like a nice place.",
    Slot.PET: "{v} is a lovely name for a {k}.",
    Slot.COLOR: "I will remember that you like {v}.",
    Slot.NUMBER: "I will remember the number {v}.",
}
_ASK: Mapping[Slot, tuple[str, ...]] = {
    Slot.NAME: phrases(
        """What is my name? | What's my name? | Do you remember my name? | Who am I? | Tell me my
        name. | Can you tell me my name? | Do you know my name? | What did I say my name was? | What
        am I called? | What was my name? | Say my name. | Do you still know my name?"""
    ),
    Slot.CITY: phrases(
        """Where do I live? | Which city do I live in? | Do you remember where I live? |
        What city do I live in? | Where is my home? | Do you know where I live? | Where am I from? |
        Which city is my home? | Tell me where I live. | What is my city?"""
    ),
    Slot.PET: phrases(
        """What is the name of my pet? | What is my pet called? | What pet do I have? |
        Do you remember my pet? | Which animal do I have? | What kind of pet do I have? |
        What's my pet's name? | Tell me about my pet. | Do you know what pet I have?"""
    ),
    Slot.COLOR: phrases(
        """What is my favorite color? | What's my favorite color? | Which color do I like best? |
        Do you remember my favorite color? | What is my favourite colour? | Which color do I like? |
        Do you know my favorite color? | Tell me my favorite color."""
    ),
    Slot.NUMBER: phrases(
        """What is my number? | What was the number? | Which number did I tell you? | What was my
        number? | Do you remember my number? | Tell me my number. | What is my favorite number? | Do
        you remember the number? | What's my number? | What number did I say?"""
    ),
}
_ASK_KIND = phrases(
    """What is my {k} called? | What is the name of my {k}? | What's my {k}'s name? |
    Do you remember the name of my {k}? | What is my {k}'s name?"""
)
_ASK_ALL = phrases(
    """What do you know about me? | Tell me what you know about me. | What did I tell you? |
    What do you remember about me? | Tell me everything you know about me."""
)
_ANSWER: Mapping[Slot, str] = {
    Slot.NAME: "Your name is {v}.",
    Slot.CITY: "You live in {v}.",
    Slot.PET: "You have a {k} called {v}.",
    Slot.COLOR: "Your favorite color is {v}.",
    Slot.NUMBER: "Your number is {v}.",
}
_THOUGHT: Mapping[Slot, str] = {
    Slot.NAME: "The user told me that their name is {v}.",
    Slot.CITY: "The user told me that they live in {v}.",
    Slot.PET: "The user told me that they have a {k} called {v}.",
    Slot.COLOR: "The user told me that their favorite color is {v}.",
    Slot.NUMBER: "The user told me that their number is {v}.",
}
_UNTOLD: Mapping[Slot, str] = {
    Slot.NAME: "your name",
    Slot.CITY: "where you live",
    Slot.PET: "about a pet",
    Slot.COLOR: "your favorite color",
    Slot.NUMBER: "a number",
}
_MAKE: Mapping[Slot, Callable[[random.Random], Fact]] = {
    Slot.NAME: lambda rng: Fact(Slot.NAME, proper_name(rng, NAMES)),
    Slot.CITY: lambda rng: Fact(Slot.CITY, proper_name(rng, CITIES)),
    Slot.PET: lambda rng: Fact(Slot.PET, proper_name(rng, PET_NAMES), rng.choice(PETS)),
    Slot.COLOR: lambda rng: Fact(Slot.COLOR, rng.choice(COLORS)),
    Slot.NUMBER: lambda rng: Fact(Slot.NUMBER, _number(rng)),
}
_KNOWN: Mapping[Slot, tuple[str, ...]] = {
    Slot.NAME: NAMES, Slot.CITY: CITIES, Slot.PET: PET_NAMES, Slot.COLOR: COLORS,
}  # fmt: skip


def new_facts(rng: random.Random, count: int) -> list[Fact]:
    """`count` facts of different slots, in random order."""
    return [_MAKE[slot](rng) for slot in rng.sample(ORDER, count)]


def tell(rng: random.Random, facts: Sequence[Fact]) -> Turn:
    """The user tells one fact or several in one message."""
    told = [_fill(casual(rng, rng.choice(_TELL[fact.slot])), fact) for fact in facts]
    if len(facts) == 1:
        reply = _fill(_ACKNOWLEDGE[facts[0].slot], facts[0])
        return Turn(told[0], reply, f"The user tells me their {facts[0].slot.value}.")
    joint = rng.choice((" ", " ", " and ", "\n"))
    if joint == " and ":
        told = [each.rstrip(".!") for each in told]
    elif joint == " ":
        told = [each if each[-1] in ".!" else f"{each}." for each in told]
    name = next((fact.value for fact in facts if fact.slot is Slot.NAME), "")
    reply = (f"Nice to meet you, {name}!" if name else "Thank you.") + " I will remember that."
    return Turn(joint.join(told), reply, "The user tells me about themselves.")


def correct(rng: random.Random, known: Facts) -> tuple[Turn, Fact]:
    """The user changes one of the `known` facts; the caller stores the new one."""
    old = rng.choice(list(known.values()))
    if old.slot is Slot.NUMBER:
        new = Fact(Slot.NUMBER, _other_number(rng, old.value))
    elif old.slot is Slot.COLOR:
        new = Fact(Slot.COLOR, rng.choice([each for each in COLORS if each != old.value]))
    else:
        new = Fact(old.slot, different(rng, _KNOWN[old.slot], old.value), old.kind)
    ask = _fill(casual(rng, rng.choice(_CORRECT[old.slot])), new)
    reply = "All right. " + _fill(_ANSWER[old.slot], new)
    return Turn(ask, reply, f"The user corrects their {old.slot.value}."), new


def question(rng: random.Random, known: Facts) -> Turn:
    """A question about the facts: one, two, all of them, or one that was never told."""
    chance = rng.random()
    unknown = [slot for slot in ORDER if slot not in known]
    if not known or (unknown and chance < 0.13):
        return _ask_unknown(rng, rng.choice(unknown))
    if chance < 0.18:
        return _answer(
            rng, casual(rng, rng.choice(_ASK_ALL)), [known[s] for s in ORDER if s in known]
        )
    if chance < 0.26 and len(known) > 1:
        slots = rng.sample(list(known), 2)
        first, second = (rng.choice(_ASK[slot]) for slot in slots)
        return _answer(rng, f"{first} {second}", [known[slot] for slot in slots])
    fact = rng.choice(list(known.values()))
    return _answer(rng, _ask_one(rng, fact), [fact])


def _ask_one(rng: random.Random, fact: Fact) -> str:
    templates = _ASK[fact.slot]
    if fact.slot is Slot.PET and rng.random() < 0.5:
        templates = _ASK_KIND
    return _fill(casual(rng, rng.choice(templates)), fact)


def _ask_unknown(rng: random.Random, slot: Slot) -> Turn:
    thing = _UNTOLD[slot]
    return Turn(
        casual(rng, rng.choice(_ASK[slot])),
        f"You have not told me {thing} yet.",
        f"The user has not told me {thing.replace('your', 'their').replace('you ', 'they ')}.",
        (f"You have not told me {thing} yet",),
    )


def _answer(rng: random.Random, ask: str, facts: Sequence[Fact]) -> Turn:
    values = tuple(value for fact in facts for value in (fact.kind, fact.value) if value)
    reply = " ".join(_fill(_ANSWER[fact.slot], fact) for fact in facts)
    thought = " ".join(_fill(_THOUGHT[fact.slot], fact) for fact in facts)
    return Turn(ask, reply, thought, values)


def _fill(template: str, fact: Fact) -> str:
    return template.replace("{v}", fact.value).replace("{k}", fact.kind)


def _number(rng: random.Random) -> str:
    return str(rng.randrange(rng.choice((10, 100, 1000, 1000))))


def _other_number(rng: random.Random, old: str) -> str:
    while (number := _number(rng)) == old:
        pass
    return number
