"""Where models come from, by their names."""

from __future__ import annotations

import pytest

from server.errors import ApiError
from server.names import InvalidNameError, ModelName
from server.registry.address import registry_url
from server.registry.auth import Challenge
from server.registry.errors import RegistryError
from server.short_names import full_name


@pytest.mark.parametrize(
    ("text", "is_insecure", "url"),
    [
        ("rwkv7", False, "https://registry.ollama.ai"),
        ("hf.co/someone/model:Q8_0", False, "https://hf.co"),
        ("huggingface.co/someone/model", False, "https://huggingface.co"),
        ("https://example.com:8443/a/b", False, "https://example.com:8443"),
        ("127.0.0.1:5000/a/b", False, "http://127.0.0.1:5000"),
        ("localhost:5000/a/b", False, "http://localhost:5000"),
        ("http://localhost:5000/a/b", False, "http://localhost:5000"),
        ("https://localhost:5000/a/b", False, "https://localhost:5000"),
        ("example.com/a/b", True, "http://example.com"),
        ("http://example.com/a/b", True, "http://example.com"),
        ("127.evil.example/a/b", False, "https://127.evil.example"),
    ],
)
def test_where_a_registry_is(text: str, is_insecure: bool, url: str) -> None:
    assert registry_url(text, ModelName.parse(text), is_insecure=is_insecure) == url


def test_plain_http_is_for_this_machine() -> None:
    text = "http://example.com/a/b"
    with pytest.raises(ApiError, match=r"^insecure protocol http") as caught:
        registry_url(text, ModelName.parse(text), is_insecure=False)
    assert caught.value.status == 400
    with pytest.raises(InvalidNameError):
        registry_url("ftp://example.com/a/b", ModelName.parse(text), is_insecure=True)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("rwkv-7-g1:2.9b", "mollysama/rwkv-7-g1:2.9b"),
        ("RWKV-7-G1:2.9B", "mollysama/RWKV-7-G1:2.9B"),
        ("rwkv-7-g1a2", "mollysama/rwkv-7-g1a2:latest"),
        ("library/rwkv-7-world:1.5b", "mollysama/rwkv-7-world:1.5b"),
        ("rwkv-7-g2:1b", "rwkv-7-g2:1b"),
        ("rwkv7-demo", "rwkv7-demo:latest"),
        ("me/rwkv-7-g1:2.9b", "me/rwkv-7-g1:2.9b"),
        ("hf.co/library/rwkv-7-g1:2.9b", "hf.co/library/rwkv-7-g1:2.9b"),
    ],
)
def test_short_names(short: str, long: str) -> None:
    assert full_name(ModelName.parse(short)).shortest == long


@pytest.mark.parametrize(
    "header",
    [
        'Bearer realm="https://a/b",service="s",scope="x:y:pull"',
        'bearer scope="x:y:pull" , realm="https://a/b", service=s',
    ],
)
def test_a_challenge(header: str) -> None:
    assert Challenge.parse(header) == Challenge("https://a/b", "s", "x:y:pull")


@pytest.mark.parametrize("header", ["", "Basic realm=x", "Bearer", 'Bearer realm=""', "Bearer ,,="])
def test_no_challenge(header: str) -> None:
    with pytest.raises(RegistryError, match="does not say how to ask for a token"):
        Challenge.parse(header)
