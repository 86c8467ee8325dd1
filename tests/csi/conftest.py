"""A holder, a serve and a small agent for each test that asks for one, real processes and real mounts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.csi.holding import HolderProcess, running_holder
from tests.csi.serving import ServeProcess, SmallAgent


@pytest.fixture
def holder() -> Iterator[HolderProcess]:
    with running_holder() as process:
        yield process


@pytest.fixture
def serve(holder: HolderProcess) -> Iterator[ServeProcess]:
    process = ServeProcess(holder.base)
    yield process
    process.close()


@pytest.fixture
def agent(holder: HolderProcess, serve: ServeProcess) -> Iterator[SmallAgent]:
    small = SmallAgent(holder, serve.admin_socket)
    with small.serving():
        yield small
    small.close()
