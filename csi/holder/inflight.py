"""The in-flight table: shared memory that outlives the agent, made once by the holder.

The holder never looks inside: slots are the agent's (agent/mount/). The size is sealed, so that no agent
can make the next one's access to it a SIGBUS.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass

SLOTS = 2048
SLOT_SIZE = 8192  # bytes: a request with max_write 4096 fits (FINDINGS.md)


@dataclass(frozen=True)
class InFlightTable:
    """The memory's descriptor and its shape."""

    descriptor: int
    slots: int = SLOTS
    slot_size: int = SLOT_SIZE

    @classmethod
    def create(cls) -> InFlightTable:
        """memfd_create(2), its size sealed with F_ADD_SEALS (fcntl(2)). Raises OSError."""
        descriptor = os.memfd_create("headrace-in-flight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, SLOTS * SLOT_SIZE)
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
        return cls(descriptor)
