"""Servers that many tests share: started on first use, stopped with the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.moto import MotoS3
from tests.harness.s3 import SeaweedS3


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    """A real S3 server (SeaweedFS). Give each test a bucket or a prefix of its own."""
    with SeaweedS3(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoS3]:
    """moto's S3 server, for keys that SeaweedFS refuses."""
    with MotoS3(tmp_path_factory.mktemp("moto")) as server:
        yield server
