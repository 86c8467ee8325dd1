"""Every error that crosses a border inside the agent, and nothing else.

Third-party exceptions are translated to these where they arise (the seam), and these are mapped once
more where they leave the agent: to an errno (`agent/mount/errnos.py`), to an HTTP status
(`agent/control/api.py`), to an exit status (`agent/__main__.py`).
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of all errors that the agent raises on purpose; its text is one line that says what to do."""


class ConfigError(HeadraceError):
    """The configuration file, or the machine it describes, is not usable: `key` names the setting."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


class BadRequest(HeadraceError):
    """A caller of the admin API or a command asked for something that makes no sense."""


class OriginError(HeadraceError):
    """Base of what an origin can do wrong. Final unless it is an `OriginUnavailable`."""


class OriginUnavailable(OriginError):
    """The origin did not answer, or answered that it cannot now: worth another try.

    `retry_after` is what the origin asked for, in seconds, or None; `took` the seconds that it was asked,
    without those for which the request had to wait for its turn.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.took = 0.0


class OriginMisbehaved(OriginUnavailable):
    """The origin's answer breaks the protocol (short body, wrong Content-Range, Range ignored).

    Nothing of such an answer beyond the bytes proven right is kept; it is tried again like an outage,
    because proxies and restarts produce it in passing.
    """


class AccessDenied(OriginError):
    """The origin refused these credentials (401, 403)."""


class ObjectMissing(OriginError):
    """There is no such object, bucket or tree at the origin (404)."""


class VersionChanged(OriginError):
    """The origin no longer has the version that the reader was promised (412, another ETag)."""


class ChecksumDiffers(OriginError):
    """The object's bytes are, fetched twice, not those whose checksum the origin states."""


class RevisionMissing(OriginError):
    """The revision that was named is neither at the origin nor in the store."""


class Unversioned(OriginError):
    """The origin gives nothing by which a version could be proven, and the settings do not allow that."""


class PatienceExhausted(HeadraceError):
    """A reader waited for its bytes as long as `mount.patience` allows."""


class StoreError(HeadraceError):
    """Base of what the store can fail with."""


class StoreFull(StoreError):
    """The store may take no more bytes: capacity used up, or the reserve of free disk reached."""


class StoreFailed(StoreError):
    """The disk or the index of a store directory answered with an error."""


class HolderError(HeadraceError):
    """The holder refused a request, or is not there."""
