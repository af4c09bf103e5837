"""Proves the Dockerfile on a machine without a container engine:

    sudo python -m tests.tools.image_proof FOLDER

performs its instructions in Debian roots under FOLDER (3 GB; the base is kept), runs the image as
its user with no network but loopback, waits until its HEALTHCHECK succeeds, chats with it, stops
it, and looks whether the chat goes on after a restart where it was; it is stopped in the middle of
a reply, too. Then what goes wrong: states of another version, a port in use, volumes that cannot be
written, and a model that is larger than the container's memory. It needs Linux, root, debootstrap,
and a network to install from: `--bind` and `--variable` give the build certificates or a registry
nearby.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rwkv_core.cache.disk_folder import INDEX_NAME
from server.sessions.store import DATABASE_NAME
from tests.tools.dockerfile import parse_dockerfile
from tests.tools.image_root import Builder, Image, Machine, architecture, remove_root, size_of
from tests.tools.memory_group import MemoryGroup, memory_group
from tests.tools.root_container import RootContainer

REPOSITORY = Path(__file__).absolute().parents[2]
DEMO = "rwkv7-demo"
STOP_LIMIT_S = 5.0
# What a container of the compose file has, and what is too little for the model below.
ENOUGH_BYTES = 5 << 30
TOO_LITTLE_BYTES = 500 << 20

# Sends a request, whose path and body are its arguments, and prints the answer; runs in the image.
_ASK = """\
import sys, urllib.error, urllib.request
request = urllib.request.Request(f"http://127.0.0.1:11434{sys.argv[1]}", sys.stdin.buffer.read())
try:
    print(urllib.request.urlopen(request).read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""
# The same, line by line while it comes.
_STREAM = """\
import sys, urllib.request
request = urllib.request.Request(f"http://127.0.0.1:11434{sys.argv[1]}", sys.stdin.buffer.read())
for line in urllib.request.urlopen(request):
    print(line.decode(), end="", flush=True)
"""
# A reply that takes minutes.
_ENDLESS = {"type": "string", "minLength": 100_000}


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.folder.absolute()
    work.mkdir(parents=True, exist_ok=True)
    binds = ((Path(outside).absolute(), inside) for outside, inside in arguments.bind)
    machine = Machine(tuple(binds), dict(arguments.variable))
    builder = Builder(
        REPOSITORY, work, machine, dict(arguments.build_arg), is_built=arguments.built
    )
    start = time.monotonic()
    image = builder.build(parse_dockerfile((REPOSITORY / "Dockerfile").read_text()))
    if not arguments.built:
        print(f"\nbuilt for linux/{architecture()} in {time.monotonic() - start:.0f} s")
    for stage, num_bytes in builder.sizes().items():
        print(f"size of stage {stage}: {num_bytes / 1e6:.0f} MB")
    _print_parts(image)
    _prove(image, work)
    print("\nall proven")


def _prove(image: Image, work: Path) -> None:
    volumes = work / "volumes"
    remove_root(volumes)
    _check_configuration(image)
    with memory_group("anser-image-proof", ENOUGH_BYTES) as group:
        _chat(image, work, volumes, group)
        _chat_again(image, work, volumes, group)
        _stop_in_a_reply(image, work, volumes, group)
        _states_of_another_version(image, work, volumes, group)
    _in_use(image, work, volumes)
    _volumes_of_root(image, work)
    with memory_group("anser-image-proof", TOO_LITTLE_BYTES) as group:
        _too_large(image, work, volumes, group)


def _check_configuration(image: Image) -> None:
    user, _, group = image.user.partition(":")
    _expect(user.isdecimal() and group.isdecimal() and int(user) > 0, f"runs as {image.user}")
    _expect(image.volumes == ["/models", "/states"], f"volumes {', '.join(image.volumes)}")
    found = list(image.root.glob("usr/bin/*g++*")) + list(image.root.glob("src/*"))
    _expect(not found, "nothing of the build stage is in the image")


def _chat(image: Image, work: Path, volumes: Path, group: MemoryGroup) -> None:
    with _running(image, work, volumes, group) as container:
        print(f"healthy after {container.wait_until_healthy():.1f} s")
        status = Path(f"/proc/{container.pid}/status").read_text()
        _expect("\nUid:\t10001\t10001\t10001\t10001\n" in status, "process 1 is the image's user's")
        answer = _said(container, "My name is Ada.")
        print(f"said: {answer['message']['content']!r}")
        done = container.execute(["anser", "run", DEMO, "What is 47 + 38?"])
        _expect(done.returncode == 0 and "85" in done.stdout, f"anser run: {done.stdout.strip()!r}")
        _stop(container)
        _expect("Anser listens on" in container.log.read_text(), "its log is on standard output")
    states = list((volumes / "states").rglob("*.safetensors"))
    _expect(bool(states), f"{len(states)} states in the volume when it has ended")


def _chat_again(image: Image, work: Path, volumes: Path, group: MemoryGroup) -> None:
    with _running(image, work, volumes, group) as container:
        container.wait_until_healthy()
        answer = _said(container, "What is my name?")
        cached, count = answer["prompt_cached_count"], answer["prompt_eval_count"]
        print(f"said: {answer['message']['content']!r}")
        _expect("Ada" in answer["message"]["content"], "it remembers after a restart")
        _expect(cached > 0, f"{cached} of {count} tokens were in the states of the volume")
        _stop(container)


def _stop_in_a_reply(image: Image, work: Path, volumes: Path, group: MemoryGroup) -> None:
    with _running(image, work, volumes, group) as container:
        container.wait_until_healthy()
        before = {path.name for path in (volumes / "states").rglob("*.safetensors")}
        _said(container, "My name is Bob.", session="cut")
        body = _message("Tell me a story.", session="cut", stream=True, format=_ENDLESS)
        command = ["python3", "-c", _STREAM, "/api/chat"]
        with container.executing(command, json.dumps(body)) as output:
            lines = [json.loads(output.readline()) for _ in range(20)]
            _expect(not any(line["done"] for line in lines), "it is in the middle of a reply")
            _stop(container)
            rest = output.read().splitlines()
        print(f"then its client saw {len(rest)} more lines, at last {rest[-1:]}")
        _expect("Traceback" not in container.log.read_text(), "nothing broke")
    states = {path.name for path in (volumes / "states").rglob("*.safetensors")}
    _expect(
        bool(states - before), f"{len(states - before)} states of the finished turn in the volume"
    )
    with _running(image, work, volumes, group) as container:
        container.wait_until_healthy()
        answer = _said(container, "What is my name?", session="cut")
        cached, count = answer["prompt_cached_count"], answer["prompt_eval_count"]
        _expect("Bob" in answer["message"]["content"], "it remembers the turn before the cut one")
        _expect(cached > 0, f"{cached} of {count} tokens were in the states of the volume")
        _stop(container)


def _states_of_another_version(image: Image, work: Path, volumes: Path, group: MemoryGroup) -> None:
    databases = [volumes / "states" / name for name in (INDEX_NAME, DATABASE_NAME)]
    _set_version(databases, 99)
    with _running(image, work, volumes, group) as container:
        container.wait_until_healthy()
        name = _recalled(container)
        _stop(container)
        log = container.log.read_text()
    lines = [line for line in log.splitlines() if "another version of Anser" in line]
    print("\n".join(lines))
    _expect(len(lines) == len(databases), "a line for each database of another version")
    _set_version(databases, 1)
    _expect("Ada" not in name, "the session of another version is not used")
    with _running(image, work, volumes, group) as container:
        container.wait_until_healthy()
        _expect("Ada" in _recalled(container), "that version finds it as it was")


def _set_version(databases: Sequence[Path], version: int) -> None:
    for path in databases:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        status = path.parent.stat()
        for part in path.parent.glob(f"{path.name}*"):  # a log that root has opened is root's
            os.chown(part, status.st_uid, status.st_gid)


def _volumes_of_root(image: Image, work: Path) -> None:
    for name in ("models", "states"):
        volumes = work / "volumes-of-root"
        remove_root(volumes)
        for each in ("models", "states"):
            (volumes / each).mkdir(parents=True)
        (volumes / ({"models", "states"} - {name}).pop()).chmod(0o777)
        with _running(image, work, volumes, None) as container:
            if name == "models":
                _expect(container.wait() == 1, "without a models volume it does not start")
            else:
                container.wait_until_healthy()
                _stop(container)
            lines = container.log.read_text().splitlines()
        told = [line for line in lines if f"/{name}: cannot keep" in line]
        _expect(len(told) == 1, f"one line for a {name} volume of root's: {told}")
        _expect(f"chown -R {image.user} /{name}" in told[0], "it names the remedy")


def _too_large(image: Image, work: Path, volumes: Path, group: MemoryGroup) -> None:
    """Enough for the demo model, too little for one of 0.1B in F16."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        file = f"{folder}/model.pth"
        make = ["tests.tools.random_checkpoint", "0.1B", file, "--dtype", "f16"]
        create = ["server.cli", "create", "large", "--from", file]
        for words in (make, create):
            subprocess.run(
                [sys.executable, "-m", *words], check=True, cwd=REPOSITORY, capture_output=True,
                env={**os.environ, "OLLAMA_MODELS": str(volumes / "models"),
                     "OLLAMA_HOST": "127.0.0.1:1"},
            )  # fmt: skip
    subprocess.run(["chown", "--recursive", image.user, volumes / "models"], check=True)
    with _running(image, work, volumes, group) as container:
        container.wait_until_healthy()
        error = ask(container, "/api/generate", model="large", prompt="Hello", stream=False)[
            "error"
        ]
        print(error)
        _expect("that this container or service may take" in error, "it names the limit")
        answer = ask(container, "/api/generate", model=DEMO, prompt="Hello", stream=False)
        _expect(bool(answer["response"]), "the server goes on")
        _stop(container)


def _in_use(image: Image, work: Path, volumes: Path) -> None:
    with _running(image, work, volumes, None) as container:
        container.wait_until_healthy()
        done = container.execute([*image.entry_point, *image.command])
        told = done.stdout
        _expect(done.returncode == 1 and told.count("\n") == 1, f"a port in use: {told.rstrip()}")


def _recalled(container: RootContainer) -> str:
    return str(_said(container, "What is my name?")["message"]["content"])


def _said(container: RootContainer, words: str, session: str = "tea") -> dict[str, Any]:
    """The answer to the next message of one session."""
    return ask(container, "/api/chat", **_message(words, session=session, stream=False))


def _message(words: str, **more: Any) -> dict[str, Any]:
    options = {"seed": 1, "temperature": 0}
    messages = [{"role": "user", "content": words}]
    return {"model": DEMO, "think": False, "options": options, "messages": messages, **more}


def ask(container: RootContainer, path: str, **body: Any) -> dict[str, Any]:
    done = container.execute(["python3", "-c", _ASK, path], stdin=json.dumps(body))
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


@contextmanager
def _running(
    image: Image, work: Path, volumes: Path, group: MemoryGroup | None
) -> Iterator[RootContainer]:
    container = RootContainer(image, work / "container", volumes, group=group)
    try:
        yield container
    finally:
        container.kill()


def _stop(container: RootContainer) -> None:
    code, seconds = container.stop()
    _expect(code == 0 and seconds < STOP_LIMIT_S, f"{code} after {seconds:.1f} s of SIGTERM")


def _print_parts(image: Image) -> None:
    packages = next(image.root.glob("opt/anser/lib/python3.*/site-packages"))
    parts = {path.name: size_of(path) for path in packages.iterdir()}
    largest = sorted(parts.items(), key=lambda item: -item[1])[:8]
    print("of its packages: " + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in largest))


def _expect(is_so: bool, what: str) -> None:
    print(f"{'ok' if is_so else 'NOT OK'}: {what}", flush=True)
    if not is_so:
        sys.exit(1)


def _pair(separator: str) -> Callable[[str], tuple[str, str]]:
    def divide(text: str) -> tuple[str, str]:
        first, found, second = text.partition(separator)
        if not found:
            raise argparse.ArgumentTypeError(f"no {separator} in {text}")
        return first, second

    return divide


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--built", action="store_true", help="run the roots that are there")
    for name, separator, shown in (
        ("--build-arg", "=", "NAME=VALUE"),
        ("--bind", ":", "OUTSIDE:INSIDE"),
        ("--variable", "=", "NAME=VALUE"),
    ):
        parser.add_argument(name, action="append", default=[], type=_pair(separator), metavar=shown)
    return parser.parse_args()


if __name__ == "__main__":
    main()
