"""Decoding takes any bytes and raises WireError or nothing; encoding is what the kernel reads."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.mount import abi, wire
from agent.mount.abi import InitFlag, Opcode
from agent.mount.wire import Dirent, Header, WireError

Decoder = Callable[[wire.Buffer, Header], object]
DECODERS: tuple[Decoder, ...] = (
    wire.decode_read,
    wire.decode_init,
    wire.decode_name,
    wire.decode_open,
    wire.decode_fh,
    wire.decode_getattr,
    wire.decode_lseek,
    wire.decode_access,
    wire.decode_getxattr,
    wire.decode_listxattr,
    wire.decode_interrupt,
    wire.decode_forget,
    wire.decode_batch_forget,
)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


def request(
    opcode: int, body: bytes = b"", *, unique: int = 6, nodeid: int = 7, length: int | None = None
) -> bytes:
    size = wire.HEADER_SIZE + len(body) if length is None else length
    return abi.IN_HEADER.packed.pack(size, opcode, unique, nodeid, 1000, 1001, 42, 0, 0) + body


def decoded(decoder: Decoder, raw: bytes) -> object:
    return decoder(raw, wire.decode_header(raw, len(raw)))


def test_a_header_is_read_from_the_slot_that_holds_more_than_the_request() -> None:
    slot = bytearray(abi.MIN_READ_BUFFER)
    raw = request(Opcode.LOOKUP, b"weights\0")
    slot[: len(raw)] = raw
    header = wire.decode_header(memoryview(slot), len(raw))
    assert header == Header(48, Opcode.LOOKUP, 6, 7, 1000, 1001, 42)
    assert wire.decode_name(memoryview(slot), header) == b"weights"
    assert wire.decode_header(slot) == header


def test_a_name_does_not_run_on_into_what_an_earlier_request_left_in_the_slot() -> None:
    slot = request(Opcode.LOOKUP, b"abc") + b"def\0"
    with pytest.raises(WireError):
        wire.decode_name(slot, wire.decode_header(slot, 43))


@pytest.mark.parametrize(
    ("length", "received"), [(39, 39), (0, 40), (41, 40), (40, 41), (9000, 9000), (9000, None)]
)
def test_a_request_whose_length_is_not_what_came_is_refused_by_its_unique(
    length: int, received: int | None
) -> None:
    slot = request(Opcode.STATFS, length=length).ljust(8192, b"\0")
    with pytest.raises(WireError) as caught:
        wire.decode_header(slot, received)
    assert (caught.value.unique, caught.value.errno) == (6, errno.EINVAL)


def test_a_header_cut_short_cannot_be_answered() -> None:
    with pytest.raises(WireError) as caught:
        wire.decode_header(bytes(39))
    assert caught.value.unique == 0


@pytest.mark.parametrize("opcode", [0, 7, 19, 54, 4096, 2**32 - 1])
def test_an_opcode_from_the_future_is_refused_as_not_implemented(opcode: int) -> None:
    with pytest.raises(WireError) as caught:
        wire.decode_header(request(opcode))
    assert (caught.value.unique, caught.value.errno) == (6, errno.ENOSYS)


@given(st.binary(max_size=200), st.none() | st.integers(-1, 300))
def test_any_bytes_are_a_header_or_a_wire_error(raw: bytes, received: int | None) -> None:
    try:
        header = wire.decode_header(raw, received)
    except WireError:
        return
    assert wire.HEADER_SIZE <= header.len <= len(raw) and header.opcode in list(Opcode)


@given(st.sampled_from(DECODERS), st.binary(max_size=120), st.binary(max_size=64), st.sampled_from(Opcode))
def test_any_body_is_decoded_without_reading_behind_it_or_is_a_wire_error(
    decoder: Decoder, body: bytes, behind: bytes, opcode: int
) -> None:
    raw = request(opcode, body)
    outcomes = []
    for buffer in (raw, bytearray(raw + behind), memoryview(raw + behind)):
        try:
            outcomes.append(decoder(buffer, wire.decode_header(buffer)))
        except WireError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@given(st.sampled_from(DECODERS), st.binary(max_size=120), U32)
def test_a_header_that_lies_about_its_length_harms_no_decoder(
    decoder: Decoder, raw: bytes, length: int
) -> None:
    try:
        decoder(raw, Header(length, Opcode.READ, 1, 1, 0, 0, 0))
    except WireError:
        pass


@given(U64, U64, U64, U64, U32)
def test_a_read_is_one_unpack_and_says_the_same_as_its_two_parts(
    unique: int, nodeid: int, fh: int, offset: int, size: int
) -> None:
    body = abi.READ_IN.packed.pack(fh, offset, size, 2, 5, 0, 0)
    raw = request(Opcode.READ, body, unique=unique, nodeid=nodeid)
    assert wire.READ_REQUEST.size == len(raw)
    assert wire.READ_REQUEST.unpack(raw) == (len(raw), Opcode.READ, unique, nodeid, fh, offset, size)
    assert decoded(wire.decode_read, raw) == (fh, offset, size)


def test_the_other_bodies_say_what_the_kernel_put_there() -> None:
    getxattr = abi.GETXATTR_IN.packed.pack(64, 0)
    forgets = abi.BATCH_FORGET_IN.packed.pack(2, 0) + struct.pack("=4Q", 10, 1, 11, 3)
    cases: list[tuple[Decoder, bytes, object]] = [
        (wire.decode_open, abi.OPEN_IN.packed.pack(0o100000, 0), 0o100000),
        (wire.decode_fh, abi.RELEASE_IN.packed.pack(9, 1, 2, 3), 9),
        (wire.decode_fh, abi.FLUSH_IN.packed.pack(9, 0, 0, 3), 9),
        (wire.decode_getattr, abi.GETATTR_IN.packed.pack(1, 0, 9), 9),
        (wire.decode_getattr, abi.GETATTR_IN.packed.pack(0, 0, 9), None),
        (wire.decode_lseek, abi.LSEEK_IN.packed.pack(9, 2**64 - 1, 3, 0), (9, -1, 3)),
        (wire.decode_lseek, abi.LSEEK_IN.packed.pack(9, 2**63 - 1, 4, 0), (9, 2**63 - 1, 4)),
        (wire.decode_access, abi.ACCESS_IN.packed.pack(4, 0), 4),
        (wire.decode_getxattr, getxattr + b"user.x\0", (64, b"user.x")),
        (wire.decode_listxattr, getxattr, 64),
        (wire.decode_interrupt, abi.INTERRUPT_IN.packed.pack(6), 6),
        (wire.decode_forget, abi.FORGET_IN.packed.pack(5), (7, 5)),
        (wire.decode_batch_forget, forgets, [(10, 1), (11, 3)]),
    ]
    for decoder, body, expected in cases:
        assert decoded(decoder, request(Opcode.OPEN, body)) == expected, decoder


def test_a_batch_of_forgets_that_promises_more_than_it_holds_is_refused() -> None:
    body = abi.BATCH_FORGET_IN.packed.pack(2**32 - 1, 0) + bytes(32)
    with pytest.raises(WireError):
        decoded(wire.decode_batch_forget, request(Opcode.BATCH_FORGET, body))


def test_init_is_read_with_and_without_its_second_half() -> None:
    ext = int(InitFlag.INIT_EXT)
    short = struct.pack("=4I", 7, 31, 131072, 1)
    assert decoded(wire.decode_init, request(Opcode.INIT, short)) == (7, 31, 131072, 1)
    full = abi.INIT_IN.packed.pack(7, 45, 131072, ext, 1 << 5)
    assert decoded(wire.decode_init, request(Opcode.INIT, full)) == (
        7,
        45,
        131072,
        ext | InitFlag.PASSTHROUGH,
    )
    unextended = abi.INIT_IN.packed.pack(7, 45, 131072, 1, 1 << 5)
    assert decoded(wire.decode_init, request(Opcode.INIT, unextended)) == (7, 45, 131072, 1)


def test_a_reply_says_its_length_and_a_negative_errno() -> None:
    assert abi.OUT_HEADER.packed.unpack(wire.reply_header(6, errno.ESTALE)) == (16, -errno.ESTALE, 6)
    assert abi.OUT_HEADER.packed.unpack(wire.reply_header(2**63 + 6, length=100)) == (116, 0, 2**63 + 6)
    assert wire.reply(6, memoryview(b"12345678")) == wire.reply_header(6, 0, 8) + b"12345678"


def test_an_attr_has_its_time_thrice_and_counts_blocks_of_512_bytes() -> None:
    raw = wire.encode_attr(ino=3, size=513, mode=0o100444, nlink=1, mtime_ns=1_500_000_000, blksize=4096)
    fields = dict(zip((field.name for field in abi.ATTR.fields), abi.ATTR.packed.unpack(raw), strict=True))
    assert fields["blocks"] == 2
    assert fields["mtime"] == fields["atime"] == fields["ctime"] == 1
    assert fields["mtimensec"] == fields["atimensec"] == fields["ctimensec"] == 500_000_000


def test_a_time_before_1970_is_a_negative_second_and_positive_nanoseconds() -> None:
    raw = wire.encode_attr(ino=3, size=0, mode=0, nlink=1, mtime_ns=-1, blksize=4096)
    seconds, nanos = struct.unpack_from("=q", raw, 32)[0], struct.unpack_from("=I", raw, 52)[0]
    assert (seconds, nanos) == (-1, 999_999_999)


def test_payloads_have_the_size_of_their_structs() -> None:
    attr = wire.encode_attr(ino=3, size=1, mode=0, nlink=1, mtime_ns=0, blksize=4096)
    assert wire.encode_entry(3, 1, attr, 60).endswith(attr)
    sizes = [
        (wire.encode_entry(3, 1, attr, 60), abi.ENTRY_OUT),
        (wire.encode_absent(60), abi.ENTRY_OUT),
        (wire.encode_attr_out(attr, 60), abi.ATTR_OUT),
        (wire.encode_open(1, abi.OpenFlag.PASSTHROUGH, 5), abi.OPEN_OUT),
        (wire.encode_statfs(blocks=1, files=2, bsize=4096, name_max=255), abi.STATFS_OUT),
        (wire.encode_lseek(5), abi.LSEEK_OUT),
        (wire.encode_xattr_size(5), abi.GETXATTR_OUT),
    ]
    for payload, layout in sizes:
        assert len(payload) == layout.size, layout.name
    assert wire.encode_xattr_names([b"user.a", b"user.b"]) == b"user.a\0user.b\0"


def test_notifications_go_under_unique_0_with_their_code() -> None:
    entry = wire.notify_inval_entry(1, b"name")
    assert abi.OUT_HEADER.packed.unpack_from(entry) == (len(entry), 3, 0) and entry.endswith(b"name\0")
    inode = wire.notify_inval_inode(5, -1)
    assert abi.OUT_HEADER.packed.unpack_from(inode) == (len(inode), 2, 0)
    assert abi.NOTIFY_INVAL_INODE.packed.unpack_from(inode, 16) == (5, -1, 0)


def unpack_dirents(raw: bytes, plus: bool = False) -> list[tuple[int, bytes, bytes]]:
    """What the kernel's parse_dirfile would see: cookie, name, and the entry before each (with plus)."""
    found = []
    while raw:
        entry, raw = (raw[: abi.ENTRY_OUT.size], raw[abi.ENTRY_OUT.size :]) if plus else (b"", raw)
        ino, cookie, length, _ = abi.DIRENT.packed.unpack_from(raw)
        assert ino
        found.append((cookie, raw[24 : 24 + length], entry))
        end = (24 + length + 7) // 8 * 8
        assert end <= len(raw)
        raw = raw[end:]
    return found


NAMES = st.lists(st.binary(min_size=1, max_size=255), max_size=40)


@given(NAMES, st.integers(279, 2000))
def test_readdir_by_cookies_gives_every_name_once_within_the_size_asked(
    names: list[bytes], size: int
) -> None:
    entries = [Dirent(5, 8, name) for name in names]
    found: list[bytes] = []
    offset = 0
    while part := wire.pack_dirents(entries, offset, size):
        assert len(part) <= size and len(part) % 8 == 0
        records = unpack_dirents(bytes(part))
        found += [name for _, name, _ in records]
        offset = records[-1][0]
    assert found == names


@given(NAMES, st.integers(407, 3000))
def test_readdirplus_looks_up_exactly_what_it_gives_out(names: list[bytes], size: int) -> None:
    entries = [Dirent(1, 4, b"."), Dirent(1, 4, b"..")]
    entries += [Dirent(index, 8, name) for index, name in enumerate(names, 10) if name not in (b".", b"..")]
    looked_up: list[int] = []

    def entry_of(entry: Dirent) -> bytes:
        looked_up.append(entry.ino)
        return bytes([entry.ino]) * abi.ENTRY_OUT.size

    given_out: list[tuple[int, bytes, bytes]] = []
    while part := wire.pack_direntplus(entries, given_out[-1][0] if given_out else 0, size, entry_of):
        assert len(part) <= size
        given_out += unpack_dirents(bytes(part), plus=True)
    assert [name for _, name, _ in given_out] == [entry.name for entry in entries]
    assert looked_up == [entry.ino for entry in entries[2:]]
    assert [entry[:1] for _, _, entry in given_out] == [b"\0", b"\0", *(bytes([ino]) for ino in looked_up)]


def test_a_cookie_behind_the_end_gives_nothing() -> None:
    entries = [Dirent(5, 8, b"x")]
    assert wire.pack_dirents(entries, 2**63, 4096) == b""
    assert wire.pack_direntplus(entries, 1, 4096, lambda entry: b"") == b""
