# SPDX-License-Identifier: MIT
"""Several calls, one Work: the coalescing manager, batched messages, the list collectives."""

from __future__ import annotations

import threading
import time

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks, run_threads
from torch.distributed.distributed_c10d import _coalescing_manager

import pycomm

CPU = torch.device("cpu")


def fast_path(me: Rank) -> None:
    p = me.world_size
    xs = [torch.full((n,), float(me.rank)) for n in (1, 1000, 0, 33)]
    with _coalescing_manager():
        for x in xs:
            dist.all_reduce(x)
    assert all((x == p * (p - 1) / 2).all() for x in xs)
    outs = [torch.empty(3 * p), torch.empty(5 * p)]
    with _coalescing_manager(async_ops=True) as manager:
        for out in outs:
            dist.all_gather_into_tensor(out, torch.full((out.numel() // p,), float(me.rank)))
    manager.wait()
    for out in outs:
        assert torch.equal(out, torch.arange(float(p)).repeat_interleave(out.numel() // p))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_collectives_of_one_kind_go_as_one(world_size: int) -> None:
    run_ranks(fast_path, world_size)


def of_all_kinds(me: Rank) -> None:
    p = me.world_size
    x, y = torch.ones(100_000), torch.full((7,), float(me.rank))
    blocks = [torch.empty(2) for _ in range(p)]
    group = me.group
    group._start_coalescing(CPU)
    group.allreduce([x])
    group.broadcast([y], dist.BroadcastOptions())
    group.allgather([blocks], [torch.full((2,), float(me.rank))])
    work = group._end_coalescing(CPU)
    work.wait()
    assert work.is_completed()
    assert (x == p).all() and (y == 0).all()
    assert all((block == r).all() for r, block in enumerate(blocks))


def futures(me: Rank) -> None:
    x = torch.ones(50_000)
    me.group._start_coalescing(CPU)
    for _ in range(4):
        me.group.allreduce([x])
    work = me.group._end_coalescing(CPU)
    seen = work.get_future().then(lambda done: [t.data_ptr() for t in done.value()]).wait()
    assert seen == [x.data_ptr()] * 4
    assert (x == me.world_size**4).all()
    assert work.get_future_result().wait() == 0 and work._get_duration() > 0
    me.group._start_coalescing(CPU)
    nothing = me.group._end_coalescing(CPU)
    nothing.wait()
    assert nothing.get_future().wait() == []


def test_a_joined_future_has_the_tensors_of_all_calls() -> None:
    run_threads(futures, 3)


def batched(me: Rank) -> None:
    p, r = me.world_size, me.rank
    right, left = (r + 1) % p, (r - 1) % p
    got, empty = torch.empty(4), torch.empty(0)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, torch.full((4,), float(r)), right),
            dist.P2POp(dist.irecv, empty, left, tag=3),
            dist.P2POp(dist.isend, torch.empty(0), right, tag=3),
            dist.P2POp(dist.irecv, got, left),
        ]
    )
    assert len(works) == 1, "one Work for the batch"
    works[0].wait()
    assert (got == left).all()


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_batch_of_messages_is_one_work(world_size: int, transport: str) -> None:
    run_ranks(batched, world_size, transport=transport)


def two_threads(me: Rank) -> None:
    """One thread coalesces messages, the other's calls stay its own."""
    peer = 1 - me.rank
    sums = []

    def reduces() -> None:
        for _ in range(50):
            x = torch.ones(10)
            me.group.allreduce([x]).wait()
            sums.append(float(x[0]))

    thread = threading.Thread(target=reduces)
    thread.start()
    for number in range(50):
        got = torch.empty(1)
        me.group._start_coalescing(CPU)
        me.group.send([torch.tensor([float(number)])], peer, number)
        me.group.recv([got], peer, number)
        me.group._end_coalescing(CPU).wait()
        assert got == number
    thread.join()
    assert sums == [2.0] * 50


def test_a_threads_calls_are_not_joined_with_anothers() -> None:
    run_threads(two_threads, 2)


def unpaired(me: Rank) -> None:
    with pytest.raises(pycomm.UsageError, match="has not called start_coalescing"):
        me.group._end_coalescing(CPU)


def test_an_end_without_a_start_is_refused() -> None:
    run_threads(unpaired, 2)


def interrupted(me: Rank) -> None:
    """torch does not end what an exception interrupts."""
    peer = 1 - me.rank
    good = [
        dist.P2POp(dist.isend, torch.ones(2), peer),
        dist.P2POp(dist.irecv, torch.ones(2), peer),
    ]
    for _ in range(3):
        with pytest.raises(pycomm.UsageError, match="tag"):
            dist.batch_isend_irecv([dist.P2POp(dist.isend, torch.ones(2), peer, tag=-1)])
        # Synchronous calls wait all the same.
        if me.rank == 0:
            time.sleep(0.3)
        x = torch.full((1000,), float(me.rank))
        dist.broadcast(x, 0)
        assert (x == 0).all()
        for work in dist.batch_isend_irecv(good):
            work.wait()


def test_after_a_refused_message_everything_goes_on() -> None:
    run_ranks(interrupted, 2)


def failing(me: Rank) -> str:
    me.group._start_coalescing(CPU)
    me.group.allreduce([torch.ones(3)])
    me.group.allreduce([torch.ones(3 + me.rank)])
    work = me.group._end_coalescing(CPU)
    with pytest.raises(pycomm.Mismatch) as raised:
        work.wait()
    with pytest.raises(RuntimeError, match="float32"):
        work.get_future().wait()
    return str(raised.value)


def test_a_joined_work_raises_what_one_of_its_calls_raised() -> None:
    for text in run_threads(failing, 2):
        assert "float32[3]" in text and "float32[4]" in text


def gather_lists(me: Rank) -> None:
    p = me.world_size
    mine = [torch.full((n,), float(10 * me.rank + n)) for n in (2, 0, 5)]
    outs = [[torch.empty(n) for n in (2, 0, 5)] for _ in range(p)]
    dist.all_gather_coalesced(outs, mine)
    for r in range(p):
        for n, out in zip((2, 0, 5), outs[r], strict=True):
            assert torch.equal(out, torch.full((n,), float(10 * r + n)))
    with pytest.raises(pycomm.UsageError, match="expected as many as inputs"):
        dist.group.WORLD.allgather_coalesced([[torch.empty(2)] for _ in range(p)], mine)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_all_gather_coalesced_fills_each_ranks_list() -> None:
    run_ranks(gather_lists, 3)


def test_different_collectives_can_be_coalesced() -> None:
    run_threads(of_all_kinds, 3)
