"""What members report about each other, and what the tracker makes of it. Pure state, told the time.

One report is a doubt: the reported one has no children until it announces itself again, since a chain gives
each member one child only, and nobody else would notice. Reports of two members make it stay aside for
longer. A member that reports others as slow while it is reported itself, or that finds two parents slow, is
the slow one: then its parents are cleared. A wrong unit needs two reporters as well, or any one could put all
others out; the reporter itself leaves the liar out at once (agent/peers/liveness.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.peers.messages import Reason

WINDOW = 10.0  # seconds in which reports count together
TRIAL = 3.0  # seconds without the slow parent: whoever is slow itself has found another one slow by then
SLOW_FOR = 20.0  # seconds that a slow member stays without children after the last report
OUT_FOR = 60.0  # seconds for one that is silent, or sends wrong bytes, to two others


@dataclass(slots=True)
class _File:
    """Reports about one member: (reporter, reason) and when."""

    reports: dict[tuple[str, Reason], float] = field(default_factory=dict)
    doubted: bool = False
    slow_until: float = 0.0
    out_until: float = 0.0


class Reputation:
    """Who is nobody's parent for the time being. `now` is always monotonic seconds."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def report(self, reporter: str, about: str, reason: Reason, now: float) -> None:
        """Take a report. `absent` is nobody's fault, and a report about oneself is none."""
        if reason == "absent" or reporter == about:
            return
        file = self._files.setdefault(about, _File())
        file.reports = {key: at for key, at in file.reports.items() if now - at < WINDOW}
        file.reports[reporter, reason] = now
        file.doubted = True
        if reason == "slow":
            self._judge_slow(reporter, about, now)
        elif len({name for name, why in file.reports if why == reason}) >= 2:
            file.out_until = now + OUT_FOR

    def review(self, now: float) -> None:
        """Believe a lone reporter that went on well without its slow parent: to be called every second."""
        for name, file in self._files.items():
            for (reporter, reason), at in file.reports.items():
                on_trial = reason == "slow" and TRIAL <= now - at < WINDOW
                alone = on_trial and self._finds_slow(reporter, now) == {name}
                if alone and not self._slow_reporters(reporter, now):
                    file.slow_until = max(file.slow_until, at + SLOW_FOR)

    def announced(self, name: str) -> None:
        """A member is there: what was only a doubt is over."""
        if name in self._files:
            self._files[name].doubted = False

    def forget(self, name: str) -> None:
        """A member is gone for good."""
        self._files.pop(name, None)

    def aside(self, name: str, now: float) -> bool:
        """Whether a member may not be given as a parent now."""
        file = self._files.get(name)
        return file is not None and (file.doubted or now < max(file.slow_until, file.out_until))

    def slow(self, name: str, now: float) -> bool:
        """Whether a member counts as slow: it belongs at the end of the order."""
        file = self._files.get(name)
        return file is not None and now < file.slow_until

    def names(self) -> list[str]:
        """Everybody about whom there is, or was, a report."""
        return list(self._files)

    def _judge_slow(self, reporter: str, about: str, now: float) -> None:
        """A report counts for or against both, and may acquit those who find the reporter slow."""
        for name in (reporter, about, *self._slow_reporters(reporter, now)):
            if self._is_slow(name, now):
                self._files.setdefault(name, _File()).slow_until = now + SLOW_FOR
                for parent in self._finds_slow(name, now):
                    self._files[parent].doubted = False
            elif name != about and name in self._files:
                self._files[name].slow_until = now

    def _is_slow(self, name: str, now: float) -> bool:
        found, reporters = self._finds_slow(name, now), self._slow_reporters(name, now)
        if len(found) >= 2 or (reporters and any(not self._finds_slow(other, now) for other in found)):
            return True
        return len([one for one in reporters if len(self._finds_slow(one, now)) < 2]) >= 2

    def _slow_reporters(self, name: str, now: float) -> set[str]:
        file = self._files.get(name, _File())
        return {who for (who, why), at in file.reports.items() if why == "slow" and now - at < WINDOW}

    def _finds_slow(self, name: str, now: float) -> set[str]:
        return {about for about in self._files if name in self._slow_reporters(about, now)}
