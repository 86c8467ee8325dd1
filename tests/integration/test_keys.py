"""Keys that no file name can stand for: the mapping that SEMANTICS.md promises, through a real mount.

moto's server is the origin: SeaweedFS refuses some of these keys.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import pytest

from agent.control.client import AdminClient
from deploy.local.layout import AgentSettings, OriginSettings
from deploy.local.stack import LocalStack
from tests.harness.moto import MotoS3
from tests.harness.reading import run
from tests.harness.s3 import SeaweedS3

LONG = "n" * 300
NFC = unicodedata.normalize("NFC", "é")
NFD = unicodedata.normalize("NFD", "é")
MAPPED = {
    "plain": b"1",
    "x/y": b"2",
    f"u/{NFC}": b"3",
    f"u/{NFD}": b"4",
    "a/neighbour": b"5",
    "sp ace+%41": b"6",
}
UNMAPPED = ["..", "a/../../b", "/abs", "a//b", "x", f"a/{LONG}"]


@pytest.fixture
def odd(moto: MotoS3, seaweed: SeaweedS3) -> Iterator[LocalStack]:
    reached: OriginSettings = {"endpoint_url": moto.endpoint, "region": "us-east-1", "path_style": True}
    with LocalStack(AgentSettings(origins={"s3://odd": reached}), s3=seaweed) as running:
        yield running


async def test_odd_keys_map_as_promised_and_nothing_escapes(odd: LocalStack, moto: MotoS3) -> None:
    for key, data in MAPPED.items():
        moto.put("odd", key, data)
    for key in UNMAPPED:
        moto.put("odd", key, b"out of reach")
    mount = odd.mount("s3://odd")
    try:
        for key, data in MAPPED.items():
            assert run(["cat", str(mount / key)]).stdout.encode() == data, key
        files = run(["find", str(mount), "-type", "f", "-printf", "%P\\n"]).stdout.splitlines()
        assert sorted(files) == sorted(MAPPED)
        async with AdminClient(str(odd.layout.admin_socket)) as client:
            (dataset,) = await client.datasets()
            assert sorted(item.key for item in dataset.unmapped) == sorted(UNMAPPED)
            assert all(item.reason for item in dataset.unmapped)
    finally:
        odd.umount(mount)


def test_a_name_with_a_newline_is_a_name(odd: LocalStack) -> None:
    odd.s3.put("newline", "d/one\ntwo", b"below")
    mount = odd.mount("s3://newline/d")
    try:
        assert run(["cat", f"{mount}/one\ntwo"]).stdout == "below"
    finally:
        odd.umount(mount)
