"""What an agent gives back to a new holder is checked before it is believed.

The agent's user is not root, and the holder makes privileged calls on these descriptors: a descriptor must be
of /dev/fuse, and of the very connection that is mounted; the in-flight table must be memory that nobody can
shrink, or the next agent's access to it would be a SIGBUS.
"""

from __future__ import annotations

import fcntl
import os
import stat

from csi.holder import kernel
from csi.holder.inflight import InFlightTable
from csi.holder.protocol import Refused

FUSE_DEVICE = (10, 229)  # Documentation/admin-guide/devices.txt
MAX_SLOTS = 1 << 16
MAX_SLOT_SIZE = 1 << 16  # bytes
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def check_fuse(descriptor: int, device: str) -> None:
    """Raise Refused `bad-file` unless this is the /dev/fuse descriptor of the mount of that device."""
    status = kernel.status(descriptor)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if not stat.S_ISCHR(status.mode) or status.rdev != FUSE_DEVICE or flags & os.O_PATH:
        raise Refused("bad-file", "the descriptor must be of /dev/fuse")
    connection = _connection(descriptor)
    major, minor = map(int, device.split(":"))
    if connection is not None and connection != (major << 20 | minor):  # dev_t inside the kernel
        raise Refused("bad-file", "the /dev/fuse descriptor is of another mount")


def _connection(descriptor: int) -> int | None:
    """The connection of a /dev/fuse descriptor, from fdinfo (proc(5)); None where the kernel tells none."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("fuse_connection:"):
                return int(line.split()[1])
    return None


def restored_table(descriptor: int, slots: int, slot_size: int) -> InFlightTable:
    """The table that an agent gives back, with a descriptor of its own. Raises Refused `bad-file`."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise Refused("bad-file", "the in-flight table must be a memfd") from error
    if seals & _SEALS != _SEALS or os.fstat(descriptor).st_size != slots * slot_size:
        raise Refused("bad-file", "the in-flight table's size must be that of its slots, and sealed")
    return InFlightTable(os.dup(descriptor), slots, slot_size)
