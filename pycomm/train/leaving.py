# SPDX-License-Identifier: MIT
"""How a run of the ps modes ends on a signal: all workers leave, the servers save."""

from __future__ import annotations

import sys

from pycomm.checkpoint.signals import Signals
from pycomm.errors import UsageError
from pycomm.train.modes import Served


class Leaving:
    """Ends all ranks after a signal to one; in the place of Saves.

    Nothing here is a collective, as ranks of ps-async are not in step and may have died. Whoever
    has got a signal says so in the store, and everybody looks there after each step. In ps-sync all
    end after the same step: no one can have made the next one without this rank, which says so
    before it makes it.

    Args:
        served: Begun, with checkpoints.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._signals = Signals()
        self._signals.take()

    def after_step(self, steps: int) -> None:
        """Leaves where it is time to.

        Raises:
            SystemExit: with code 0, when this rank's server has saved, if it has one.
        """
        served = self._served
        last = served.told_to_end()
        if last is None and self._signals.seen:
            last = steps + 1 if served.in_step else steps
            served.tell_to_end(last)
        if last is not None and (steps >= last or not served.in_step):
            self.close(steps)
            served.leave()
            sys.exit(0)

    def save(self, steps: int) -> None:
        """Refuses.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "save: in the ps modes the servers save, every so many steps and at the end; give "
            "ctx.checkpoint every="
        )

    def close(self, steps: int) -> None:
        """Gives signals back."""
        self._signals.give_back()
