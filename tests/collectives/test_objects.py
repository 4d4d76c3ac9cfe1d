# SPDX-License-Identifier: MIT
"""Collectives of Python objects: sizes that differ by rank, subgroups, roots, devices."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks


def thing(rank: int, size: int) -> dict[str, object]:
    """An object whose pickle's size grows with both, and which holds a tensor."""
    return {"rank": rank, "text": "x" * (size * rank), "tensor": torch.arange(size + rank)}


def same(got: object, expected: object) -> bool:
    if not isinstance(expected, dict):
        return got == expected
    assert isinstance(got, dict)
    plain = {key: value for key, value in expected.items() if key != "tensor"}
    return torch.equal(got["tensor"], expected["tensor"]) and plain.items() <= got.items()


def every_call(me: Rank, ranks: list[int]) -> None:
    """In the group of these ranks; roots are named globally and within the group."""
    group = dist.new_group(ranks, sort_ranks=False)
    if me.rank not in ranks:
        return
    p, index = len(ranks), ranks.index(me.rank)
    for size in (0, 10, 100_000):
        everybody = [thing(rank, size) for rank in ranks]
        got: list = [None] * p
        dist.all_gather_object(got, everybody[index], group=group)
        assert all(map(same, got, everybody)), size
        for root in range(p):
            got = [None] * p
            out = got if index == root else None
            if root % 2:
                dist.gather_object(everybody[index], out, ranks[root], group=group)
            else:
                dist.gather_object(everybody[index], out, group_dst=root, group=group)
            assert index != root or all(map(same, got, everybody)), size
            sent = [*everybody, None, "end"] if index == root else [None] * (p + 2)
            dist.broadcast_object_list(sent, ranks[root], group=group)
            assert all(map(same, sent, [*everybody, None, "end"])), size
            one: list = [None]
            given = everybody if index == root else None
            dist.scatter_object_list(one, given, group_src=root, group=group)
            assert same(one[0], everybody[index]), size


def test_objects_of_any_size_reach_every_member() -> None:
    for ranks in ([0, 1, 2, 3], [2, 0, 3], [1]):
        run_ranks(every_call, 4, ranks)


def round_the_ring(me: Rank) -> None:
    p, rank = me.world_size, me.rank
    after, before = (rank + 1) % p, (rank - 1) % p
    for size in (0, 50_000):
        mine, theirs = [thing(rank, size), "and", rank], [thing(before, size), "and", before]
        got: list = [None] * 3
        if rank == 0:
            dist.send_object_list(mine, after)
            assert dist.recv_object_list(got, before) == before
        else:
            assert dist.recv_object_list(got, before) == before
            dist.send_object_list(mine, after, device=torch.device("cpu"))
        assert all(map(same, got, theirs)), size


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_lists_of_objects_travel_from_rank_to_rank(transport: str) -> None:
    run_ranks(round_the_ring, 3, transport=transport)


class Unpicklable:
    def __reduce__(self) -> str:
        raise ValueError("this object stays here")


def not_to_be_pickled(me: Rank) -> None:
    """Refused before anything was sent: the group goes on where all ranks fail alike."""
    got: list = [None] * me.world_size
    with pytest.raises(ValueError, match="stays here"):
        dist.all_gather_object(got, Unpicklable())
    dist.all_gather_object(got, me.rank)
    assert got == list(range(me.world_size))


def test_an_object_that_cannot_be_pickled_leaves_the_group_whole() -> None:
    run_ranks(not_to_be_pickled, 2)
