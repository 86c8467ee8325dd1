"""What can go wrong in a CSI call, and the one table of its gRPC codes (csi/README.md shows it)."""

from __future__ import annotations

from typing import Final

import grpc

from agent.control.client import AdminError
from csi.holder.client import HolderGone
from csi.holder.protocol import Refused


class InvalidArgument(Exception):
    """A request that makes no sense: one line that starts with the field's name."""


class TargetTaken(Exception):
    """Another volume is published on the target."""


AGENT_CODES: Final = {
    0: grpc.StatusCode.UNAVAILABLE,  # no answer
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,  # the origin changed meanwhile
    502: grpc.StatusCode.FAILED_PRECONDITION,
    503: grpc.StatusCode.UNAVAILABLE,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
HOLDER_CODES: Final = {
    "bad-request": grpc.StatusCode.INVALID_ARGUMENT,
    "bad-target": grpc.StatusCode.INVALID_ARGUMENT,
    "bound": grpc.StatusCode.ALREADY_EXISTS,
    "no-mount": grpc.StatusCode.ABORTED,
    "unsupported": grpc.StatusCode.FAILED_PRECONDITION,
}
FAILURES: Final = (InvalidArgument, TargetTaken, AdminError, Refused, HolderGone, OSError)


def grpc_status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The code and the one line for one of `FAILURES`."""
    if isinstance(error, AdminError):
        return AGENT_CODES.get(error.status, grpc.StatusCode.INTERNAL), f"agent: {error.message}"
    if isinstance(error, Refused):
        return HOLDER_CODES.get(error.code, grpc.StatusCode.INTERNAL), f"holder: {error.message}"
    if isinstance(error, InvalidArgument):
        return grpc.StatusCode.INVALID_ARGUMENT, str(error)
    if isinstance(error, TargetTaken):
        return grpc.StatusCode.ALREADY_EXISTS, str(error)
    if isinstance(error, HolderGone):
        return grpc.StatusCode.UNAVAILABLE, str(error)
    return grpc.StatusCode.INTERNAL, str(error)
