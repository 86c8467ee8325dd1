"""INIT: what the kernel offers, what this file system takes of it, and the record of that.

A pure decision, made once per mount. Its result outlives the agent in the mount record: a successor that
takes over the descriptor sees no INIT and goes by the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final

from agent.errors import HeadraceError
from agent.mount import abi
from agent.mount.abi import InitFlag
from agent.mount.wire import InitRequest, WireError

OLDEST_MINOR: Final = 31  # Linux 5.4: every struct used here has its size since then; the holder needs 5.8

WANTED: Final = (
    InitFlag.ASYNC_READ  # readahead and several reads of one handle at once
    | InitFlag.MAX_PAGES  # requests of 1 MiB, not of 128 KiB
    | InitFlag.INIT_EXT  # the flags from bit 32
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.PASSTHROUGH
    | InitFlag.ALLOW_IDMAP  # the kernel fails INIT if the mount has no `default_permissions` with it
)
"""Not wanted: EXPORT_SUPPORT and NO_OPENDIR_SUPPORT (they would change what LOOKUP and OPENDIR get),
WRITEBACK_CACHE (excludes PASSTHROUGH), AUTO_INVAL_DATA (an object never changes), HAS_RESEND (a successor
finds the unanswered requests in the in-flight table, on every kernel)."""

MAX_PAGES: Final = 256  # 1 MiB a request, the most that fs.fuse.max_pages_limit allows by default
# Bytes that the kernel reads ahead, and around a page that is touched in a mapped file: a setting of the
# mount's device that the holder makes. Measured: the default, 128 KiB, reaches a third of the speed.
READ_AHEAD: Final = 4 << 20
MAX_PAGES_UNASKED: Final = 32  # FUSE_DEFAULT_MAX_PAGES_PER_REQ of fs/fuse/fuse_i.h


class UnsupportedKernel(HeadraceError):
    """The kernel speaks a FUSE protocol that this file system cannot serve."""


@dataclass(frozen=True, slots=True)
class InitResult:
    """What kernel and file system agreed on; whole numbers only, so that it goes into JSON as it is."""

    minor: int
    flags: int  # abi.InitFlag, both halves
    max_readahead: int
    max_background: int = 512  # the default, 12, lets twelve stalled readaheads stop every cached read
    congestion_threshold: int = 384  # three quarters of it, the kernel's own proportion
    max_write: int = 4096  # the least: a request then fits into a slot of abi.MIN_READ_BUFFER
    max_pages: int = MAX_PAGES
    max_stack_depth: int = 0  # 1 allows passthrough to a file system that is itself not stacked

    @property
    def passthrough(self) -> bool:
        """Files may be opened with a backing id."""
        return bool(self.flags & InitFlag.PASSTHROUGH)

    @property
    def readdirplus(self) -> bool:
        return bool(self.flags & InitFlag.DO_READDIRPLUS)

    @property
    def idmap(self) -> bool:
        """The mount may be idmapped (pods with `hostUsers: false`)."""
        return bool(self.flags & InitFlag.ALLOW_IDMAP)

    def to_dict(self) -> dict[str, int]:
        """For the mount record."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, object]) -> InitResult:
        """Back from a mount record; fields that it lacks have their defaults, others are passed over.

        Raises WireError where one that is needed is missing or one is no whole number.
        """
        values: dict[str, int] = {}
        for name in (item.name for item in fields(cls) if item.name in record):
            value = record[name]
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise WireError(f"the mount record says {name} = {value!r}")
            values[name] = value
        missing = {"minor", "flags", "max_readahead"} - values.keys()
        if missing:
            raise WireError(f"the mount record has no {', '.join(sorted(missing))}")
        return cls(**values)


def negotiate(init: InitRequest) -> InitResult:
    """What to answer to INIT: all that is wanted and offered. Raises UnsupportedKernel."""
    if init.major != abi.KERNEL_MAJOR or init.minor < OLDEST_MINOR:
        raise UnsupportedKernel(
            f"the kernel speaks FUSE {init.major}.{init.minor}; "
            f"{abi.KERNEL_MAJOR}.{OLDEST_MINOR} or newer is needed: Linux 5.8 at least, 6.9 for passthrough"
        )
    flags = int(WANTED) & init.flags
    if not flags & InitFlag.INIT_EXT:
        flags &= 0xFFFF_FFFF
    return InitResult(
        minor=min(init.minor, abi.KERNEL_MINOR),
        flags=flags,
        max_readahead=init.max_readahead,
        max_pages=MAX_PAGES if flags & InitFlag.MAX_PAGES else MAX_PAGES_UNASKED,
        max_stack_depth=1 if flags & InitFlag.PASSTHROUGH else 0,
    )


def encode_init(result: InitResult) -> bytes:
    """`fuse_init_out`. Older kernels read its reserved space as nothing."""
    return abi.INIT_OUT.packed.pack(
        abi.KERNEL_MAJOR,
        result.minor,
        result.max_readahead,
        result.flags & 0xFFFF_FFFF,
        result.max_background,
        result.congestion_threshold,
        result.max_write,
        1,  # time_gran: nanoseconds
        result.max_pages,
        0,
        result.flags >> 32,
        result.max_stack_depth,
        0,
    )
