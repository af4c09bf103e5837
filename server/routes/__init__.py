"""The routes, one module for each part of Ollama's API."""

from __future__ import annotations
