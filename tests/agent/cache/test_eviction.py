"""The policy of eviction, held against what it promises over random stores."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.cache.eviction import Candidate, Chunk, Removal, plan, rank

CHUNKS = st.lists(
    st.builds(Chunk, st.integers(0, 50), st.integers(1, 9), st.integers(0, 9)),
    max_size=6,
    unique_by=lambda chunk: chunk.number,
)


@st.composite
def candidate(draw: st.DrawFn, key: str) -> Candidate:
    chunks = tuple(draw(CHUNKS))
    size = sum(chunk.bytes for chunk in chunks) + draw(st.integers(0, 5))
    flags = draw(st.booleans()), draw(st.booleans())
    return Candidate(key, size, draw(st.integers(0, 9)), *flags, chunks)


@st.composite
def stores(draw: st.DrawFn) -> tuple[dict[str, Candidate], frozenset[str]]:
    keys = draw(st.lists(st.sampled_from("abcdefgh"), unique=True))
    found = {key: draw(candidate(key)) for key in keys}
    return found, draw(st.frozensets(st.sampled_from("abcdefgh")))


def obtainable(one: Candidate) -> int:
    return one.bytes if one.ever_complete else sum(chunk.bytes for chunk in one.chunks)


@given(stores(), st.integers(-5, 200))
def test_it_frees_what_is_needed_or_all_that_may_go(
    store: tuple[dict[str, Candidate], frozenset[str]], needed: int
) -> None:
    found, untouchable = store
    freed = sum(removal.bytes for removal in plan(needed, found.values(), untouchable))
    most = sum(obtainable(one) for one in found.values() if one.key not in untouchable)
    assert freed >= min(needed, most)
    assert freed <= most


@given(stores(), st.integers(-5, 200))
def test_it_touches_nothing_that_is_protected_and_no_part_of_what_was_ever_complete(
    store: tuple[dict[str, Candidate], frozenset[str]], needed: int
) -> None:
    found, untouchable = store
    for removal in plan(needed, found.values(), untouchable):
        assert removal.key not in untouchable
        assert (removal.chunks is None) == found[removal.key].ever_complete


@given(stores(), st.integers(-5, 200))
def test_whatever_stays_is_not_colder_than_what_goes(
    store: tuple[dict[str, Candidate], frozenset[str]], needed: int
) -> None:
    found, untouchable = store
    removals = plan(needed, found.values(), untouchable)
    ranks = [rank(found[removal.key]) for removal in removals]
    assert ranks == sorted(ranks)
    gone = {removal.key for removal in removals}
    stays = [rank(one) for one in found.values() if one.key not in gone | untouchable and obtainable(one)]
    assert not ranks or not stays or max(ranks) < min(stays)
    for removal in removals[:-1]:
        assert removal.bytes == obtainable(found[removal.key]), "only the last one goes in part"


@given(stores(), st.integers(-5, 200))
def test_no_removal_is_more_than_it_must_be(
    store: tuple[dict[str, Candidate], frozenset[str]], needed: int
) -> None:
    found, untouchable = store
    removals = plan(needed, found.values(), untouchable)
    if removals:
        assert sum(removal.bytes for removal in removals[:-1]) < needed


def test_chunks_go_by_their_last_use_and_then_their_number() -> None:
    chunks = (Chunk(3, 10, 5), Chunk(2, 10, 5), Chunk(0, 10, 9), Chunk(1, 10, 0))
    one = Candidate("a", 40, 1, chunks=chunks)
    assert plan(25, [one], frozenset()) == [Removal("a", 30, (1, 2, 3))]


def test_what_a_mount_shows_goes_after_what_none_shows_however_cold() -> None:
    cold = Candidate("a", 10, 1, ever_complete=True, mounted=True)
    warm = Candidate("b", 10, 9, ever_complete=True)
    assert plan(5, [cold, warm], frozenset()) == [Removal("b", 10)]
    assert plan(15, [cold, warm], frozenset()) == [Removal("b", 10), Removal("a", 10)]
