"""Where models come from, by their names."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.registry.address import registry_url
from server.registry.auth import Challenge, read_token, sign_request
from server.registry.client import RegistryClient
from server.registry.errors import RegistryError
from server.store.names import InvalidNameError, ModelName
from server.store.short_names import full_name
from server.wire.errors import ApiError


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
    assert Challenge.parse(header) is None


def sent_to(url: str, location: str) -> str:
    """Where a registry at `url` may send us with `location`."""
    request = httpx.Request("GET", f"{url}/v2/a/b/blobs/c")
    response = httpx.Response(307, request=request)
    return str(RegistryClient(httpx.AsyncClient(), url, Path()).resolve(response, location))


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("https://a.example", "https://cdn.example/x?y=z%2F", "https://cdn.example/x?y=z%2F"),
        ("https://a.example", "/x", "https://a.example/x"),
        ("https://a.example", "d", "https://a.example/v2/a/b/blobs/d"),
        ("http://127.0.0.1:1", "http://127.0.0.1:2/x", "http://127.0.0.1:2/x"),
        ("http://a.example", "https://b.example/", "https://b.example/"),
    ],
)
def test_where_a_registry_may_send_us(url: str, location: str, target: str) -> None:
    assert sent_to(url, location) == target


@pytest.mark.parametrize(
    ("url", "location", "problem"),
    [
        ("https://a.example", "http://a.example/x", "without TLS"),
        ("https://a.example", "https://localhost/x", "to this machine"),
        ("http://a.example", "http://127.0.0.1:11434/api/tags", "to this machine"),
        ("http://a.example", "http://[::1]/", "to this machine"),
        ("https://a.example", "file:///etc/passwd", "an address that is none"),
        ("https://a.example", "https://b:port/", "an address that is none"),
        ("https://a.example", "http://", "an address that is none|without TLS"),
    ],
)
def test_where_it_may_not(url: str, location: str, problem: str) -> None:
    with pytest.raises(RegistryError, match=problem):
        sent_to(url, location)


def test_a_key_that_is_none(tmp_path: Path) -> None:
    url = httpx.URL("https://a.example/token")
    assert sign_request(url, tmp_path / "none") == {}
    key = tmp_path / "id_ed25519"
    key.write_text("not a key")
    with pytest.raises(RegistryError, match="is no private key without a password"):
        sign_request(url, key)
    other = ec.generate_private_key(ec.SECP256R1())
    encodings = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH)
    key.write_bytes(other.private_bytes(*encodings, serialization.NoEncryption()))
    with pytest.raises(RegistryError, match="is no Ed25519 key"):
        sign_request(url, key)
    with pytest.raises(RegistryError, match="Is a directory"):
        sign_request(url, tmp_path)


@pytest.mark.parametrize("answer", [None, [], {}, {"token": ""}, {"token": 5}, {"token": "a\nb"}])
def test_no_token(answer: object) -> None:
    with pytest.raises(RegistryError, match="has no token"):
        read_token(answer)
