# SPDX-License-Identifier: MIT
"""Signals that ask a run to end: noted when they come, looked at between two steps."""

from __future__ import annotations

import signal
from typing import Any


class Signals:
    """Takes note of signals; all its methods are local.

    Attributes:
        seen: The number of the last one, 0: none.
    """

    def __init__(self) -> None:
        self.seen = 0
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        """Whether any is waited for."""
        return bool(self._before)

    def take(self, *signals: signal.Signals) -> None:
        """From now on note these; on the main thread. Default: SIGTERM and SIGUSR1."""
        for one in signals or (signal.SIGTERM, signal.SIGUSR1):
            before = signal.signal(one, self._note)
            self._before.setdefault(signal.Signals(one), before)

    def _note(self, number: int, _frame: Any) -> None:
        self.seen = number

    def give_back(self) -> None:
        """Let them do what they did before."""
        for one, before in self._before.items():
            signal.signal(one, before)
        self._before.clear()
