"""How an origin's proof of a version is read and compared (RFC 9110, sections 8.8 and 13.1).

The version text of an object goes into its identity in the store, so its form must not change:
S3 keeps a strong ETag without its quotes; HTTP keeps headers as they were sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from agent.errors import OriginMisbehaved, VersionChanged

_STRONG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')  # RFC 9110, 8.8.3
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_strong(etag: str) -> bool:
    """Whether a header's value is a strong entity tag; only those prove that bytes are the same."""
    return _STRONG.fullmatch(etag) is not None


def unquoted(etag: str) -> str:
    """A strong ETag without its quotes; a weak one (`W/"..."`) stays as it is, and so stays weak."""
    return etag[1:-1] if is_strong(etag) else etag


def quoted(version: str) -> str:
    """The opposite of `unquoted`."""
    return version if version.startswith('W/"') else f'"{version}"'


def expect_header(header: str, value: str, name: str) -> Callable[[Mapping[str, str]], None]:
    """A check that a response's `header` (lower case) is `value`.

    It raises VersionChanged where it is another, OriginMisbehaved where the response does not say.
    """

    def check(headers: Mapping[str, str]) -> None:
        got = headers.get(header)
        if got is None:
            raise OriginMisbehaved(f"{name}: the origin sent bytes without saying which version ({header})")
        if got != value:
            raise VersionChanged(f"{name} has changed at the origin; mount it again for the new version")

    return check


def nanoseconds(moment: datetime) -> int:
    """Nanoseconds since 1970 of a time that names its zone."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def http_date_ns(value: str | None) -> int:
    """Nanoseconds since 1970 of an HTTP date (RFC 9110, 5.6.7); 0 where there is none or it is malformed."""
    if not value:
        return 0
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0
    return nanoseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
