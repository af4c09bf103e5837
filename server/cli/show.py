"""What `/show` prints about a model, from the server's answer to `/api/show`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from server.cli.chat import Chat
from server.cli.client import Json

_NAME_WIDTH = 30  # of parameter names, as the server pads them
_NUM_HEAD_LINES = 2


def show(topic: str, info: Json, chat: Chat) -> str | None:
    """The text for one topic; None when there is no such topic."""
    if topic == "info":
        return describe(info)
    if topic == "parameters":
        return _parameters(info, chat)
    texts = {
        "license": (info.get("license"), "No license was specified for this model."),
        "modelfile": (info.get("modelfile"), "No Modelfile is known for this model."),
        "system": (
            chat.system or info.get("system"),
            "No system message was specified for this model.",
        ),
        "template": (info.get("template"), "No prompt template was specified for this model."),
    }
    if topic not in texts:
        return None
    text, otherwise = texts[topic]
    return f"{text or otherwise}\n"


def describe(info: Json) -> str:
    """Ollama's tables: the model, what it can do, its parameters, the heads of its long texts."""
    parts = [_table("Model", _model_rows(info))]
    if capabilities := info.get("capabilities"):
        parts.append(_table("Capabilities", [[each] for each in capabilities]))
    if parameters := info.get("parameters"):
        parts.append(_table("Parameters", [each.split(maxsplit=1) for each in _lines(parameters)]))
    for title in ("System", "License"):
        lines = _lines(info.get(title.lower()) or "")
        rest = ["..."] if len(lines) > _NUM_HEAD_LINES else []
        if lines:
            parts.append(_table(title, [[each] for each in lines[:_NUM_HEAD_LINES] + rest]))
    return "\n".join(parts)


def _model_rows(info: Json) -> list[list[str]]:
    details, metadata = info.get("details") or {}, info.get("model_info") or {}
    architecture = metadata.get("general.architecture") or details.get("family")
    rows = {
        "architecture": architecture,
        "parameters": details.get("parameter_size"),
        "context length": metadata.get(f"{architecture}.context_length"),
        "embedding length": metadata.get(f"{architecture}.embedding_length"),
        "quantization": details.get("quantization_level"),
    }
    return [[name, str(value)] for name, value in rows.items() if value not in (None, "")]


def _parameters(info: Json, chat: Chat) -> str:
    lines = ["Model defined parameters:"]
    given = _lines(info.get("parameters") or "")
    lines += [f"  {each}" for each in given]
    if not given:
        lines.append("  No additional parameters were specified for this model.")
    if chat.options:
        lines += ["", "User defined parameters:"]
        lines += [f"  {name:<{_NAME_WIDTH}} {value}" for name, value in chat.options.items()]
    return "\n".join(lines) + "\n"


def _lines(text: str) -> list[str]:
    return [each.strip() for each in text.split("\n") if each.strip()]


def _table(title: str, rows: Iterable[Sequence[str]]) -> str:
    cells = [list(row) for row in rows]
    width = max((len(row[0]) for row in cells if len(row) > 1), default=0)
    lines = [f"    {row[0]:<{width}}    {row[1]}" if row[1:] else f"    {row[0]}" for row in cells]
    return "\n".join([f"  {title}", *lines]) + "\n"
