"""When a signature serves another request. That servers take it is tested in test_s3.py."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from botocore.credentials import ReadOnlyCredentials  # type: ignore[import-untyped]

from agent.content import Extent
from agent.origin.s3_sign import REUSE, BucketAddress, Signer, Wanted
from agent.transfer.request import RangedGet
from tests.fakes.clock import ManualClock

ADDRESS = BucketAddress("https://models.s3.amazonaws.com/", "us-east-1")
OWN, OTHER = ReadOnlyCredentials("id", "secret", None), ReadOnlyCredentials("id2", "secret", "token")


def get(
    signer: Signer,
    offset: int = 0,
    *,
    version: str = "v",
    credentials: ReadOnlyCredentials | None = OWN,
) -> RangedGet:
    wanted = Wanted("a/b", version, 100, Extent(offset, 10), "s3://models/a/b")
    return signer.ranged_get(ADDRESS, wanted, credentials, verify_tls=True, stall_timeout=1.0)


def test_one_signature_serves_all_ranges_of_a_version() -> None:
    signer = Signer(ManualClock())
    first, second = get(signer), get(signer, 50)
    assert first.headers["Authorization"] == second.headers["Authorization"]
    assert (first.headers["Range"], second.headers["Range"]) == ("bytes=0-9", "bytes=50-59")
    signed = first.headers["Authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"host", "if-match", "x-amz-content-sha256", "x-amz-date"} <= {*signed}
    assert "range" not in signed


def test_another_version_or_identity_has_a_signature_of_its_own() -> None:
    signer = Signer(ManualClock())
    made = [get(signer), get(signer, version="w"), get(signer, credentials=OTHER)]
    assert len({one.headers["Authorization"] for one in made}) == 3
    assert "Authorization" not in get(signer, credentials=None).headers


def test_a_signature_is_made_anew_in_time_and_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    monkeypatch.setattr(
        "botocore.auth.get_current_datetime", lambda *_: datetime.fromtimestamp(clock.time(), UTC)
    )
    signer = Signer(clock)
    dates = {get(signer).headers["X-Amz-Date"]}
    clock.advance(REUSE)
    dates.add(get(signer).headers["X-Amz-Date"])
    clock.shift(-86400.0)
    dates.add(get(signer).headers["X-Amz-Date"])
    assert len(dates) == 3
