"""Chats: messages, prompt formats, rendering a prompt, taking a reply apart."""
