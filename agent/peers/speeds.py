"""Which members are slow, by what all of them see: a chain is as fast as its slowest member. Pure state.

A parent says which children hold it up: they leave bytes waiting that they asked for, and that are there.
That alone accuses nobody: the stream may have lost packets, the parent's own uplink may be what is slow, or
be shared by many. So each member also says how fast it receives in its best moments, from whomever. A child
that holds a parent up is slow where even that is much less than the others have: the link of a member that is
only unlucky brings as much as theirs in some moments (measured: 0.78 of it and more where eight or fifteen
were alike, 0.27 at most with a link of a quarter). It counts as slow until that has not been seen for
`SLOW_FOR` seconds, and is cleared at once when it receives as others do; a parent that was wrong about two
children is slow itself: its uplink is.

No more than a quarter of the members, or one, are slow, whatever is said: those hang on the others' uplinks,
which have room for a few, and where most are alike a chain of all is what they need. A member that has no
parent, since it came first and reads the origin alone, holds nobody up and is not found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

SLOW = 0.4  # of what the others receive at their best: below, a child that holds its parent up is slow
CLEARED = 0.6  # of that again: it is not
RECENT = 1.5  # seconds in which what members say belongs together
BEST_FOR = 300.0  # seconds for which the most that a member received says what it can
SLOW_FOR = 20.0  # seconds after it was last seen to hold somebody up
WRONG_FOR = 10.0  # seconds in which a parent is wrong about two children
SHARE = 0.25  # of the members that may be slow


@dataclass(slots=True)
class _File:
    fastest: float = 0.0  # bytes a second, of late
    told_at: float = float("-inf")
    best: float = 0.0
    best_at: float = float("-inf")
    holds_up: dict[str, float] = field(default_factory=dict)  # parent -> when it last said so
    accusers: set[str] = field(default_factory=set)  # whose word has made it slow
    slow_until: float = float("-inf")
    wrong: dict[str, float] = field(default_factory=dict)  # children that it was wrong about, and when


class Speeds:
    """What members say of themselves and their children. `now` is always monotonic seconds."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def receives(self, name: str, fastest: float, now: float, members: int) -> set[str]:
        """A member has received so many bytes a second at its best; whose standing that may have changed."""
        file = self._file(name)
        file.fastest, file.told_at = fastest, now
        if fastest >= file.best or now - file.best_at > BEST_FOR:
            file.best, file.best_at = fastest, now
        if self.slow(name, now):
            return self._clear(name, now)
        return self._accuse(name, list(file.holds_up), now, members)

    def held_up(self, parent: str, children: Iterable[str], now: float, members: int) -> set[str]:
        """These children hold a parent up; whose standing that has changed."""
        changed: set[str] = set()
        for child in children:
            if child != parent:
                self._file(child).holds_up[parent] = now
                changed |= self._accuse(child, [parent], now, members)
        return changed

    def slow(self, name: str, now: float) -> bool:
        """Whether a member counts as slow."""
        file = self._files.get(name)
        return file is not None and now < file.slow_until

    def names(self) -> list[str]:
        """Everybody who was slow, and may be so no more."""
        return [name for name, file in self._files.items() if file.slow_until > float("-inf")]

    def forget(self, name: str) -> None:
        """A member is gone."""
        self._files.pop(name, None)

    def _file(self, name: str) -> _File:
        return self._files.setdefault(name, _File())

    def _usual(self, name: str, now: float) -> float:
        """What the others receive at their best: the one in the middle, the lower of two."""
        others = [file for other, file in self._files.items() if other != name and not self.slow(other, now)]
        bests = sorted(file.best for file in others if file.best > 0 and now - file.best_at <= BEST_FOR)
        return bests[(len(bests) - 1) // 2] if bests else 0.0

    def _accuse(self, child: str, parents: Iterable[str], now: float, members: int) -> set[str]:
        file = self._file(child)
        if now - file.told_at > RECENT or not 0 < file.fastest < SLOW * self._usual(child, now):
            return set()
        recent = (one for one in parents if now - file.holds_up[one] <= RECENT and one in self._files)
        accusers = {one for one in recent if not self.slow(one, now)}
        return self._condemn(child, accusers, now, members) if accusers else set()

    def _condemn(self, name: str, accusers: set[str], now: float, members: int) -> set[str]:
        was = self.slow(name, now)
        others = sum(self.slow(one, now) for one in self._files if one != name)
        if not was and others + 1 > max(1.0, SHARE * members):
            return set()
        file = self._file(name)
        file.slow_until = now + SLOW_FOR
        file.accusers |= accusers
        return set() if was else {name}

    def _clear(self, name: str, now: float) -> set[str]:
        """A slow member that receives as others do is cleared, and its accusers were wrong."""
        file = self._files[name]
        if file.fastest < CLEARED * self._usual(name, now):
            return set()
        changed = {name}
        for accuser in file.accusers:
            above = self._file(accuser)
            above.wrong = {one: at for one, at in above.wrong.items() if now - at < WRONG_FOR} | {name: now}
            if len(above.wrong) >= 2:
                above.slow_until = now + SLOW_FOR
                changed.add(accuser)
        file.slow_until = now
        file.accusers, file.holds_up = set(), {}
        return changed
