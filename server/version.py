"""The version that `/api/version` answers."""

from __future__ import annotations

# Clients compare this number with the Ollama release that brought the field they want to use
# (`thinking` needs 0.9, VS Code refuses anything under 0.6.4), so it is the Ollama whose API Anser
# follows, not Anser's own version.
OLLAMA_VERSION = "0.32.15"
