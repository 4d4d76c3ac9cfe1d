# SPDX-License-Identifier: MIT
"""monitored_barrier: names who is missing, on every rank that came, and harms nothing."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks

import pycomm

SHORT = timedelta(seconds=0.5)
LONG = timedelta(seconds=30)


def barrier(timeout: timedelta, wait_all_ranks: bool = False) -> None:
    """Past dist.monitored_barrier(), which torch 2.13 and older keep for gloo alone."""
    dist.group.WORLD.monitored_barrier(timeout, wait_all_ranks)


def missing_ranks(
    me: Rank, missing: tuple[int, ...], wait_all: bool
) -> tuple[str, tuple[int, ...]] | None:
    barrier(LONG)
    told = None
    if me.rank not in missing:
        # Rank 0, whose time counts, comes when the others are on their way.
        if me.rank == 0:
            others = [rank for rank in range(1, me.world_size) if rank not in missing]
            me.store.wait([f"comes{rank}" for rank in others])
        me.store.set(f"comes{me.rank}", "1")
        with pytest.raises(pycomm.Timeout) as raised:
            barrier(SHORT, wait_all)
        told = (str(raised.value), raised.value.ranks)
    # The group goes on, and so do its barriers.
    x = torch.ones(3)
    dist.all_reduce(x)
    assert (x == me.world_size).all()
    barrier(LONG, wait_all)
    barrier(LONG)
    return told


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_missing_rank_is_named_on_every_rank_that_came(world_size: int) -> None:
    told = run_ranks(missing_ranks, world_size, (1,), False)
    assert "Rank 1 failed to pass monitoredBarrier in 500 ms" in told[0][0]
    for rank in range(2, world_size):
        text, ranks = told[rank]
        assert f"Rank {rank} successfully reached monitoredBarrier" in text
        assert "waited in vain for rank 1" in text and ranks == (1,)


def test_all_missing_ranks_are_named_when_asked() -> None:
    told = run_ranks(missing_ranks, 4, (1, 3), True)
    assert "Ranks 1, 3 failed to pass monitoredBarrier" in told[0][0]
    assert told[0][1] == told[2][1] == (1, 3)


def test_without_it_the_first_missing_rank_is_named() -> None:
    told = run_ranks(missing_ranks, 4, (2, 3), False)
    assert "Rank 2 failed to pass monitoredBarrier" in told[0][0] and told[0][1] == (2,)


def test_a_missing_rank_0_is_named() -> None:
    told = run_ranks(missing_ranks, 3, (0,), False)
    assert all("rank 0 did not come in 500 ms" in told[rank][0] for rank in (1, 2))
    assert told[1][1] == (0,)


def no_time(me: Rank) -> None:
    if me.rank == 0:
        with pytest.raises(pycomm.Timeout, match="Rank 0 timed out in monitoredBarrier"):
            barrier(timedelta(0))
    dist.barrier()


def test_a_timeout_of_zero_is_said() -> None:
    run_ranks(no_time, 2)


def late(me: Rank) -> bool:
    barrier(LONG)
    if me.rank == 1:
        time.sleep(0.4)
        me.store.set("late", "1")
    barrier(LONG)
    return me.store.check(["late"])


def test_it_waits_for_a_rank_that_is_late() -> None:
    assert run_ranks(late, 3) == [True] * 3, "a rank passed before rank 1 had come"


def dead(me: Rank) -> str:
    barrier(LONG)
    if me.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(pycomm.PeerFailure) as raised:
        barrier(LONG)
    return str(raised.value)


def test_a_rank_that_died_is_named_at_once() -> None:
    begun = time.monotonic()
    told = run_ranks(dead, 3, dies=[1])
    assert time.monotonic() - begun < 20, "it waited for the timeout"
    assert all("rank 1 (pid" in told[rank] for rank in (0, 2))


def in_a_stuck_collective(me: Rank) -> None:
    """What it is for: the others wait in an all_reduce that rank 1 never joins."""
    if me.rank == 1:
        me.store.wait(["answered0", "answered2"])
        dist.all_reduce(torch.ones(1))
        return
    work = dist.all_reduce(torch.ones(1), async_op=True)
    with pytest.raises(pycomm.Timeout) as raised:
        barrier(SHORT)
    assert raised.value.ranks == (1,)
    me.store.set(f"answered{me.rank}", "1")
    work.wait()


def test_it_answers_while_a_collective_is_stuck() -> None:
    run_ranks(in_a_stuck_collective, 3)


def called_in_a_callback(me: Rank) -> None:
    """On rank 0 another thread runs the callback, on rank 1 the calling one."""
    x, y = torch.ones(10), torch.ones(20)

    def callback(done) -> None:  # torch checks annotations
        time.sleep(0.2)
        dist.all_reduce(y)

    if me.rank == 1:
        me.store.wait(["attached"])
    work = dist.all_reduce(x, async_op=True)
    if me.rank == 1:
        work.wait()
    future = work.get_future().then(callback)
    me.store.set("attached", "1")
    barrier(LONG)
    assert (y == 2).all(), "it did not wait for the callback"
    future.wait()
    barrier(LONG)


def test_collectives_of_callbacks_do_not_part_the_ranks() -> None:
    run_ranks(called_in_a_callback, 2)


def many(me: Rank) -> int:
    barrier(LONG)
    dist.barrier()
    before = me.store.num_keys()
    for _ in range(100):
        barrier(LONG)
    dist.barrier()
    return int(me.store.num_keys()) - before


def test_rounds_leave_no_keys_behind_but_the_last() -> None:
    assert run_ranks(many, 2)[0] < 10
