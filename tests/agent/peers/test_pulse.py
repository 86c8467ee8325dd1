"""When an agent tells trackers how fast it receives."""

from __future__ import annotations

from agent.peers.pulse import ACTIVE_FOR, TOLD_EVERY, Pace


def test_who_receives_as_before_says_so_often_enough_to_be_believed_while_bytes_are_on_their_way() -> None:
    pace = Pace()
    pace.active("group", 0.0)
    assert pace.seen(25e6, [], False, 0.1) == ["group"]
    pace.told(0.1)
    assert pace.seen(26e6, [], False, 0.1 + TOLD_EVERY / 2) == []
    assert pace.seen(26e6, [], False, 0.1 + TOLD_EVERY) == ["group"]
    assert pace.seen(26e6, [], False, ACTIVE_FOR) == []


def test_what_changes_is_told_at_once() -> None:
    pace = Pace()
    pace.active("group", 0.0)
    pace.seen(25e6, [], False, 0.1)
    pace.told(0.1)
    assert pace.seen(6e6, [], False, 0.2) == ["group"]
    assert pace.seen(25e6, ["child"], False, 0.2) == ["group"]
    assert pace.seen(25e6, [], True, 0.2) == ["group"]
