"""`anser run`: the chat in a real terminal, and one question in a pipe, against a real server."""

from __future__ import annotations

import os
import re
import select
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.conftest import running_server
from tests.tools.anser_command import Anser, Terminal

CHATTY, ENDLESS, SHORT = "rwkv7-g1-chatty", "rwkv7-g1-endless", "rwkv7-g1-short"
PROMPT = ">>> "


def answer(anser: Anser, content: str, **fields: Any) -> dict[str, str]:
    """What the server answers over HTTP: the message, with `thinking` and `content`."""
    body = {"model": SHORT, "messages": [{"role": "user", "content": content}], "stream": False}
    response = httpx.post(f"http://{anser.host}/api/chat", json=body | fields, timeout=None)
    assert response.status_code == 200, response.text
    message: dict[str, str] = response.json()["message"]
    return message


def begin(anser: Anser, *words: str) -> Terminal:
    terminal = anser.terminal("run", *words)
    terminal.expect(PROMPT)
    return terminal


def enter(terminal: Terminal, line: str) -> str:
    """Types a line and waits for the next prompt; what came in between, without the line."""
    terminal.send(f"{line}\r")
    terminal.expect(re.escape(line.rsplit("\r", maxsplit=1)[-1]) + r"\s*\n")
    return terminal.expect(PROMPT)


def words_of(text: str) -> list[str]:
    return re.findall(r"w\d+", text)


def test_a_chat_streams_with_the_thought_dimmed_until_thinking_is_turned_off(anser: Anser) -> None:
    with begin(anser, CHATTY, "--verbose") as terminal:
        reply = enter(terminal, "Hello")
        assert "Thinking...\r\n" in reply
        assert "...done thinking." in reply
        assert "\x1b[38;5;245m" in terminal.raw
        assert "eval rate:" in reply
        assert "Set 'nothink' mode." in enter(terminal, "/set nothink")
        assert "Set 'quiet' mode." in enter(terminal, "/set quiet")
        reply = enter(terminal, "And now?")
        assert "hinking" not in reply
        assert "eval rate:" not in reply
        assert len(reply.strip()) > len(PROMPT)
        assert "Set 'think' mode to 'high'." in enter(terminal, "/set think high")
        assert "Thinking..." in enter(terminal, "Once more")
        terminal.send("/bye\r")
        assert terminal.wait() == 0


def test_what_is_shown_is_what_the_server_answers(anser: Anser) -> None:
    with begin(anser, SHORT, "--think=false", "--nowordwrap") as terminal:
        for content in ("Hello", "first\nsecond"):
            enter(terminal, "/clear")
            if "\n" in content:
                terminal.send('"""first\r')
                terminal.expect(r"\.\.\.")
                reply = enter(terminal, 'second"""')
            else:
                reply = enter(terminal, content)
            assert words_of(reply) == words_of(answer(anser, content, think=False)["content"])


def test_settings_reach_the_server(anser: Anser) -> None:
    with begin(anser, SHORT, "--think=false", "--nowordwrap") as terminal:
        assert "Set system message." in enter(terminal, "/set system You are brief.")
        assert "Set parameter 'num_predict' to '5'" in enter(
            terminal, "/set parameter num_predict 5"
        )
        reply = enter(terminal, "Hello")
        messages = [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Hello"},
        ]
        expected = answer(anser, "", think=False, options={"num_predict": 5}, messages=messages)
        assert words_of(reply) == words_of(expected["content"])
        assert len(words_of(reply)) == 5
        shown = enter(terminal, "/show system")
        assert "You are brief." in shown
        assert "num_predict" in enter(terminal, "/show parameters")


def test_commands_answer(anser: Anser) -> None:
    with begin(anser, SHORT) as terminal:
        info = enter(terminal, "/show info")
        assert re.search(r"architecture\s+rwkv7", info)
        assert re.search(r"quantization\s+F32", info)
        assert "FROM" in enter(terminal, "/show modelfile")
        assert "No license" in enter(terminal, "/show license")
        assert "/set parameter" in enter(terminal, "/? set")
        assert "Available Commands" in enter(terminal, "/help")
        assert "Unknown command '/sing'" in enter(terminal, "/sing")
        assert "unknown parameter 'tmp'" in enter(terminal, "/set parameter tmp 1")
        assert "Unknown level" in enter(terminal, "/set think loudly")
        assert "Couldn't load model 'nobody'" in enter(terminal, "/load nobody")
        assert f"Loading model '{CHATTY}'" in enter(terminal, f"/load {CHATTY}")
        assert "Cleared session context" in enter(terminal, "/clear")


def test_ctrl_c_stops_the_reply_and_ctrl_d_leaves(anser: Anser) -> None:
    with begin(anser, ENDLESS) as terminal:
        terminal.send("Go on\r")
        terminal.expect(r"Thinking\.\.\.")
        terminal.expect(r"w\d+ >w\d+")
        terminal.send("\x03")
        terminal.expect(PROMPT)
        # One generation at a time: this waits for ever if the first still runs.
        assert answer(anser, "Hello")["thinking"]
        terminal.send("\x03")
        terminal.expect("Use Ctrl \\+ d or /bye to exit.")
        terminal.expect(PROMPT)
        terminal.send("\x04")
        assert terminal.wait() == 0
    assert "Traceback" not in terminal.raw


def test_a_model_with_messages_shows_them_first(anser: Anser) -> None:
    with anser.terminal("run", "rwkv7-g1-polite") as terminal:
        terminal.expect(">>> Hi\r\nGood morning!\r\n\r\n")
        terminal.expect(PROMPT)


def test_history_is_kept_on_disk_for_the_next_chat(anser: Anser, tmp_path: Path) -> None:
    own = Anser(tmp_path, anser.models, anser.host)
    with begin(own, SHORT) as terminal:
        enter(terminal, "/set nohistory")
        enter(terminal, "/show license")
        enter(terminal, "/set history")
        enter(terminal, "/show system")
        terminal.send("\x04")
        assert terminal.wait() == 0
    path = tmp_path / ".anser" / "history"
    assert "+/show system" in path.read_text()
    assert "license" not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    with begin(own, SHORT) as terminal:
        terminal.send("\x1b[A")  # the up key
        terminal.expect("/show system")


def test_a_piped_prompt_is_answered_in_plain_text(anser: Anser) -> None:
    result = anser.run("run", SHORT, "and more", stdin="Hello\n")
    assert result.returncode == 0, result.stderr
    expected = answer(anser, "Hello\n and more")
    assert "\x1b" not in result.stdout
    assert result.stdout.startswith("Thinking...\n")
    assert words_of(result.stdout) == words_of(expected["thinking"])


def test_options_may_stand_anywhere(anser: Anser) -> None:
    result = anser.run("run", "--think=false", SHORT, "--verbose", "Hello", "--keepalive", "1h")
    assert result.returncode == 0, result.stderr
    assert "hinking" not in result.stdout
    assert words_of(result.stdout) == words_of(answer(anser, "Hello", think=False)["content"])
    assert re.search(r"^eval count: +12 token\(s\)$", result.stderr, re.MULTILINE)
    models = httpx.get(f"http://{anser.host}/api/ps").json()["models"]
    assert models[0]["name"] == f"{SHORT}:latest"


def test_a_bare_think_does_not_take_the_prompt_for_its_level(anser: Anser) -> None:
    result = anser.run("run", SHORT, "--think", "Hello", "--hidethinking")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == answer(anser, "Hello", think=True)["content"].strip()


def test_ctrl_c_ends_a_single_question(anser: Anser) -> None:
    with anser.terminal("run", ENDLESS, "Hello") as terminal:
        terminal.expect(r"w\d+ >w\d+")
        terminal.send("\x03")
        assert terminal.wait() == 130
    assert "Traceback" not in terminal.raw


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("a b/c:d",), 1, "invalid model name"),
        ((SHORT, "--think=loudly"), 2, "must be one of true, false"),
        ((SHORT, "--keepalive", "soon"), 2, "invalid duration"),
        ((SHORT, "--shout"), 2, "--shout"),
    ],
)
def test_errors_are_one_line(anser: Anser, words: tuple[str, ...], code: int, problem: str) -> None:
    result = anser.run("run", *words, stdin="Hello")
    assert result.returncode == code
    assert problem in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_model_that_cannot_be_had(anser: Anser) -> None:
    result = anser.run("run", "127.0.0.1:1/a/nobody", stdin="Hello")
    assert result.returncode == 1
    *_, line = result.stderr.splitlines()
    assert line.startswith("Error: model '127.0.0.1:1/a/nobody' not found, and cannot be pulled: ")
    assert "cannot reach 127.0.0.1:1" in line
    assert "`anser list`" in line
    assert result.stdout == ""


def test_without_a_server_it_starts_its_own_and_ends_it(anser: Anser, tmp_path: Path) -> None:
    alone = Anser(tmp_path, anser.models)
    result = alone.run("run", SHORT, "--think=false", "Hello")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "no server is running; starting one for this chat\n"
    assert words_of(result.stdout) == words_of(answer(anser, "Hello", think=False)["content"])
    assert (tmp_path / ".anser" / "logs" / "server.log").is_file()
    assert servers_at_home(tmp_path) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the server's process in /proc")
def test_its_own_server_ends_even_when_it_is_killed(anser: Anser, tmp_path: Path) -> None:
    with Anser(tmp_path, anser.models).terminal("run", SHORT) as terminal:
        terminal.expect(PROMPT)
        (server,) = servers_at_home(tmp_path)
        ended = os.pidfd_open(server)
        terminal.process.send_signal(signal.SIGKILL)
        terminal.process.wait()
    assert is_readable(ended, 30), "the server still runs"
    os.close(ended)


def test_an_address_of_another_machine_gets_no_server_of_ours(anser: Anser) -> None:
    other = Anser(anser.home, anser.models, "192.0.2.1:1")
    result = other.run("run", SHORT, "Hello", changes={"https_proxy": "", "http_proxy": ""})
    assert result.returncode == 1
    assert "no server answers at http://192.0.2.1:1" in result.stderr
    assert result.stderr.count("\n") == 1


def servers_at_home(home: Path) -> list[int]:
    """The process ids of servers that were started with this home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"HOME={home}".encode() in environment and b"--child" in command:
            found.append(int(process.name))
    return found


def is_readable(descriptor: int, timeout_s: float) -> bool:
    return bool(select.select([descriptor], [], [], timeout_s)[0])


def test_the_format_reaches_the_server(anser: Anser) -> None:
    schema = '{"type": "object"}'
    for given, sent in (("json", "json"), (schema, {"type": "object"})):
        result = anser.run("run", SHORT, "--think=false", "--format", given, "Hello")
        body = {"model": SHORT, "messages": [{"role": "user", "content": "Hello"}], "stream": False}
        asked = {"think": False, "format": sent}
        response = httpx.post(f"http://{anser.host}/api/chat", json=body | asked, timeout=None)
        if response.status_code == 200:
            assert result.stdout.strip() == response.json()["message"]["content"].strip()
        else:
            assert result.stderr == f"Error: {response.json()['error']}\n"
    result = anser.run("run", SHORT, "--format", "yaml", "Hello")
    assert (result.returncode, result.stdout) == (2, "")
    assert 'must be json or a JSON schema, not "yaml"' in result.stderr


def test_the_format_in_a_chat(anser: Anser) -> None:
    with begin(anser, SHORT) as terminal:
        assert "Invalid or missing format." in enter(terminal, "/set format yaml")
        assert "Set format to 'json' mode." in enter(terminal, "/set format json")
        assert "Disabled format." in enter(terminal, "/set noformat")
        assert words_of(enter(terminal, "Hello"))


def test_a_session_is_saved_as_a_model(anser: Anser) -> None:
    with begin(anser, SHORT, "--think=false") as terminal:
        assert "/save <modelname>" in enter(terminal, "/save")
        assert "Couldn't save model 'a//b'" in enter(terminal, "/save a//b")
        page = httpx.get(f"http://{anser.host}/openapi.json").json()
        if "/api/create" not in page["paths"]:
            pytest.skip("this server has no /api/create yet")
        enter(terminal, "/set system You are brief.")
        enter(terminal, "/set parameter num_predict 5")
        reply = enter(terminal, "Hello")
        assert "Created new model 'saved'" in enter(terminal, "/save saved")
        assert "num_predict" in enter(terminal, "/show parameters")
    shown = httpx.post(f"http://{anser.host}/api/show", json={"model": "saved"}).json()
    assert shown["system"] == "You are brief."
    assert "num_predict" in shown["parameters"]
    assert [each["role"] for each in shown["messages"]] == ["user", "assistant"]
    assert words_of(shown["messages"][1]["content"]) == words_of(reply)


def test_a_message_is_written_in_an_editor(anser: Anser, tmp_path: Path) -> None:
    script = tmp_path / "editor"
    script.write_text('#!/bin/sh\nprintf "Hello" > "$1"\n')
    script.chmod(0o755)
    (tmp_path / ".anser").mkdir()
    (tmp_path / ".anser" / "server.toml").write_text(f'editor = "{script}"\n')
    with begin(Anser(tmp_path, anser.models, anser.host), SHORT, "--think=false") as terminal:
        terminal.send("\x07")
        terminal.expect("Hello")
        terminal.send("\r")
        reply = terminal.expect(r"(w\d+ .*\s+)" + PROMPT)
        assert words_of(reply) == words_of(answer(anser, "Hello", think=False)["content"])


def test_a_reader_that_leaves_ends_the_reply(anser: Anser) -> None:
    process = anser.start("run", ENDLESS, "Hello")
    assert process.stdout is not None
    assert process.stdout.readline() == "Thinking...\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(60) == 1
    process.stderr.close()


def test_the_key_of_the_environment_is_sent(anser: Anser, tmp_path: Path) -> None:
    own = Anser(tmp_path, anser.models)
    key = {"ANSER_API_KEY": "sesame,other"}
    with running_server(own, key) as locked:
        refused = locked.run("run", SHORT, "Hello")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "unauthorized" in refused.stderr
        assert "set ANSER_API_KEY" in refused.stderr
        for variable, value in (("ANSER_API_KEY", "other"), ("OLLAMA_API_KEY", "sesame")):
            done = locked.run("run", SHORT, "--think=false", "Hello", changes={variable: value})
            assert done.returncode == 0, done.stderr
            assert words_of(done.stdout)
    alone = own.run("run", SHORT, "--think=false", "Hello", changes=key)
    assert alone.returncode == 0, alone.stderr  # a server of its own has the same key
