"""The examples of agent/mount/SEMANTICS.md, each run by a shell with `$M` a mount."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent.mount
from deploy.local.stack import LocalStack
from tests.harness.reading import run

DOCUMENT = Path(next(iter(agent.mount.__path__))) / "SEMANTICS.md"
BLOCKS = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```sh\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def example(stack: LocalStack) -> Iterator[Path]:
    stack.s3.put("semantics", "d/model/config.json", b'{"a": "seventeen"')
    stack.s3.put("semantics", "d/model/weights.bin", bytes(1000))
    stack.s3.put("semantics", "d/empty/", b"")
    stack.s3.put("semantics", "d/x/y", b"below x")
    mount = stack.mount("s3://semantics/d")
    yield mount
    stack.umount(mount)


def test_the_document_has_examples() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize(("section", "block"), BLOCKS, ids=[section for section, _ in BLOCKS])
def test_the_examples_hold(example: Path, section: str, block: str) -> None:
    for line in block.splitlines():
        checked = run(["env", f"M={example}", "bash", "-c", line])
        assert checked.returncode == 0, f"{line}\n{checked.stderr}"
