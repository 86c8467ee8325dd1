"""How a call ends on the wire: its answer, a failure of the table, or a fault of ours."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio
import pytest

from agent.control.client import AdminError
from csi import services
from csi.answering import handler
from csi.failures import AGENT_CODES, HOLDER_CODES, InvalidArgument, NotPublished, TargetTaken, grpc_status
from csi.holder.client import HolderGone
from csi.holder.protocol import Refused
from csi.proto import csi_pb2

Code = grpc.StatusCode
# isFinalError of Kubernetes (pkg/volume/csi): after these kubelet does not know whether the volume is there.
UNCERTAIN = {Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED}


async def ending(path: Path, failure: Exception | None) -> tuple[grpc.StatusCode, str]:
    """How Probe ends where its handler fails like this."""

    async def answer(_request: csi_pb2.ProbeRequest) -> csi_pb2.ProbeResponse:
        if failure is not None:
            raise failure
        return csi_pb2.ProbeResponse()

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([handler(services.PROBE, answer)])
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    options = [("grpc.default_authority", "localhost")]
    try:
        async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
            probe: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
            probe = channel.unary_unary("/csi.v1.Identity/Probe")
            call = probe(b"", timeout=10)
            code, details = await call.code(), await call.details()
            return code, details or ""
    finally:
        await server.stop(None)


async def test_an_answer_is_ok(traversable: Path) -> None:
    assert (await ending(traversable / "s", None))[0] is Code.OK


async def test_a_failure_of_the_table_has_its_code_and_line(traversable: Path) -> None:
    failure = InvalidArgument("volume_id: is missing")
    assert await ending(traversable / "s", failure) == (Code.INVALID_ARGUMENT, "volume_id: is missing")


async def test_a_fault_of_ours_is_uncertain(traversable: Path) -> None:
    assert (await ending(traversable / "s", ZeroDivisionError()))[0] in UNCERTAIN


@pytest.mark.parametrize(
    "failure",
    [
        AdminError(0, "unreachable", "no agent"),
        AdminError(500, "StoreFailed", "no"),
        AdminError(599, "unknown", "no"),
        Refused("failed", "bind: no"),
        Refused("a code of another release", "no"),
        HolderGone("no holder"),
        OSError(5, "Input/output error"),
    ],
)
def test_what_may_leave_something_behind_is_uncertain(failure: Exception) -> None:
    assert grpc_status(failure)[0] in UNCERTAIN


def test_what_leaves_nothing_behind_is_final() -> None:
    for failure in (InvalidArgument("x"), TargetTaken("x"), NotPublished("x")):
        assert grpc_status(failure)[0] not in UNCERTAIN
    assert not {HOLDER_CODES[code] for code in ("bad-request", "bad-target", "bound")} & UNCERTAIN
    assert not {AGENT_CODES[status] for status in (400, 403, 404, 412, 502)} & UNCERTAIN
