"""`headrace-csi`: the commands' arguments and exit statuses; each command's work is in its own module.

Modules are imported by the command that needs them: the holder stays small, without gRPC in its process.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from csi.holder.hold import CannotHold, hold
from csi.holder.sockets import SocketTaken

RUN_DIRECTORY = "/run/headrace"
CSI_SOCKET = f"{RUN_DIRECTORY}/csi.sock"
HOLDER_SOCKET = f"{RUN_DIRECTORY}/holder.sock"
ADMIN_SOCKET = f"{RUN_DIRECTORY}/admin.sock"
TARGET_ROOT = "/var/lib/kubelet"
MAX_NODE_ID = 192  # bytes; CSI allows 256, Kubernetes 192 (CSINode, spec.drivers[].nodeID)
REGISTRATION_SOCKET = f"{TARGET_ROOT}/plugins_registry/csi.headrace.io-reg.sock"
# volume attribute, option, help
VOLUME_OPTIONS = (
    ("revision", "--revision", "exactly this revision of the dataset"),
    ("subPath", "--sub-path", "only this directory of it"),
    ("include", "--include", "only files that match one of these globs, between commas"),
    ("exclude", "--exclude", "no files that match one of these"),
    ("prefetch", "--prefetch", "none, file (ahead of each reader; the default) or all (everything, at once)"),
    ("onOriginDown", "--on-origin-down", "fail (the default) or last (what was there last)"),
)


class _Failed(Exception):
    """What a command ends with: one line."""


def _build() -> str:
    from importlib.metadata import version  # it loads the email package

    return version("headrace")


class _ShowBuild(argparse.Action):
    """`--version`, which looks for the version only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the program's version and end")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        _say(f"{parser.prog} {_build()}")
        parser.exit()


def _hold(arguments: argparse.Namespace) -> None:
    _need_root()
    hold(arguments.holder_socket, arguments.agent_user, arguments.store, _build())


def _serve(arguments: argparse.Namespace) -> None:
    gc.disable()  # what the imports make is there for good: no need to look for garbage in it
    from csi.serve import ServeSettings, serve

    gc.freeze()
    gc.enable()
    _need_root()
    if not 0 < len(arguments.node_id.encode()) <= MAX_NODE_ID:
        raise _Failed(f"--node-id: must have 1 to {MAX_NODE_ID} bytes")
    for root in arguments.target_root or ():
        if not os.path.isdir(root):
            raise _Failed(f"--target-root: {root} is not a directory; make it first")
    if arguments.registration_socket is not None:
        plugins = os.path.dirname(os.path.abspath(arguments.registration_socket))
        if not os.path.isdir(plugins):
            raise _Failed(f"--registration-socket: {plugins} is not there; is kubelet running here?")
    directory = os.path.dirname(os.path.abspath(arguments.csi_socket))
    if not os.path.isdir(directory):
        raise _Failed(f"--csi-socket: {directory} is not there; `headrace-csi hold` makes {RUN_DIRECTORY}")
    serve(
        ServeSettings(
            csi_socket=arguments.csi_socket,
            holder_socket=arguments.holder_socket,
            admin_socket=arguments.admin_socket,
            target_roots=arguments.target_root or [TARGET_ROOT],
            node_id=arguments.node_id,
            build=_build(),
            registration_socket=arguments.registration_socket,
            kubelet_csi_socket=arguments.kubelet_csi_socket,
        )
    )


def _mount(arguments: argparse.Namespace) -> None:
    from csi.mounting import CallFailed, mount, secrets_of

    _need_root()
    try:
        secrets = secrets_of(arguments.secrets_file) if arguments.secrets_file else {}
        path = mount(arguments.csi_socket, _attributes(arguments), arguments.target, secrets)
    except CallFailed as error:
        raise _Failed(str(error)) from error
    _say(f"{arguments.uri.partition('?')[0]} is on {path}")


def _umount(arguments: argparse.Namespace) -> None:
    from csi.mounting import CallFailed, umount

    _need_root()
    try:
        path = umount(arguments.csi_socket, arguments.target)
    except CallFailed as error:
        raise _Failed(str(error)) from error
    _say(f"{path} is free")


def _status(arguments: argparse.Namespace) -> None:
    from csi.status import StatusFailed, status

    try:
        status(arguments.holder_socket, arguments.admin_socket, _build(), as_json=arguments.json)
    except StatusFailed as error:
        raise _Failed(str(error)) from error


def _manifest(arguments: argparse.Namespace) -> None:
    from csi.manifest import BadManifest, manifest

    try:
        text = manifest(_attributes(arguments), arguments.name, arguments.namespace, arguments.secret)
    except BadManifest as error:
        raise _Failed(str(error)) from error
    _say(text, end="")


def _attributes(arguments: argparse.Namespace) -> dict[str, str]:
    """The volume attributes that were given (csi/README.md)."""
    names = ("uri", *(name for name, _, _ in VOLUME_OPTIONS))
    given = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _add_attributes(command: argparse.ArgumentParser) -> None:
    for name, option, text in VOLUME_OPTIONS:
        command.add_argument(option, dest=name, metavar="TEXT", help=text)


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end)  # noqa: T201


def _need_root() -> None:
    if os.geteuid() != 0:
        raise _Failed("mounting needs root; run it with sudo")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace-csi", description="Mounts Headrace datasets.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_ShowBuild)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("hold", help="mount, and keep the descriptors", allow_abbrev=False)
    command.add_argument("--holder-socket", default=HOLDER_SOCKET, metavar="PATH")
    command.add_argument("--agent-user", metavar="NAME", help="whom to serve beside root")
    command.add_argument(
        "--store", action="append", default=[], metavar="DIR", help="a store's directory; repeatable"
    )
    command.set_defaults(run=_hold)

    command = commands.add_parser("serve", help="serve CSI's node calls", allow_abbrev=False)
    command.add_argument("--csi-socket", default=CSI_SOCKET, metavar="PATH")
    command.add_argument("--holder-socket", default=HOLDER_SOCKET, metavar="PATH")
    command.add_argument("--admin-socket", default=ADMIN_SOCKET, metavar="PATH")
    command.add_argument(
        "--target-root", action="append", metavar="DIR", help=f"repeatable; default {TARGET_ROOT}"
    )
    command.add_argument(
        "--node-id", default=socket.gethostname(), metavar="NAME", help="default: the host's name"
    )
    command.add_argument(
        "--registration-socket",
        metavar="PATH",
        help=f"register with kubelet here; on Kubernetes {REGISTRATION_SOCKET}; default: not at all",
    )
    command.add_argument(
        "--kubelet-csi-socket", metavar="PATH", help="how kubelet names the CSI socket; default: the same"
    )
    command.set_defaults(run=_serve)

    _add_user_commands(commands)
    return parser


def _add_user_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("mount", help="mount a dataset on a directory", allow_abbrev=False)
    command.add_argument("--csi-socket", default=CSI_SOCKET, metavar="PATH")
    _add_attributes(command)
    command.add_argument(
        "--secrets-file", metavar="FILE", help="lines name=value, as access_key_id=...; mode 0600"
    )
    command.add_argument("uri", metavar="URI")
    command.add_argument("target", metavar="TARGET")
    command.set_defaults(run=_mount)

    command = commands.add_parser("umount", help="take it off again", allow_abbrev=False)
    command.add_argument("--csi-socket", default=CSI_SOCKET, metavar="PATH")
    command.add_argument("target", metavar="TARGET")
    command.set_defaults(run=_umount)

    command = commands.add_parser(
        "status", help="list the mounts of this node, with their targets", allow_abbrev=False
    )
    command.add_argument("--holder-socket", default=HOLDER_SOCKET, metavar="PATH")
    command.add_argument("--admin-socket", default=ADMIN_SOCKET, metavar="PATH")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=_status)

    command = commands.add_parser(
        "manifest", help="print the PersistentVolume and the claim to apply", allow_abbrev=False
    )
    command.add_argument("uri", metavar="URI")
    command.add_argument("--name", required=True, metavar="NAME", help="of both")
    command.add_argument("--namespace", default="default", metavar="NAME", help="the claim's")
    command.add_argument(
        "--secret", metavar="NAME", help="a Secret of that namespace with the volume's credentials"
    )
    _add_attributes(command)
    command.set_defaults(run=_manifest)


def main() -> int:
    """Run a command; the exit status of DESIGN.md: 0 done, 1 failed, 2 wrong usage (argparse)."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    try:
        arguments.run(arguments)
    except (_Failed, CannotHold, SocketTaken) as error:
        return _failed(arguments.command, str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(arguments.command, f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        return _failed(arguments.command, "interrupted")
    return 0


def _failed(command: str, line: str) -> int:
    print(f"headrace-csi {command}: {line}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
