"""A holder process for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.csi.holding import HolderProcess, running_holder


@pytest.fixture
def holder() -> Iterator[HolderProcess]:
    with running_holder() as process:
        yield process
