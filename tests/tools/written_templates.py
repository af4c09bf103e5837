"""Templates in the style of Ollama's models, with the data that they are rendered with."""

from __future__ import annotations

from itertools import product
from typing import Any

CHATML = """{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
<|im_start|>{{ .Role }}
{{ .Content }}
{{- if or (ne .Role "assistant") (not $last) }}<|im_end|>
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ end }}
{{- end }}"""

TOOLS = """{{- if or .System .Tools }}<|start|>system<|sep|>
{{- with .System }}

{{ . }}
{{- end }}
{{- if .Tools }}

You may call these functions:
{{- range .Tools }}
{{ json . }}
{{- end }}
{{- end }}<|end|>
{{- end }}
{{- range $i, $m := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|start|>user<|sep|>{{ .Content }}<|end|>
{{- else if eq .Role "assistant" }}<|start|>assistant<|sep|>
{{- if and .Thinking (not $last) }}<think>{{ .Thinking }}</think>
{{- end }}
{{- if .ToolCalls }}
{{- range .ToolCalls -}}
<tool_call>{"name": "{{ .Function.Name }}", "arguments": {{ json .Function.Arguments }}}</tool_call>
{{- end }}
{{- else }}{{ .Content }}
{{- end }}{{ if not $last }}<|end|>{{ end }}
{{- else if eq .Role "tool" }}<|start|>tool<|sep|>{{ .Content }}<|end|>
{{- end }}
{{- if and $last (ne .Role "assistant") }}<|start|>assistant<|sep|>
{{- if and $.IsThinkSet (not $.Think) }}<think></think>{{ end }}
{{- end }}
{{- end }}"""

LEGACY = """{{ if .System }}[S] {{ .System }}
{{ end }}{{ if .Prompt }}[U] {{ .Prompt }}
{{ end }}[A] {{ .Response }}
"""

LAST_ONLY = """{{- range $index, $m := .Messages }}
{{- if eq (len (slice $.Messages $index)) 2 }}(before last)
{{- continue }}{{ end }}
{{- if gt $index 3 }}{{ break }}{{ end }}[{{ $index }}:{{ printf "%-9s" .Role }}|{{ len .Content }}]
{{- else }}nobody{{ end }}"""

DEFINED = """{{ define "turn" }}{{ .Role }}: {{ template "text" .Content }}{{ end }}
{{- define "text" }}{{ with . }}{{ . }}{{ else }}(nothing){{ end }}{{ end }}
{{- block "head" .System }}<<{{ . }}>>{{ end }}
{{- range .Messages }}
{{ template "turn" . }}
{{- end }}{{- /* a comment */ -}}

tail"""

VARIABLES = """{{ $n := 0 }}{{ $seen := "" }}{{ range .Messages }}{{ $n = len (print $seen .Role) }}
{{- $seen = print $seen (slice .Role 0 1) }}{{ end }}{{ $n }} {{ $seen }} {{ index .Messages 0 }}
{{ with $x := .System }}{{ $x }}{{ $.System | printf "%q" }}{{ end }}
{{ .Nothing }} {{ not .Nothing }}"""

_TEMPLATES = (CHATML, TOOLS, LEGACY, LAST_ONLY, DEFINED, VARIABLES)

_USER = {"Role": "user", "Content": 'What is 1 < 2 & "two"?\n\nSay.'}
_CALLS = {
    "Role": "assistant", "Content": "", "Thinking": "Let me see.",
    "ToolCalls": [{"Function": {"Name": "add", "Arguments": {"b": [1, None], "a": "<ü>"}}}],
}  # fmt: skip
_CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [],
    [_USER],
    [{"Role": "system", "Content": "Be brief."}, _USER],
    [_USER, {"Role": "assistant", "Content": "Yes,", "Thinking": "hm"}],
    [_USER, _CALLS, {"Role": "tool", "Content": "3"}],
    [_USER, {"Role": "assistant", "Content": "Yes.", "Thinking": "hm"}, _USER, _CALLS, _USER],
)
_TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def written_cases() -> list[tuple[str, Any]]:
    """Every template with every conversation, with and without tools, a system text, thinking."""
    settings = (
        {"System": "Be brief.", "Tools": [_TOOL], "Think": False, "IsThinkSet": True},
        {"System": "", "Tools": None, "Think": True, "IsThinkSet": True, "Prompt": "Hi",
         "Response": ""},
    )  # fmt: skip
    return [
        (template, {**setting, "Messages": messages})
        for template, messages, setting in product(_TEMPLATES, _CONVERSATIONS, settings)
    ]
