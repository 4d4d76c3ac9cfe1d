# SPDX-License-Identifier: MIT
"""How long something took, less the time in which the machine ran nobody who asked for it.

Promises in seconds hold on a machine that runs those who are ready. A virtual machine that is put
aside, or a neighbour that takes the cores, makes everybody late, and that is no broken promise. So
a test of such a bound measures with this clock: on a quiet machine it is the wall's.

    clock = MachineClock.shared()
    ...
    assert clock.took(killed_at, raised_at) < 1.0

One thread for each core sleeps for a few milliseconds again and again and notes when it is woken
late. Times are those of time.monotonic(), which all processes of a machine share.
"""

from __future__ import annotations

import os
import threading
import time

TICK_S = 0.005
# Being woken this late happens on every machine that has something to do, and counts as its time.
LATE_S = 0.02


class MachineClock:
    _one: MachineClock | None = None

    @classmethod
    def shared(cls) -> MachineClock:
        """The one of this process; it runs from the first call on."""
        if cls._one is None:
            cls._one = cls()
        return cls._one

    def __init__(self) -> None:
        self._stalls: list[tuple[float, float]] = []  # begin and end; append is atomic
        self._due: dict[int, float] = {}  # by core: when its thread should be awake
        for core in os.sched_getaffinity(0):
            threading.Thread(
                target=self._tick, args=(core,), name=f"clock of core {core}", daemon=True
            ).start()

    def _tick(self, core: int) -> None:
        os.sched_setaffinity(threading.get_native_id(), {core})
        while True:
            self._due[core] = due = time.monotonic() + TICK_S
            time.sleep(TICK_S)
            now = time.monotonic()
            if now - due > LATE_S:
                self._stalls.append((due, now))

    def stalled(self, begin: float, end: float) -> float:
        """Seconds of that time in which a core kept somebody waiting."""
        now = time.monotonic()
        asleep = [(due, now) for due in list(self._due.values()) if now - due > LATE_S]
        total, covered = 0.0, begin
        for first, last in sorted(self._stalls + asleep):
            first, last = max(first, covered), min(last, end)
            if last > first:
                total += last - first
                covered = last
        return total

    def took(self, begin: float, end: float) -> float:
        """Seconds from begin to end without the stalls."""
        return end - begin - self.stalled(begin, end)
