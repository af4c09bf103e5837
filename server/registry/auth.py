"""Tokens: what a registry asks for with a 401, and how a token is requested.

Ollama's registry knows a user by an Ed25519 key: the request for a token is signed with it. Without
a key the request is anonymous, which is enough for models that everyone may pull.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import httpx

from server.registry.errors import RegistryError

_PARAMETER = re.compile(r'([A-Za-z]+)\s*=\s*(?:"([^"]*)"|([^",\s]+))')
_MAX_KEY_BYTES = 64 << 10


@dataclass(frozen=True)
class Challenge:
    """What a `WWW-Authenticate: Bearer` header asks for."""

    realm: str
    service: str
    scope: str

    @classmethod
    def parse(cls, header: str) -> Challenge | None:
        """None for anything but a Bearer challenge."""
        scheme, _, rest = header.strip().partition(" ")
        values = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(rest)}
        if scheme.lower() != "bearer" or not values.get("realm"):
            return None
        return cls(values["realm"], values.get("service", ""), values.get("scope", ""))

    def token_url(self, registry: httpx.URL) -> httpx.URL:
        """Where the token is. Raises RegistryError for a realm that is another host's.

        Else a registry could send a signature of ours, or a request from within our network,
        wherever it likes.
        """
        try:
            realm = registry.join(self.realm)
        except httpx.InvalidURL as error:
            raise RegistryError(f"the registry's realm is no address ({error})") from error
        if realm.netloc != registry.netloc or realm.scheme != registry.scheme:
            raise RegistryError(
                f'realm host "{realm.netloc.decode()}" does not match original host '
                f'"{registry.netloc.decode()}"'
            )
        query = parse_qsl(realm.query.decode(), keep_blank_values=True)
        query.append(("service", self.service))
        query += [("scope", each) for each in self.scope.split(" ")]
        query += [("ts", str(int(time.time()))), ("nonce", secrets.token_urlsafe(16))]
        # In the order in which Ollama sends them, as the signature covers the text.
        return realm.copy_with(query=urlencode(sorted(query, key=lambda each: each[0])).encode())


def default_key_file() -> Path:
    """Ollama's, so that who pushes with it pushes with Anser under the same name."""
    return Path.home() / ".ollama" / "id_ed25519"


def sign_request(url: httpx.URL, key_file: Path) -> Mapping[str, str]:
    """The headers of a signed GET of `url`; none where there is no key.

    Raises RegistryError for a key that cannot be used.
    """
    try:
        with key_file.open("rb") as file:
            data = file.read(_MAX_KEY_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RegistryError(f"{key_file}: {error.strerror}") from error
    # Imported here: few pulls need it.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    try:
        key = serialization.load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RegistryError(f"{key_file} is no private key without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RegistryError(f"{key_file} is no Ed25519 key")
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    nothing = base64.b64encode(hashlib.sha256().hexdigest().encode()).decode()
    signature = base64.b64encode(key.sign(f"GET,{url},{nothing}".encode())).decode()
    return {"Authorization": f"{public.split()[1].decode()}:{signature}"}


def read_token(data: object) -> str:
    """The token in a registry's answer. Raises RegistryError if there is none."""
    if isinstance(data, dict):
        token = data.get("token") or data.get("access_token")
        if isinstance(token, str) and token.isascii() and token.isprintable():
            return token
    raise RegistryError("the registry's answer to the request for a token has no token")
