"""Signed plain GETs for S3 objects: values in, a RangedGet out, no I/O.

botocore's own S3SigV4Auth signs, so canonicalisation is the SDK's; the path is quoted once, here, and sent
as it was signed, whatever the key looks like: S3 neither normalises nor decodes twice
(https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlsplit

from botocore.auth import S3SigV4Auth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import ReadOnlyCredentials  # type: ignore[import-untyped]

from agent.content import Extent
from agent.origin.url import endpoint_of, host_header, range_header, request_target
from agent.origin.version import expect_header, quoted
from agent.transfer.request import RangedGet

PROBE_KEY = "k"


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


def ranged_get(
    address: BucketAddress,
    wanted: Wanted,
    credentials: ReadOnlyCredentials | None,
    *,
    verify_tls: bool,
    stall_timeout: float,
) -> RangedGet:
    """A GET of `wanted`, conditional on its version; unsigned where there are no credentials."""
    url = address.base + object_path(wanted.key)
    endpoint = endpoint_of(url)
    etag = quoted(wanted.version)
    headers = {
        "Host": host_header(endpoint),
        "Range": range_header(wanted.extent),
        "If-Match": etag,
        "Accept-Encoding": "identity",
    }
    if credentials is not None:
        headers = _signed(url, headers, credentials, address.region)
    return RangedGet(
        endpoint=endpoint,
        target=request_target(url),
        headers=headers,
        extent=wanted.extent,
        size=wanted.size,
        check=expect_header("etag", etag, wanted.name),
        name=wanted.name,
        as_stored=True,
        verify_tls=verify_tls,
        stall_timeout=stall_timeout,
    )


def _signed(
    url: str, headers: dict[str, str], credentials: ReadOnlyCredentials, region: str
) -> dict[str, str]:
    request = AWSRequest(method="GET", url=url, headers=headers)
    S3SigV4Auth(credentials, "s3", region).add_auth(request)
    return dict(request.headers.items())
