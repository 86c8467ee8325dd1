"""The SDK's models are in memory before they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from agent.config import OriginConfig
from agent.metrics import Metrics
from agent.origin.catalog import Origins
from agent.origin.s3_models import models
from tests.harness.receiver import RecordingEngine
from tests.harness.s3 import SeaweedS3


class NoFiles:
    """A file loader of botocore that has none."""

    def exists(self, path: str) -> NoReturn:
        raise AssertionError(f"{path} is looked for")

    load_file = exists


async def test_a_client_that_is_made_after_the_preparation_reads_no_model(
    seaweed: SeaweedS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    seaweed.put("models", "f", b"12345")
    receiver = RecordingEngine()
    origins = Origins({"s3://": OriginConfig(endpoint_url=seaweed.endpoint)}, receiver, Metrics())
    await origins.prepare()
    monkeypatch.setattr(models(), "file_loader", NoFiles())
    (entry,) = (await origins.resolve("s3://models")).entries
    assert entry.ref.size == 5
    await origins.close()
    await receiver.close()
