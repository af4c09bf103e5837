"""Chats that are played over HTTP and measured by their client, one at a time or many at once.

`asking` measures one reply, `conversation` says what the user says, `chat` and `load` play,
`tables` and `plot` show, `private_model` makes a model out of a file for as long as that takes.
`side_by_side` plays the same chats on our server and on `llama_server`, for an `overview`.
"""
