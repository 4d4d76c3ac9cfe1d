# SPDX-License-Identifier: MIT
"""A sweep: what to measure, and the entry of the rank processes that measure it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pycomm.bench.cells import Cell, cells_of
from pycomm.bench.ranks import Context, run_ranks
from pycomm.bench.rows import Row, with_ratios

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

GRACE_S = 5.0  # a backend's own timeout names the culprit, so it gets the chance to come first


@dataclass(frozen=True)
class Sweep:
    """Everything a run of the bench is asked for.

    Attributes:
        backends: names of torch.distributed backends; ratios are against the last. A suffix after
            a dot tells apart several groups of one backend: gloo, gloo.2.
        worlds: numbers of ranks.
        sizes: bytes of the larger side.
        seconds: time budget of one cell with one backend.
        iterations: exact number of samples, or None to follow the budget.
        timeout_s: longest time that one step of a cell may take.
    """

    collectives: tuple[str, ...]
    backends: tuple[str, ...]
    worlds: tuple[int, ...]
    sizes: tuple[int, ...]
    dtypes: tuple[str, ...] = ("float32",)
    ops: tuple[str, ...] = ("sum",)
    placements: tuple[str, ...] = ("out", "in")
    root: int = 0
    async_op: bool = False
    seconds: float = 0.3
    iterations: int | None = None
    check_only: bool = False
    pin: bool = False
    timeout_s: float = 120.0

    def cells(self, world: int) -> list[Cell]:
        """Lists the cells for one world size, in the order in which they run."""
        return [
            cell
            for collective in self.collectives
            for cell in cells_of(
                collective,
                world,
                self.sizes,
                self.dtypes,
                self.ops,
                self.placements,
                self.root,
            )
        ]


def measure(sweep: Sweep, world: int) -> Iterator[list[Row]]:
    """Measures all cells of one world size on new processes; yields the rows of each cell.

    Raises:
        RankError: a rank raised, died, or made no progress.
    """
    emitted = run_ranks(
        world, rank_main, (sweep,), timeout_s=sweep.timeout_s + GRACE_S, pin=sweep.pin
    )
    for rows in emitted:
        yield with_ratios(rows, sweep.backends[-1])


def rank_main(context: Context, sweep: Sweep) -> None:
    """Runs on every rank: joins the groups, then measures cell by cell; rank 0 emits the rows."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    timeout = timedelta(seconds=sweep.timeout_s)
    store = TCPStore("127.0.0.1", context.store_port, is_master=False, timeout=timeout)
    measure_cells(context, sweep, join_all(context, sweep, store))
    dist.barrier()
    dist.destroy_process_group()


def join_all(context: Context, sweep: Sweep, store: TCPStore) -> dict[str, dist.ProcessGroup]:
    """Makes the default group, and one for each of the sweep's backends."""
    import torch.distributed as dist

    timeout = timedelta(seconds=sweep.timeout_s)
    # The default group only carries agreement between ranks; what is measured has its own group.
    dist.init_process_group(
        "gloo", store=store, rank=context.rank, world_size=context.world, timeout=timeout
    )
    return join_groups(sweep.backends, timeout, context)


def measure_cells(context: Context, sweep: Sweep, groups: dict[str, dist.ProcessGroup]) -> None:
    """One rank's part of all cells; rank 0 emits the rows of each."""
    from pycomm.bench.calls import Arena
    from pycomm.bench.measure import Bench, Effort

    cells = sweep.cells(context.world)
    arena = Arena(max((cell.bytes for cell in cells), default=0))
    effort = Effort(sweep.seconds, sweep.iterations, sweep.check_only, sweep.timeout_s / 2)
    gc.disable()
    for cell in cells:
        label = str(cell)
        bench = Bench(
            groups,
            arena,
            effort,
            sweep.async_op,
            lambda step, label=label: context.step(f"{label}, {step}"),  # type: ignore[misc]
        )
        rows = bench.run_cell(cell)
        if context.rank == 0:
            context.emit(rows)


def join_groups(
    backends: Sequence[str], timeout: timedelta, context: Context
) -> dict[str, dist.ProcessGroup]:
    """Makes one group over all ranks for each backend.

    Raises:
        RuntimeError: a backend could not make the group.
    """
    import torch.distributed as dist

    groups: dict[str, dist.ProcessGroup] = {}
    for backend in backends:
        context.step(f"new_group with {backend}")
        group = dist.new_group(backend=backend.partition(".")[0], timeout=timeout)
        if not isinstance(group, dist.ProcessGroup):
            raise RuntimeError(f"{backend} made no group for rank {context.rank}")
        groups[backend] = group
    return groups
