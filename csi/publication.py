"""What a NodePublishVolume asks for, checked: a pure function from the request to values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from agent.control.views import MountRequest
from csi.failures import InvalidArgument
from csi.proto import csi_pb2

# volumeAttributes and the fields of the agent's request that they become.
ATTRIBUTES: Final = {
    "uri": "uri",
    "revision": "revision",
    "subPath": "sub_path",
    "include": "include",
    "exclude": "exclude",
    "prefetch": "prefetch",
    "onOriginDown": "on_origin_down",
}
LISTS: Final = ("include", "exclude")  # patterns between commas
KUBELET_PREFIX: Final = "csi.storage.k8s.io/"  # what kubelet itself adds to the context, about the pod
MOUNT_FLAGS: Final = ("ro", "nosuid", "nodev")  # those that every mount has anyway
MAX_VOLUME_ID: Final = 128  # bytes (CSI 1.11, "Size Limits")


@dataclass(frozen=True, slots=True)
class Publication:
    """One volume on one target, and what the agent is asked for."""

    volume: str
    target: str
    request: MountRequest

    @property
    def wanted(self) -> str:
        """A digest of the attributes, without secrets: the same volume asks for the same."""
        plain = self.request.model_dump(mode="json", exclude={"secrets"})
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def publication(request: csi_pb2.NodePublishVolumeRequest) -> Publication:
    """Check a request. Raises InvalidArgument that names the field.

    Every access mode is taken, and what is mounted is read-only whatever `readonly` says. An ephemeral inline
    volume (`csi.storage.k8s.io/ephemeral`) is as good as a persistent one.
    """
    volume = volume_id(request.volume_id)
    if not request.target_path:
        raise InvalidArgument("target_path: is missing")
    _check_capability(request)
    return Publication(
        volume, request.target_path, mount_request(dict(request.volume_context), dict(request.secrets))
    )


def volume_id(text: str) -> str:
    """A volume's id, checked. Raises InvalidArgument."""
    if not text:
        raise InvalidArgument("volume_id: is missing")
    if len(text.encode()) > MAX_VOLUME_ID:
        raise InvalidArgument(f"volume_id: has more than {MAX_VOLUME_ID} bytes")
    if not text.isprintable() or ".." in text.split("/"):
        raise InvalidArgument("volume_id: must be printable and without '..' between slashes")
    return text


def mount_request(context: Mapping[str, str], secrets: Mapping[str, str]) -> MountRequest:
    """What the agent is asked for. Raises InvalidArgument that names the attribute, never a secret."""
    for name in sorted(context):
        if name not in ATTRIBUTES and not name.startswith(KUBELET_PREFIX):
            known = ", ".join(ATTRIBUTES)
            raise InvalidArgument(f"volume_context.{name[:64]}: unknown attribute; there are {known}")
    if not context.get("uri"):
        raise InvalidArgument("volume_context.uri: is missing")
    fields = {
        field: _patterns(context[name]) if name in LISTS else context[name]
        for name, field in ATTRIBUTES.items()
        if name in context
    }
    try:
        return MountRequest.model_validate({**fields, "secrets": dict(secrets)}, strict=False)
    except ValidationError as error:
        raise InvalidArgument(_first(error)) from None


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in text.split(",")) if text.strip() else ()


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = str(problem["loc"][0])
    name = next((name for name, known in ATTRIBUTES.items() if known == field), None)
    where = f"volume_context.{name}" if name else field
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"


def _check_capability(request: csi_pb2.NodePublishVolumeRequest) -> None:
    if not request.HasField("volume_capability"):
        raise InvalidArgument("volume_capability: is missing")
    if request.volume_capability.WhichOneof("access_type") != "mount":
        raise InvalidArgument("volume_capability: must be a mount; block volumes are not served")
    for flag in request.volume_capability.mount.mount_flags:
        if flag not in MOUNT_FLAGS:
            raise InvalidArgument(f"volume_capability.mount.mount_flags: unknown flag {flag!r}")
