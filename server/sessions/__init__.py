"""Named sessions: chats whose history the server keeps, so that clients send what is new only.

`ids.py` says what a name may be, `history.py` what a request adds to a history, `store.py` keeps
the histories, `turns.py` takes one turn after the other, `state_files.py` moves a session to
another server. The states themselves are the cache's: it finds them by the tokens of the history.
"""

from __future__ import annotations
