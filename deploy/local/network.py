"""A small network of its own: a switch, and hosts on links of a stated speed, all in network namespaces.

The namespaces have no names: they live as long as a descriptor, a process or a thread is in them, so whatever
becomes of who made them, nothing of them is left. A thread enters one by `inside`; the processes that it
starts and the sockets that it makes there stay there. Each has a loopback of its own. Links are veth pairs
between host and bridge, shaped by tbf at both ends: a host sends and receives at the link's rate at once.

    host: eth0 (tbf: up) ──veth── port N (tbf: down), bridge :the switch
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNET = 0x40000000  # sched.h
OWN = "/proc/thread-self/ns/net"
COMMAND_WITHIN = 10.0  # seconds for ip and tc
# A packet as the stack made it (up to 64 KiB) has to fit the burst, or tbf cuts it up, which costs CPU.
BURST = "128kb"
# Machines differ in their default; this one every kernel lets a namespace choose. Over so short a way it does
# as cubic does; BBR shares a link among streams less evenly.
CONGESTION = "reno"
QUEUE = "20ms"  # of bytes that wait for a link: what a switch has, so that a hop adds little
_libc = ctypes.CDLL(None, use_errno=True)


class NetworkError(RuntimeError):
    """The network could not be made; the message is one line."""


class Namespace:
    """A network namespace, held by a descriptor."""

    def __init__(self) -> None:
        """Make one, with its loopback up. Raises OSError without root."""
        with _staying():
            _checked(_libc.unshare(CLONE_NEWNET))
            self._fd = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
            run("ip", "link", "set", "lo", "up")
            Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(CONGESTION)

    @property
    def path(self) -> str:
        """What `ip` takes for it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread be in it; processes that it starts are too, and stay."""
        with _staying():
            _enter(self._fd)
            yield

    def close(self) -> None:
        """Let go of it: it ends with the last process in it."""
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes over a host's link, as the link counts them."""

    sent: int
    received: int


class Host:
    """A host of a network."""

    def __init__(self, number: int, namespace: Namespace, address: str) -> None:
        self.number = number
        self.namespace = namespace
        self.address = address

    @property
    def port(self) -> str:
        """The switch's end of its link."""
        return f"port{self.number}"


class Network:
    """The switch and its hosts. A context manager: at its end nothing is left but what still runs inside."""

    def __init__(self) -> None:
        self._hosts: list[Host] = []
        self._switch = Namespace()
        with self._switch.inside():
            run("ip", "link", "add", "bridge", "type", "bridge")
            run("ip", "link", "set", "bridge", "up")

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            host.namespace.close()
        self._switch.close()

    def add(self, rate: str | None = None) -> Host:
        """A new host, its link shaped to `rate` each way ("200mbit"), or as fast as it is."""
        number = len(self._hosts) + 1
        host = Host(number, Namespace(), f"10.77.{number >> 8}.{number & 255}")
        self._hosts.append(host)
        with self._switch.inside():
            pair = ("name", "eth0", "netns", host.namespace.path)
            run("ip", "link", "add", host.port, "type", "veth", "peer", *pair)
            run("ip", "link", "set", host.port, "master", "bridge", "up")
        with host.namespace.inside():
            run("ip", "address", "add", f"{host.address}/16", "dev", "eth0")
            run("ip", "link", "set", "eth0", "up")
        if rate is not None:
            self.shape(host, rate)
        return host

    def shape(self, host: Host, rate: str) -> None:
        """Give a host's link another rate each way."""
        for namespace, device in ((host.namespace, "eth0"), (self._switch, host.port)):
            with namespace.inside():
                tbf = ("tbf", "rate", rate, "burst", BURST, "latency", QUEUE)
                run("tc", "qdisc", "replace", "dev", device, "root", *tbf)

    def traffic(self) -> list[Traffic]:
        """What went over the links until now, a host after the other."""
        with self._switch.inside():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        found = {name.strip(): rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        counts = (found[host.port] for host in self._hosts)
        return [Traffic(sent=int(count[0]), received=int(count[8])) for count in counts]


def run(*command: str) -> str:
    """Run `ip` or `tc`. Raises NetworkError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_WITHIN, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def _staying() -> Iterator[None]:
    """This thread is at the end in the namespace that it was in."""
    before = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _enter(before)
        os.close(before)


def _enter(descriptor: int) -> None:
    _checked(_libc.setns(descriptor, CLONE_NEWNET))


def _checked(status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
