"""A presigned URL through the whole of Headrace: its query opens the file and is written nowhere."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path

import pytest

from agent.control.client import AdminClient
from deploy.local.stack import LocalStack
from tests.harness.reading import read, run
from tests.harness.web import Resource, WebServer

pytestmark = pytest.mark.timeout(120)

DATA = random.Random(12).randbytes(40 << 20)  # more than is fetched for the first read
SECRET = "presigned-secret"


def files_with(root: Path, text: str) -> list[Path]:
    """The files below `root` in which the text is; sockets and mounts are left out."""
    found = run(["grep", "-rlsa", "--devices=skip", "--exclude-dir=targets", "--", text, str(root)]).stdout
    return [Path(line) for line in found.splitlines()]


def test_the_query_of_a_presigned_url_outlives_the_agent_and_is_written_nowhere(stack: LocalStack) -> None:
    with WebServer() as server:
        server.paths["/m/f"] = Resource.tagged(DATA)
        mount = stack.mount(f"{server.url}/m/f?id=5&X-Amz-Signature={SECRET}")
        try:
            assert run(["dd", f"if={mount / 'f'}", "of=/dev/null", "bs=4k", "count=1"]).returncode == 0
            stack.kill_agent()
            stack.start_agent()
            assert read("sequential", mount / "f") == [hashlib.sha256(DATA).hexdigest()]
            assert {seen.path for seen in server.seen} == {f"/m/f?id=5&X-Amz-Signature={SECRET}"}
            assert files_with(stack.layout.root, SECRET) == []
            assert files_with(stack.layout.store, "query=redacted") != []
            assert asyncio.run(mounted_uris(stack)) == [f"{server.url}/m/f?id=5&query=redacted"]
        finally:
            stack.umount(mount)


async def mounted_uris(stack: LocalStack) -> list[str]:
    """The URIs of the mounts, as the admin API lists them."""
    async with AdminClient(str(stack.layout.admin_socket), 10.0) as agent:
        return [mount.uri for mount in await agent.mounts()]
