"""`python -m server.cli`, which is `anser` where the command is not on the path."""

from __future__ import annotations

import sys

from server.cli import main

if __name__ == "__main__":
    sys.exit(main())
