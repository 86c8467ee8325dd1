"""What agents say to each other over HTTP/1.1: paths, headers, and how an object is named in them.

    GET /peer/v1/objects/<key>      Range: bytes=<first>-<last>      -> 206, units with their digests

`<key>` is the object's key (32 hex digits, agent/content.py). `Headrace-Object` has what the key is made of,
so that an agent that has the object can open it: base64url of a JSON list [uri, version, size].
`Headrace-Units` says in request and answer of what kind units and digests are (agent/peers/units.py); who
knows another kind only answers 404. The range is of whole units. Behind each unit comes its digest, so that
Content-Length is more than the range, which Content-Range says.
`Headrace-Urgent: 1` says that a reader waits for the bytes; any other value says nothing. Every
request has a token (agent/peers/token.py); one with a body has its SHA-256 in `Headrace-Body`, which the
token covers.
"""

from __future__ import annotations

import base64
import json
import re

from agent.content import Extent, ObjectRef
from agent.errors import BadRequest

PREFIX = "/peer/v1"
OBJECT_HEADER = "Headrace-Object"
BODY_HEADER = "Headrace-Body"
URGENT_HEADER = "Headrace-Urgent"
URGENT = "1"
UNITS_HEADER = "Headrace-Units"
KEY = re.compile("[0-9a-f]{32}", re.ASCII)
LONGEST_RANGE = 256 << 20  # bytes: the largest chunk
LONGEST_NAME = 6000  # characters of `Headrace-Object`; a key of S3 has 1,024 bytes at most
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})", re.ASCII)


def object_target(ref: ObjectRef) -> str:
    """The request target for an object's bytes."""
    return f"{PREFIX}/objects/{ref.key}"


def object_name(ref: ObjectRef) -> str:
    """The value of `Headrace-Object`."""
    return base64.urlsafe_b64encode(json.dumps([ref.uri, ref.version, ref.size]).encode()).decode("ascii")


def parse_object(key: str, name: str) -> ObjectRef:
    """The object of a request. Raises BadRequest where key and name are not of one."""
    if not KEY.fullmatch(key) or len(name) > LONGEST_NAME:
        raise BadRequest("no such object")
    try:
        uri, version, size = json.loads(base64.urlsafe_b64decode(name))
        if not (isinstance(uri, str) and isinstance(version, str) and type(size) is int):
            raise ValueError
        ref = ObjectRef(uri, version, size)
        found = ref.key
    except (ValueError, TypeError, RecursionError):
        raise BadRequest(f"{OBJECT_HEADER} names no object") from None
    if found != key:
        raise BadRequest(f"{OBJECT_HEADER} names another object")
    return ref


def range_header(extent: Extent) -> str:
    """The value of Range for an extent (RFC 9110, 14.2)."""
    return f"bytes={extent.offset}-{extent.end - 1}"


def parse_range(value: str | None, size: int) -> Extent:
    """The one range of a request. Raises BadRequest for anything else than `bytes=a-b` in the object."""
    found = _RANGE.fullmatch(value or "")
    if found is None:
        raise BadRequest("one range is needed, as in bytes=0-1048575")
    first, last = int(found[1]), int(found[2])
    if not first <= last < size or last - first >= LONGEST_RANGE:
        raise BadRequest("the range is not in the object, or too long")
    return Extent(first, last - first + 1)
