"""Signed plain GETs for S3 objects: values in, a RangedGet out, no I/O.

botocore's own S3SigV4Auth signs, so canonicalisation is the SDK's; the path is quoted once, here, and sent
as it was signed, whatever the key looks like: S3 neither normalises nor decodes twice
(https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from botocore.auth import S3SigV4Auth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import ReadOnlyCredentials  # type: ignore[import-untyped]

from agent.clock import Clock
from agent.content import Extent
from agent.origin.url import endpoint_of, host_header, range_header, request_target
from agent.origin.version import expect_header, quoted
from agent.transfer.request import Endpoint, RangedGet

PROBE_KEY = "k"
REUSE = 60.0  # seconds; S3 takes a signature for 15 minutes (AWS Signature Version 4, Request timestamp)
MOST_SIGNED = 1024  # signatures that are kept


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """Where a bucket's objects are: `base` is the URL up to and with the '/' before the key."""

    base: str
    region: str


def address_of(presigned: str) -> BucketAddress:
    """The address that botocore derived, read off the presigned (or, anonymous, plain) URL of PROBE_KEY.

    So virtual host or path style, dotted buckets, dual stack and endpoints are the SDK's decision.
    """
    parts = urlsplit(presigned)
    base = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix(PROBE_KEY)}"
    scope = parse_qs(parts.query).get("X-Amz-Credential", ["///"])[0].split("/")
    return BucketAddress(base=base, region=scope[-3])


def object_path(key: str) -> str:
    """The percent-encoded path of a key (unreserved characters of RFC 3986 and '/' stay as they are)."""
    return quote(key.encode("utf-8", "surrogateescape"), safe="/~")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A range of one version of an object, and how to call it in messages."""

    key: str
    version: str
    size: int
    extent: Extent
    name: str


class Signer:
    """Makes the GETs of one origin.

    A signature serves all ranges of an object's version for `REUSE` seconds: what S3 wants signed are Host
    and `x-amz-*`, and Range is sent beside them. Signing each chunk took a quarter of the loop's time while
    a file was read cold.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._period = 0
        self._signed: dict[_Object, _Get] = {}

    def ranged_get(
        self,
        address: BucketAddress,
        wanted: Wanted,
        credentials: ReadOnlyCredentials | None,
        *,
        verify_tls: bool,
        stall_timeout: float,
    ) -> RangedGet:
        """A GET of `wanted`, conditional on its version; unsigned where there are no credentials."""
        get = self._get(_Object(address, wanted.key, wanted.version, credentials))
        return RangedGet(
            endpoint=get.endpoint,
            target=get.target,
            headers={**get.headers, "Range": range_header(wanted.extent)},
            extent=wanted.extent,
            size=wanted.size,
            check=expect_header("etag", quoted(wanted.version), wanted.name),
            name=wanted.name,
            as_stored=True,
            verify_tls=verify_tls,
            stall_timeout=stall_timeout,
        )

    def _get(self, wanted: _Object) -> _Get:
        period = int(self._clock.time() // REUSE)  # of the wall clock, as the signature's date: it may be set
        if period != self._period or len(self._signed) >= MOST_SIGNED:
            self._period = period
            self._signed.clear()
        found = self._signed.get(wanted)
        if found is None:
            found = self._signed[wanted] = _signed(wanted)
        return found


class _Object(NamedTuple):
    address: BucketAddress
    key: str
    version: str
    credentials: ReadOnlyCredentials | None


class _Get(NamedTuple):
    endpoint: Endpoint
    target: str
    headers: dict[str, str]


def _signed(wanted: _Object) -> _Get:
    url = wanted.address.base + object_path(wanted.key)
    endpoint = endpoint_of(url)
    headers = {
        "Host": host_header(endpoint),
        "If-Match": quoted(wanted.version),
        "Accept-Encoding": "identity",
    }
    if wanted.credentials is not None:
        request = AWSRequest(method="GET", url=url, headers=headers)
        S3SigV4Auth(wanted.credentials, "s3", wanted.address.region).add_auth(request)
        headers = dict(request.headers.items())
    return _Get(endpoint, request_target(url), headers)
