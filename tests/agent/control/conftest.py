from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.control.api import application
from agent.control.client import AdminClient
from agent.control.server import serve_admin
from tests.harness.controlled import InMemoryAgent


@pytest.fixture
def agent() -> InMemoryAgent:
    return InMemoryAgent()


@pytest.fixture
async def admin_socket(agent: InMemoryAgent, traversable: Path) -> AsyncIterator[Path]:
    """The real application on a real UNIX socket."""
    path = traversable / "admin.sock"
    runner = await serve_admin(application(agent), path)
    yield path
    await runner.cleanup()


@pytest.fixture
async def client(admin_socket: Path) -> AsyncIterator[AdminClient]:
    async with AdminClient(str(admin_socket), timeout=10) as client:
        yield client
