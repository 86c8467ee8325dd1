"""The SDK's models of S3: read once for all sessions, and ahead of their first use.

Clients are made on the loop, and reading the models is most of that: 50 ms for each session that reads them
itself, 8 ms with these (the first, which imports the SDK too, 400 ms).
"""

from __future__ import annotations

from functools import cache

from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore.loaders import Loader  # type: ignore[import-untyped]


@cache
def models() -> Loader:
    """The loader that sessions share, with all in it that an S3 client needs. The first call reads files."""
    session = AioSession()
    session.warm_up_loader_caches("s3")
    return session.get_component("data_loader")
