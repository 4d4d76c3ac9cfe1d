# SPDX-License-Identifier: MIT
"""batch_isend_irecv, and receives that do not say from whom."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks


def payload(source: int, target: int, count: int, what: int = 0) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int64) * 31 + 1000 * source + 100 * target + what


def wait_all(works: list[dist.Work]) -> None:
    for work in works:
        work.wait()


def ring(me: Rank, count: int, receives_first: bool) -> None:
    after, before = (me.rank + 1) % me.world_size, (me.rank - 1) % me.world_size
    out = torch.zeros(count, dtype=torch.int64)
    ops = [
        dist.P2POp(dist.isend, payload(me.rank, after, count), after),
        dist.P2POp(dist.irecv, out, before),
    ]
    wait_all(dist.batch_isend_irecv(ops[::-1] if receives_first else ops))
    assert torch.equal(out, payload(before, me.rank, count))


def all_pairs(me: Rank, count: int, receives_first: bool) -> None:
    """Everybody to everybody, three messages each, sizes 0, count and count + 1."""
    others = [rank for rank in range(me.world_size) if rank != me.rank]
    sizes = (0, count, count + 1)
    sends, receives, outs = [], [], []
    for other in others:
        for i, size in enumerate(sizes):
            out = torch.zeros(size, dtype=torch.int64)
            outs.append((out, payload(other, me.rank, size, i)))
            sends.append(dist.P2POp(dist.isend, payload(me.rank, other, size, i), other))
            receives.append(dist.P2POp(dist.irecv, out, other))
    ops = receives + sends if receives_first else sends + receives
    wait_all(dist.batch_isend_irecv(ops))
    for out, expected in outs:
        assert torch.equal(out, expected)


def every_pattern(me: Rank) -> None:
    for count in (0, 1, 1000, 200_000):
        # The same way on all ranks, and every second rank the other way round.
        for receives_first in (False, True, me.rank % 2 == 0):
            ring(me, count, receives_first)
            all_pairs(me, min(count, 50_000), receives_first)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_batches_in_any_order_do_not_deadlock(world_size: int, transport: str) -> None:
    run_ranks(every_pattern, world_size, transport=transport)


def in_a_subgroup(me: Rank) -> None:
    ranks = [3, 1, 0]
    group = dist.new_group(ranks, sort_ranks=False)
    if me.rank not in ranks:
        return
    index = ranks.index(me.rank)
    after, before = ranks[(index + 1) % 3], ranks[(index - 1) % 3]
    out = torch.zeros(7, dtype=torch.int64)
    by_global_rank = [
        dist.P2POp(dist.isend, payload(me.rank, after, 7), after, group, tag=5),
        dist.P2POp(dist.irecv, out, before, group, tag=5),
    ]
    wait_all(dist.batch_isend_irecv(by_global_rank))
    assert torch.equal(out, payload(before, me.rank, 7))
    out.zero_()
    by_group_rank = [
        dist.P2POp(dist.irecv, out, group=group, group_peer=(index - 1) % 3),
        dist.P2POp(dist.isend, payload(me.rank, after, 7), group=group, group_peer=(index + 1) % 3),
    ]
    wait_all(dist.batch_isend_irecv(by_group_rank))
    assert torch.equal(out, payload(before, me.rank, 7))


def test_batches_in_a_subgroup_name_peers_globally_or_within_the_group() -> None:
    run_ranks(in_a_subgroup, 4)


def views_in_a_batch(me: Rank) -> None:
    """A column goes out, a column comes in, and the columns beside it stay."""
    peer = 1 - me.rank
    grid = torch.full((4, 3), -1.0)
    mine = torch.arange(12.0).view(4, 3) + 100 * me.rank
    wait_all(
        dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, mine[:, 2], peer), dist.P2POp(dist.irecv, grid[:, 0], peer)]
        )
    )
    assert torch.equal(grid[:, 0], torch.arange(12.0).view(4, 3)[:, 2] + 100 * peer)
    assert (grid[:, 1:] == -1).all()


def test_batches_take_views() -> None:
    run_ranks(views_in_a_batch, 2)


def from_anyone(me: Rank) -> None:
    """Receives from any source, posted before and after the messages come, in one tag each."""
    p = me.world_size
    for tag, count in ((1, 1), (2, 60_000)):
        if me.rank != 0:
            for i in range(2):
                dist.isend(payload(me.rank, 0, count, i), 0, tag=tag).wait()
            continue
        seen = []
        for i in range(2 * (p - 1)):
            out = torch.zeros(count, dtype=torch.int64)
            if i % 2:
                work = dist.irecv(out, tag=tag)
                work.wait()
                source = work._source_rank()
            else:
                source = dist.recv(out, tag=tag)
            # Messages of one sender keep their order.
            assert torch.equal(out, payload(source, 0, count, seen.count(source))), (tag, source)
            seen.append(source)
        assert sorted(seen) == sorted(list(range(1, p)) * 2)
    dist.barrier()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_receives_from_anyone_take_each_senders_messages_in_order(transport: str) -> None:
    for world_size in (2, 4):
        run_ranks(from_anyone, world_size, transport=transport)


def posted_at_once(me: Rank) -> None:
    """Several receives from any source wait together; each message meets one of them."""
    if me.rank != 0:
        dist.send(torch.tensor([me.rank]), 0)
        return
    outs = [torch.zeros(1, dtype=torch.int64) for _ in range(me.world_size - 1)]
    works = [dist.irecv(out) for out in outs]
    wait_all(works)
    assert sorted(int(out) for out in outs) == list(range(1, me.world_size))
    for out, work in zip(outs, works, strict=True):
        assert work._source_rank() == int(out)


def test_receives_from_anyone_may_be_posted_together() -> None:
    run_ranks(posted_at_once, 4)


def global_name_of_the_sender(me: Rank) -> None:
    """In a subgroup recv() returns the sender's rank in the whole job."""
    group = dist.new_group([1, 2, 3])
    if me.rank == 3:
        x = torch.zeros(1)
        assert {dist.recv(x, group=group) for _ in range(2)} == {1, 2}
    elif me.rank:
        dist.send(torch.ones(1), 3, group=group)


def test_recv_in_a_subgroup_returns_a_global_rank() -> None:
    run_ranks(global_name_of_the_sender, 4)
