"""What a NodePublishVolume asks for, checked: a pure function from the request to values."""

from __future__ import annotations

from dataclasses import dataclass

from csi.failures import InvalidArgument
from csi.proto import csi_pb2

ATTRIBUTES = ("uri",)
KUBELET_PREFIX = "csi.storage.k8s.io/"  # what kubelet itself adds to the context, about the pod
MOUNT_FLAGS = ("ro", "nosuid", "nodev")  # those that every mount has anyway


@dataclass(frozen=True, slots=True)
class Publication:
    """One volume on one target."""

    volume: str
    target: str
    uri: str


def publication(request: csi_pb2.NodePublishVolumeRequest) -> Publication:
    """Check a request. Raises InvalidArgument that names the field.

    Every access mode is taken, and what is mounted is read-only whatever `readonly` says.
    """
    if not request.volume_id:
        raise InvalidArgument("volume_id: is missing")
    if not request.target_path:
        raise InvalidArgument("target_path: is missing")
    _check_capability(request)
    if request.secrets:
        raise InvalidArgument(
            "secrets: this release takes none; the agent's configuration has the credentials"
        )
    return Publication(request.volume_id, request.target_path, _uri(request))


def _check_capability(request: csi_pb2.NodePublishVolumeRequest) -> None:
    if not request.HasField("volume_capability"):
        raise InvalidArgument("volume_capability: is missing")
    if request.volume_capability.WhichOneof("access_type") != "mount":
        raise InvalidArgument("volume_capability: must be a mount; block volumes are not served")
    for flag in request.volume_capability.mount.mount_flags:
        if flag not in MOUNT_FLAGS:
            raise InvalidArgument(f"volume_capability.mount.mount_flags: unknown flag {flag!r}")


def _uri(request: csi_pb2.NodePublishVolumeRequest) -> str:
    context = dict(request.volume_context)
    for name in sorted(context):
        if name not in ATTRIBUTES and not name.startswith(KUBELET_PREFIX):
            known = ", ".join(ATTRIBUTES)
            raise InvalidArgument(f"volume_context.{name}: unknown attribute; there is {known}")
    if not context.get("uri"):
        raise InvalidArgument("volume_context.uri: is missing")
    return context["uri"]
