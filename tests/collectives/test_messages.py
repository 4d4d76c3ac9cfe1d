# SPDX-License-Identifier: MIT
"""send and recv: order, tags, any source, sizes, layouts, and messages beside collectives."""

from __future__ import annotations

import calls
import pytest
import torch
from ranks import Rank, run_threads
from reference import DTYPES, make, same_bits, seed_of

TRANSPORTS = ["shm", "tcp"]


def data(*what: object, dtype: torch.dtype = torch.int32, count: int = 5) -> torch.Tensor:
    return make(dtype, count, seed_of(what))


def run_every_dtype(me: Rank) -> None:
    """Round the ring, every dtype and size."""
    after, before = (me.rank + 1) % me.world_size, (me.rank - 1) % me.world_size
    for dtype in DTYPES:
        for count in (0, 1, 1003):
            out = torch.zeros(count, dtype=torch.uint8).to(dtype)
            sent = data(me.rank, dtype, count, dtype=dtype, count=count)
            works = [me.backend.send([sent], after, 0), me.backend.recv([out], before, 0)]
            for work in works:
                work.wait()
            expected = data(before, dtype, count, dtype=dtype, count=count)
            assert same_bits(out, expected), f"{dtype}[{count}]: got {out}, expected {expected}"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_messages_carry_every_dtype(world_size: int, transport: str) -> None:
    run_threads(run_every_dtype, world_size, transport=transport)


def run_tags(me: Rank) -> None:
    """Receives in another order than the sends, told apart by tag."""
    tags = [7, 3, 7, 0, 3]
    if me.rank == 0:
        works = [me.backend.send([data(i)], 1, tag) for i, tag in enumerate(tags)]
        for work in works:
            work.wait()
        return
    for tag, messages in ((3, [1, 4]), (0, [3]), (7, [0, 2])):
        for i in messages:
            out = torch.zeros(5, dtype=torch.int32)
            me.backend.recv([out], 0, tag).wait()
            assert torch.equal(out, data(i)), f"tag {tag}, message {i}"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_tags_select_messages_and_equal_tags_keep_their_order(transport: str) -> None:
    run_threads(run_tags, 2, transport=transport)


def run_any_source(me: Rank) -> None:
    if me.rank != 0:
        me.backend.send([data(me.rank)], 0, 5).wait()
        return
    seen = set()
    for _ in range(me.world_size - 1):
        out = torch.zeros(5, dtype=torch.int32)
        work = me.backend.recv_anysource([out], 5)
        work.wait()
        source = work._source_rank()
        assert torch.equal(out, data(source)), f"not what rank {source} sent"
        seen.add(source)
    assert seen == set(range(1, me.world_size))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_recv_from_any_source_names_the_sender(world_size: int, transport: str) -> None:
    run_threads(run_any_source, world_size, transport=transport)


def run_large_both_ways(me: Rank) -> None:
    """Everybody sends to everybody before anybody receives: more than the slots hold."""
    others = [rank for rank in range(me.world_size) if rank != me.rank]
    count = 400_001
    outs = {rank: torch.zeros(count, dtype=torch.int32) for rank in others}
    works = [me.backend.send([data(me.rank, r, count=count)], r, 1) for r in others]
    works += [me.backend.recv([outs[rank]], rank, 1) for rank in others]
    for work in works:
        work.wait()
    for rank in others:
        assert torch.equal(outs[rank], data(rank, me.rank, count=count)), f"from rank {rank}"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("world_size", [2, 5])
def test_large_messages_cross_without_deadlock(world_size: int, transport: str) -> None:
    run_threads(run_large_both_ways, world_size, transport=transport)


def run_layouts(me: Rank) -> None:
    """Views on one side, other views on the other; what lies between their elements stays."""
    base = data("base", count=24).view(4, 6)
    views = [base.t(), base[:, ::2], base[1:, 1:4], base[0, 0]]
    for i, view in enumerate(views):
        if me.rank == 0:
            me.backend.send([view], 1, i).wait()
            continue
        frame = torch.full((2, *reversed(view.shape)), -1, dtype=torch.int32)
        out = frame[1].permute(tuple(reversed(range(view.dim()))))
        me.backend.recv([out], 0, i).wait()
        assert torch.equal(out, view), f"view {i}"
        assert (frame[0] == -1).all(), f"view {i}: written beside the output"


def test_messages_may_be_views_on_both_sides() -> None:
    run_threads(run_layouts, 2)


def run_beside_collectives(me: Rank) -> None:
    """Messages posted before collectives finish after them, and the other way round."""
    peer = 1 - me.rank
    for i in range(20):
        out = torch.zeros(100_000, dtype=torch.int32)
        receive = me.backend.recv([out], peer, i)
        x = torch.full((50_000,), 1.0)
        calls.all_reduce(me.backend, x, is_async=i % 2 == 0)
        assert (x == 2).all()
        send = me.backend.send([data(me.rank, i, count=100_000)], peer, i)
        receive.wait()
        send.wait()
        assert torch.equal(out, data(peer, i, count=100_000)), f"message {i}"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_messages_and_collectives_do_not_wait_for_each_other(transport: str) -> None:
    run_threads(run_beside_collectives, 2, transport=transport)
