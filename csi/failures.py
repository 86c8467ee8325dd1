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


class NotPublished(Exception):
    """The volume is not on that path."""


# A final code tells kubelet that nothing is left behind: it forgets the volume. Where that is not sure the
# code must be one that it takes as uncertain (Canceled, DeadlineExceeded, Unavailable, ResourceExhausted,
# Aborted), after which it unpublishes or tries again (isFinalError of kubernetes, pkg/volume/csi).
UNCERTAIN: Final = grpc.StatusCode.UNAVAILABLE
AGENT_CODES: Final = {
    0: UNCERTAIN,  # no answer
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,  # the origin changed meanwhile
    412: grpc.StatusCode.FAILED_PRECONDITION,  # the revision that was named is not to be had
    502: grpc.StatusCode.FAILED_PRECONDITION,
    503: UNCERTAIN,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# Those that the holder answers before it does anything; after any other it may have done a part.
HOLDER_CODES: Final = {
    "bad-request": grpc.StatusCode.INVALID_ARGUMENT,
    "bad-target": grpc.StatusCode.INVALID_ARGUMENT,
    "bound": grpc.StatusCode.ALREADY_EXISTS,
    "no-mount": grpc.StatusCode.ABORTED,
    "unsupported": grpc.StatusCode.FAILED_PRECONDITION,
}
_OWN_CODES: Final = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    TargetTaken: grpc.StatusCode.ALREADY_EXISTS,
    NotPublished: grpc.StatusCode.NOT_FOUND,
}
FAILURES: Final = (InvalidArgument, TargetTaken, NotPublished, AdminError, Refused, HolderGone, OSError)


def grpc_status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The code and the one line for one of `FAILURES`."""
    if isinstance(error, AdminError):
        return AGENT_CODES.get(error.status, UNCERTAIN), f"agent: {error.message}"
    if isinstance(error, Refused):
        return HOLDER_CODES.get(error.code, UNCERTAIN), f"holder: {error.message}"
    return _OWN_CODES.get(type(error), UNCERTAIN), str(error)
