"""What all tests share."""

from __future__ import annotations

import os

# Processes that test side by side, and the servers they start, have one thread each: threads of one
# process wait for each other, and would do so while another process has their processor. Tests of
# threads ask for several.
if "PYTEST_XDIST_WORKER" in os.environ:
    for _name in ("ANSER_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(_name, "1")
