"""A real little registry on a free loopback port, which can also be slow, broken or a liar."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from server.store.manifests import MANIFEST_TYPE
from server.store.names import ModelName
from server.store.store import Store
from tests.tools.waiting import TIMEOUT_S

DEMO_PATH = "team/rwkv7-demo:latest"  # where tests offer the demo model

_BLOB = re.compile(r"/v2/([^/]+/[^/]+)/blobs/(sha256:[0-9a-f]{64})|/storage/(sha256:[0-9a-f]{64})")
_MANIFEST = re.compile(r"/v2/([^/]+/[^/]+)/manifests/([^/]+)")
_UPLOADS = re.compile(r"/v2/([^/]+/[^/]+)/blobs/uploads/(\d*)")
_PIECE_BYTES = 1 << 14


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> tuple[int, int] | None:
        """The first byte asked for and the one after the last."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) + 1) if match else None


@dataclass
class Conduct:
    """How the registry behaves; by default, as it should. May be changed at any time."""

    token: str = ""  # what everything but the token itself needs
    gives_wrong_token: bool = False
    challenge: str | None = None  # instead of the one that says where the token is
    realm: str = ""  # of the token, if it is not the registry's own /token
    storage: str = ""  # the root of another registry, to which requests for blobs are redirected
    break_after: int | None = None  # bytes of an answer before the connection breaks …
    num_breaks: int = 0  # … so many times
    num_busy: int = 0  # answers 503 to so many requests for blobs
    hold_after: int | None = None  # bytes of an answer before it waits for `go`
    go: threading.Event = field(default_factory=threading.Event)
    ignores_ranges: bool = False
    corrupts: bool = False  # one byte of what it sends is another
    announces: int | None = None  # as a blob's size, whatever it is
    sends_short: bool = False  # a byte less than announced, and says so
    sends_surplus: bool = False  # a part with a byte more than was asked for
    manifest: bytes | None = None  # instead of every manifest
    manifest_mb: int = 0  # so many megabytes of nothing instead of every manifest
    denies: bool = False  # whatever would change it
    forgets_uploads: int = 0  # answers 404 to so many chunks
    redirects_uploads: bool = False  # chunks go to `storage`


class Registry:
    """Its blobs and manifests are read and changed by the tests."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}  # by "namespace/model:tag"
        self.seen: list[Seen] = []
        self.num_sent = 0  # bytes of blobs
        self.conduct = Conduct()
        self.uploads: dict[str, bytearray] = {}
        self.lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": self}))
        self.host = f"127.0.0.1:{self._http.server_address[1]}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.conduct.go.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(TIMEOUT_S)

    def add_model(self, store: Store, name: str, path: str) -> None:
        """The model `name` of a store, offered as `path` ("namespace/model:tag")."""
        stored = store.canonical_name(ModelName.parse(name))
        assert stored is not None
        data = store.manifest_path(stored).read_bytes()
        self.manifests[path] = data
        value = json.loads(data)
        for layer in (value["config"], *value["layers"]):
            self.blobs[layer["digest"]] = store.blob_path(layer["digest"]).read_bytes()

    def add_manifest(self, path: str, config: dict[str, Any], **layers: bytes) -> None:
        """A model of these layers, by the last part of their media types."""

        def layer(media_type: str, data: bytes) -> dict[str, Any]:
            self.blobs[digest_of(data)] = data
            return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": layer(
                "application/vnd.docker.container.image.v1+json", json.dumps(config).encode()
            ),
            "layers": [
                layer(f"application/vnd.ollama.image.{kind}", data) for kind, data in layers.items()
            ],
        }
        self.manifests[path] = json.dumps(manifest).encode()

    def asked_for(self, digest: str) -> list[Seen]:
        return [each for each in self.seen if each.method == "GET" and digest in each.path]


@contextmanager
def registry_running() -> Iterator[Registry]:
    registry = Registry()
    try:
        yield registry
    finally:
        registry.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    registry: Registry
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET

    def _answer(self) -> None:
        registry, conduct = self.registry, self.registry.conduct
        headers = {name.lower(): value for name, value in self.headers.items()}
        with registry.lock:
            registry.seen.append(Seen(self.command, self.path, headers))
        body = self.rfile.read(int(headers.get("content-length", 0)))
        path = urlsplit(self.path).path
        if path == "/token":
            token = "wrong" if conduct.gives_wrong_token else conduct.token
            self._send(200, json.dumps({"token": token}).encode())
        elif conduct.token and headers.get("authorization") != f"Bearer {conduct.token}":
            realm = conduct.realm or f"{registry.url}/token"
            scope = "repository:any/model:pull,push"
            challenge = f'Bearer realm="{realm}",service="{registry.host}",scope="{scope}"'
            if conduct.challenge is not None:
                challenge = conduct.challenge
            body = b'{"errors": [{"message": "who are you?"}]}'
            self._send(401, body, {"WWW-Authenticate": challenge})
        elif conduct.denies and self.command not in ("GET", "HEAD"):
            self._send(403, b'{"errors": [{"message": "not your namespace"}]}')
        elif match := _MANIFEST.fullmatch(path):
            self._manifest(f"{match[1]}:{match[2]}", body)
        elif match := _UPLOADS.fullmatch(path):
            self._upload(match[1], match[2], body)
        elif self.command == "PUT" and path.startswith("/storage-upload/"):
            self._append(path.rpartition("/")[2], body)
            self._send(200, b"")
        elif match := _BLOB.fullmatch(path):
            self._blob(match[2] or match[3], is_storage=bool(match[3]))
        else:
            self._send(404, b"")

    def _manifest(self, path: str, body: bytes) -> None:
        registry, conduct = self.registry, self.registry.conduct
        if self.command == "PUT":
            registry.manifests[path] = body
            self._send(201, b"")
        elif conduct.manifest_mb:
            self._head(200, {"Content-Length": str(conduct.manifest_mb << 20)})
            for _ in range(conduct.manifest_mb):
                self.wfile.write(b" " * (1 << 20))
        else:
            data = conduct.manifest or registry.manifests.get(path)
            self._send(200 if data is not None else 404, data or b"")

    def _blob(self, digest: str, *, is_storage: bool) -> None:
        registry, conduct = self.registry, self.registry.conduct
        data = registry.blobs.get(digest)
        if data is None:
            self._send(404, b"")
            return
        if self.command == "HEAD":
            self._head(200, {"Content-Length": str(len(data))})
            return
        if conduct.storage and not is_storage:
            self._send(307, b"", {"Location": f"{conduct.storage}/storage/{digest}"})
            return
        with registry.lock:
            is_busy = conduct.num_busy > 0
            conduct.num_busy -= is_busy
        if is_busy:
            self._send(503, b'{"errors": [{"message": "come back later"}]}')
            return
        self._send_blob(data)

    def _send_blob(self, data: bytes) -> None:
        conduct = self.registry.conduct
        wanted = _range(self.headers.get("Range", ""))
        size = conduct.announces if conduct.announces is not None else len(data)
        if conduct.corrupts:
            data = bytes([data[0] ^ 1]) + data[1:]
        if wanted is None or conduct.ignores_ranges:
            body, headers, status = data, {"Content-Length": str(size)}, 200
        else:
            start, end = wanted
            body = data[start : end + (1 if conduct.sends_surplus else 0)]
            headers = {
                "Content-Range": f"bytes {start}-{end - 1}/{size}",
                "Content-Length": str(len(body)),
            }
            status = 206
        if conduct.sends_short:
            body = body[:-1]
            headers["Content-Length"] = str(len(body))
        self._head(status, headers)
        self._send_pieces(body)
        if len(body) < int(headers["Content-Length"]):
            self._break()

    def _send_pieces(self, body: bytes) -> None:
        registry, conduct = self.registry, self.registry.conduct
        sent = 0
        for offset in range(0, len(body), _PIECE_BYTES):
            if conduct.hold_after is not None and sent >= conduct.hold_after:
                self.wfile.flush()
                conduct.go.wait(TIMEOUT_S)
            if conduct.break_after is not None and sent >= conduct.break_after:
                with registry.lock:
                    breaks = conduct.num_breaks > 0
                    conduct.num_breaks -= breaks
                if breaks:
                    self._break()
                    return
            piece = body[offset : offset + _PIECE_BYTES]
            self.wfile.write(piece)
            sent += len(piece)
            with registry.lock:
                registry.num_sent += len(piece)

    def _upload(self, repository: str, number: str, body: bytes) -> None:
        registry, conduct = self.registry, self.registry.conduct
        query = parse_qs(urlsplit(self.path).query)
        location = f"/v2/{repository}/blobs/uploads/{number}"
        if self.command == "POST":
            if query.get("mount", [""])[0] in registry.blobs:
                self._send(201, b"")
                return
            with registry.lock:
                number = str(len(registry.uploads) + 1)
                registry.uploads[number] = bytearray()
            self._send(202, b"", {"Location": f"/v2/{repository}/blobs/uploads/{number}"})
        elif number not in registry.uploads or self._forgets():
            self._send(404, b"")
        elif self.command == "PUT":
            data = bytes(registry.uploads.pop(number))
            digest = query.get("digest", [""])[0]
            if digest_of(data) == digest:
                registry.blobs[digest] = data
            self._send(201 if digest_of(data) == digest else 400, b"")
        elif conduct.redirects_uploads:
            self._send(
                307,
                b"",
                {
                    "Location": f"{conduct.storage}/storage-upload/{number}",
                    "Docker-Upload-Location": location,
                },
            )
        elif int(self.headers["Content-Range"].partition("-")[0]) != len(registry.uploads[number]):
            self._send(416, b"")
        else:
            self._append(number, body)
            self._send(202, b"", {"Location": location})

    def _append(self, number: str, body: bytes) -> None:
        with self.registry.lock:
            self.registry.uploads[number] += body

    def _forgets(self) -> bool:
        conduct = self.registry.conduct
        if self.command != "PATCH" or not conduct.forgets_uploads:
            return False
        conduct.forgets_uploads -= 1
        return True

    def _break(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, {"Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)


def _range(header: str) -> tuple[int, int] | None:
    return Seen("GET", "", {"range": header}).range
