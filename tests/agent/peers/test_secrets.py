"""The secret file: what is refused with which advice, and how a secret replaces another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import ConfigError
from agent.peers.secrets import KEEP, LOOK_EVERY, Secrets
from tests.fakes.clock import ManualClock

OLD, NEW, NEWER = b"old-" + b"1" * 40, b"new-" + b"2" * 40, b"newer-" + b"3" * 40


def write(path: Path, *secrets: bytes) -> Path:
    """Replace the file as kubelet does: another file takes its name."""
    other = path.with_suffix(".next")
    other.write_bytes(b"\n".join(secrets) + b"\n")
    other.chmod(0o600)
    other.rename(path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "secret", OLD)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def problem(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        Secrets(path, ManualClock())
    assert caught.value.key == "peers.secret_file"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_line_is_a_secret_without_its_line_break(path: Path, clock: ManualClock) -> None:
    secrets = Secrets(path, clock)
    assert secrets.accepted() == (OLD,)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "no such file" in problem(tmp_path / "absent")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in problem(tmp_path)


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o666])
def test_a_file_that_everybody_may_read_or_write_is_refused_with_the_remedy(path: Path, mode: int) -> None:
    path.chmod(mode)
    assert "chmod" in problem(path)


def test_a_group_may_read_the_file_as_kubernetes_arranges_it(path: Path) -> None:
    path.chmod(0o640)
    assert Secrets(path, ManualClock()).accepted() == (OLD,)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"hunter2\n", "too short"),
        (OLD + b"\nhunter2\n", "too short"),
        (b"x" * (64 * 1024 + 1), "64 KiB"),
        (b"".join(OLD + b"%d\n" % number for number in range(5)), "more than 4"),
    ],
)
def test_what_is_no_good_secret_is_refused_and_never_repeated(
    path: Path, text: bytes, complaint: str
) -> None:
    path.write_bytes(text)
    message = problem(path)
    assert complaint in message
    assert "hunter2" not in message
    assert OLD.decode() not in message


def test_a_file_that_the_user_may_not_read_is_named_with_the_remedy(traversable: Path) -> None:
    path = write(traversable / "secret", OLD)
    script = (
        "import os, sys; from pathlib import Path\n"
        "from agent.clock import SystemClock; from agent.errors import ConfigError\n"
        "from agent.peers.secrets import Secrets\n"
        "os.setgroups([]); os.setgid(65533); os.setuid(65533)\n"
        "try: Secrets(Path(sys.argv[1]), SystemClock())\nexcept ConfigError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == f"peers.secret_file: {path}: no permission: let the agent's user read it\n"


def test_a_replaced_secret_is_in_use_beside_the_new_one_until_all_have_that(
    path: Path, clock: ManualClock
) -> None:
    secrets = Secrets(path, clock)
    write(path, NEW)
    clock.advance(LOOK_EVERY)
    assert secrets.accepted() == (NEW, OLD)
    clock.advance(KEEP)
    assert secrets.accepted() == (NEW,)


def test_the_file_is_not_looked_at_for_every_request(path: Path, clock: ManualClock) -> None:
    secrets = Secrets(path, clock)
    write(path, NEW)
    clock.advance(LOOK_EVERY / 2)
    assert secrets.accepted() == (OLD,)


def test_of_several_lines_all_are_in_use(path: Path, clock: ManualClock) -> None:
    secrets = Secrets(write(path, NEW, OLD), clock)
    assert secrets.accepted() == (NEW, OLD)


def test_a_secret_that_comes_back_stays(path: Path, clock: ManualClock) -> None:
    secrets = Secrets(path, clock)
    write(path, NEW)
    clock.advance(LOOK_EVERY)
    secrets.accepted()
    write(path, OLD)
    clock.advance(LOOK_EVERY)
    assert secrets.accepted() == (OLD, NEW)
    clock.advance(KEEP)
    assert secrets.accepted() == (OLD,)


def test_two_changes_in_a_row_lose_no_request(path: Path, clock: ManualClock) -> None:
    secrets = Secrets(path, clock)
    write(path, NEW)
    clock.advance(LOOK_EVERY)
    secrets.accepted()
    write(path, NEWER)
    clock.advance(LOOK_EVERY)
    assert set(secrets.accepted()) == {OLD, NEW, NEWER}


@pytest.mark.parametrize("fault", ["gone", "open to all", "too short"])
def test_a_file_that_becomes_unusable_changes_nothing_until_it_is_mended(
    path: Path, clock: ManualClock, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = Secrets(path, clock)
    if fault == "gone":
        path.unlink()
    elif fault == "too short":
        write(path, b"hunter2")
    else:
        write(path, NEW).chmod(0o644)
    for _ in range(3):
        clock.advance(LOOK_EVERY)
        assert secrets.accepted() == (OLD,)
    assert len(caplog.records) == 1
    assert "hunter2" not in caplog.text
    write(path, NEW)
    clock.advance(LOOK_EVERY)
    assert set(secrets.accepted()) == {OLD, NEW}


def test_a_repr_shows_the_path_only(path: Path, clock: ManualClock) -> None:
    assert repr(Secrets(path, clock)) == f"Secrets({os.fspath(path)!r})"
