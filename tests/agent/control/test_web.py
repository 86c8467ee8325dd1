from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from agent.control.server import serve_metrics
from agent.control.web import monitoring
from agent.metrics import Metrics


@asynccontextmanager
async def monitored(metrics: Metrics, unready: list[str]) -> AsyncIterator[aiohttp.ClientSession]:
    runner = await serve_metrics(monitoring(metrics, lambda: unready), ("127.0.0.1", 0))
    host, port = runner.addresses[0][:2]
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with aiohttp.ClientSession(f"http://{host}:{port}", timeout=timeout) as session:
            yield session
    finally:
        await runner.cleanup()


async def test_metrics_are_served_in_the_text_format_of_prometheus() -> None:
    metrics = Metrics("1")
    metrics.hit(4096)
    async with monitored(metrics, []) as session, session.get("/metrics") as answer:
        text = await answer.text()
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'headrace_reads_total{result="hit"} 1.0' in text.splitlines()


async def test_the_agent_is_healthy_while_its_loop_answers_and_ready_when_nothing_is_amiss() -> None:
    reasons = ["the mounts are not claimed", "the store is not open"]
    async with monitored(Metrics("1"), reasons) as session:
        async with session.get("/healthz") as answer:
            assert answer.status == 200
        async with session.get("/readyz") as answer:
            assert answer.status == 503
            assert (await answer.text()).splitlines() == reasons
        reasons.clear()
        async with session.get("/readyz") as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")
