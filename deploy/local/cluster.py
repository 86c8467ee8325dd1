"""Several nodes with Headrace and an S3 server on one machine, each on a shaped link of its own (network.py).

Each node has its own holder, agent, store and mounts, as LocalStack has them, in its own network namespace;
they share the cluster's secret and reach each other, and the origin, over their links only. Mounts and
the agents' admin sockets are reached from outside, by their paths.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from deploy.local.layout import AgentSettings, parent_directory
from deploy.local.network import Host, Network
from deploy.local.peering import peers_table, write_secret
from deploy.local.s3 import SeaweedS3
from deploy.local.signals import deferred_signals, sigterm_raises
from deploy.local.stack import LocalStack

T = TypeVar("T")

PORT = 7411
AT_ONCE = 4  # nodes that are started at a time


class Node:
    """One node: its host, and what runs there."""

    def __init__(self, host: Host, stack: LocalStack) -> None:
        self.host = host
        self.stack = stack

    @property
    def name(self) -> str:
        """How its peers call it."""
        return f"{self.host.address}:{PORT}"

    def inside(self, work: Callable[[], T]) -> T:
        """Do something with this thread in the node's namespace: start a process, ask for metrics."""
        with self.host.namespace.inside():
            return work()


class LocalCluster:
    """A context manager that starts all of it, and at its end, whatever has happened, leaves nothing."""

    def __init__(
        self,
        nodes: int,
        *,
        rate: str | None = None,
        origin_rate: str | None = None,
        settings: AgentSettings | None = None,
        serve: bool = True,
        zones: Sequence[str] = (),
    ) -> None:
        """`rate` and `origin_rate` shape the links ("200mbit"); `settings` are those of all agents, without
        names and peers; `zones` are the nodes', one each, or none; without `serve` there is no CSI service,
        and mounts are made at the admin sockets only."""
        self._count = nodes
        self._rates = rate, origin_rate
        self._settings = settings or AgentSettings()
        self._serve = serve
        self._zones = zones or [""] * nodes
        self._stack = ExitStack()
        self.nodes: list[Node] = []

    def __enter__(self) -> LocalCluster:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def upload(self, bucket: str, key: str, data: bytes | Path) -> str:
        """Store an object at the origin, past its link, and give its URI."""
        with self.origin.namespace.inside():
            self.s3.put(bucket, key, data)
        return f"s3://{bucket}/{key}"

    def each(self, work: Callable[[Node], T], nodes: Sequence[Node] | None = None) -> list[T]:
        """Do something on each node at once, with a thread for each that is in no namespace but its own."""
        chosen = self.nodes if nodes is None else nodes
        with ThreadPoolExecutor(len(chosen)) as pool:
            return list(pool.map(lambda node: node.inside(lambda: work(node)), chosen))

    def metric(self, name: str) -> list[float]:
        """A metric of each node's agent, as the text format writes its name; 0 where it is not there."""
        return self.each(lambda node: node.stack.metrics().get(name, 0.0))

    def _start(self) -> None:
        self._stack.enter_context(sigterm_raises())
        self.network = self._stack.enter_context(Network())
        self.directory = self._stack.enter_context(_directory())
        rate, origin_rate = self._rates
        self.origin = self.network.add(origin_rate)
        hosts = [self.network.add(rate) for _ in range(self._count)]
        with self.origin.namespace.inside():
            server = SeaweedS3(self.directory / "s3", address=self.origin.address)
            self.s3 = self._stack.enter_context(server)
        secret = write_secret(self.directory / "peer-secret")
        addresses = [f"{host.address}:{PORT}" for host in hosts]
        for host, address, zone in zip(hosts, addresses, self._zones, strict=True):
            extra = peers_table(address, addresses, secret) + self._settings.extra
            settings = replace(self._settings, name=f"node-{host.number}", zone=zone, extra=extra)
            with deferred_signals(), host.namespace.inside():
                stack = LocalStack(settings, s3=self.s3)
                self._stack.callback(stack.close)
            self.nodes.append(Node(host, stack))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda node: node.inside(lambda: self._start_node(node)), self.nodes))

    def _start_node(self, node: Node) -> None:
        node.stack.start_holder()
        node.stack.start_agent()
        if self._serve:
            node.stack.start_serve()


@contextmanager
def _directory() -> Iterator[Path]:
    """A directory that the agents' user may pass through, removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="headrace-", dir=parent_directory()))
    try:
        path.chmod(0o711)
        yield path
    finally:
        shutil.rmtree(path)
