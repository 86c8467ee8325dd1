"""What waits to be told to a tracker."""

from __future__ import annotations

import pytest

from agent.content import Extent, ObjectRef
from agent.peers import courses as courses_module
from agent.peers.courses import Courses, Outbox
from agent.peers.messages import SpanId
from agent.peers.wire import MOST, Batch

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


def test_what_is_taken_at_once_fits_into_one_batch_and_the_rest_stays() -> None:
    spans = [SpanId(f"{number:032x}", 0) for number in range(MOST + 1)]
    outbox = Outbox(dict.fromkeys(spans, 1), [], list(spans))
    taken = outbox.take()
    Batch(done=list(taken.done.items()), released=list(taken.released))
    assert list(outbox.done) == outbox.released == spans[MOST:]
    outbox.put_back(taken)
    assert outbox.done.keys() == set(spans)


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


def test_spans_that_only_came_are_bounded_too_and_leave_the_objects_in_use_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(courses_module, "MOST_COURSES", 10)
    courses = Courses(CHUNK)
    read = [ObjectRef(f"s3://b/read/{number}", "v", CHUNK) for number in range(4)]
    came = [ObjectRef(f"s3://b/came/{number}", "v", CHUNK) for number in range(40)]
    for _ in range(3):
        for ref in read:
            courses.use(ref)
            courses.at(ref, Extent(0, CHUNK))
        for ref in came:
            courses.at(ref, Extent(0, CHUNK))
        assert courses.trim()
        assert {course.span.key for course in courses} == {ref.key for ref in (*read, *came[-6:])}
        assert all(courses.takes_part(ref.key) for ref in read)
        assert not any(courses.takes_part(ref.key) for ref in came)
    for ref in came[:9]:
        courses.at(ref, Extent(0, CHUNK))
    assert courses.trim()
    assert not any(courses.takes_part(ref.key) for ref in read)  # nobody has used them since the last time
