"""Runs an image's root as an engine runs a container, by the kernel's own means.

Its own processes, mounts, host name and network (with nothing but loopback), the image's user,
variables and folder; what it writes outside its volumes is gone with it. The program is process 1
there, as in a container. A limit of memory needs control groups that root may make.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.tools.image_root import Image, remove_root
from tests.tools.memory_group import MemoryGroup
from tests.tools.waiting import wait_until

# Generous: the machine may be busy with something else.
PATIENCE_S = 400.0


class RootContainer:
    """One run of `image`; `volumes` holds a folder for each of its volumes, made as needed."""

    def __init__(
        self,
        image: Image,
        work: Path,
        volumes: Path,
        *,
        words: Sequence[str] = (),
        variables: Sequence[str] = (),
        group: MemoryGroup | None = None,
    ) -> None:
        """`words` take the place of CMD; `variables` are more of them, as NAME=VALUE."""
        self._image = image
        self._work = work
        self._variables = [f"{key}={value}" for key, value in image.variables.items()] + [
            *variables
        ]
        remove_root(work)
        for name in ("upper", "overlay", "root"):
            (work / name).mkdir(parents=True)
        self.log = work / "log"
        command = [*image.entry_point, *(words or image.command)]
        script = self._script(volumes, group)
        with self.log.open("wb") as log:
            self._unshare = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--net", "--ipc", "--uts"),
                    *("--fork", "--kill-child", "sh", "-euc", script, "sh"),
                    *self._in_root(command),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def _script(self, volumes: Path, group: MemoryGroup | None) -> str:
        root = shlex.quote(str(self._work / "root"))
        lower, upper, overlay = (
            shlex.quote(str(path))
            for path in (self._image.root, self._work / "upper", self._work / "overlay")
        )
        lines = [] if group is None else [f"echo $$ > {shlex.quote(str(group.processes_file))}"]
        lines += [
            "hostname anser && ip link set lo up",
            f"mount -t overlay -o lowerdir={lower},upperdir={upper},workdir={overlay} none {root}",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"mount --rbind /sys {root}/sys",
        ]
        for volume in self._image.volumes:
            folder = volumes / volume.strip("/").replace("/", "-")
            if not folder.exists():  # a named volume begins as the image's folder
                volumes.mkdir(parents=True, exist_ok=True)
                inside = self._image.root / volume.lstrip("/")
                subprocess.run(["cp", "--archive", inside, folder], check=True)
            lines.append(f"mount --bind {shlex.quote(str(folder))} {root}{shlex.quote(volume)}")
        return "\n".join([*lines, 'exec "$@"'])

    def _in_root(self, command: Sequence[str]) -> list[str]:
        inside = f'cd {shlex.quote(self._image.folder)} && exec "$@"'
        return [
            *("chroot", f"--userspec={self._image.user}", str(self._work / "root")),
            *("/usr/bin/env", "-i", f"HOME={self._image.folder}", *self._variables),
            *("/bin/sh", "-c", inside, "sh", *command),
        ]

    @property
    def pid(self) -> int:
        """Of the container's process 1, as this machine counts."""
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        wait_until(lambda: children.read_text().strip() != "", PATIENCE_S)
        return int(children.read_text().split()[0])

    def is_running(self) -> bool:
        return self._unshare.poll() is None

    def execute(self, command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a command in the container, as `docker exec` does."""
        return subprocess.run(
            self._inside(command),
            input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    @contextmanager
    def executing(self, command: Sequence[str], stdin: str) -> Iterator[IO[str]]:
        """What a command prints, while it runs; it ends with the container at the latest."""
        with subprocess.Popen(
            self._inside(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(stdin)
                process.stdin.close()
                yield process.stdout
            finally:
                process.kill()

    def _inside(self, command: Sequence[str]) -> list[str]:
        user, _, group = self._image.user.partition(":")
        return [
            *("nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--ipc", "--uts"),
            *("--root", "--wd", f"--setgid={group}", f"--setuid={user}"),
            *("env", "-i", f"HOME={self._image.folder}", *self._variables, *command),
        ]

    def health(self) -> bool:
        return self.execute(self._image.health_command).returncode == 0

    def wait_until_healthy(self) -> float:
        """Seconds until the health command succeeds for the first time."""
        start = time.monotonic()
        while not self.health():
            assert self.is_running(), f"it ended: {self.log.read_text()}"
            assert time.monotonic() - start < PATIENCE_S, "it never became healthy"
            time.sleep(0.2)
        return time.monotonic() - start

    def stop(self) -> tuple[int, float]:
        """Sends the image's stop signal; the exit code, and the seconds it took."""
        start = time.monotonic()
        os.kill(self.pid, signal.Signals[self._image.stop_signal])
        code = self._unshare.wait(PATIENCE_S)
        return code, time.monotonic() - start

    def wait(self) -> int:
        return self._unshare.wait(PATIENCE_S)

    def kill(self) -> None:
        """Ends it if it still runs: with process 1 go all others."""
        if self.is_running():
            os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait()
