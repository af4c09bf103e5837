"""Tools a client may offer, requests that need one, the call, its result and the final reply."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rwkv_core.chat.messages import ToolCall
from rwkv_core.demo.phrasing import casual, phrases
from rwkv_core.demo.words import (
    CITIES,
    CURRENCIES,
    LANGUAGES,
    NAMES,
    SYLLABLES,
    TOPICS,
    made_up,
    proper_name,
    words,
)

Arguments = dict[str, Any]
Fields = dict[str, Any]
_ROOMS = ("kitchen", "bedroom", "office", "garden", "garage", "hall")
_SKY = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy")


@dataclass(frozen=True)
class Tool:
    """One kind of tool. `{…}` in `asks` and `reply` are arguments and fields of the result."""

    name: str
    descriptions: tuple[str, ...]
    parameters: tuple[tuple[str, str], ...]
    asks: tuple[str, ...]
    arguments: Callable[[random.Random], Arguments]
    result: Callable[[random.Random, Arguments], Fields]
    reply: str

    def schema(self, rng: random.Random) -> dict[str, Any]:
        """As an Ollama client sends it."""
        properties = {name: {"type": kind} for name, kind in self.parameters}
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": rng.choice(self.descriptions),
                "parameters": {
                    "type": "object", "properties": properties, "required": list(properties),
                },
            },
        }  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What the user asks, the right call, the tool's result as JSON and the reply made of it."""

    ask: str
    call: ToolCall
    result: str
    reply: str
    values: tuple[str, ...]


def _city(rng: random.Random) -> str:
    return proper_name(rng, CITIES)


def _clock(rng: random.Random) -> str:
    return f"{rng.randrange(24):02}:{rng.randrange(60):02}"


def _expression(rng: random.Random) -> str:
    return f"{rng.randrange(100)} {rng.choice('+-')} {rng.randrange(100)}"


def _value_of(expression: str) -> int:
    left, sign, right = expression.split()
    return int(left) + int(right) if sign == "+" else int(left) - int(right)


POOL: tuple[Tool, ...] = (
    Tool(
        "get_weather",
        phrases("Get the weather of a city | Current weather for a city | Weather report"),
        (("city", "string"),),
        phrases(
            """What is the weather in {city}? | How is the weather in {city}? | Is it raining in
            {city}? | Weather in {city}? | Tell me the weather in {city}. | Do I need a coat in
            {city}? | What is the weather like in {city}? | How warm is it in {city}?"""
        ),
        lambda rng: {"city": _city(rng)},
        lambda rng, a: {"temperature": rng.randrange(-9, 39), "sky": rng.choice(_SKY)},
        "It is {sky} in {city}, {temperature} degrees.",
    ),
    Tool(
        "get_time",
        phrases("Get the time in a city | Current time of a city | The clock of a city"),
        (("city", "string"),),
        phrases(
            """What time is it in {city}? | Tell me the time in {city}. | What is the time in
            {city}? | How late is it in {city}? | Current time in {city}?"""
        ),
        lambda rng: {"city": _city(rng)},
        lambda rng, a: {"time": _clock(rng)},
        "It is {time} in {city}.",
    ),
    Tool(
        "calculator",
        phrases("Calculate an expression | A calculator | Do arithmetic"),
        (("expression", "string"),),
        phrases(
            """What is {expression}? | Calculate {expression}. | How much is {expression}? |
            {expression} | Compute {expression}. | Use the calculator: {expression}"""
        ),
        lambda rng: {"expression": _expression(rng)},
        lambda rng, a: {"result": _value_of(a["expression"])},
        "{expression} = {result}.",
    ),
    Tool(
        "set_timer",
        phrases("Set a timer | Start a timer of some minutes | A kitchen timer"),
        (("minutes", "integer"),),
        phrases(
            """Set a timer for {minutes} minutes. | Wake me in {minutes} minutes. |
            Timer: {minutes} minutes | Start a timer of {minutes} minutes. |
            Tell me when {minutes} minutes are over."""
        ),
        lambda rng: {"minutes": rng.randrange(1, 100)},
        lambda rng, a: {"status": "ok"},
        "The timer is set for {minutes} minutes.",
    ),
    Tool(
        "translate",
        phrases("Translate a word | Translate into a language | A dictionary"),
        (("text", "string"), ("language", "string")),
        phrases(
            """Translate {text} into {language}. | What is {text} in {language}? |
            How do you say {text} in {language}? | Say {text} in {language}."""
        ),
        lambda rng: {"text": rng.choice(TOPICS), "language": rng.choice(LANGUAGES)},
        lambda rng, a: {"translation": made_up(rng, capital=False)},
        "In {language} it is {translation}.",
    ),
    Tool(
        "get_exchange_rate",
        phrases("Get an exchange rate | The rate between two currencies | Convert money"),
        (("source", "string"), ("target", "string")),
        phrases(
            """What is the exchange rate from {source} to {target}? | How much {target} is one
            {source}? | Convert {source} to {target}. | Exchange rate {source} to {target}?"""
        ),
        lambda rng: dict(zip(("source", "target"), rng.sample(CURRENCIES, 2), strict=True)),
        lambda rng, a: {"rate": rng.randrange(1, 999) / 100},
        "One {source} is {rate} {target}.",
    ),
    Tool(
        "web_search",
        phrases("Search the web | Find pages on the internet | A search engine"),
        (("query", "string"),),
        phrases(
            """Search for {query}. | Search the web for {query}. | Look up {query}. | Find pages
            about {query}. | Find out about {query}."""
        ),
        lambda rng: {"query": f"{rng.choice(TOPICS)} {rng.choice(TOPICS)}"},
        lambda rng, a: {"title": f"{made_up(rng)} {rng.choice(TOPICS)}"},
        "I found this page: {title}.",
    ),
    Tool(
        "send_message",
        phrases("Send a message to someone | Write to a contact | Send a text message"),
        (("to", "string"), ("text", "string")),
        phrases(
            """Send {to} a message: {text} | Write to {to}: {text} | Tell {to}: {text} |
            Send the message {text} to {to}."""
        ),
        lambda rng: {"to": proper_name(rng, NAMES), "text": _message(rng)},
        lambda rng, a: {"status": "sent"},
        "I sent your message to {to}.",
    ),
    Tool(
        "play_music",
        phrases("Play music of an artist | Start the music player | Play songs"),
        (("artist", "string"),),
        phrases(
            "Play music by {artist}. | Play {artist}. | I want to hear {artist}. | Put on {artist}."
        ),
        lambda rng: {"artist": proper_name(rng, NAMES)},
        lambda rng, a: {"song": f"{made_up(rng)}"},
        "Now playing {song} by {artist}.",
    ),
    Tool(
        "switch_light",
        phrases("Switch a light | Control the lamps | Turn a light on or off"),
        (("room", "string"), ("on", "boolean")),
        phrases(
            """Turn {on} the light in the {room}. | Switch the {room} light {on}. |
            Light {on} in the {room}, please. | Turn the {room} lamp {on}."""
        ),
        lambda rng: {"room": rng.choice(_ROOMS), "on": rng.random() < 0.5},
        lambda rng, a: {"status": "ok"},
        "The light in the {room} is {on}.",
    ),
    Tool(
        "roll_dice",
        phrases("Roll a die | Throw dice | A random number"),
        (("sides", "integer"),),
        phrases(
            """Roll a die with {sides} sides. | Throw a die with {sides} sides. | Roll a {sides}
            sided die."""
        ),
        lambda rng: {"sides": rng.randrange(2, 100)},
        lambda rng, a: {"result": rng.randint(1, a["sides"])},
        "The die shows {result}.",
    ),
    Tool(
        "get_distance",
        phrases("Distance between two cities | How far two cities are apart | Route length"),
        (("start", "string"), ("end", "string")),
        phrases(
            """How far is it from {start} to {end}? | What is the distance from {start} to {end}? |
            Distance from {start} to {end}? | How long is the way from {start} to {end}?"""
        ),
        lambda rng: {"start": _city(rng), "end": _city(rng)},
        lambda rng, a: {"km": rng.randrange(20, 9000)},
        "It is {km} km from {start} to {end}.",
    ),
    Tool(
        "get_population",
        phrases("Number of people in a city | Population of a city | City statistics"),
        (("city", "string"),),
        phrases(
            """How many people live in {city}? | What is the population of {city}? | Population of
            {city}? | How big is {city}?"""
        ),
        lambda rng: {"city": _city(rng)},
        lambda rng, a: {"people": rng.randrange(20, 9999) * 1000},
        "{people} people live in {city}.",
    ),
    Tool(
        "add_note",
        phrases("Save a note | Write a note | Keep a note for later"),
        (("text", "string"),),
        phrases("Note: {text} | Write down: {text} | Save a note: {text} | Make a note: {text}"),
        lambda rng: {"text": _message(rng)},
        lambda rng, a: {"status": "saved"},
        "I saved your note.",
    ),
)
_VERBS = ("get", "find", "open", "check", "show", "book", "read", "order", "start", "stop")
_NOUNS = words(
    """stock river train flight recipe song movie ticket table email file door camera report
    order game lesson map station"""
)


def _message(rng: random.Random) -> str:
    return rng.choice(
        (
            f"buy {rng.choice(TOPICS)}",
            f"meet me at {rng.randrange(1, 13)}",
            f"call {rng.choice(NAMES)}",
            f"learn {rng.choice(TOPICS)}",
            "I am late",
            "see you soon",
            f"{rng.choice(TOPICS)} and {rng.choice(TOPICS)}",
        )
    )


def _any_value(rng: random.Random, kind: str) -> Any:
    if kind == "integer":
        return rng.randrange(rng.choice((10, 100, 1000)))
    return proper_name(rng, NAMES if rng.random() < 0.5 else CITIES)


def invented(rng: random.Random) -> Tool:
    """A tool that no list holds, so that names and parameters must be read from the offer."""
    if rng.random() < 0.5:
        verb, noun = rng.choice(_VERBS), rng.choice(_NOUNS)
        name, action = f"{verb}_{noun}", f"{verb} the {noun}"
        parameter = rng.choice((noun, "name", "id", "value", rng.choice(SYLLABLES) + "s"))
        asks = phrases(
            f"{action} {{{parameter}}}. | Please {action} {{{parameter}}}. |"
            f"Can you {action} {{{parameter}}}? | I want you to {action} {{{parameter}}}."
        )
        descriptions: tuple[str, ...] = (f"{verb} a {noun}".capitalize(), action.capitalize())
    else:
        name = made_up(rng, capital=False)
        if rng.random() < 0.5:
            name = f"{name}_{made_up(rng, capital=False)}"
        parameter = rng.choice((made_up(rng, capital=False), "name", "value", "id"))
        asks = phrases(
            f"Use {name} with {{{parameter}}}. | Call {name} with {{{parameter}}}. |"
            f"{name} {{{parameter}}} | Run {name} for {{{parameter}}}."
        )
        descriptions = (f"Run {name}", f"The {name} tool", f"Does a {name}")
    kind = rng.choice(("string", "string", "integer"))
    return Tool(
        name,
        descriptions,
        ((parameter, kind),),
        asks,
        lambda rng: {parameter: _any_value(rng, kind)},
        lambda rng, a: {"result": _any_value(rng, rng.choice(("string", "integer")))},
        "The result is {result}.",
    )


def offer(rng: random.Random) -> list[Tool]:
    """One to four tools with different names, about one in four invented."""
    tools: dict[str, Tool] = {}
    for known in rng.sample(POOL, rng.randint(1, 4)):
        tool = invented(rng) if rng.random() < 0.25 else known
        tools[tool.name] = tool
    return list(tools.values())


def not_offered(rng: random.Random, offered: Sequence[Tool]) -> Tool | None:
    """A tool whose requests none of `offered` can serve; None where a search could serve any."""
    names = {tool.name for tool in offered}
    if "web_search" in names:
        return None
    return rng.choice([tool for tool in POOL if tool.name not in {*names, "calculator"}])


def request(rng: random.Random, tool: Tool) -> Request:
    """A request that only `tool` can serve, all the way to the reply."""
    arguments = tool.arguments(rng)
    fields = tool.result(rng, arguments)
    texts = {name: _text(value) for name, value in {**arguments, **fields}.items()}
    ask = _fill(casual(rng, rng.choice(tool.asks)), texts)
    reply = _fill(tool.reply, texts)
    used = [texts[name] for name in texts if "{" + name + "}" in tool.reply]
    return Request(ask, ToolCall(tool.name, arguments), json.dumps(fields), reply, tuple(used))


def schemas(rng: random.Random, tools: Sequence[Tool]) -> tuple[dict[str, Any], ...]:
    return tuple(tool.schema(rng) for tool in tools)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _fill(template: str, texts: Mapping[str, str]) -> str:
    for name, text in texts.items():
        template = template.replace("{" + name + "}", text)
    return template
