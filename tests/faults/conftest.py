"""Headrace with a scripted proxy between the agent and the S3 server, and little patience."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deploy.local.layout import AgentSettings, OriginSettings
from deploy.local.stack import LocalStack
from tests.fakes.scripted_proxy import ScriptedProxy
from tests.harness.s3 import SeaweedS3

PATIENCE = 4.0  # seconds that a reader waits
DEADLINE = 2.0  # seconds of one request with its retries


@dataclass(frozen=True)
class Line:
    """The stack, and the proxy through which its agent reaches the origin."""

    stack: LocalStack
    proxy: ScriptedProxy


@pytest.fixture(scope="module")
def running(seaweed: SeaweedS3) -> Iterator[Line]:
    with ScriptedProxy(seaweed.endpoint) as proxy:
        reached: OriginSettings = {
            "endpoint_url": proxy.endpoint,
            "deadline": f"{DEADLINE:g}s",
            "max_connections": 100,
        }
        settings = AgentSettings(patience=f"{PATIENCE:g}s", origins={"s3://": reached})
        with LocalStack(settings, s3=seaweed) as stack:
            yield Line(stack, proxy)


@pytest.fixture
def line(running: Line) -> Iterator[Line]:
    """The same with a proxy that has no rules, and counts from nothing."""
    running.proxy.up()
    running.proxy.clear()
    running.proxy.forget()
    yield running
    running.proxy.clear()
    running.proxy.up()
