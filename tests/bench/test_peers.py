"""What the measurements of peers rest on."""

from __future__ import annotations

import asyncio
import os
import threading

from bench.peers.relay import a_thread_each


async def test_all_nodes_are_read_at_the_same_time_however_few_cores_there_are() -> None:
    nodes = (os.cpu_count() or 1) + 40  # a loop has four threads more than cores by itself, 32 at the most
    a_thread_each(nodes)
    together = threading.Barrier(nodes)  # passed only by as many as there are nodes

    await asyncio.gather(*(asyncio.to_thread(together.wait, 10.0) for _ in range(nodes)))
