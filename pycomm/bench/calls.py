# SPDX-License-Identifier: MIT
"""One collective bound to its tensors and its process group, ready to be called.

Runs in the rank processes. Every call blocks until this rank's part is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pycomm.bench.cells import OPS, Cell, Whole
from pycomm.bench.inputs import NotMeasurable, Segment, source_segment, steady_value

REDUCE_OPS = {op: "PRODUCT" if op == "prod" else op.upper() for op in OPS}
POISON = 0x5B  # a byte rarely in a result: what a call leaves unwritten shows as wrong


class Arena:
    """Two buffers allocated once, viewed by every cell: no fresh page is touched while timing."""

    def __init__(self, capacity_bytes: int) -> None:
        """Takes the bytes of each buffer; the second is allocated once a cell asks for it."""
        self._capacity_bytes = capacity_bytes
        self._buffers: dict[str, torch.Tensor] = {}

    def view(self, name: str, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Returns the first ``count`` elements of the named buffer."""
        if name not in self._buffers:
            self._buffers[name] = torch.full((self._capacity_bytes,), POISON, dtype=torch.uint8)
        return self._buffers[name][: count * dtype.itemsize].view(dtype)


@dataclass(frozen=True)
class Buffers:
    """A rank's tensors for one cell; source and target share memory when in place."""

    source: torch.Tensor
    target: torch.Tensor

    def fill(self, cell: Cell, rank: int) -> None:
        """Poisons the target, then writes this rank's input."""
        if not cell.count:
            return
        self.target.view(torch.uint8).fill_(POISON)
        if not cell.spec.root_sends or rank == cell.root:
            source_segment(cell, rank, self.source.numel()).write(self.source)

    def steady(self, cell: Cell) -> None:
        """Writes an input that repeated reductions in place leave as it is."""
        if cell.spec.reduces:
            self.source.fill_(steady_value(cell.op))

    def wrong(self, expected: list[Segment]) -> int:
        """Counts wrong elements of the target."""
        return sum(segment.wrong(self.target) for segment in expected)


def buffers_for(cell: Cell, rank: int, arena: Arena) -> Buffers:
    """Lays out source and target for one cell."""
    dtype: torch.dtype = getattr(torch, cell.dtype) if cell.count else torch.uint8
    whole = cell.count * cell.world
    split = cell.spec.whole
    source_count = whole if split in (Whole.SOURCE, Whole.BOTH) else cell.count
    target_count = whole if split in (Whole.TARGET, Whole.BOTH) else cell.count
    first = arena.view("first", max(source_count, target_count), dtype)
    if cell.placement == "out":
        second = arena.view("second", target_count, dtype)
        return Buffers(first[:source_count], second)
    begin = 0 if split is Whole.NEITHER else rank * cell.count
    mine = first[begin : begin + cell.count]
    source = first if split is Whole.SOURCE else mine
    return Buffers(source, first if split is Whole.TARGET else mine)


Issue = Callable[[bool], Any]


def bind(
    cell: Cell, rank: int, group: dist.ProcessGroup, buffers: Buffers, async_op: bool
) -> Callable[[], None]:
    """Returns a function that performs the cell's collective once and waits for it.

    Raises:
        NotMeasurable: the collective needs more ranks.
    """
    if cell.collective == "send_recv":
        return _shift(rank, cell.world, group, buffers)
    issue = _issue(cell, rank, group, buffers)
    if not async_op:
        return lambda: issue(False)
    return lambda: issue(True).wait()


def _issue(cell: Cell, rank: int, group: dist.ProcessGroup, buffers: Buffers) -> Issue:
    """Returns a function of ``async_op`` that issues the collective."""
    source, target = buffers.source, buffers.target
    op = getattr(dist.ReduceOp, REDUCE_OPS[cell.op]) if cell.spec.reduces else None
    # torch 2.13 renamed these two and warns about the former names.
    gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    at_root = rank == cell.root
    blocks: list[torch.Tensor] | None = None
    if at_root and cell.collective in ("gather", "scatter"):
        blocks = list((target if cell.collective == "gather" else source).chunk(cell.world))
    calls: dict[str, Issue] = {
        "all_reduce": lambda a: dist.all_reduce(target, op, group, a),
        "broadcast": lambda a: dist.broadcast(target, cell.root, group, a),
        "reduce": lambda a: dist.reduce(target, cell.root, op, group, a),
        "all_gather": lambda a: gather_single(target, source, group, a),
        "gather": lambda a: dist.gather(source, blocks, cell.root, group, a),
        "scatter": lambda a: dist.scatter(target, blocks, cell.root, group, a),
        "reduce_scatter": lambda a: scatter_single(target, source, op, group, a),
        "all_to_all": lambda a: dist.all_to_all_single(target, source, group=group, async_op=a),
        "barrier": lambda a: dist.barrier(group, a),
    }
    return calls[cell.collective]


def _shift(rank: int, world: int, group: dist.ProcessGroup, buffers: Buffers) -> Callable[[], None]:
    """Returns a call in which each rank sends to the next rank and receives from the one before."""
    if world < 2:
        raise NotMeasurable("send_recv needs at least 2 ranks")
    source, target = buffers.source, buffers.target
    following, preceding = (rank + 1) % world, (rank - 1) % world

    def call() -> None:
        sent = dist.isend(source, following, group)
        received = dist.irecv(target, preceding, group)
        for work in (received, sent):
            if work is not None:
                work.wait()

    return call
