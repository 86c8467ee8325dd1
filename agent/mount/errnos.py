"""What a program that reads a mount gets to see of an error: the border between the agent and errno(3)."""

from __future__ import annotations

import errno

from agent import errors

# The nearest class in an error's ancestry counts. EACCES: the agent's own rights, not the reader's.
ERRNOS: dict[type[errors.HeadraceError], int] = {
    errors.HeadraceError: errno.EIO,
    errors.OriginUnavailable: errno.EIO,
    errors.AccessDenied: errno.EACCES,
    errors.ObjectMissing: errno.ESTALE,
    errors.VersionChanged: errno.ESTALE,
    errors.Unversioned: errno.EIO,
    errors.PatienceExhausted: errno.EIO,
    errors.StoreError: errno.EIO,
}


def to_errno(error: errors.HeadraceError) -> int:
    """The errno that a reader gets for this error."""
    return next(ERRNOS[kind] for kind in type(error).__mro__ if kind in ERRNOS)
