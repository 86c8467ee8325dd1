"""One running Headrace for the tests of a module, each test with datasets of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.local.layout import AgentSettings
from deploy.local.stack import LocalStack
from tests.harness.s3 import SeaweedS3


@pytest.fixture(scope="module")
def stack(seaweed: SeaweedS3) -> Iterator[LocalStack]:
    """Holder, agent and CSI service; a reader's patience is 30 s."""
    with LocalStack(AgentSettings(patience="30s"), s3=seaweed) as running:
        yield running
