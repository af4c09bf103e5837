"""Models in memory: loaded when they are asked for, and unloaded when others need the room."""
