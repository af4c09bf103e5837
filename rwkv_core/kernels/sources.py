"""What a build of the native kernels was made from."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

_PATTERNS = ("*.cpp", "*.h", "*.inl", "CMakeLists.txt")


def source_hash(folder: Path) -> str:
    """The hash of the kernels' sources in `folder`, as CMake gives it to the module it builds.

    That is the hexadecimal SHA-256 of a text with one line "<SHA-256 of a file>  <its name>\\n"
    for every source, by name.
    """
    paths = sorted(
        (path for pattern in _PATTERNS for path in folder.glob(pattern)),
        key=lambda path: path.name,
    )
    lines = (f"{sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)
    return sha256("".join(lines).encode()).hexdigest()
