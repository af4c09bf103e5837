"""The one table of settings: flags, variables, keys of the file, defaults and help come from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rwkv_core.instruction_sets import INSTRUCTION_SETS
from server.settings import values


class Kind(Enum):
    """How a value is written in the file."""

    TEXT = "text"
    NUMBER = "number"
    SWITCH = "switch"  # true or false
    LIST = "list"  # of texts; in a variable, with commas between them


@dataclass(frozen=True)
class Setting:
    """One thing that can be set.

    `default` and what `read` takes are text, as in the environment; "" is for nothing at all, which
    is not read. `read` raises ValueError with what is wrong. The value becomes `field` of Settings;
    an Address becomes its own fields; without a `field` it is the engine's, which reads `variable`
    itself. A secret is never shown, and has no flag: everyone on a machine sees the flags.
    """

    key: str
    variable: str
    field: str
    read: Callable[[str], Any]
    default: str
    help: str
    metavar: str
    kind: Kind = Kind.TEXT
    is_secret: bool = False
    is_clients: bool = False  # of `anser run`, not of the server

    @property
    def flag(self) -> str:
        """The flag of `anser serve`, "" for a setting that has none."""
        hidden = self.is_secret or self.is_clients
        return "" if hidden else f"--{self.key.replace('_', '-')}"


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "host", "OLLAMA_HOST", "host", values.read_address, "127.0.0.1:11434",
        "address and port to listen on, and where clients look; port 0 takes a free one",
        "ADDRESS",
    ),
    Setting(
        "models", "OLLAMA_MODELS", "models", values.read_folder, "~/.anser/models",
        "folder of the models, in Ollama's layout", "FOLDER",
    ),
    Setting(
        "keep_alive", "OLLAMA_KEEP_ALIVE", "keep_alive_ns", values.read_keep_alive, "5m",
        "how long an unused model stays in memory: 1h30m, seconds, -1 for ever", "DURATION",
    ),
    Setting(
        "num_parallel", "OLLAMA_NUM_PARALLEL", "num_parallel", values.read_number_or_auto, "0",
        "requests of a model that run at once; 0: as many as memory allows", "N", Kind.NUMBER,
    ),
    Setting(
        "max_queue", "OLLAMA_MAX_QUEUE", "max_queue", values.read_number, "512",
        "requests that may wait; more are told to try again", "N", Kind.NUMBER,
    ),
    Setting(
        "max_loaded_models", "OLLAMA_MAX_LOADED_MODELS", "max_loaded_models",
        values.read_number_or_auto, "0",
        "models in memory at once; 0: three, or three for each graphics card", "N", Kind.NUMBER,
    ),
    Setting(
        "origins", "OLLAMA_ORIGINS", "origins", values.read_origins, "",
        "origins whose web pages may call, beside this machine's; * stands for anything",
        "ORIGIN,...", Kind.LIST,
    ),
    Setting(
        "api_key", "ANSER_API_KEY", "api_keys", values.read_keys, "",
        "keys, one of which a request must bring (Authorization: Bearer KEY); none: no key is "
        "needed", "KEY,...", Kind.LIST, is_secret=True,
    ),
    Setting(
        "max_request_size", "ANSER_MAX_REQUEST_SIZE", "max_request_size", values.read_size, "16MB",
        "size of a request's JSON; more is refused (uploads of files have limits of their own)",
        "SIZE",
    ),
    Setting(
        "request_timeout", "ANSER_REQUEST_TIMEOUT", "request_timeout_s", values.read_seconds, "30s",
        "how long the headers of a request may take, and its body if it brings less than 1 KB a "
        "second", "DURATION",
    ),
    Setting(
        "device", "ANSER_DEVICE", "device", values.read_device, "auto",
        "what computes: auto, cpu, cuda or cuda:N", "DEVICE",
    ),
    Setting(
        "threads", "ANSER_THREADS", "", values.read_threads, "",
        "threads of the CPU kernels; none: the physical cores", "N", Kind.NUMBER,
    ),
    Setting(
        "isa", "ANSER_ISA", "", values.read_isa, "",
        f"best instruction set that the CPU kernels may use: {', '.join(INSTRUCTION_SETS)}; none: "
        "the best there is", "NAME",
    ),
    Setting(
        "kernels", "ANSER_KERNELS", "", values.read_kernels, "on",
        "off computes in plain PyTorch", "on|off",
    ),
    Setting(
        "configs", "ANSER_CONFIGS", "", values.read_folder, "",
        "folder to read instead of Anser's configs/, with prompts/ in it", "FOLDER",
    ),
    Setting(
        "states", "ANSER_STATES", "states", values.read_states, "~/.anser/states",
        "folder of the states of chats; off keeps them in memory only", "FOLDER|off",
    ),
    Setting(
        "states_memory", "ANSER_STATES_MEMORY", "states_memory", values.read_size, "",
        "memory for states, for all models together; none: by what is free", "SIZE",
    ),
    Setting(
        "states_disk", "ANSER_STATES_DISK", "states_disk", values.read_size, "",
        "disk for states; none: by what is free", "SIZE",
    ),
    Setting(
        "no_prune", "OLLAMA_NOPRUNE", "no_prune", values.read_yes, "0",
        "keep files of the models folder that no model names any more", "0|1", Kind.SWITCH,
    ),
    Setting(
        "no_history", "OLLAMA_NOHISTORY", "keeps_history", values.read_history, "0",
        "keep nothing of what is typed in a chat (anser run)", "0|1", Kind.SWITCH,
        is_clients=True,
    ),
    Setting(
        "editor", "OLLAMA_EDITOR", "editor", str, "",
        "what Ctrl+g in a chat opens to write a message; none: $VISUAL or $EDITOR", "COMMAND",
        is_clients=True,
    ),
    Setting(
        "debug", "OLLAMA_DEBUG", "is_debug", values.read_debug, "0",
        "a log that says more", "0|1", Kind.SWITCH,
    ),
)  # fmt: skip

# Where another file than ~/.anser/server.toml is named.
FILE_VARIABLE = "ANSER_CONFIG"

_NO_ATTENTION = "there is no attention and no key-value cache in RWKV"
_NO_CLOUD = "there is no cloud service"
_OWN_DEVICES = "ANSER_DEVICE says what computes"
# Ollama's variables that are taken without a word from those who set them for Ollama, and change
# nothing; why, in the words of the server's log.
IGNORED: Mapping[str, str] = {
    "OLLAMA_AUTH": _NO_CLOUD,
    "OLLAMA_CONTEXT_LENGTH": "an RNN's state has no window",
    "OLLAMA_DEBUG_LOG_REQUESTS": "requests are not written down",
    "OLLAMA_FLASH_ATTENTION": _NO_ATTENTION,
    "OLLAMA_GO_TEMPLATE": "a model's template is always used where it has one",
    "OLLAMA_GPU_OVERHEAD": _OWN_DEVICES,
    "OLLAMA_IGPU_ENABLE": _OWN_DEVICES,
    "OLLAMA_KV_CACHE_TYPE": _NO_ATTENTION,
    "OLLAMA_LLM_LIBRARY": _OWN_DEVICES,
    "OLLAMA_LOAD_TIMEOUT": "a model is read by the server itself, which does not stall",
    "OLLAMA_MAX_TRANSFER_STREAMS": "the number of streams is fixed",
    "OLLAMA_NO_CLOUD": _NO_CLOUD,
    "OLLAMA_REMOTES": _NO_CLOUD,
    "OLLAMA_SCHED_SPREAD": _OWN_DEVICES,
    "OLLAMA_VULKAN": _OWN_DEVICES,
}
# Of clients and tests: no settings of the server, and no slips of the pen.
_OTHERS = frozenset({"OLLAMA_API_KEY", "ANSER_REQUIRE_KERNELS", FILE_VARIABLE})


def known_variables() -> frozenset[str]:
    return frozenset(each.variable for each in SETTINGS) | IGNORED.keys() | _OTHERS
