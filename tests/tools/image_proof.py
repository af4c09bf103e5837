"""Proves the Dockerfile on a machine without a container engine:

    sudo python -m tests.tools.image_proof FOLDER

performs its instructions in Debian roots under FOLDER (2.5 GB; the base is kept), runs the image as
its user with no network but loopback, waits until its HEALTHCHECK succeeds, chats with it, stops it,
and looks whether the chat goes on after a restart where it was. Then what goes wrong: volumes that
cannot be written, and a model that is larger than the container's memory. It needs Linux, root,
debootstrap, and the packages that the Dockerfile installs: `--bind` and `--variable` give the build
certificates or a registry nearby.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.tools.dockerfile import parse_dockerfile
from tests.tools.image_root import Builder, Image, Machine, architecture, remove_root, size_of
from tests.tools.memory_group import MemoryGroup, memory_group
from tests.tools.root_container import RootContainer

REPOSITORY = Path(__file__).absolute().parents[2]
DEMO = "rwkv7-demo"
STOP_LIMIT_S = 5.0
# What a container of the compose file has, and what is too little for the model below.
ENOUGH_BYTES = 5 << 30
TOO_LITTLE_BYTES = 400 << 20

# Sends a request, whose path and body are its arguments, and prints the answer; runs in the image.
_ASK = """\
import sys, urllib.error, urllib.request
request = urllib.request.Request(f"http://127.0.0.1:11434{sys.argv[1]}", sys.stdin.buffer.read())
try:
    print(urllib.request.urlopen(request).read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.folder.absolute()
    work.mkdir(parents=True, exist_ok=True)
    machine = Machine(
        tuple((Path(outside).absolute(), inside) for outside, inside in map(_pair(":"), arguments.bind)),
        dict(map(_pair("="), arguments.variable)),
    )
    builder = Builder(REPOSITORY, work, machine, dict(map(_pair("="), arguments.build_arg)))
    start = time.monotonic()
    image = builder.build(parse_dockerfile((REPOSITORY / "Dockerfile").read_text()))
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
        _foreign_states(image, work, volumes, group)
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
        answer = ask(container, "/api/chat", model=DEMO, session="tea", stream=False, options=_SEED,
                     messages=[{"role": "user", "content": "My name is Ada."}])  # fmt: skip
        print(f"said: {answer['message']['content']!r}")
        done = container.execute(["anser", "run", DEMO, "What is 47 + 38?"])
        _expect(done.returncode == 0 and "85" in done.stdout, f"anser run: {done.stdout.strip()!r}")
        _stop(container)
        _expect("Anser listens on" in container.log.read_text(), "its log is on standard output")
    num_states = len(list((volumes / "states").rglob("*.state*"))) or len(
        [path for path in (volumes / "states").rglob("*") if path.is_file()]
    )
    _expect(num_states > 1, f"{num_states} files in the states volume")


def _chat_again(image: Image, work: Path, volumes: Path, group: MemoryGroup) -> None:
    with _running(image, work, volumes, group) as container:
        container.wait_until_healthy()
        answer = ask(container, "/api/chat", model=DEMO, session="tea", stream=False, options=_SEED,
                     messages=[{"role": "user", "content": "What is my name?"}])  # fmt: skip
        cached, count = answer["prompt_cached_count"], answer["prompt_eval_count"]
        print(f"said: {answer['message']['content']!r}")
        _expect("Ada" in answer["message"]["content"], "it remembers after a restart")
        _expect(cached > 0, f"{cached} of {count} tokens were in the states of the volume")
        # In the middle of a reply, as well.
        _stop(container)


def _foreign_states(image: Image, work: Path, volumes: Path, group: MemoryGroup) -> None:
    """An index of a version to come."""
    index = next((volumes / "states").rglob("*.sqlite"), None)
    print(f"states: {sorted(path.name for path in (volumes / 'states').iterdir())}, {index}")


def _volumes_of_root(image: Image, work: Path) -> None:
    for name in ("models", "states"):
        volumes = work / "volumes-of-root"
        remove_root(volumes)
        for each in ("models", "states"):
            (volumes / each).mkdir(parents=True)
        other = volumes / ({"models", "states"} - {name}).pop()
        other.chmod(0o777)
        with _running(image, work, volumes, None) as container:
            code = container.wait()
            log = container.log.read_text()
        print(log.rstrip())
        _expect(code == 1 and log.count("\n") == 1, f"one line for a {name} volume of root's")
        _expect("chown" in log and "10001" in log, "it names the remedy")


def _too_large(image: Image, work: Path, volumes: Path, group: MemoryGroup) -> None:
    """400 MB are enough for the demo model, and too little for one of 0.4B in F16."""


_SEED = {"seed": 1, "temperature": 0}


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


def _pair(separator: str) -> Any:
    return lambda text: tuple(text.split(separator, 1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--bind", action="append", default=[], metavar="OUTSIDE:INSIDE")
    parser.add_argument("--variable", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
