"""What proves the version of an object behind a URL, as text, as request headers and as a check.

The text is the header itself: a strong ETag with its quotes, or Last-Modified and the length with "; "
between them; where neither is there and the settings allow it, "unversioned" and the length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.errors import Unversioned
from agent.origin.version import expect_header, is_strong

UNVERSIONED = "unversioned"


def version_text(
    etag: str | None, last_modified: str | None, size: int, *, name: str, allow_unversioned: bool
) -> str:
    """The version text of what these headers describe. Raises Unversioned."""
    if etag is not None and is_strong(etag):
        return etag
    if last_modified:
        return f"{last_modified}; {size}"
    if allow_unversioned:
        return f"{UNVERSIONED}; {size}"
    raise Unversioned(
        f"{name} has neither a strong ETag nor Last-Modified, so a change would go unnoticed; "
        "set allow_unversioned for this origin to read it all the same"
    )


def proves_the_bytes(version: str) -> bool:
    """Whether a version names one content coding too, as strong ETags do (RFC 9110, 8.8.3.3)."""
    return version.startswith('"')


def conditions(version: str) -> dict[str, str]:
    """The headers that make a GET conditional on a version (RFC 9110, 13.1.1 and 13.1.4)."""
    if proves_the_bytes(version):
        return {"If-Match": version}
    date = version.rpartition("; ")[0]
    return {} if date == UNVERSIONED else {"If-Unmodified-Since": date}


def checker(version: str, name: str) -> Callable[[Mapping[str, str]], None]:
    """The check of a response's headers; the length is checked with its Content-Range."""
    if proves_the_bytes(version):
        return expect_header("etag", version, name)
    date = version.rpartition("; ")[0]
    return _anything if date == UNVERSIONED else expect_header("last-modified", date, name)


def _anything(headers: Mapping[str, str]) -> None:
    """Nothing can be checked."""
