"""Performs a Dockerfile without an engine: each stage becomes a folder with a Debian root.

For root on Linux, with debootstrap. A base `debian:SUITE-slim` is made by debootstrap's smallest
variant, without documentation as in the published one; every other instruction is carried out as it
stands. `Machine` is what the build machine adds while RUN runs, as an engine does: name servers,
certificates, a registry of packages nearby.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.tools.dockerfile import (
    Dockerfile,
    DockerfileError,
    IgnoreFile,
    Instruction,
    Stage,
    expand,
)

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MIRROR = "http://deb.debian.org"
_SOURCES = """\
deb {mirror}/debian {suite} main
deb {mirror}/debian {suite}-updates main
deb {mirror}/debian-security {suite}-security main
"""
# What a slim image of Debian leaves away; dpkg keeps to it later, too.
_SLIM = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/groff/*
path-exclude /usr/share/info/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""
_SLIM_FOLDERS = ("groff", "info", "linda", "lintian", "locale", "man")
# Nothing is started while packages are installed: there is no service manager in an image.
_POLICY = "#!/bin/sh\nexit 101\n"


@dataclass(frozen=True)
class Machine:
    """What RUN sees of the build machine: paths (outside, inside) and variables."""

    binds: tuple[tuple[Path, str], ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Image:
    """A root and how it is to be run, as an image's configuration says."""

    root: Path
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": _DEFAULT_PATH})
    user: str = "0:0"
    folder: str = "/"
    volumes: list[str] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    entry_point: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health_command: list[str] = field(default_factory=list)
    health: Mapping[str, str] = field(default_factory=dict)  # interval, timeout, ...
    stop_signal: str = "SIGTERM"


class Builder:
    """Performs the stages of one Dockerfile under `work`, whose base roots are kept."""

    def __init__(
        self,
        context: Path,
        work: Path,
        machine: Machine,
        arguments: Mapping[str, str],
        *,
        is_built: bool = False,
    ) -> None:
        """`is_built`: the roots are there from before, and only their configuration is read."""
        self._is_built = is_built
        self._context = context
        self._work = work
        self._machine = machine
        self._given = arguments
        self._ignore = IgnoreFile((context / ".dockerignore").read_text())
        self._images: dict[str, Image] = {}

    def build(self, file: Dockerfile) -> Image:
        """The last stage's image. Raises DockerfileError, or what a step that fails raises."""
        for stage in file.stages:
            self._images[stage.name] = self._stage(stage, dict(file.arguments) | dict(self._given))
        return self._images[file.stages[-1].name]

    def sizes(self) -> dict[str, int]:
        """Bytes on disk of each stage's root."""
        return {name: size_of(image.root) for name, image in self._images.items()}

    def _stage(self, stage: Stage, first_arguments: Mapping[str, str]) -> Image:
        root = self._work / f"stage-{stage.name}"
        if not self._is_built:
            remove_root(root)
            base = self._base_root(expand(stage.base, first_arguments))
            subprocess.run(["cp", "--archive", "--reflink=auto", base, root], check=True)
        image, arguments = Image(root), dict[str, str]()
        for instruction in stage.instructions:
            if instruction.name == "ARG":
                pairs = instruction.pairs(arguments | image.variables)
                arguments |= {key: self._given.get(key, value) for key, value in pairs.items()}
            elif instruction.name in ("COPY", "RUN") and self._is_built:
                continue
            elif instruction.name == "RUN":
                self._run(image, arguments, instruction.command())
            elif instruction.name == "COPY":
                self._copy(image, instruction, arguments | image.variables)
            else:
                _configure(image, instruction, arguments | image.variables)
        return image

    def _base_root(self, name: str) -> Path:
        match = re.fullmatch(r"debian:([a-z]+)-slim", name)
        if match is None:
            raise DockerfileError(f"{name}: a base that debootstrap cannot make")
        base = self._work / f"base-{match[1]}"
        if not base.exists():
            partial = base.with_suffix(".partial")
            remove_root(partial)
            subprocess.run(
                ["debootstrap", "--variant=minbase", match[1], partial, f"{_MIRROR}/debian"],
                check=True,
            )
            _make_slim(partial, match[1])
            partial.rename(base)
        return base

    def _run(self, image: Image, arguments: Mapping[str, str], command: list[str]) -> None:
        print(f"RUN {command[-1]}", flush=True)
        variables = dict(arguments) | image.variables | dict(self._machine.variables)
        in_root = [
            *("chroot", f"--userspec={image.user}", image.root),
            *("/usr/bin/env", "-i", *(f"{key}={value}" for key, value in variables.items())),
            *("HOME=/root", "/bin/sh", "-c", f'cd {shlex.quote(image.folder)} && exec "$@"', "sh"),
            *command,
        ]
        mounts = [f"mount -t proc proc {shlex.quote(str(image.root / 'proc'))}"]
        taken_away: list[Path] = []
        binds = [(Path("/etc/resolv.conf"), "/etc/resolv.conf"), *self._machine.binds]
        for outside, inside in [(Path("/dev"), "/dev"), *binds]:
            target = image.root / inside.lstrip("/")
            if not target.exists():
                taken_away.append(_first_missing(target))
                _make_like(outside, target)
            mounts.append(f"mount --rbind {shlex.quote(str(outside))} {shlex.quote(str(target))}")
        script = " && ".join([*mounts, 'exec "$@"'])
        subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh"]
            + [str(word) for word in in_root],
            stdin=subprocess.DEVNULL,
            check=True,
        )
        for path in taken_away:
            remove_root(path)

    def _copy(self, image: Image, instruction: Instruction, variables: Mapping[str, str]) -> None:
        *sources, target = instruction.words(variables)
        unknown = set(instruction.flags) - {"from"}
        if unknown:
            raise DockerfileError(f"{instruction.line}: unknown flags {unknown}")
        inside = PurePosixPath(image.folder) / target
        destination = image.root / str(inside).lstrip("/")
        stage = instruction.flags.get("from")
        for source in sources:
            if stage is not None:
                origin = self._images[stage].root / source.lstrip("/")
                destination.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(
                    ["cp", "--archive", "--no-target-directory", origin, destination], check=True
                )
            else:
                self._copy_from_context(source, destination, is_folder=target.endswith("/"))

    def _copy_from_context(self, source: str, destination: Path, *, is_folder: bool) -> None:
        """A file into a folder or to a name; of a folder what is in it, as COPY does."""
        origin = PurePosixPath(source)
        files = [
            path
            for path in self._ignore.files(self._context)
            if path == origin or origin in path.parents
        ]
        if not files:
            raise DockerfileError(f"COPY {source}: the build sees no such file")
        for path in files:
            if path != origin:
                target = destination / path.relative_to(origin)
            else:
                target = destination / path.name if is_folder else destination
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self._context / path, target)
            os.chown(target, 0, 0)


def _configure(image: Image, instruction: Instruction, variables: Mapping[str, str]) -> None:
    """What changes no file but WORKDIR's folder."""
    match instruction.name:
        case "ENV":
            image.variables |= instruction.pairs(variables)
        case "LABEL":
            image.labels |= instruction.pairs(variables)
        case "USER":
            image.user = instruction.words(variables)[0]
        case "WORKDIR":
            image.folder = str(PurePosixPath(image.folder) / instruction.words(variables)[0])
            (image.root / image.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "VOLUME":
            image.volumes += instruction.command()
        case "EXPOSE":
            image.ports += instruction.words(variables)
        case "STOPSIGNAL":
            image.stop_signal = instruction.words(variables)[0]
        case "ENTRYPOINT":
            image.entry_point, image.command = instruction.command(), []
        case "CMD":
            image.command = instruction.command()
        case "HEALTHCHECK":
            if not instruction.text.startswith("CMD "):
                raise DockerfileError(f"{instruction.line}: not HEALTHCHECK CMD")
            image.health = instruction.flags
            command = instruction.text.removeprefix("CMD ").strip()
            image.health_command = Instruction(instruction.line, "CMD", {}, command).command()
        case name:
            raise DockerfileError(f"{instruction.line}: {name} is not performed")


def size_of(folder: Path) -> int:
    """Bytes on disk of all that is in it."""
    done = subprocess.run(
        ["du", "--summarize", "--block-size=1", "--one-file-system", folder],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[0])


def remove_root(path: Path) -> None:
    """Deletes what a build made; never across a mount, which would be the machine's own files."""
    subprocess.run(["rm", "--recursive", "--force", "--one-file-system", path], check=True)


def architecture() -> str:
    """The platform that is built for, as Docker calls it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _make_slim(root: Path, suite: str) -> None:
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text(_POLICY)
    policy.chmod(0o755)
    sources = _SOURCES.format(mirror=_MIRROR, suite=suite)
    (root / "etc/apt/sources.list").write_text(sources)
    (root / "etc/dpkg/dpkg.cfg.d/docker").write_text(_SLIM)
    for name in _SLIM_FOLDERS:
        remove_root(root / "usr/share" / name)
    for path in (root / "usr/share/doc").rglob("*"):
        if path.is_file() and path.name != "copyright":
            path.unlink()
    for folder in ("var/cache/apt", "var/lib/apt/lists", "var/log"):
        for path in (root / folder).rglob("*"):
            if path.is_file():
                path.unlink()


def _first_missing(path: Path) -> Path:
    while not path.parent.exists():
        path = path.parent
    return path


def _make_like(outside: Path, target: Path) -> None:
    if outside.is_dir():
        target.mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
