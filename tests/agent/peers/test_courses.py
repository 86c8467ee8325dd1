"""What waits to be told to a tracker."""

from __future__ import annotations

from agent.peers.courses import Outbox
from agent.peers.messages import SpanId

SPAN, OTHER = SpanId("a" * 32, 0), SpanId("b" * 32, 0)


def test_what_was_not_told_is_told_again_with_what_has_come_since() -> None:
    outbox = Outbox({SPAN: 0b1}, [(SPAN, 0, "peer", "slow")], [OTHER], {("a", 4): b"4"}, speeds=True)
    taken = outbox.take()
    assert not outbox
    assert taken.made == {("a", 4): b"4"}
    outbox.done, outbox.made = {SPAN: 0b10}, {("a", 5): b"5"}
    outbox.failed.append((SPAN, 1, "peer", "wrong"))
    outbox.put_back(taken)
    assert outbox.done == {SPAN: 0b11}
    assert [chunk for _, chunk, _, _ in outbox.failed] == [0, 1]
    assert outbox.released == [OTHER]
    assert outbox.made == {("a", 4): b"4", ("a", 5): b"5"}
