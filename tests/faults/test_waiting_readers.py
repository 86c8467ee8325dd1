"""Readers that the origin keeps waiting: they can be killed, they get no EINTR, and they hold up no other."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from csi.holder.kernel import MNT_DETACH, unmount
from tests.faults.conftest import Line
from tests.harness.reading import read, run, start_reader

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
MNT_FORCE = 1  # include/uapi/linux/mount.h
DATA = random.Random(8).randbytes(16 * MIB)
DIGEST = hashlib.sha256(DATA).hexdigest()
buckets = (f"waiting-{number}" for number in itertools.count())

TIMER_READER = r"""
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>
#include <unistd.h>
static volatile int ticks;
static void tick(int number) { ticks++; }
int main(int argc, char **argv) {
    static char buffer[1 << 16];
    struct sigaction action = { .sa_handler = tick, .sa_flags = SA_RESTART };
    struct itimerval every = { { 0, 200000 }, { 0, 200000 } };
    long long total = 0;
    sigaction(SIGALRM, &action, 0);
    setitimer(ITIMER_REAL, &every, 0);
    int fd = open(argv[1], O_RDONLY);
    if (fd < 0) return 3;
    for (;;) {
        ssize_t count = read(fd, buffer, sizeof buffer);
        if (count < 0) { printf("errno %d\n", errno); return 1; }
        if (count == 0) break;
        total += count;
        if (count != sizeof buffer && total != ATOLL) { printf("short read\n"); return 2; }
    }
    printf("%lld bytes, %d ticks\n", total, ticks);
    return ticks ? 0 : 4;
}
"""


@contextlib.contextmanager
def mounted(line: Line, files: Mapping[str, bytes]) -> Iterator[Path]:
    bucket = next(buckets)
    for name, data in files.items():
        line.stack.s3.put(bucket, name, data)
    mount = line.stack.mount(f"s3://{bucket}")
    try:
        yield mount
    finally:
        line.proxy.clear()
        line.stack.umount(mount)


@pytest.fixture
def mount(line: Line) -> Iterator[Path]:
    """A mount with the files a and b, both cold."""
    with mounted(line, {"a": DATA, "b": DATA}) as mount:
        yield mount


def test_a_waiting_reader_ends_at_sigkill_and_the_next_one_is_served(line: Line, mount: Path) -> None:
    gate = line.proxy.hold(key="*/a")
    reader = start_reader("sequential", [mount / "a"])
    gate.await_held(1)
    reader.kill()
    reader.communicate(timeout=1)
    gate.release()
    assert read("sequential", mount / "a") == [DIGEST]


# Readers for whom the kernel itself waits: it reads nothing ahead for them.
UNKILLED = {
    "direct": """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
os.preadv(fd, [mmap.mmap(-1, 1 << 20)], 0)
""",
    "random fault": """
import mmap, sys
file = open(sys.argv[1], "rb")
pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
pages.madvise(mmap.MADV_RANDOM)
pages[5 << 20]
""",
}
# Reads what cannot be had, which leaves a page without its bytes, until it is waited for once more.
READ_AGAIN = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
while True:
    try:
        os.pread(fd, 4096, 0)
        break
    except OSError:
        print("failed", flush=True)
        time.sleep(0.1)
"""


@pytest.mark.parametrize("how", UNKILLED)
def test_a_reader_that_the_kernel_itself_waits_for_ends_at_sigkill(line: Line, mount: Path, how: str) -> None:
    gate = line.proxy.hold(key="*/a")
    reader = subprocess.Popen([sys.executable, "-c", UNKILLED[how], str(mount / "a")])
    gate.await_held(1)
    reader.kill()
    reader.wait(timeout=1)
    gate.release()
    assert read("sequential", mount / "a") == [DIGEST]


def test_a_reader_of_a_page_that_could_not_be_read_before_ends_at_sigkill(line: Line, mount: Path) -> None:
    gate = line.proxy.hold(key="*/a")
    command = [sys.executable, "-c", READ_AGAIN, str(mount / "a")]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None and reader.stdout.readline() == "failed\n"
    deadline = time.monotonic() + 10
    while not line.stack.metrics()["headrace_waiting_reads"]:
        assert time.monotonic() < deadline
    reader.kill()
    reader.communicate(timeout=1)
    gate.release()
    assert read("sequential", mount / "a") == [DIGEST]


def test_a_timer_that_restarts_calls_sees_neither_eintr_nor_a_short_read(
    line: Line, mount: Path, tmp_path: Path
) -> None:
    source, program = tmp_path / "reader.c", tmp_path / "reader"
    source.write_text(TIMER_READER.replace("ATOLL", str(len(DATA))))
    subprocess.run(["cc", "-o", str(program), str(source)], check=True, timeout=60)
    gate = line.proxy.hold(key="*/b")
    reader = subprocess.Popen([str(program), str(mount / "b")], stdout=subprocess.PIPE, text=True)
    gate.await_held(1)
    with pytest.raises(subprocess.TimeoutExpired):
        reader.wait(timeout=1)  # five ticks come while it waits
    gate.release()
    output, _ = reader.communicate(timeout=20)
    assert reader.returncode == 0, output
    assert output.startswith(f"{len(DATA)} bytes")


def test_reads_of_a_mount_that_is_gone_are_given_up(line: Line, mount: Path) -> None:
    gate = line.proxy.hold(key="*/a")
    reader = start_reader("sequential", [mount / "a"])
    gate.await_held(1)
    cancelled = 'headrace_fills_total{result="cancelled"}'
    before = line.stack.metrics()[cancelled]
    unmount(str(mount), MNT_FORCE | MNT_DETACH)  # ends the connection (fs/fuse/inode.c, fuse_umount_begin)
    reader.communicate(timeout=10)
    assert reader.returncode != 0
    deadline = time.monotonic() + 10
    while (now := line.stack.metrics())[cancelled] == before or now["headrace_waiting_reads"]:
        assert time.monotonic() < deadline, now
    gate.release()


WARM = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
for turn in range(20):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert len(os.pread(fd, 1 << 20, turn % 8 << 20)) == 1 << 20
print("read")
"""


def test_sixty_four_waiting_readers_hold_up_no_warm_read(line: Line) -> None:
    cold = [f"cold-{number}" for number in range(64)]
    with mounted(line, {"a": DATA, **dict.fromkeys(cold, DATA[:MIB])}) as mount:
        # One chunk of two: what is read of it comes through the agent, not from a passthrough file.
        assert run(["dd", f"if={mount / 'a'}", "of=/dev/null", "bs=1M", "count=2"]).returncode == 0
        assert run([sys.executable, "-c", WARM, str(mount / "a")]).stdout == "read\n"
        gate = line.proxy.hold(key="*/cold-*")
        waiting = [start_reader("sequential", [mount / name]) for name in cold]
        try:
            gate.await_held(64, within=20)
            assert run([sys.executable, "-c", WARM, str(mount / "a")], within=3).stdout == "read\n"
            gate.release()
            expected = hashlib.sha256(DATA[:MIB]).hexdigest()
            for reader in waiting:
                output, errors = reader.communicate(timeout=30)
                assert output.startswith(expected) or "Input/output error" in errors
        finally:
            for reader in waiting:
                reader.kill()
                reader.wait()
