# SPDX-License-Identifier: MIT
"""Groups made from a group: split, shrink, merge, as torch's ProcessGroup asks for them."""

from __future__ import annotations

import copy
import os
import signal
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks, run_threads

import pycomm

LONG = timedelta(seconds=60)
CPU = torch.device("cpu")


def total(group: dist.ProcessGroup) -> float:
    x = torch.ones(5)
    group.allreduce([x]).wait()
    assert (x == x[0]).all()
    return float(x[0])


# ---- split


def split_in_two(me: Rank) -> None:
    world = dist.group.WORLD
    half = me.world_size // 2
    mine = list(range(half)) if me.rank < half else list(range(half, me.world_size))
    child = world.split_group(mine, timeout=LONG, group_name=f"half{mine[0]}")
    assert (child.rank(), child.size()) == (mine.index(me.rank), len(mine))
    assert total(child) == len(mine)
    assert total(world) == me.world_size
    backend = child._get_backend(CPU)
    assert backend.name() == "pycomm"
    # A message within the child is counted in the child's ranks.
    if len(mine) > 1 and child.rank() < 2:
        x = torch.tensor([float(me.rank)])
        if child.rank() == 0:
            child.send([x], 1, 0).wait()
        else:
            child.recv([x], 0, 0).wait()
            assert x == mine[0]
    child.shutdown()
    assert total(world) == me.world_size


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_a_split_child_works_beside_its_parent(world_size: int) -> None:
    run_ranks(split_in_two, world_size)


def split_without_me(me: Rank) -> None:
    child = dist.group.WORLD.split_group([0, 2], timeout=LONG, group_name="evens")
    assert (child is None) == (me.rank == 1)
    if child is not None:
        assert total(child) == 2


def test_a_rank_outside_the_split_gets_none() -> None:
    run_ranks(split_without_me, 3)


def split_for_both_devices(me: Rank) -> None:
    """torch before 2.14 calls split() once for each device type the backend serves."""
    me.init(name="cpu:pycomm,cuda:pycomm")
    world = dist.group.WORLD
    parent = world._get_backend(CPU)
    before = parent.comm_split_count()
    child = world.split_group(list(range(me.world_size)), timeout=LONG, group_name="all")
    backends = [child._get_backend(torch.device(kind)) for kind in ("cpu", "cuda")]
    assert backends[0] is backends[1] or backends[0].name() == backends[1].name()
    assert total(child) == me.world_size
    assert parent.comm_split_count() == before + 1, "one child for both devices"
    again = world.split_group(list(range(me.world_size)), timeout=LONG, group_name="again")
    assert total(again) == me.world_size and total(child) == me.world_size
    assert parent.comm_split_count() == before + 2
    dist.destroy_process_group()


def test_a_split_for_two_device_types_makes_one_child() -> None:
    run_ranks(split_for_both_devices, 2, init=False)


def split_twice_by_one_name(me: Rank) -> None:
    """Without a name torch derives one from the ranks, the same each time."""
    children = [dist.group.WORLD.split_group([0, 1], timeout=LONG) for _ in range(3)]
    assert [total(child) for child in children] == [2, 2, 2]


def test_splitting_off_the_same_ranks_again_gives_a_new_group() -> None:
    run_ranks(split_twice_by_one_name, 2)


def split_options(me: Rank) -> None:
    world = dist.group.WORLD
    backend = world._get_backend(CPU)
    parent_options = backend.options
    options = copy.deepcopy(parent_options)
    assert options.transports == parent_options.transports
    child = world.split_group([0, 1], timeout=timedelta(seconds=7), opts=options, group_name="o")
    assert child._get_backend(CPU).options.timeout_ms == 7000
    assert child._get_backend(CPU).options.transports == "tcp"
    assert child._get_backend(CPU).transport_to(1 - me.rank) == "tcp"
    # What the child was given is not what the parent has.
    assert backend.options.timeout_ms != 7000 and backend.options.group_name != "o"


def test_a_child_takes_over_its_parents_settings() -> None:
    run_ranks(split_options, 2, transport="tcp")


def split_wrongly(me: Rank) -> None:
    world = dist.group.WORLD
    with pytest.raises(RuntimeError, match="expected ranks of the parent group, 0 to 1"):
        world.split_group([0, 7], timeout=LONG, group_name="far")
    with pytest.raises(RuntimeError, match="duplicates|each rank once"):
        world.split_group([0, 0], timeout=LONG, group_name="twice")
    assert total(world) == 2


def test_a_split_that_cannot_be_is_refused() -> None:
    run_ranks(split_wrongly, 2)


def split_a_split(me: Rank) -> None:
    outer = dist.group.WORLD.split_group([0, 1, 2], timeout=LONG, group_name="outer")
    if outer is None:
        return
    inner = outer.split_group([1, 2], timeout=LONG, group_name="inner")
    assert (inner is None) == (me.rank == 0)
    if inner is not None:
        assert total(inner) == 2


def test_a_child_can_be_split_again() -> None:
    run_ranks(split_a_split, 4)


def split_with_pending_work(me: Rank) -> None:
    x = torch.ones(1 << 20)
    work = dist.all_reduce(x, async_op=True)
    child = dist.group.WORLD.split_group([0, 1], timeout=LONG, group_name="while")
    assert total(child) == 2
    work.wait()
    assert (x == 2).all()


def test_a_split_does_not_wait_for_the_parents_work() -> None:
    run_ranks(split_with_pending_work, 2)


# ---- shrink


def shrink(me: Rank, gone: list[int]) -> None:
    if me.rank in gone:
        return
    dist.shrink_group(gone)
    left = me.world_size - len(gone)
    assert dist.get_world_size() == left
    x = torch.tensor([float(me.rank)])
    dist.all_reduce(x)
    assert x == sum(rank for rank in range(me.world_size) if rank not in gone)


@pytest.mark.parametrize(("world_size", "gone"), [(2, [0]), (3, [1]), (4, [0, 3]), (5, [2, 4])])
def test_a_shrunk_group_holds_the_ranks_that_are_left(world_size: int, gone: list[int]) -> None:
    run_ranks(shrink, world_size, gone)


def shrink_after_death(me: Rank) -> float:
    if me.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(pycomm.PeerFailure) as raised:
        while True:
            dist.all_reduce(torch.ones(1000))
    dist.shrink_group(list(raised.value.ranks), shrink_flags=1)
    x = torch.ones(1)
    dist.all_reduce(x)
    return float(x)


def test_the_survivors_of_a_death_go_on_in_a_shrunk_group() -> None:
    told = run_ranks(shrink_after_death, 4, dies=[2])
    assert [told[rank] for rank in (0, 1, 3)] == [3, 3, 3]


def shrink_twice(me: Rank) -> None:
    for left in (3, 2):
        if me.rank == left:
            return
        dist.shrink_group([left])
        x = torch.ones(1)
        dist.all_reduce(x)
        assert x == left


def test_a_group_can_shrink_again_and_again() -> None:
    run_ranks(shrink_twice, 4)


def shrink_wrongly(me: Rank) -> None:
    backend = me.backend
    with pytest.raises(pycomm.UsageError, match="excludes itself"):
        backend.shrink([me.rank])
    with pytest.raises(pycomm.UsageError, match="expected ranks of the group, 0 to 1"):
        backend.shrink([5])


def test_a_shrink_that_cannot_be_is_refused() -> None:
    run_threads(shrink_wrongly, 2)
