"""The embedded demo model: its dialogues, its training, its evaluation."""
