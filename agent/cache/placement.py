"""Which directory of the store a new object goes to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from agent.cache.directory import Directory, State
from agent.cache.index import Presence
from agent.content import ObjectRef

Present = Callable[[Directory, Sequence[str]], Awaitable[Mapping[str, Presence]]]


class Placement:
    """Objects of one dataset go to one directory, if they fit; else each where most room is. Loop only."""

    def __init__(self, directories: Sequence[Directory], presence: Present) -> None:
        self._directories = directories
        self._presence = presence
        self._homes: dict[str, Directory] = {}

    async def place(self, refs: Iterable[ObjectRef]) -> None:
        """Have those of the objects that are not in the store yet go to one directory, if they fit in one:
        the one that has the most of the others, then the roomiest. Raises StoreFailed."""
        well = [one for one in self._directories if one.state is State.OK]
        if len(well) < 2:
            return
        sizes = {ref.key: ref.size for ref in refs}
        known = [await self._presence(directory, list(sizes)) for directory in well]
        new = sizes.keys() - set().union(*known)
        missing = sum(sizes[key] for key in new)

        def needed(number: int) -> int:
            return missing + sum(sizes[key] - found.bytes for key, found in known[number].items())

        def rank(number: int) -> tuple[int, int]:
            return sum(sizes[key] for key in known[number]), well[number].room

        numbers = sorted(range(len(known)), key=rank, reverse=True)
        fitting = [number for number in numbers if well[number].room >= needed(number)]
        for key in new:
            self._homes.pop(key, None)
            if fitting:
                self._homes[key] = well[fitting[0]]

    def home(self, ref: ObjectRef) -> Directory | None:
        """The directory that an object goes to if none has it; None where none takes more."""
        home = self._homes.get(ref.key)
        if home is not None and home.state is State.OK and home.room >= ref.size:
            return home
        well = [one for one in self._directories if one.state is State.OK]
        return max(well, key=lambda one: one.room, default=None)

    def placed(self, ref: ObjectRef) -> None:
        """The object has gone to its home."""
        self._homes.pop(ref.key, None)
