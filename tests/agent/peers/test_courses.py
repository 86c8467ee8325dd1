"""What waits to be told to a tracker."""

from __future__ import annotations

import pytest

from agent.content import Extent, ObjectRef
from agent.peers import courses as courses_module
from agent.peers.courses import Courses, Outbox
from agent.peers.messages import SpanId

CHUNK = 8 << 20
SPAN, OTHER = SpanId("a" * 32, 0), SpanId("b" * 32, 0)


def test_what_was_not_told_is_told_again_with_what_has_come_since() -> None:
    outbox = Outbox({SPAN: 0b1}, [(SPAN, 0, "peer", "slow")], [OTHER], speeds=True)
    taken = outbox.take()
    assert not outbox
    outbox.done = {SPAN: 0b10}
    outbox.failed.append((SPAN, 1, "peer", "wrong"))
    outbox.put_back(taken)
    assert outbox.done == {SPAN: 0b11}
    assert [chunk for _, chunk, _, _ in outbox.failed] == [0, 1]
    assert outbox.released == [OTHER]


def test_where_there_are_too_many_spans_the_objects_that_were_not_asked_for_longest_are_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(courses_module, "MOST_COURSES", 2)
    courses = Courses(CHUNK)
    refs = [ObjectRef(f"s3://b/{number}", "v", CHUNK) for number in range(4)]
    for ref in (*refs, refs[0]):
        courses.use(ref)
        courses.at(ref, Extent(0, CHUNK))
    assert courses.trim()
    assert [courses.takes_part(ref.key) for ref in refs] == [True, False, False, True]
    assert {course.span.key for course in courses} == {refs[0].key, refs[3].key}
    assert courses.outbox("s3://b").released == [SpanId(ref.key, 0) for ref in refs[1:3]]
    assert not courses.trim()
