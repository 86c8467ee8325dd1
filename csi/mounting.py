"""`headrace-csi mount` and `umount`: kubelet's calls, made by hand, so that there is one way to mount."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc

from csi import services
from csi.proto import csi_pb2

MOUNT_DEADLINE = 330.0  # seconds: what serve gives a long listing, and some
UNMOUNT_DEADLINE = 60.0  # seconds
MAX_SECRETS = 64 * 1024  # characters of a secrets file


class CallFailed(Exception):
    """The CSI server is not there or refused: one line."""


def mount(
    csi_socket: str,
    attributes: Mapping[str, str],
    target: str,
    secrets: Mapping[str, str] | None = None,
    deadline: float = MOUNT_DEADLINE,
) -> str:
    """Publish a volume of these attributes (csi/publication.py) on the target; returns its full path.

    Raises CallFailed, after `deadline` seconds at the latest.
    """
    path = full_path(target)
    request = csi_pb2.NodePublishVolumeRequest(
        volume_id=volume_id(path),
        target_path=path,
        volume_capability=csi_pb2.VolumeCapability(
            mount=csi_pb2.VolumeCapability.MountVolume(),
            access_mode=csi_pb2.VolumeCapability.AccessMode(
                mode=csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY
            ),
        ),
        readonly=True,
        volume_context=attributes,
        secrets=secrets,
    )
    with _channel(csi_socket) as channel:
        services.NODE_PUBLISH_VOLUME.call(channel, request, deadline)
    return path


def umount(csi_socket: str, target: str) -> str:
    """Unpublish what is on the target; returns the target's full path. Raises CallFailed."""
    path = full_path(target)
    request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id(path), target_path=path)
    with _channel(csi_socket) as channel:
        services.NODE_UNPUBLISH_VOLUME.call(channel, request, UNMOUNT_DEADLINE)
    return path


def full_path(target: str) -> str:
    """Absolute, the parent's symbolic links resolved (serve follows none); the target is not touched."""
    absolute = os.path.abspath(target)
    return os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))


def volume_id(path: str) -> str:
    """The same for the same target, and short whatever the path."""
    return f"mount-{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}"


def secrets_of(path: str) -> dict[str, str]:
    """The secrets in a file of lines `name=value`, which only its owner may read. Raises CallFailed, OSError.

    Never on the command line: every user sees that.
    """
    with open(path, encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise CallFailed(f"{path}: others may read or change it; chmod 600 {path}")
        lines = file.read(MAX_SECRETS).splitlines()
    pairs = [line.partition("=") for line in lines if line.strip() and not line.startswith("#")]
    if any(not mark for _, mark, _ in pairs):
        raise CallFailed(f"{path}: each line must be name=value, as access_key_id=...")
    return {name.strip(): value.strip() for name, _, value in pairs}


@contextmanager
def _channel(csi_socket: str) -> Iterator[grpc.Channel]:
    path = os.path.abspath(csi_socket)
    _check_listening(path)
    # An authority of its own: grpc would make one of the path, which HTTP/2 servers may refuse.
    with grpc.insecure_channel(f"unix:{path}", options=[("grpc.default_authority", "localhost")]) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise CallFailed(_line(error)) from error


def _check_listening(path: str) -> None:
    """grpc tells a missing server late and in many words."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.connect(path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise CallFailed(f"CSI socket {path}: {reason}; start `headrace-csi serve`") from error


def _line(error: grpc.RpcError) -> str:
    """The server's own line; RpcError is a grpc.Call here, which the stubs do not say."""
    if not isinstance(error, grpc.Call):
        return str(error)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time; the agent may still be at it: try again"
    return " ".join((error.details() or error.code().name).split())
