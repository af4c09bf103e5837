"""An executable that takes llama-server's options and answers as it does, for tests without one."""

from __future__ import annotations

import sys
from pathlib import Path

# What it says to have read and written of every prompt.
NUM_CACHED, NUM_READ, NUM_WRITTEN = 7, 20, 5
PREFILL_MS, DECODE_MS = 50, 80

_CODE = f"""\
#!{sys.executable}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
open(options["-m"], "rb").close()
print("threads:", options["-t"], flush=True)
said = []
timings = dict(cache_n={NUM_CACHED}, prompt_n={NUM_READ}, prompt_ms={PREFILL_MS},
               predicted_n={NUM_WRITTEN}, predicted_ms={DECODE_MS})


class Handler(BaseHTTPRequestHandler):
    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, b"ok")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/apply-template":
            return self.answer(200, json.dumps({{"prompt": json.dumps(asked)}}).encode())
        messages = json.loads(asked["prompt"])["messages"]
        replies = [each["content"] for each in messages if each["role"] == "assistant"]
        # A chat goes on from what it has heard.
        if said[len(said) - len(replies):] != replies or not asked["stream"]:
            return self.answer(400, b"this is not the history")
        said.append(f"reply {{len(said)}}\\u2028of the peer")
        events = [{{"content": each, "timings": timings}} for each in said[-1].split(" ")]
        events[1:] = [{{**each, "content": " " + each["content"]}} for each in events[1:]]
        # The real one does end like that where the last character is not whole.
        is_whole = len(said) % 2
        events.append({{"content": "", "timings": timings}} if is_whole else {{"error": {{}}}})
        lines = [json.dumps(each, ensure_ascii=False) for each in events]
        self.answer(200, "".join(f"data: {{line}}\\n\\n" for line in lines).encode())

    def log_message(self, *_):
        pass


HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""


def write_peer(path: Path) -> None:
    path.write_text(_CODE, encoding="utf-8")
    path.chmod(0o755)
