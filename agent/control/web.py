"""What monitoring reads: /metrics for Prometheus, /healthz and /readyz for the kubelet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web

from agent.metrics import Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def monitoring(
    metrics: Metrics, unready: Callable[[], Sequence[str]], degraded: Callable[[], Sequence[str]] = list
) -> web.Application:
    """The application; `unready` gives the reasons why the agent cannot serve, none where it can, `degraded`
    what is wrong all the same."""

    async def show_metrics(request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")  # the loop answers: that is the check

    async def readyz(request: web.Request) -> web.Response:
        reasons = unready()
        said = reasons or ["ok", *(f"degraded: {fault}" for fault in degraded())]
        return web.Response(text="\n".join(said) + "\n", status=503 if reasons else 200)

    app = web.Application()
    app.router.add_get("/metrics", show_metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app
