"""Which revision an order gets, with the origin there and with the origin down, through a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.cache.directory import StoreLimits
from agent.cache.store import Store
from agent.content import Dataset, ListedObject, ObjectRef, View, build_dataset
from agent.errors import AccessDenied, ObjectMissing, OriginError, OriginUnavailable, RevisionMissing
from agent.identity import Credentials, credentials_of
from agent.mount.order import MountOrder
from agent.mount.revisions import Revisions, part
from tests.fakes.clock import ManualClock

URI = "s3://b/d"
TEAM = credentials_of(URI, {"access_key_id": "team", "secret_access_key": "s"})


def dataset(version: str) -> Dataset:
    return build_dataset(URI, [ListedObject("a/f", ObjectRef(f"{URI}/a/f", version, 1))])


OLD, NEW = dataset("old"), dataset("new")


class Origin:
    """What the origin says now."""

    def __init__(self) -> None:
        self.now: Dataset | OriginError = OLD
        self.asked: list[str] = []

    async def resolve(self, uri: str, credentials: Credentials) -> Dataset:
        self.asked.append(credentials.identity)
        if isinstance(self.now, OriginError):
            raise self.now
        return self.now


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture
async def revisions(origin: Origin, tmp_path: Path) -> AsyncIterator[Revisions]:
    store = await Store.open([tmp_path / "store"], 1 << 20, StoreLimits(1 << 30, 0), ManualClock())
    yield Revisions(origin.resolve, store)
    await store.close()


async def test_every_order_asks_with_its_own_credentials(revisions: Revisions, origin: Origin) -> None:
    for credentials in (TEAM, TEAM):
        assert await revisions.dataset(MountOrder(URI, credentials=credentials)) == OLD
    await revisions.dataset(MountOrder(URI))
    assert origin.asked == [TEAM.identity, TEAM.identity, ""]


async def test_a_revision_that_is_named_comes_from_the_store(revisions: Revisions, origin: Origin) -> None:
    await revisions.dataset(MountOrder(URI))
    origin.now = NEW
    assert await revisions.dataset(MountOrder(URI)) == NEW
    assert await revisions.dataset(MountOrder(URI, OLD.revision)) == OLD
    with pytest.raises(RevisionMissing) as raised:
        await revisions.dataset(MountOrder(URI, "0" * 32))
    assert NEW.revision in str(raised.value)
    assert "0" * 32 in str(raised.value)


DOWN = OriginUnavailable("s3://b: the S3 endpoint does not answer")


@pytest.mark.parametrize(
    ("order", "answer"),
    [
        (MountOrder(URI), None),
        (MountOrder(URI, on_origin_down="last"), NEW),
        (MountOrder(URI, OLD.revision), OLD),
        (MountOrder(URI, OLD.revision, on_origin_down="last"), OLD),
        (MountOrder(URI, "0" * 32, on_origin_down="last"), None),
        (MountOrder(URI, on_origin_down="last", credentials=TEAM), None),
        (MountOrder(URI, OLD.revision, credentials=TEAM), None),
        (MountOrder("s3://b/other", on_origin_down="last"), None),
    ],
)
async def test_with_the_origin_down_only_what_was_proven_is_published(
    revisions: Revisions, origin: Origin, order: MountOrder, answer: Dataset | None
) -> None:
    await revisions.dataset(MountOrder(URI))
    origin.now = NEW
    await revisions.dataset(MountOrder(URI))
    origin.now = DOWN
    if answer is None:
        with pytest.raises(OriginUnavailable):
            await revisions.dataset(order)
    else:
        assert await revisions.dataset(order) == answer


@pytest.mark.parametrize("refusal", [AccessDenied("no"), ObjectMissing("gone")])
async def test_an_origin_that_refuses_is_not_down(
    revisions: Revisions, origin: Origin, refusal: OriginError
) -> None:
    await revisions.dataset(MountOrder(URI))
    origin.now = refusal
    for order in (MountOrder(URI, on_origin_down="last"), MountOrder(URI, OLD.revision)):
        with pytest.raises(type(refusal)):
            await revisions.dataset(order)


def test_a_view_that_leaves_nothing_is_told_by_what_chose_it() -> None:
    assert part(OLD, MountOrder(URI, view=View("a"))).entries
    with pytest.raises(ObjectMissing, match="subPath"):
        part(OLD, MountOrder(URI, view=View("b")))
    with pytest.raises(ObjectMissing, match="include"):
        part(OLD, MountOrder(URI, view=View("", ("*.x",))))
