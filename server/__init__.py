"""Anser's HTTP server: Ollama's API in front of the engine in `rwkv_core`."""

from __future__ import annotations
