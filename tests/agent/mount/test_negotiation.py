"""INIT with kernels of every age: take what is wanted and offered, refuse the too old, keep the record."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.mount import abi
from agent.mount.abi import InitFlag
from agent.mount.negotiation import WANTED, InitResult, UnsupportedKernel, encode_init, negotiate
from agent.mount.wire import InitRequest, WireError

EVERYTHING = 2**64 - 1


@given(st.integers(31, 60), st.integers(0, EVERYTHING), st.integers(0, 2**32 - 1))
def test_never_more_than_the_kernel_offers_nor_than_is_wanted(
    minor: int, offered: int, readahead: int
) -> None:
    result = negotiate(InitRequest(7, minor, readahead, offered))
    assert result.flags & ~offered == 0 and result.flags & ~WANTED == 0
    assert result.flags < 2**32 or result.flags & InitFlag.INIT_EXT
    assert result.minor == min(minor, 45)
    assert result.max_stack_depth == (1 if result.passthrough else 0)
    assert len(encode_init(result)) == abi.INIT_OUT.size
    assert InitResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_kernel_that_offers_all_gets_all_that_is_wanted() -> None:
    result = negotiate(InitRequest(7, 45, 131072, EVERYTHING))
    assert result.flags == WANTED
    assert result.passthrough and result.readdirplus and result.idmap
    assert (result.max_background, result.congestion_threshold, result.max_write) == (512, 384, 4096)


def test_nothing_is_asked_to_be_sent_again_the_in_flight_table_has_it() -> None:
    assert not negotiate(InitRequest(7, 45, 131072, EVERYTHING)).flags & InitFlag.HAS_RESEND


def test_the_answer_lies_where_the_kernel_reads_it() -> None:
    names = [field.name for field in abi.INIT_OUT.fields if field.name != "unused"]
    raw = encode_init(negotiate(InitRequest(7, 45, 131072, EVERYTHING)))
    fields = dict(zip(names, abi.INIT_OUT.packed.unpack(raw), strict=True))
    assert fields["flags"] | fields["flags2"] << 32 == WANTED
    assert (fields["major"], fields["minor"], fields["max_readahead"]) == (7, 45, 131072)
    assert (fields["max_pages"], fields["max_stack_depth"], fields["time_gran"]) == (256, 1, 1)


def test_a_kernel_of_linux_5_4_gets_what_it_knows() -> None:
    result = negotiate(InitRequest(7, 31, 131072, 2**27 - 1))
    assert not result.passthrough and result.readdirplus and not result.idmap
    assert result.flags >> 27 == 0 and result.max_pages == 256


def test_without_max_pages_the_record_says_what_the_kernel_will_do() -> None:
    assert negotiate(InitRequest(7, 31, 131072, 1)).max_pages == 32


@pytest.mark.parametrize("version", [(7, 30), (6, 99), (8, 0), (0, 0)])
def test_a_kernel_that_is_too_old_or_of_another_major_is_refused_by_name(version: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedKernel, match=r"speaks FUSE {}\.{};.*Linux 5\.8".format(*version)):
        negotiate(InitRequest(*version, 131072, EVERYTHING))


RECORD = negotiate(InitRequest(7, 45, 131072, EVERYTHING)).to_dict()


def test_a_record_of_a_newer_agent_is_read_without_what_is_unknown() -> None:
    assert InitResult.from_dict({**RECORD, "invented_later": "x"}).to_dict() == RECORD


@pytest.mark.parametrize("key", ["minor", "flags", "max_readahead"])
def test_a_record_that_lacks_what_is_needed_is_refused(key: str) -> None:
    with pytest.raises(WireError, match=key):
        InitResult.from_dict({name: value for name, value in RECORD.items() if name != key})


@pytest.mark.parametrize("value", ["1", None, 1.5, True, -1, [1]])
def test_a_record_with_something_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(WireError, match="flags"):
        InitResult.from_dict({**RECORD, "flags": value})
