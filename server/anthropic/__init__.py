"""Anthropic's API as Ollama speaks it: requests into Ollama's own, replies into its messages."""
