"""An in-flight table as the holder makes it."""

from __future__ import annotations

import os

from agent.mount.inflight import RequestTable

SLOT_SIZE = 8192


def request_table(slots: int) -> RequestTable:
    """One of so many slots, in memory of its own."""
    fd = os.memfd_create("in-flight")
    try:
        os.ftruncate(fd, slots * SLOT_SIZE)
        return RequestTable(fd, slots, SLOT_SIZE)
    finally:
        os.close(fd)
