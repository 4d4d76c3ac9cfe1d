# SPDX-License-Identifier: MIT
"""Collectives over tensors in the arena give the bits that they give over ordinary ones."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from ranks import Died, Pool, Rank, run_ranks

import pycomm
from pycomm import memory

COUNT = 140_001  # odd, so that chunks and blocks are too; a block is 128 KiB and more
SEED = 20261121
Make = Callable[[torch.Tensor], torch.Tensor]


def in_arena(tensor: torch.Tensor) -> torch.Tensor:
    with pycomm.arena():
        made = tensor.clone()
    assert memory.holds(made)
    return made


def ordinary(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone()


def view(tensor: torch.Tensor) -> torch.Tensor:
    """In the arena at an address that is no multiple of a cache line, within a larger tensor."""
    with pycomm.arena():
        whole = torch.full((tensor.numel() + 20_000,), 7, dtype=tensor.dtype)
    part = whole[3 : 3 + tensor.numel()]
    return part.copy_(tensor)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    with pycomm.arena():
        whole = torch.full((tensor.numel(), 2), 7, dtype=tensor.dtype)
    return whole[:, 1].copy_(tensor)


def values(rank: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED + rank)
    if dtype.is_floating_point:
        return torch.randn(count, generator=generator).to(dtype)
    return torch.randint(-100, 100, (count,), generator=generator).to(dtype)


def moved(me: Rank, make: Make, dtype: torch.dtype) -> list[torch.Tensor]:
    """The results of every collective whose tensors `make` makes, as ordinary tensors."""
    p = me.world_size
    block = COUNT - COUNT % p
    results = []

    def keep(*tensors: torch.Tensor) -> None:
        results.extend(ordinary(tensor) for tensor in tensors)

    ops = [dist.ReduceOp.SUM, dist.ReduceOp.MAX]
    ops += [dist.ReduceOp.AVG] if dtype.is_floating_point else [dist.ReduceOp.BXOR]
    for op in ops:
        x = make(values(me.rank, COUNT, dtype))
        dist.all_reduce(x, op)
        dist.all_reduce(x, dist.ReduceOp.MIN)  # the same tensor again
        keep(x)
    for root in (0, p - 1):
        x = make(values(me.rank, COUNT, dtype))
        dist.broadcast(x, root)
        y = make(values(me.rank, COUNT, dtype))
        dist.reduce(y, root)
        keep(x, y)
    x = make(values(me.rank, COUNT, dtype))
    gathered = [make(torch.zeros(COUNT, dtype=dtype)) for _ in range(p)]
    dist.all_gather(gathered, x)
    x.fill_(1)  # the call has returned: the input is ours again
    keep(*gathered)
    whole = make(values(me.rank, p * COUNT, dtype))  # in place: the input is a part of the output
    mine = whole[me.rank * COUNT : (me.rank + 1) * COUNT]
    dist.all_gather_into_tensor(whole, mine)
    keep(whole)
    y = make(torch.zeros(block // p, dtype=dtype))
    dist.reduce_scatter_tensor(y, make(values(me.rank, block, dtype)))
    z = make(torch.zeros(block, dtype=dtype))
    dist.all_to_all_single(z, make(values(me.rank, block, dtype)))
    keep(y, z)
    many = [make(values(me.rank + k, COUNT, dtype)) for k in range(5)]
    for work in [dist.all_reduce(one, async_op=True) for one in many]:
        work.wait()
    keep(*many)
    return results


def all_layouts(me: Rank, dtypes: list[torch.dtype]) -> None:
    half = dist.new_group(list(range((me.world_size + 1) // 2)))
    makes: list[Make] = [in_arena, view, strided]
    # One rank's tensor in the arena and another's not, either way round.
    makes += [in_arena if me.rank % 2 else ordinary, view if me.rank == 0 else ordinary]
    for dtype in dtypes:
        expected = moved(me, ordinary, dtype)
        for number, make in enumerate(makes):
            got = moved(me, make, dtype)
            assert len(got) == len(expected)
            for k, (a, b) in enumerate(zip(got, expected, strict=True)):
                same = torch.equal(a.view(torch.uint8), b.view(torch.uint8))
                assert same, f"{dtype}, layout {number}, result {k}, seed {SEED}"
        if me.rank < (me.world_size + 1) // 2:
            x = in_arena(torch.full((COUNT,), me.rank + 1.0))
            dist.all_reduce(x, group=half)
            p = (me.world_size + 1) // 2
            assert (x == p * (p + 1) / 2).all()


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_tensors_in_the_arena_give_the_same_bits(world_size: int) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.int64]
    run_ranks(all_layouts, world_size, dtypes[: 3 if world_size == 2 else 1])


def in_a_row(me: Rank, rounds: int) -> None:
    """Writes the tensor as soon as each call returns: a peer that still read it would show."""
    x = in_arena(torch.zeros(COUNT))
    out = in_arena(torch.zeros(me.world_size * COUNT))
    for number in range(rounds):
        x.fill_(me.rank + number)
        dist.all_reduce(x)
        p = me.world_size
        assert (x == p * number + p * (p - 1) // 2).all(), number
        x.fill_(me.rank + number)
        dist.all_gather_into_tensor(out, x)
        x.fill_(-1)
        for rank, block in enumerate(out.view(p, -1)):
            assert (block == rank + number).all(), (number, rank)


def test_calls_in_a_row_over_one_tensor_do_not_mix() -> None:
    run_ranks(in_a_row, 2, 100)
    run_ranks(in_a_row, 3, 30)


def dies_within(me: Rank) -> int | None:
    x = in_arena(torch.ones(4 << 20))
    dist.all_reduce(x)
    if me.rank == 1:
        # Somewhere within the calls that follow.
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    with pytest.raises(pycomm.PeerFailure, match="rank 1"):
        while True:
            dist.all_reduce(x)
    # What rank 1 might still have worked on is not given out again.
    before = memory.statistics()["quarantined_bytes"]
    del x
    return memory.statistics()["quarantined_bytes"] - before


def test_a_rank_that_dies_amid_windows_is_a_failure_and_nothing_hangs_or_crashes() -> None:
    pool = Pool()
    try:
        for _ in range(3):
            results = run_ranks(dies_within, 3, dies=[1], pool=pool, timeout_s=30)
            assert isinstance(results[1], Died)
    finally:
        pool.close()
