"""Ollama's registry protocol: models come from a registry and go to one.

`pull.py` and `push.py` tell the two stories; `registry.py` holds what they share.
"""
