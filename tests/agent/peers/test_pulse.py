"""When an agent tells trackers how fast it receives."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from agent.peers.drains import LOOK_EVERY
from agent.peers.pulse import ACTIVE_FOR, TOLD_EVERY, Intake, Pace, Pulse
from agent.source import Urgency
from tests.fakes.clock import ManualClock
from tests.harness.sink import MemorySink


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


class Nobody:
    """Is sent nothing."""

    def sent(self) -> dict[str, int]:
        return {}

    def waiting(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize(
    "ended", [False, True], ids=["while something is on its way", "with all that it asked for"]
)
async def test_who_receives_no_more_is_short_of_bytes(ended: bool) -> None:
    clock, intake, short = ManualClock(), Intake(), list[bool]()
    pulse = Pulse(intake, Nobody(), lambda _, __, is_short: short.append(is_short), clock)
    pulse.start()
    sink = MemorySink(0, 1 << 20, Urgency.PRELOAD)
    with ExitStack() as transfer:
        transfer.enter_context(intake.of(sink))
        for bytes_each in (1000, 0):
            if ended and not bytes_each:
                transfer.close()
            for _ in range(10):
                await asyncio.sleep(0)
                sink.write(memoryview(bytes(bytes_each)))
                clock.advance(LOOK_EVERY)
        await asyncio.sleep(0)
        await pulse.close()
    assert short[0] is False
    assert short[-1] is not ended
