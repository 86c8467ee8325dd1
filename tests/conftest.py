"""What many tests share: servers, started on first use and stopped with the session, and the seed.

Whatever a test draws at random it draws from the seed that the header shows; `HEADRACE_TEST_SEED` repeats a
run. A session that leaves a mount or a process behind fails.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.harness import leftovers
from tests.harness.moto import MotoS3
from tests.harness.s3 import SeaweedS3

# Read when grpc is imported, by the first test that needs it. Its handlers of fork are for children that use
# it; ours become other programs, and a fork beside a channel that is being closed hung in them for good.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

SEED = pytest.StashKey[int]()

# How long a case takes says nothing on a shared machine.
settings.register_profile("headrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headrace")


@pytest.hookimpl(tryfirst=True)  # before hypothesis takes its seed from the options
def pytest_configure(config: pytest.Config) -> None:
    config.stash[SEED] = int(os.environ.get("HEADRACE_TEST_SEED") or secrets.randbelow(1 << 32))
    os.environ["HEADRACE_TEST_SEED"] = str(config.stash[SEED])  # what the workers of pytest-xdist draw from
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(config.stash[SEED])


def pytest_report_header(config: pytest.Config) -> str:
    drawn = f"seed: HEADRACE_TEST_SEED={config.stash[SEED]}"
    return f"{drawn} (hypothesis: --hypothesis-seed={config.option.hypothesis_seed})"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The session's seed; a failing test shows it."""
    value = request.config.stash[SEED]
    print(f"HEADRACE_TEST_SEED={value}")
    return value


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set up before all other fixtures, so torn down last: fails where a mount or a process is left.

    The session's temporary directories are in one of its own, which tells its mounts from another session's.
    """
    leftovers.adopt_orphans()
    kept = tmp_path_factory.getbasetemp()  # pytest's, found before TMPDIR changes: it outlives the session
    own = Path(tempfile.mkdtemp(prefix="headrace-tests-"))
    own.chmod(0o711)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(own))
        patch.setattr(tempfile, "tempdir", str(own))
        yield
    processes, mounts = leftovers.processes_left(), leftovers.mounts_left((kept, own))
    if processes or mounts:
        pytest.fail(f"left behind: processes {processes}, mounts {sorted(map(str, mounts))}", pytrace=False)
    shutil.rmtree(own)


@pytest.fixture
def traversable() -> Iterator[Path]:
    """A directory that other users may pass through but not list (pytest's own are closed to them)."""
    path = Path(tempfile.mkdtemp(prefix="headrace-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    """A real S3 server (SeaweedFS). Give each test a bucket or a prefix of its own."""
    with SeaweedS3(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoS3]:
    """moto's S3 server, for keys that SeaweedFS refuses."""
    with MotoS3(tmp_path_factory.mktemp("moto")) as server:
        yield server
