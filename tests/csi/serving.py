"""A real `headrace-csi serve` beside a real holder, and a small agent to ask, with real mounts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web

from agent.mount.holder import HeldMount, Holder, HolderRefused
from csi import services
from csi.proto import csi_pb2
from tests.csi.holding import WITHIN, HolderProcess, Process, answer_one, entries_below

Mode = csi_pb2.VolumeCapability.AccessMode


class ServeProcess(Process):
    """`headrace-csi serve`, its socket beside the holder's, targets below `base/pods`."""

    def __init__(self, base: Path, *arguments: str) -> None:
        run = base / "run"
        self.pods = base / "pods"
        self.pods.mkdir(exist_ok=True)
        self.socket = str(run / "csi.sock")
        self.admin_socket = str(run / "admin.sock")
        super().__init__(
            *("serve", "--csi-socket", self.socket, "--holder-socket", str(run / "holder.sock")),
            *("--admin-socket", self.admin_socket, "--target-root", str(self.pods), "--node-id", "node-1"),
            *arguments,
        )

    @contextlib.contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        options = [("grpc.default_authority", "localhost")]
        with grpc.insecure_channel(f"unix:{self.socket}", options=options) as channel:
            yield channel

    def publish(self, request: csi_pb2.NodePublishVolumeRequest) -> None:
        with self.channel() as channel:
            services.NODE_PUBLISH_VOLUME.call(channel, request, WITHIN)

    def refusal(self, request: csi_pb2.NodePublishVolumeRequest) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as raised:
            self.publish(request)
        assert isinstance(raised.value, grpc.Call)
        return raised.value.code(), raised.value.details() or ""

    def stats(self, target: Path | str, volume: str = "volume-1") -> csi_pb2.NodeGetVolumeStatsResponse:
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(target))
        with self.channel() as channel:
            return services.NODE_GET_VOLUME_STATS.call(channel, request, WITHIN)

    def unpublish(self, target: Path | str, volume: str = "volume-1") -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(target))
        with self.channel() as channel:
            services.NODE_UNPUBLISH_VOLUME.call(channel, request, WITHIN)


def publication(
    target: Path | str, uri: str = "s3://b/d", volume: str = "volume-1"
) -> csi_pb2.NodePublishVolumeRequest:
    """A request as kubelet makes it."""
    return csi_pb2.NodePublishVolumeRequest(
        volume_id=volume,
        target_path=str(target),
        volume_capability=csi_pb2.VolumeCapability(
            mount=csi_pb2.VolumeCapability.MountVolume(),
            access_mode=Mode(mode=Mode.MULTI_NODE_READER_ONLY),
        ),
        readonly=True,
        volume_context={"uri": uri, "csi.storage.k8s.io/pod.name": "p"},
    )


def points(serve: ServeProcess) -> list[str]:
    return sorted(os.path.basename(entry.point) for entry in entries_below(serve.pods))


def mountinfo(serve: ServeProcess) -> list[str]:
    """The lines about what is mounted for this test, on targets and beside the holder's socket."""
    own = f" {serve.pods.parent}/"
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if own in line]


class SmallAgent:
    """The calls of the admin API that serve makes, on real mounts: one a URI, INIT answered, no more.

    `lose_next` has the next mount given up again before its answer, as another unpublish could do it;
    `fail_next` has the next call answered with that status.
    """

    def __init__(self, holder: HolderProcess, admin_socket: str) -> None:
        self._claim, self._table, held = Holder.claim(holder.socket, "test")
        assert held == []
        self._admin_socket = admin_socket
        self.mounts: dict[str, HeldMount] = {}
        self.calls: list[str] = []
        self.orders: list[dict[str, Any]] = []
        self.lose_next = False
        self.fail_next = 0

    async def _mount(self, request: web.Request) -> web.Response:
        self.orders.append(await request.json())
        uri = self.orders[-1]["uri"]
        self.calls.append(f"mount {uri}")
        if self.fail_next:
            status, self.fail_next = self.fail_next, 0
            return web.json_response({"error": "scripted", "message": "no luck"}, status=status)
        name = f"m-{uri.encode().hex()}"[:64]
        if name not in self.mounts:
            self.mounts[name] = self._claim.mount(name, {})
            answer_one(self.mounts[name].fd)
        if self.lose_next:
            self.lose_next = False
            self._give_up(name)
        return web.json_response({"mount": name, "uri": uri, "revision": "r", "files": 2, "bytes": 30})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response([{"mount": name, "uri": "u", "revision": "r"} for name in self.mounts])

    async def _unmount(self, request: web.Request) -> web.Response:
        self.calls.append("unmount")
        with contextlib.suppress(HolderRefused):  # bound elsewhere: it is kept
            self._give_up(request.match_info["mount"])
        return web.Response(status=204)

    def _give_up(self, name: str) -> None:
        self._claim.unmount(name)
        os.close(self.mounts.pop(name).fd)

    def close(self) -> None:
        self._claim.close()
        for fd in (self._table.fd, *(held.fd for held in self.mounts.values())):
            os.close(fd)

    @contextlib.contextmanager
    def serving(self) -> Iterator[SmallAgent]:
        """Answer in a thread with a loop of its own."""
        ready, loop = threading.Event(), asyncio.new_event_loop()
        stopped = asyncio.Event()
        thread = threading.Thread(target=lambda: loop.run_until_complete(self._serve(ready, stopped)))
        thread.start()
        assert ready.wait(WITHIN)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stopped.set)
            thread.join(WITHIN)
            loop.close()

    async def _serve(self, ready: threading.Event, stopped: asyncio.Event) -> None:
        app = web.Application()
        app.router.add_post("/v1/mounts", self._mount)
        app.router.add_get("/v1/mounts", self._list)
        app.router.add_delete("/v1/mounts/{mount}", self._unmount)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, self._admin_socket).start()
        ready.set()
        await stopped.wait()
        await runner.cleanup()
