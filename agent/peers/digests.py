"""Digests of one object's units, as its heads reported them. Pure state.

Where two members report different digests of one unit, the one with more reporters counts, and of two that
have as many the first: a liar that was quick is overruled by two others who read the origin themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

AT_ONCE = 8192  # digests in one answer: about 400 KB of JSON; an object of 64 GiB has 262,144


class DigestBook:
    """All digests of an object, in the order in which they became known."""

    def __init__(self) -> None:
        self._votes: dict[int, dict[bytes, set[str]]] = {}
        self._log: list[int] = []  # units, as their digest became known or changed

    def add(self, reporter: str, units: Mapping[int, bytes]) -> None:
        """Take what a member reports. What it reported of a unit before does not count any more."""
        for unit, digest in units.items():
            votes = self._votes.setdefault(unit, {})
            before = self.get(unit)
            for other, reporters in votes.items():
                if other != digest:
                    reporters.discard(reporter)
            votes.setdefault(digest, set()).add(reporter)
            if self.get(unit) != before:
                self._log.append(unit)

    def get(self, unit: int) -> bytes | None:
        """The digest of a unit, or None where nobody reported one."""
        votes = self._votes.get(unit, {})
        return max(votes, key=lambda digest: len(votes[digest]), default=None)

    def since(self, after: int) -> tuple[int, dict[int, bytes]]:
        """The digests of the entries from number `after` on, `AT_ONCE` of them at most, and the number behind
        the last.

        A number that is larger than there are entries is another tracker's: everything is given again.
        """
        start = after if 0 <= after <= len(self._log) else 0
        entries = self._log[start : start + AT_ONCE]
        known = ((unit, self.get(unit)) for unit in entries)
        return start + len(entries), {unit: digest for unit, digest in known if digest is not None}
