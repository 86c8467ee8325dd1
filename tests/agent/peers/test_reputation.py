"""Reports about members, and the verdicts that follow."""

from __future__ import annotations

from agent.peers.reputation import OUT_FOR, SLOW_FOR, TRIAL, WINDOW, Reputation


def test_one_report_is_a_doubt_until_the_member_announces_itself() -> None:
    book = Reputation()
    book.report("child", "parent", "silent", 0.0)
    assert book.aside("parent", 1.0)
    book.announced("parent")
    assert not book.aside("parent", 1.0)


def test_two_reporters_put_a_silent_or_lying_member_out_for_longer() -> None:
    for reason in ("silent", "wrong"):
        book = Reputation()
        book.report("a", "parent", reason, 0.0)
        book.report("b", "parent", reason, 1.0)
        book.announced("parent")
        assert book.aside("parent", OUT_FOR)
        assert not book.aside("parent", OUT_FOR + 1.0)


def test_reports_that_are_far_apart_or_of_one_member_do_not_add_up() -> None:
    book = Reputation()
    book.report("a", "parent", "wrong", 0.0)
    book.report("a", "parent", "wrong", 1.0)
    book.report("b", "parent", "wrong", 1.0 + WINDOW)
    book.announced("parent")
    assert not book.aside("parent", 1.0 + WINDOW)


def test_what_a_parent_does_not_have_is_nobodys_fault_and_nobody_reports_itself() -> None:
    book = Reputation()
    book.report("a", "parent", "absent", 0.0)
    book.report("parent", "parent", "wrong", 0.0)
    assert not book.aside("parent", 0.0)


def test_two_children_that_find_a_parent_slow_are_believed() -> None:
    book = Reputation()
    book.report("a", "parent", "slow", 0.0)
    assert not book.slow("parent", 0.0)
    book.report("b", "parent", "slow", 1.0)
    assert book.slow("parent", 1.0)
    book.announced("parent")
    assert book.aside("parent", SLOW_FOR)
    assert not book.aside("parent", SLOW_FOR + 1.0)


def test_in_a_chain_the_slow_one_is_the_first_that_is_found_slow_and_finds_slow() -> None:
    chain = [("slow", "fast"), ("child", "slow"), ("grandchild", "child")]
    for order in (chain, chain[::-1], [chain[1], chain[0], chain[2]]):
        book = Reputation()
        for reporter, about in order:
            book.report(reporter, about, "slow", 0.0)
        found = {name for name in ("fast", "slow", "child", "grandchild") if book.slow(name, 0.0)}
        assert found == {"slow"}
        assert not book.aside("fast", 0.0)


def test_whoever_finds_two_parents_slow_is_the_slow_one() -> None:
    book = Reputation()
    book.report("last", "a", "slow", 0.0)
    book.report("last", "b", "slow", 1.0)
    assert book.slow("last", 1.0)
    assert not book.aside("a", 1.0)
    assert not book.aside("b", 1.0)


def test_who_is_gone_is_forgotten() -> None:
    book = Reputation()
    book.report("a", "parent", "slow", 0.0)
    book.forget("parent")
    assert not book.aside("parent", 0.0)
    assert book.names() == []


def test_one_child_is_believed_once_it_went_on_well_without_the_slow_parent() -> None:
    book = Reputation()
    book.report("a", "parent", "slow", 0.0)
    book.announced("parent")
    book.review(TRIAL - 0.1)
    assert not book.slow("parent", TRIAL)
    book.review(TRIAL)
    assert book.slow("parent", TRIAL)


def test_one_child_is_not_believed_where_it_is_found_slow_itself() -> None:
    book = Reputation()
    book.report("a", "parent", "slow", 0.0)
    book.report("b", "a", "slow", 1.0)
    book.review(TRIAL)
    assert not book.slow("parent", TRIAL)
