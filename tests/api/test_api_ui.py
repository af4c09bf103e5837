"""The files of `/ui`: what they are served as, and that they need nothing from elsewhere."""

from __future__ import annotations

import re

import pytest

from server.ui import FILES
from tests.tools.running_server import RunningServer

_TYPES = {
    "ui": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def test_every_file(server: RunningServer) -> None:
    assert {"/ui", "/ui/main.js", "/ui/style.css"} <= FILES.keys()
    for path in FILES:
        response = server.http.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"] == _TYPES[re.split(r"[/.]", path)[-1]]
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = response.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= {*policy}
        assert not any("unsafe" in rule or "http" in rule for rule in policy)
        head = server.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        ours = ("content-type", "content-length", "content-security-policy")
        assert [head.headers[name] for name in ours] == [response.headers[name] for name in ours]


def test_they_need_each_other_and_nothing_else(server: RunningServer) -> None:
    """Every file is reached from the page, and no address is another server's."""
    reached, new = set[str](), {"/ui"}
    while new:
        path = new.pop()
        reached.add(path)
        text = server.http.get(path).text
        assert {*re.findall(r"\w+://[^\"'\s]+", text)} <= {"http://www.w3.org/2000/svg"}
        links = re.findall(r'(?:src|href)="ui/([^"]+)"', text) + re.findall(r'"\./([^"]+)"', text)
        new |= {f"/ui/{link}" for link in links} - reached
    assert reached == FILES.keys()


@pytest.mark.parametrize(
    "path", ["index.html", "nothing", "__init__.py", "..%2Fapp.py", "%2e%2e/app.py"]
)
def test_nothing_else_is_below(server: RunningServer, path: str) -> None:
    response = server.http.get(f"/ui/{path}")
    assert (response.status_code, response.json()) == (404, {"error": "404 page not found"})


def test_its_place(server: RunningServer) -> None:
    slash = server.http.get("/ui/")
    assert (slash.status_code, slash.headers["location"]) == (307, "../ui")
    assert server.http.post("/ui").status_code == 405
    assert server.http.get("/").text == "Ollama is running"
    assert "/ui" not in server.http.get("/openapi.json").json()["paths"]
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert server.http.get("/ui", headers=headers).status_code == 403
