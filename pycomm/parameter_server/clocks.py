# SPDX-License-Identifier: MIT
"""Who is there, how far everybody is, and who may go on: the rules of sync, async and ssp.

A worker's clock is the number of gradients that it has pushed. Not thread-safe: the shard's lock
guards it.

Reference: Ho et al. 2013, "More effective distributed ML via a stale synchronous parallel parameter
server".
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pycomm.errors import UsageError

MODES = ("sync", "async", "ssp")


@dataclass
class Member:
    """A worker as one server knows it.

    Attributes:
        number: In the order of joining, the same on all servers.
        rank: What the worker says of itself; gradients are added in this order, then by number.
        clock: Gradients it has pushed, or where it entered.
    """

    number: int
    rank: int
    clock: int

    @property
    def order(self) -> tuple[int, int]:
        """By which gradients are added."""
        return self.rank, self.number


class Clocks:
    """The clocks of the workers that are there.

    Attributes:
        members: By number.
        joined: How many have ever come.
        leads: How often a pull was answered when its worker was that far ahead of the slowest.
    """

    def __init__(self, mode: str, staleness: int | None, workers: int, clock: int = 0) -> None:
        """Begins without workers at `clock`.

        Raises:
            UsageError: there is no such mode, or the bound does not belong to it.
        """
        if mode not in MODES:
            raise UsageError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
        if (mode == "ssp") != (staleness is not None):
            raise UsageError(
                f"mode={mode!r} with staleness={staleness!r}: ssp needs a bound, sync and async "
                "have none"
            )
        if staleness is not None and (type(staleness) is not int or staleness < 0):
            raise UsageError(f"staleness={staleness!r}: expected a number of steps, 0 or more")
        if type(workers) is not int or workers < 1:
            raise UsageError(f"workers={workers!r}: expected how many begin together, 1 or more")
        self.mode, self.staleness, self.workers = mode, staleness, workers
        self.members: dict[int, Member] = {}
        self.joined = 0
        self.leads: Counter[int] = Counter()
        self._last = clock  # where it stands while nobody is there

    @property
    def lowest(self) -> int:
        """The clock of the slowest worker."""
        return min((member.clock for member in self.members.values()), default=self._last)

    @property
    def highest(self) -> int:
        """The clock of the fastest worker that was ever there."""
        return max((self._last, *(member.clock for member in self.members.values())))

    def join(self, number: int, rank: int) -> Member:
        """A worker comes: until it has entered it stands with the slowest, and holds the others."""
        member = Member(number, rank, self.lowest)
        self.members[number] = member
        self.joined += 1
        return member

    def enter(self, member: Member, clock: int) -> None:
        """It has asked all servers where they stand, and begins where the last of them does."""
        member.clock = max(member.clock, clock)

    def advance(self, member: Member) -> None:
        """It has pushed a gradient."""
        member.clock += 1

    def leave(self, member: Member) -> None:
        """It has left or died: nobody waits for it any more."""
        if self.members.pop(member.number, None) is not None:
            self._last = max(self._last, member.clock)

    def may_pull(self, member: Member, done: int) -> bool:
        """Whether a worker may have the parameters now, after `done` steps in sync mode."""
        if self.joined < self.workers:
            return False
        if self.mode == "sync":
            return done >= member.clock
        return self.staleness is None or member.clock - self.lowest <= self.staleness

    def pulled(self, member: Member) -> int:
        """Records an answer; returns the lowest clock at that moment."""
        self.leads[member.clock - self.lowest] += 1
        return self.lowest
