# SPDX-License-Identifier: MIT
"""A store whose user stops waiting in it once there is no more reason to.

A group's set-up looks into its store again and again until all ranks have come. One whose peer
comes no more would do so until its time is up; this ends it when the server closes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store


class EndingStore(Store):
    """Another store, but that a look raises when `ended` says why.

    It raises once, so that whoever was waiting can leave word for its peer.
    """

    def __init__(self, store: Store, ended: Callable[[], str]) -> None:
        """Local; `ended` is asked with each look, in the thread that looks."""
        super().__init__()
        self.underlying_store, self._ended = store, ended
        self._raised = False

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there; raises once, see above."""
        if not self._raised and (why := self._ended()):
            self._raised = True
            raise RuntimeError(why)
        return self.underlying_store.check(keys)

    def set(self, key: str, value: Any) -> None:
        """Hands on."""
        self.underlying_store.set(key, value)

    def get(self, key: str) -> bytes:
        """Hands on."""
        return self.underlying_store.get(key)

    def add(self, key: str, amount: int) -> int:
        """Hands on."""
        return self.underlying_store.add(key, amount)

    def wait(self, keys: Sequence[str], timeout: timedelta) -> None:  # type: ignore[override]
        """Hands on."""
        self.underlying_store.wait(list(keys), timeout)
