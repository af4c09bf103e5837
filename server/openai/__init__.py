"""OpenAI's API as Ollama speaks it: requests into Ollama's own, replies into OpenAI's shapes."""
