"""The models on disk, in the layout of Ollama's store."""
