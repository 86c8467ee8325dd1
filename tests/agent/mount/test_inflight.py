"""The in-flight table gives each slot to one request at a time."""

from __future__ import annotations

import threading

from agent.mount.inflight import FIRST_SLOT
from tests.harness.inflight import request_table


def test_who_finds_no_slot_gets_the_next_that_is_freed() -> None:
    requests = request_table(FIRST_SLOT + 1)
    given: list[int] = []

    def work() -> None:
        for _ in range(50):
            slot = requests.acquire(1)
            given.append(slot)
            assert given.count(slot) == 1
            given.remove(slot)
            requests.release(slot)

    threads = [threading.Thread(target=work) for _ in range(4)]
    held = requests.acquire(1)
    for thread in threads:
        thread.start()
    requests.release(held)
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert requests.acquire(2) == FIRST_SLOT and not given
