"""A holder, a serve and a small agent, real processes and real mounts.

A test that asks for `holder` has all three for itself, and may do harm to them. The others of a module share
a holder and a serve, which each of them leaves as it found them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from csi.holder import kernel
from tests.csi.holding import HolderProcess, entries_below, running_holder
from tests.csi.serving import ServeProcess, SmallAgent, points

Pair = tuple[HolderProcess, ServeProcess]


@pytest.fixture
def holder() -> Iterator[HolderProcess]:
    with running_holder() as process:
        yield process


@pytest.fixture(scope="module")
def shared() -> Iterator[Pair]:
    """The module's holder and serve."""
    with running_holder() as process:
        serve = ServeProcess(process.base)
        yield process, serve
        serve.close()


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The test's own holder and serve, or the module's."""
    if "holder" in request.fixturenames:
        own: HolderProcess = request.getfixturevalue("holder")
        process = ServeProcess(own.base)
        yield own, process
        process.close()
        return
    common: Pair = request.getfixturevalue("shared")
    yield common
    _, serve = common
    for entry in reversed(entries_below(serve.pods)):
        kernel.unmount(entry.point, kernel.MNT_DETACH)
    shutil.rmtree(serve.pods)
    serve.pods.mkdir()


@pytest.fixture
def serve(pair: Pair) -> ServeProcess:
    return pair[1]


@pytest.fixture
def agent(pair: Pair) -> Iterator[SmallAgent]:
    holder, serve = pair
    small = SmallAgent(holder, serve.admin_socket)
    with small.serving():
        yield small
        if serve.popen.poll() is None:  # the next claim finds no mount
            for name in points(serve):
                serve.unpublish(serve.pods / name)
    small.close()
