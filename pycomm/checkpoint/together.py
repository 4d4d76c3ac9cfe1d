# SPDX-License-Identifier: MIT
"""Steps that all ranks take, or none: what fails on one rank is raised on every one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from pycomm.errors import CheckpointError

T = TypeVar("T")


class Together:
    """The ranks of a group, or one process without torch.distributed.

    Attributes:
        group: The group, or None.
        rank: This rank.
        world_size: Number of ranks.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank = dist.get_rank(group) if group is not None else 0
        self.world_size = dist.get_world_size(group) if group is not None else 1

    def each(self, what: str, function: Callable[[], T]) -> list[T]:
        """Return every rank's result of a function. Collective, blocking.

        Raises:
            CheckpointError: it raised on some rank; the text names ranks and causes.
        """
        mine: tuple[str | None, Any]
        cause: Exception | None = None
        try:
            mine = (None, function())
        except Exception as error:
            mine, cause = (f"{type(error).__name__}: {error}", None), error
        every: list[Any] = [mine]
        if self.group is not None:
            every = [None] * self.world_size
            dist.all_gather_object(every, mine, group=self.group)
        failed = {rank: text for rank, (text, _) in enumerate(every) if text is not None}
        if failed:
            raise CheckpointError(f"{what}: {_by_rank(failed, self.world_size)}") from cause
        return [value for _, value in every]

    def first(self, what: str, function: Callable[[], T]) -> T:
        """Return rank 0's result of a function that only rank 0 calls. As each()."""
        return self.each(what, function if self.rank == 0 else lambda: None)[0]  # type: ignore[return-value]


def _by_rank(failed: dict[int, str], world_size: int) -> str:
    if world_size == 1:
        return failed[0]
    same: dict[str, list[int]] = {}
    for rank, text in failed.items():
        same.setdefault(text, []).append(rank)
    return "; ".join(
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}: {text}"
        for text, ranks in same.items()
    )
