"""The book of digests: what is known, what is new, and who is believed."""

from __future__ import annotations

from agent.peers.digests import AT_ONCE, DigestBook


def test_only_what_became_known_since_is_told() -> None:
    book = DigestBook()
    book.add("a", {0: b"x", 1: b"y"})
    upto, units = book.since(0)
    assert units == {0: b"x", 1: b"y"}
    book.add("b", {2: b"z"})
    assert book.since(upto) == (3, {2: b"z"})
    assert book.since(3) == (3, {})


def test_a_large_object_is_told_in_parts_that_an_answer_can_hold() -> None:
    book = DigestBook()
    digests = {unit: b"%d" % unit for unit in range(2 * AT_ONCE + 3)}
    book.add("a", digests)
    upto = 0
    told: dict[int, bytes] = {}
    for expected in (AT_ONCE, AT_ONCE, 3, 0):
        upto, units = book.since(upto)
        assert len(units) == expected
        told |= units
    assert told == digests


def test_the_count_of_another_tracker_gives_everything_again() -> None:
    book = DigestBook()
    book.add("a", {0: b"x"})
    assert book.since(17) == (1, {0: b"x"})
    assert book.since(-1) == (1, {0: b"x"})


def test_the_first_report_counts_until_two_others_agree_on_another() -> None:
    book = DigestBook()
    book.add("liar", {0: b"bad"})
    book.add("a", {0: b"good"})
    assert book.get(0) == b"bad"
    upto, _ = book.since(0)
    book.add("b", {0: b"good"})
    assert book.since(upto) == (2, {0: b"good"})


def test_one_member_has_one_vote_however_often_it_reports() -> None:
    book = DigestBook()
    book.add("a", {0: b"good"})
    for digest in (b"bad", b"worse", b"bad"):
        book.add("liar", {0: digest})
    assert book.get(0) == b"good"
    assert book.get(1) is None
