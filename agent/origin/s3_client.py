"""The S3 client behind an origin: session, credentials, addresses of buckets, and what its errors mean.

s3fs makes and holds the aiobotocore client, so settings and credentials are found as its users know them
(environment, shared files, profile, web identity, instance metadata). Listing goes through that client;
objects are received elsewhere, with the credentials and addresses given out here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import s3fs  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore import exceptions as boto  # type: ignore[import-untyped]
from botocore.credentials import (  # type: ignore[import-untyped]
    ReadOnlyCredentials,
    RefreshableCredentials,
)
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from agent import trust
from agent.config import OriginConfig
from agent.errors import (
    AccessDenied,
    BadRequest,
    ObjectMissing,
    OriginError,
    OriginMisbehaved,
    OriginUnavailable,
    VersionChanged,
)
from agent.identity import OWN, Credentials
from agent.origin.budget import QUESTION_DEADLINE
from agent.origin.s3_models import models
from agent.origin.s3_sign import PROBE_KEY, BucketAddress, address_of

NO_CREDENTIALS = (
    "no S3 credentials; give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a web identity to the "
    "agent, or set anonymous = true"
)
_DENIED_CODES = {
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "ExpiredTokenException",
}  # sent with 400
_ELSEWHERE_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_BUSY_CODES = {"RequestTimeout", "SlowDown"}
_CONNECT_TIMEOUT = 5.0  # seconds; an endpoint that takes longer to accept is down


class S3Client:
    """One session and its clients; after `renew` another one, with credentials read anew."""

    def __init__(self, settings: OriginConfig, given: Credentials = OWN) -> None:
        """`given` are the credentials to use; without them those that the SDK finds."""
        self._settings = settings
        self._given = given
        self._anonymous = settings.anonymous and not given
        self._lock = asyncio.Lock()
        self._session: AioSession | None = None
        self._lasting: ReadOnlyCredentials | None = None  # the session's, where they do not expire
        self._files: Any = None
        self._clients: dict[str, Any] = {}
        self._retired: list[Any] = []
        self._addresses: dict[str, BucketAddress] = {}

    async def of(self, bucket: str) -> Any:
        """The aiobotocore client for a bucket (of its region). Raises OriginError."""
        async with self._lock:
            if bucket not in self._clients:
                async with self.asking(f"s3://{bucket}"):
                    await self._connect()
                    self._clients[bucket] = await self._files.get_s3(bucket)
            return self._clients[bucket]

    async def address(self, bucket: str) -> BucketAddress:
        """Where the bucket's objects are. Raises OriginError; BadRequest for an impossible name."""
        if bucket not in self._addresses:
            client = await self.of(bucket)
            async with self.asking(f"s3://{bucket}"):
                probe = {"Bucket": bucket, "Key": PROBE_KEY}
                url = await client.generate_presigned_url("get_object", Params=probe)
            self._addresses[bucket] = address_of(url)
        return self._addresses[bucket]

    async def credentials(self) -> ReadOnlyCredentials | None:
        """The credentials to sign with now, refreshed where they are about to expire; None if anonymous."""
        if self._anonymous:
            return None
        if self._lasting is not None:
            return self._lasting
        async with self._lock, self.asking("S3 credentials"):
            await self._connect()
            found = await _found(self._session)
            frozen = await found.get_frozen_credentials()
            if not isinstance(found, RefreshableCredentials):
                self._lasting = frozen
            return frozen

    async def renew(self, refused: ReadOnlyCredentials | None) -> bool:
        """Read the credentials anew because `refused` were; whether they are others now."""
        if self._anonymous:
            return False
        async with self._lock, self.asking("S3 credentials"):
            await self._connect()
            if await _frozen(self._session) != refused:
                return True
            if await _frozen(self._new_session()) == refused:
                return False
            await self._retire()
            return True

    async def close(self) -> None:
        """Close the connections; the client may be used again."""
        async with self._lock:
            await self._retire()
            await self._retire()

    @contextlib.asynccontextmanager
    async def asking(self, where: str) -> AsyncIterator[None]:
        """Bound one question to S3 by the deadline, and translate what goes wrong."""
        with translated(where):
            async with asyncio.timeout(min(self._settings.deadline, QUESTION_DEADLINE)):
                yield

    async def _connect(self) -> None:
        if self._files is not None:
            return
        await asyncio.to_thread(models)
        if self._settings.verify_tls:
            await asyncio.to_thread(trust.check_bundle)  # the SDK would not say what is wrong
        session = self._new_session()
        files = s3fs.S3FileSystem(
            session=session,
            anon=self._anonymous,
            endpoint_url=self._settings.endpoint_url,
            cache_regions=True,
            client_kwargs=_client_settings(self._settings, session),
            config_kwargs=_sdk_settings(self._settings),
            asynchronous=True,
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        self._clients[""] = await files.set_session()
        self._files, self._session = files, session

    async def _retire(self) -> None:
        """Let go of the session. Its clients may still be listing: they are closed by the next call."""
        old, self._retired = self._retired, list({id(one): one for one in self._clients.values()}.values())
        self._clients.clear()
        self._addresses.clear()
        self._files = self._session = self._lasting = None
        for client in old:
            await client.close()

    def _new_session(self) -> AioSession:
        session = AioSession(profile=None if self._given else self._settings.profile)
        session.register_component("data_loader", models())
        if not self._given:
            return session
        get = self._given.get
        session.set_credentials(get("access_key_id"), get("secret_access_key"), get("session_token"))
        return session


def _client_settings(settings: OriginConfig, session: AioSession) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    if not settings.verify_tls:
        chosen["verify"] = False
    elif not session.get_config_variable("ca_bundle") and (system := trust.system_file()):
        chosen["verify"] = system  # the SDK has certificates of its own, and knows AWS_CA_BUNDLE only
    if settings.region is not None:
        chosen["region_name"] = settings.region
    return chosen


def _sdk_settings(settings: OriginConfig) -> dict[str, Any]:
    # "virtual" falls back to path style for names that no host can have or no certificate covers; "auto"
    # presigns for the global endpoint, which answers for most regions with a redirect.
    path_style = settings.endpoint_url is not None if settings.path_style is None else settings.path_style
    return {
        "signature_version": "s3v4",
        "s3": {"addressing_style": "path" if path_style else "virtual"},
        "connect_timeout": min(_CONNECT_TIMEOUT, settings.deadline),
        "read_timeout": settings.deadline,
        "max_pool_connections": settings.max_connections,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    }


async def _found(session: AioSession | None) -> Any:
    found = await session.get_credentials() if session is not None else None
    if found is None:
        raise boto.NoCredentialsError
    return found


async def _frozen(session: AioSession | None) -> ReadOnlyCredentials:
    return await (await _found(session)).get_frozen_credentials()


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what botocore raises into agent.errors; `where` names the bucket or object in messages."""
    try:
        yield
    except boto.ClientError as error:
        raise _of_response(where, error) from error
    except boto.NoCredentialsError as error:
        raise AccessDenied(f"{where}: {NO_CREDENTIALS}") from error
    except boto.ParamValidationError as error:
        raise BadRequest(f"{where}: S3 allows no such bucket name or key") from error
    except boto.SSLError as error:
        raise OriginUnavailable(f"{where}: {_of_handshake(error)}") from error
    except (boto.HTTPClientError, boto.ConnectionError, TimeoutError, OSError) as error:
        raise OriginUnavailable(f"{where}: the S3 endpoint does not answer ({_kind(error)})") from error
    except ResponseParserError as error:
        raise OriginMisbehaved(f"{where}: the endpoint's answer is not S3's") from error
    except boto.BotoCoreError as error:
        raise AccessDenied(f"{where}: {_one_line(error)}; {NO_CREDENTIALS}") from error
    except ValueError as error:  # an "Invalid endpoint" that the environment names; what UTF-8 cannot say
        what = f"{where}: S3 cannot be asked for this ({_kind(error)})"
        raise OriginError(f"{what}; check the URI, endpoint_url and AWS_ENDPOINT_URL") from error


def _of_response(where: str, error: boto.ClientError) -> OriginError:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", "")) or str(status)
    if code == "NoSuchBucket":
        return ObjectMissing(f"{where}: there is no such bucket; check its name and endpoint_url")
    if status == 412:
        return VersionChanged(f"{where}: the object is not the version any more that was asked for")
    if status == 404:
        return ObjectMissing(f"{where}: there is no such object")
    if status in (401, 403) or code in _DENIED_CODES:
        return AccessDenied(
            f"{where}: access denied ({code}); check the credentials and their right to list and read here"
        )
    if status == 301 or code in _ELSEWHERE_CODES:
        return OriginError(f"{where}: the bucket is in another region ({code}); set region for this origin")
    if status in (408, 429) or status >= 500 or code in _BUSY_CODES:
        return OriginUnavailable(f"{where}: S3 cannot answer now ({status} {code})")
    return OriginMisbehaved(f"{where}: S3 refused the request ({status} {code})")


def _of_handshake(error: boto.SSLError) -> str:
    certificate = getattr(error.kwargs.get("error"), "certificate_error", None)
    if certificate is None:
        return f"the S3 endpoint does not answer ({_kind(error)})"
    return trust.refusal("endpoint", certificate)


def _kind(error: Exception) -> str:
    return type(error).__name__


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
