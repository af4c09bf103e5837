"""The HTTP client of the command line: Ollama's API, as far as the commands use it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from server.access.loopback import is_loopback
from server.cli.authorization import authorization
from server.cli.errors import CommandError, ConnectionLostError, ServerError

Json = Mapping[str, Any]

_CONNECT_TIMEOUT_S = 5.0
_PROBE_TIMEOUT_S = 10.0


class Client:
    """A connection to one server. Replies take as long as they take, so reads never time out."""

    def __init__(self, url: str) -> None:
        """Raises CommandError for what is no address at all."""
        self.url = url
        try:
            self._http = httpx.Client(
                base_url=url,
                headers=authorization(),
                timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
                # A proxy of the environment is for the internet, never for this machine.
                trust_env=not is_loopback(urlsplit(url).hostname or ""),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise CommandError(f"{url} is no address ({error}); correct OLLAMA_HOST") from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def is_up(self) -> bool:
        """Whether a server answers. Raises ServerError when what answers is something else."""
        try:
            response = self._http.get("/api/version", timeout=_PROBE_TIMEOUT_S)
        except httpx.TransportError:
            return False
        if response.status_code != httpx.codes.OK or "version" not in response.text:
            raise ServerError(
                f"{self.url} is no Ollama server; set OLLAMA_HOST to where one is or can be"
            )
        return True

    def list_models(self) -> list[Json]:
        models: list[Json] = self._call("GET", "/api/tags")["models"] or []
        return models

    def running(self) -> list[Json]:
        models: list[Json] = self._call("GET", "/api/ps")["models"] or []
        return models

    def show(self, model: str, *, verbose: bool = False) -> Json:
        return self._call("POST", "/api/show", {"model": model, "verbose": verbose})

    def copy(self, source: str, destination: str) -> None:
        self._call("POST", "/api/copy", {"source": source, "destination": destination})

    def delete(self, model: str) -> None:
        self._call("DELETE", "/api/delete", {"model": model})

    def unload(self, model: str) -> None:
        """Takes a model out of memory: a request without a prompt that keeps it no longer."""
        self._call("POST", "/api/generate", {"model": model, "keep_alive": 0})

    def load(self, request: Json) -> None:
        """Bring a model into memory: a chat request without messages."""
        self._call("POST", "/api/chat", {**request, "messages": [], "stream": False})

    def metrics(self) -> str:
        """The page of `/metrics`, which Anser has and Ollama has not."""
        with self._translated():
            response = self._http.get("/metrics")
        if response.status_code != httpx.codes.OK:
            raise _error_of(response)
        return response.text

    def chat(self, request: Json) -> Generator[Json, None, None]:
        """The chunks of a reply. Closing it closes the connection, which stops the reply."""
        return self._stream("/api/chat", request)

    def transfer(self, verb: str, model: str, *, insecure: bool) -> Generator[Json, None, None]:
        """The progress of a "pull" or a "push"; closing it ends the transfer."""
        return self._stream(f"/api/{verb}", {"model": model, "insecure": insecure})

    def create(self, request: Json) -> Generator[Json, None, None]:
        """The statuses of a create. Closing it closes the connection, which ends the work."""
        return self._stream("/api/create", request)

    def has_blob(self, digest: str) -> bool:
        with self._translated():
            response = self._http.head(f"/api/blobs/{digest}")
        return response.status_code == httpx.codes.OK

    def send_blob(self, digest: str, size: int, content: Iterator[bytes]) -> None:
        """Sends a file of `size` bytes."""
        path, headers = f"/api/blobs/{digest}", {"Content-Length": str(size)}
        with self._translated():
            response = self._http.post(path, content=content, headers=headers)
        if response.status_code not in (httpx.codes.OK, httpx.codes.CREATED):
            raise _error_of(response)

    def _stream(self, path: str, request: Json) -> Generator[Json, None, None]:
        """The objects of a stream. Raises ServerError for an error among them, too."""
        with self._translated(), self._http.stream("POST", path, json=request) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise _error_of(response)
            for line in lines_of(response):
                chunk: Json = json.loads(line)
                if "error" in chunk:
                    raise ServerError(str(chunk["error"]))
                yield chunk

    def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        with self._translated():
            response = self._http.request(method, path, json=body)
        if response.status_code != httpx.codes.OK:
            raise _error_of(response)
        result: Json = response.json() if response.content else {}
        return result

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ConnectionLostError(
                f"the server at {self.url} is gone ({reason}); start it again with `anser serve`"
            ) from error


def lines_of(response: httpx.Response) -> Iterator[bytes]:
    """Lines split at newlines only; httpx's own would split at every Unicode line separator."""
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line for line in lines if line)
    if rest:
        yield rest


def _error_of(response: httpx.Response) -> ServerError:
    """The server's own words, or the status where there are none."""
    try:
        message = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {response.status_code} {response.reason_phrase}"
    if response.status_code == httpx.codes.UNAUTHORIZED:
        message += "; set ANSER_API_KEY to one"
    return ServerError(message, response.status_code)
