"""Who may call, and with how much."""
