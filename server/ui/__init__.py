"""The files of the page at `/ui`: plain HTML, CSS and JavaScript, as the browser gets them.

No build makes them and they fetch nothing from elsewhere, so the page works without a network. They
tell nothing about this server: what the page shows, it asks the API for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE_PATH = "/ui"
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageFile:
    content: bytes
    media_type: str


def _read_files() -> dict[str, PageFile]:
    folder = Path(__file__).parent
    return {
        PAGE_PATH if file.name == _INDEX else f"{PAGE_PATH}/{file.name}": PageFile(
            file.read_bytes(), _TYPES[file.suffix]
        )
        for file in folder.iterdir()
        if file.suffix in _TYPES
    }


# By the path that each is served at; there are no others.
FILES: Mapping[str, PageFile] = _read_files()
