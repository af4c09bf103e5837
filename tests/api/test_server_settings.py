"""The environment's variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.durations import FOREVER_NS
from server.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("value", "url", "is_loopback"),
    [
        ("", "http://127.0.0.1:11434", True),
        ("1.2.3.4", "http://1.2.3.4:11434", False),
        (":1234", "http://127.0.0.1:1234", False),
        ("1.2.3.4:1234", "http://1.2.3.4:1234", False),
        ("example.com", "http://example.com:11434", False),
        ("localhost:80", "http://localhost:80", True),
        (":0", "http://127.0.0.1:0", False),
        ("[::1]", "http://[::1]:11434", True),
        ("::1", "http://[::1]:11434", True),
        ("[::]:1337", "http://[::1]:1337", False),
        ("0.0.0.0", "http://127.0.0.1:11434", False),
        (' " 1.2.3.4 " ', "http://1.2.3.4:11434", False),
        ("http://1.2.3.4", "http://1.2.3.4:80", False),
        ("https://example.com/ollama/", "https://example.com:443/ollama", False),
    ],
)
def test_host(value: str, url: str, is_loopback: bool) -> None:
    settings = Settings.from_environment({"OLLAMA_HOST": value})
    assert (settings.url, settings.listens_on_loopback) == (url, is_loopback)


def test_the_rest() -> None:
    settings = Settings.from_environment(
        {
            "OLLAMA_MODELS": "/x/y",
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_ORIGINS": "https://a.example, *.b.example",
            "OLLAMA_DEBUG": "1",
            "ANSER_DEVICE": "cuda:1",
        }
    )
    assert settings.models == Path("/x/y")
    assert settings.keep_alive_ns == FOREVER_NS
    assert settings.allowed_origins[:2] == ("https://a.example", "*.b.example")
    assert settings.is_debug
    assert settings.device == "cuda:1"
    assert Settings.from_environment({"OLLAMA_KEEP_ALIVE": "90"}).keep_alive_ns == 90 * 10**9
    assert Settings.from_environment({}).models == Path.home() / ".anser" / "models"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OLLAMA_HOST", "x:66000"),
        ("OLLAMA_HOST", "x:port"),
        ("OLLAMA_HOST", "1:2:3"),
        ("OLLAMA_KEEP_ALIVE", "soon"),
        ("OLLAMA_ORIGINS", "example.com"),
        ("OLLAMA_ORIGINS", "http://*.a.*"),
        ("OLLAMA_DEBUG", "maybe"),
        ("ANSER_DEVICE", "tpu"),
    ],
)
def test_a_bad_value_is_named_in_one_line(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({name: value})
    assert name in str(caught.value)
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)


def test_how_many_at_once_and_where_states_are_kept() -> None:
    default = Settings.from_environment({})
    assert (default.num_parallel, default.max_queue) == (None, 512)
    assert default.max_loaded_models is None
    assert default.states == Path.home() / ".anser" / "states"
    assert (default.states_memory, default.states_disk) == (None, None)
    given = Settings.from_environment(
        {
            "OLLAMA_NUM_PARALLEL": "3",
            "OLLAMA_MAX_QUEUE": "0",
            "OLLAMA_MAX_LOADED_MODELS": "2",
            "ANSER_STATES": "/data/states",
            "ANSER_STATES_MEMORY": "500MB",
            "ANSER_STATES_DISK": "2gb",
        }
    )
    assert (given.num_parallel, given.max_queue) == (3, 0)
    assert given.max_loaded_models == 2
    assert given.states == Path("/data/states")
    assert (given.states_memory, given.states_disk) == (500 * 10**6, 2 * 10**9)
    assert Settings.from_environment({"ANSER_STATES": "off"}).states is None
    elsewhere = Settings.from_environment({"ANSER_STATES": "~/elsewhere"})
    assert elsewhere.states == Path.home() / "elsewhere"
    automatic = {"OLLAMA_NUM_PARALLEL": "0", "OLLAMA_MAX_LOADED_MODELS": "0"}
    assert Settings.from_environment(automatic).num_parallel is None
    assert Settings.from_environment(automatic).max_loaded_models is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OLLAMA_NUM_PARALLEL", "-1"),
        ("OLLAMA_MAX_QUEUE", "many"),
        ("ANSER_STATES_MEMORY", "12"),
        ("ANSER_STATES_DISK", "1.5GB"),
    ],
)
def test_numbers_that_are_none(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({name: value})
