"""How people type: the same sentence with and without capitals, full stops and politeness."""

from __future__ import annotations

import random

_OPENERS = ("Please ", "Hey, ", "OK, ", "So, ", "Well, ", "Um, ", "And ", "Now ")


def phrases(text: str) -> tuple[str, ...]:
    """The phrases of a text that separates them by "|", free of line breaks."""
    return tuple(" ".join(each.split()) for each in text.split("|"))


def casual(rng: random.Random, template: str) -> str:
    """A variant of a template, whose slots {x} are still empty: lower case must not reach names."""
    chance = rng.random()
    if chance < 0.5:
        return template
    if chance < 0.62:
        opener = rng.choice(_OPENERS)
        keep = template.startswith(("I ", "I'", "{"))
        return opener + (template if keep else template[0].lower() + template[1:])
    if chance < 0.80:
        return template.lower()
    if chance < 0.92:
        return template.rstrip(".!?")
    return template.lower().rstrip(".!?")
