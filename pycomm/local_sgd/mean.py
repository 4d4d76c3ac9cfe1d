# SPDX-License-Identifier: MIT
"""The mean of one vector over the ranks that have something to add, begun now and awaited later.

Two collectives: a few numbers that say who adds, then the vector, either by an all_reduce or
encoded, by the direct algorithm of pycomm.compression (each owner adds in rank order in float32 and
narrows once). Either way all ranks hold the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pycomm.compression.hook import EXACT_BELOW, Exchange, Memories
from pycomm.native import load

_NOTHING = Memories([], [], [])


@dataclass
class Attendance:
    """How many ranks of a round still train, and how many add to its mean."""

    active: int
    adding: int


class Mean:
    """A vector and its mean. All methods but `vector` are for one thread and one round at a time.

    Attributes:
        vector: What this rank adds, zeros if nothing; afterwards the mean.
        bytes_sent: Payload that this rank has sent so far: 2 (p - 1) / p of the vector for each
            round, of the encoded bytes where it travels narrow.
    """

    def __init__(
        self,
        vector: Tensor,
        sizes: Sequence[int],
        group: dist.ProcessGroup | None,
        wire: str | None,
    ) -> None:
        """Local.

        Args:
            vector: float32[n] or float64[n] on cpu.
            sizes: Of the tensors that it holds; one of fewer than 1024 elements is not encoded.
            group: A group that nobody else uses while a round is under way; None: one rank.
            wire: "int8", "int4", "bf16" or "fp16s"; None: as it is.
        """
        self.vector = vector
        self.bytes_sent = 0
        self._group = group
        self._ranks = 1 if group is None else group.size()
        self._exchange: Exchange | None = None
        if group is not None and wire is not None:
            begins = [sum(sizes[:i]) for i in range(len(sizes))]
            parts = [(i, at, 0, n) for i, (at, n) in enumerate(zip(begins, sizes, strict=True))]
            cut = load().EncodedBucket(wire, group.rank(), self._ranks, parts, EXACT_BELOW)
            self._exchange = Exchange(cut, group.rank(), self._ranks)
        self._counts = torch.zeros(2, dtype=torch.int64)
        self._works: list[dist.Work] = []
        self._second: Any = None  # the future of what follows all_to_all
        self._error: BaseException | None = None
        self._there: Attendance | None = None  # of a round that has ended

    def attend(self, active: bool, adds: bool) -> None:
        """Says what this rank does in the coming round. Collective, not blocking."""
        self._there = None
        self._counts = torch.tensor([active, adds], dtype=torch.int64)
        if self._group is not None:
            self._works = [self._begun(dist.all_reduce(self._counts, **self._async()))]

    def attendance(self) -> Attendance:
        """What all ranks do in it. Blocks until all have said so."""
        for work in self._works[:1]:
            work.wait()
        active, adding = self._counts.tolist()
        return Attendance(active, adding)

    def begin(self) -> None:
        """Sends the vector, which is in use from now on. Collective, not blocking."""
        if self._group is None:
            return
        if self._exchange is None:
            self._works.append(self._begun(dist.all_reduce(self.vector, **self._async())))
            self.bytes_sent += 2 * (self._ranks - 1) * self.vector.nbytes // self._ranks
            return
        exchange, group = self._exchange, self._group
        work = exchange.begin(self.vector, _NOTHING, group)
        self.bytes_sent += exchange.out.nbytes + (self._ranks - 1) * exchange.mean.nbytes

        def finish(sent: Any) -> None:
            try:
                sent.value()
                exchange.finish(self.vector, _NOTHING, group)
            except BaseException as error:  # the future would keep its text only
                self._error = error
                raise

        self._works.append(work)
        self._error = None
        self._second = work.get_future().then(finish)

    def wait(self) -> Attendance:
        """Ends the round: `vector` is the mean over the ranks that added. Blocks; may be repeated.

        Raises:
            CommError: a rank failed.
        """
        if self._there is not None:
            return self._there
        for work in self._works:
            work.wait()
        if self._second is not None:
            try:
                self._second.wait()
            except RuntimeError:
                if self._error is not None:
                    raise self._error from None
                raise
        self._second = None
        there = self.attendance()
        self._works = []
        if self._exchange is not None:  # it has divided by the number of all ranks
            if there.adding != self._ranks:
                self.vector.mul_(self._ranks / there.adding)
        elif there.adding > 1:
            self.vector.div_(there.adding)
        self._there = there
        return there

    def restore(self, vector: Tensor, there: Attendance) -> None:
        """Makes this a round that has ended so, but for wait(). Local."""
        self.vector.copy_(vector)
        self._there = there

    def _async(self) -> dict[str, Any]:
        return {"group": self._group, "async_op": True}

    @staticmethod
    def _begun(work: Any) -> dist.Work:
        assert isinstance(work, dist.Work)
        return work
