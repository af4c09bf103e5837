"""Flags, variables and the file of settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_core.settings import config_dir
from server.settings import Settings, SettingsError
from server.settings.settings_file import documentation, read_file
from server.settings.sources import Origin, read_settings, remarks
from server.settings.table import SETTINGS, known_variables
from server.wire.durations import FOREVER_NS


@pytest.mark.parametrize(
    ("value", "url", "is_loopback"),
    [
        ("", "http://127.0.0.1:11434", True),
        ("1.2.3.4", "http://1.2.3.4:11434", False),
        (":1234", "http://127.0.0.1:1234", False),
        ("1.2.3.4:1234", "http://1.2.3.4:1234", False),
        ("example.com", "http://example.com:11434", False),
        ("localhost:80", "http://localhost:80", True),
        (":0", "http://127.0.0.1:0", False),
        ("[::1]", "http://[::1]:11434", True),
        ("::1", "http://[::1]:11434", True),
        ("[::]:1337", "http://[::1]:1337", False),
        ("0.0.0.0", "http://127.0.0.1:11434", False),
        (' " 1.2.3.4 " ', "http://1.2.3.4:11434", False),
        ("http://1.2.3.4", "http://1.2.3.4:80", False),
        ("https://example.com/ollama/", "https://example.com:443/ollama", False),
    ],
)
def test_host(value: str, url: str, is_loopback: bool) -> None:
    settings = Settings.from_environment({"OLLAMA_HOST": value})
    assert (settings.url, settings.listens_on_loopback) == (url, is_loopback)


def test_the_rest() -> None:
    settings = Settings.from_environment(
        {
            "OLLAMA_MODELS": "/x/y",
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_ORIGINS": "https://a.example, *.b.example",
            "OLLAMA_DEBUG": "1",
            "ANSER_DEVICE": "cuda:1",
        }
    )
    assert settings.models == Path("/x/y")
    assert settings.keep_alive_ns == FOREVER_NS
    assert settings.allowed_origins[:2] == ("https://a.example", "*.b.example")
    assert settings.is_debug
    assert settings.device == "cuda:1"
    assert Settings.from_environment({"OLLAMA_KEEP_ALIVE": "90"}).keep_alive_ns == 90 * 10**9
    assert Settings.from_environment({}).models == Path.home() / ".anser" / "models"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OLLAMA_HOST", "x:66000"),
        ("OLLAMA_HOST", "x:port"),
        ("OLLAMA_HOST", "1:2:3"),
        ("OLLAMA_KEEP_ALIVE", "soon"),
        ("OLLAMA_ORIGINS", "example.com"),
        ("OLLAMA_ORIGINS", "http://*.a.*"),
        ("OLLAMA_DEBUG", "maybe"),
        ("ANSER_DEVICE", "tpu"),
    ],
)
def test_a_bad_value_is_named_in_one_line(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({name: value})
    assert name in str(caught.value)
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)


def test_how_many_at_once_and_where_states_are_kept() -> None:
    default = Settings.from_environment({})
    assert (default.num_parallel, default.max_queue) == (None, 512)
    assert default.max_loaded_models is None
    assert default.states == Path.home() / ".anser" / "states"
    assert (default.states_memory, default.states_disk) == (None, None)
    given = Settings.from_environment(
        {
            "OLLAMA_NUM_PARALLEL": "3",
            "OLLAMA_MAX_QUEUE": "0",
            "OLLAMA_MAX_LOADED_MODELS": "2",
            "ANSER_STATES": "/data/states",
            "ANSER_STATES_MEMORY": "500MB",
            "ANSER_STATES_DISK": "2gb",
        }
    )
    assert (given.num_parallel, given.max_queue) == (3, 0)
    assert given.max_loaded_models == 2
    assert given.states == Path("/data/states")
    assert (given.states_memory, given.states_disk) == (500 * 10**6, 2 * 10**9)
    assert Settings.from_environment({"ANSER_STATES": "off"}).states is None
    elsewhere = Settings.from_environment({"ANSER_STATES": "~/elsewhere"})
    assert elsewhere.states == Path.home() / "elsewhere"
    automatic = {"OLLAMA_NUM_PARALLEL": "0", "OLLAMA_MAX_LOADED_MODELS": "0"}
    assert Settings.from_environment(automatic).num_parallel is None
    assert Settings.from_environment(automatic).max_loaded_models is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OLLAMA_NUM_PARALLEL", "-1"),
        ("OLLAMA_MAX_QUEUE", "many"),
        ("ANSER_STATES_MEMORY", "12"),
        ("ANSER_STATES_DISK", "1.5GB"),
    ],
)
def test_numbers_that_are_none(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({name: value})


def write(folder: Path, text: str) -> str:
    path = folder / "server.toml"
    path.write_text(text)
    return str(path)


def test_a_flag_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'device = "cpu"\nkeep_alive = 60\nmax_queue = 1\norigins = ["*"]\n')
    environment = {"ANSER_CONFIG": file, "OLLAMA_MAX_QUEUE": "2", "ANSER_DEVICE": "cuda"}
    reading = read_settings({"device": "cuda:1"}, environment)
    settings = reading.settings
    assert (settings.device, settings.max_queue) == ("cuda:1", 2)
    assert (settings.keep_alive_ns, settings.origins) == (60 * 10**9, ("*",))
    origins = {key: reading.given[key].origin for key in ("device", "max_queue", "origins", "host")}
    assert list(origins.values()) == [
        Origin.FLAG,
        Origin.ENVIRONMENT,
        Origin.FILE,
        Origin.DEFAULT,
    ]
    assert Settings.from_environment(environment).device == "cuda"
    other = tmp_path / "other"
    other.mkdir()
    named = write(other, "debug = true\n")
    assert read_settings(environment=environment, file=named).settings.is_debug


def test_the_usual_file_is_read_where_it_is(tmp_path: Path) -> None:
    (tmp_path / ".anser").mkdir()
    write(tmp_path / ".anser", 'api_key = ["sesame", "open"]\nstates = "off"\n')
    settings = Settings.from_environment({"HOME": str(tmp_path)})
    assert settings.api_keys == ("sesame", "open")
    assert settings.states is None
    assert "sesame" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("devcie = 'cpu'", 'unknown setting "devcie"; did you mean device?'),
        ("zzz = 1", 'unknown setting "zzz"; configs/server.toml lists them all'),
        ("device = 'tpu'", 'device="tpu": must be auto'),
        ("device = true", 'device must be a "text"'),
        ("max_queue = [1]", "max_queue must be a number"),
        ("debug = 'yes'", "debug must be true or false"),
        ("origins = [1]", "origins must be a"),
        ("[serve]\nhost = '1.2.3.4'", 'unknown setting "serve"'),
        ("device = ", "no TOML: "),
        ("device = 'a\x00'", "no TOML: "),
    ],
)
def test_what_a_file_must_not_say(tmp_path: Path, text: str, problem: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        read_settings(environment={}, file=file)
    assert str(caught.value).startswith(f"{file}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"No such file.*--config"):
        read_settings(environment={}, file=str(tmp_path / "none.toml"))


def test_a_key_is_never_shown() -> None:
    with pytest.raises(SettingsError, match="ANSER_API_KEY: ") as caught:
        Settings.from_environment({"ANSER_API_KEY": "open sesame"})
    assert "sesame" not in str(caught.value)


def test_every_setting_is_documented_with_its_default(tmp_path: Path) -> None:
    text = (config_dir() / "server.toml").read_text()
    assert text == documentation(), "run: python -m server.settings.settings_file"
    said = [line.removeprefix("#") for line in text.splitlines() if not line.startswith("# ")]
    file = write(tmp_path, "\n".join(said))
    assert read_file(Path(file)).keys() == {each.key for each in SETTINGS}
    from_file = read_settings(environment={}, file=file)
    assert {key: each.origin for key, each in from_file.given.items() if each.text} == {
        each.key: Origin.FILE if each.default else Origin.DEFAULT
        for each in SETTINGS
        if each.default
    }
    defaults = read_settings(environment={}).settings
    assert defaults == Settings(states=Path.home() / ".anser" / "states")
    assert from_file.settings.engine_variables == {"ANSER_KERNELS": "on"}
    assert vars(from_file.settings) | {"engine_variables": {}} == vars(defaults)


def test_what_the_engine_reads_itself_is_put_into_its_environment() -> None:
    reading = read_settings({"threads": "3"}, {"ANSER_ISA": "avx2"})
    assert reading.settings.engine_variables == {"ANSER_THREADS": "3", "ANSER_ISA": "avx2"}
    for key, value in (("threads", "0"), ("isa", "sse"), ("kernels", "maybe")):
        with pytest.raises(SettingsError, match=f"--{key}="):
            read_settings({key: value}, {})


def test_no_variable_that_ollama_documents_is_unknown() -> None:
    """Those of the table in its `envconfig` package, August 2026, that are its own."""
    names = (
        "AUTH CONTEXT_LENGTH DEBUG DEBUG_LOG_REQUESTS EDITOR FLASH_ATTENTION GO_TEMPLATE "
        "GPU_OVERHEAD HOST IGPU_ENABLE KEEP_ALIVE KV_CACHE_TYPE LLM_LIBRARY LOAD_TIMEOUT "
        "MAX_LOADED_MODELS MAX_QUEUE MAX_TRANSFER_STREAMS MODELS NOHISTORY NOPRUNE NO_CLOUD "
        "NUM_PARALLEL ORIGINS REMOTES SCHED_SPREAD VULKAN"
    )
    assert {f"OLLAMA_{name}" for name in names.split()} <= known_variables()


def test_variables_that_change_nothing_are_said_so() -> None:
    environment = {"OLLAMA_FLASH_ATTENTION": "1", "ANSER_DEVCIE": "cpu", "OLLAMA_API_KEY": "x"}
    assert remarks(environment) == [
        "OLLAMA_FLASH_ATTENTION changes nothing: "
        "there is no attention and no key-value cache in RWKV",
        "ANSER_DEVCIE is no setting; did you mean ANSER_DEVICE?",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("ANSER_MAX_REQUEST_SIZE", "1mb", "max_request_size", 10**6),
        ("ANSER_REQUEST_TIMEOUT", "1m30s", "request_timeout_s", 90.0),
        ("ANSER_REQUEST_TIMEOUT", "5", "request_timeout_s", 5),
        ("ANSER_API_KEY", "a, b", "api_keys", ("a", "b")),
        ("OLLAMA_NOPRUNE", "true", "no_prune", True),
        ("OLLAMA_NOHISTORY", "1", "keeps_history", False),
    ],
)
def test_readers(variable: str, value: str, field: str, expected: object) -> None:
    assert getattr(Settings.from_environment({variable: value}), field) == expected


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ANSER_MAX_REQUEST_SIZE", "big"),
        ("ANSER_REQUEST_TIMEOUT", "0"),
        ("ANSER_REQUEST_TIMEOUT", "-1s"),
        ("ANSER_REQUEST_TIMEOUT", "25h"),
        ("OLLAMA_NOPRUNE", "perhaps"),
    ],
)
def test_what_the_readers_refuse(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f'{variable}="{value}"'):
        Settings.from_environment({variable: value})
