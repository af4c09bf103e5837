"""docker/compose.yaml, read by a parser that keeps to the Compose specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from compose_spec import PyCompose

REPOSITORY = Path(__file__).absolute().parents[2]
TEXT = (REPOSITORY / "docker" / "compose.yaml").read_text()


def read(text: str) -> dict[str, Any]:
    return PyCompose.from_yaml(text).to_dict()


def gigabytes(size: str) -> int:
    number, unit = size[:-2], size[-2:]
    assert unit == "gb"
    return int(number)


@pytest.mark.parametrize("text", [TEXT, TEXT.replace("#gpu ", "")], ids=["cpu", "gpu"])
def test_compose_file(text: str) -> None:
    compose = read(text)
    services = compose["services"]
    needed = services["open-webui"]["depends_on"]
    assert needed["anser"]["condition"] == "service_healthy"
    assert services["open-webui"]["environment"]["OLLAMA_BASE_URL"] == "http://anser:11434"
    for service in services.values():
        assert service["restart"] == "unless-stopped"
        assert service["mem_limit"] == service["memswap_limit"]
    limits = [gigabytes(service["mem_limit"]) for service in services.values()]
    assert sum(limits) <= 8 - 1  # the system has to live, too
    named = {
        str(volume).partition(":")[0] for each in services.values() for volume in each["volumes"]
    }
    assert named == set(compose["volumes"])


def test_the_gpus_lines_change_what_is_built_and_reserved() -> None:
    service = read(TEXT.replace("#gpu ", ""))["services"]["anser"]
    assert service["build"]["args"] == {"TORCH": "cu130"}
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "deploy" not in read(TEXT)["services"]["anser"]


@pytest.mark.parametrize(
    ("right", "wrong"), [("restart", "restrat"), ("service_healthy", "healthy")]
)
def test_mistakes_would_be_found(right: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        read(TEXT.replace(right, wrong))
