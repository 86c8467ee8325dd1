"""What proves a version in what fsspec drivers say of a file (`info`); each names the fields its own way.

The text is "field=value"; the same field is compared later, so a driver that tells more in one place than in
another does no harm. Times count together with the size.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from agent.errors import Unversioned
from agent.origin.version import nanoseconds

_PROOFS = ("etag", "ETag", "generation", "sha256", "xet_hash", "md5", "md5Hash", "content_md5", "blob_id")
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")
UNVERSIONED = "unversioned"


def version_of(info: Mapping[str, Any], *, name: str, allow_unversioned: bool) -> str:
    """The version text of a file. Raises Unversioned."""
    for field in (*_PROOFS, *_TIMES):
        text = _text(info, field)
        if text is not None:
            return text
    if allow_unversioned:
        return f"{UNVERSIONED}={info['size']}"
    raise Unversioned(
        f"{name}: its file system tells neither a checksum nor a time, so a change would go unnoticed; "
        "set allow_unversioned for this origin to read it all the same"
    )


def same_version(info: Mapping[str, Any], version: str) -> bool:
    """Whether a file is still of this version."""
    field = version.partition("=")[0]
    if field == UNVERSIONED:
        return version == f"{UNVERSIONED}={info.get('size')}"
    return _text(info, field) == version


def modified_ns(info: Mapping[str, Any]) -> int:
    """When the file changed last, in nanoseconds since 1970; 0 where that is not told."""
    for field in _TIMES:
        value = info.get(field)
        if isinstance(value, datetime):
            return nanoseconds(_aware(value))
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value * 1_000_000_000)
        if isinstance(value, str):
            return _iso_ns(value)
    return 0


def _text(info: Mapping[str, Any], field: str) -> str | None:
    value = info.get(field)
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        value = _aware(value).isoformat()
    if isinstance(value, bytes | bytearray):
        value = value.hex()
    return f"{field}={value};{info.get('size')}" if field in _TIMES else f"{field}={value}"


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _iso_ns(value: str) -> int:
    try:
        return nanoseconds(_aware(datetime.fromisoformat(value)))
    except ValueError:
        return 0
