# SPDX-License-Identifier: MIT
"""Subgroups however they are made, device meshes, and calls from several threads."""

from __future__ import annotations

import random
import threading
import time
import zlib

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


def check(group: dist.ProcessGroup, ranks: list[int], what: object = None) -> None:
    """A sum and a broadcast in a group that has these global ranks, in this order."""
    me = dist.get_rank()
    x = torch.tensor([2.0**me])
    dist.all_reduce(x, group=group)
    assert x == sum(2.0**rank for rank in ranks), (what, ranks, x)
    gathered = torch.zeros(len(ranks))
    dist.all_gather_into_tensor(gathered, torch.tensor([float(me)]), group=group)
    assert gathered.int().tolist() == ranks, (what, ranks, gathered)


def only_members_make_it(me: Rank) -> None:
    """use_local_synchronization: ranks that are not in a group do not call new_group for it.

    torch names such a group by its ranks and by how many groups the caller has, so that all members
    must have as many.
    """
    subsets = [[0, 1, 2], [3], [2, 3], [0, 1], [0, 1, 2, 3], [1, 3], [0, 2]]
    mine = [subset for subset in subsets if me.rank in subset]
    groups = [(subset, dist.new_group(subset, use_local_synchronization=True)) for subset in mine]
    for subset, group in groups:
        check(group, subset)
    for subset, group in groups:
        if len(subset) < me.world_size:
            dist.destroy_process_group(group)
    check(groups[2][1], [0, 1, 2, 3])
    check(dist.group.WORLD, list(range(me.world_size)))


def test_groups_may_be_made_by_their_members_alone() -> None:
    run_ranks(only_members_make_it, 4)


def made_in_other_orders(me: Rank, seed: int) -> None:
    """Disjoint groups made by their members alone have no order between them."""
    print(f"seed {seed}")
    pairs = [[0, 1], [2, 3]]
    for _ in range(3):
        ranks = next(pair for pair in pairs if me.rank in pair)
        time.sleep(random.Random(seed + me.rank // 2).random() / 50)
        group = dist.new_group(ranks, use_local_synchronization=True)
        check(group, ranks)
    # Around a ring: neighbours agree on the order of the groups they share, nobody knows of all.
    ring = [[0, 1], [2, 3], [1, 2], [0, 3]]
    groups = [
        (pair, dist.new_group(pair, use_local_synchronization=True))
        for pair in ring
        if me.rank in pair
    ]
    xs = [torch.ones(3) for _ in groups]
    works = [
        dist.all_reduce(x, group=group, async_op=True)
        for x, (_, group) in zip(xs, reversed(groups), strict=True)
    ]
    for x, work in zip(xs, works, strict=True):
        work.wait()
        assert (x == 2).all()
    for pair, group in groups:
        check(group, pair)


def test_disjoint_groups_may_be_made_in_any_order() -> None:
    run_ranks(made_in_other_orders, 4, 7)


def in_the_order_given(me: Rank) -> None:
    ranks = [2, 0, 1]
    group = dist.new_group(ranks, sort_ranks=False)
    assert dist.get_group_rank(group, me.rank) == ranks.index(me.rank)
    check(group, ranks)
    x = torch.tensor([float(me.rank)])
    dist.broadcast(x, group_src=0, group=group)
    assert x == 2


def test_the_ranks_of_a_group_may_be_in_any_order() -> None:
    run_ranks(in_the_order_given, 3)


def many_overlapping(me: Rank, seed: int) -> None:
    print(f"seed {seed}")
    everybody = range(me.world_size)
    choices = random.Random(seed)
    subsets = [sorted(choices.sample(everybody, choices.randint(1, 5))) for _ in range(16)]
    groups = [dist.new_group(subset) for subset in subsets]
    works = []
    for index, (subset, group) in enumerate(zip(subsets, groups, strict=True)):
        if me.rank in subset:
            x = torch.full((100 * index + 1,), 2.0**me.rank)
            works.append((subset, x, dist.all_reduce(x, group=group, async_op=True)))
    for subset, x, work in reversed(works):
        work.wait()
        assert (x == sum(2.0**rank for rank in subset)).all(), subset
    for group in choices.sample(groups, len(groups)):
        if group is not dist.GroupMember.NON_GROUP_MEMBER:
            dist.destroy_process_group(group)
    check(dist.group.WORLD, list(everybody))


def test_operations_of_many_overlapping_groups_are_in_flight_at_once() -> None:
    run_ranks(many_overlapping, 5, zlib.crc32(b"overlapping"))


# ---- meshes


def lines(mesh: DeviceMesh) -> None:
    """Each dimension's group holds the ranks that differ in it alone."""
    coordinates = mesh.get_coordinate()
    for dim, name in enumerate(mesh.mesh_dim_names):
        at = list(coordinates)
        at[dim] = slice(None)
        ranks = mesh.mesh[tuple(at)].tolist()
        check(mesh.get_group(name), ranks, name)
        assert mesh[name].mesh.tolist() == ranks
        assert mesh.get_local_rank(name) == coordinates[dim]


def meshes(me: Rank) -> None:
    lines(init_device_mesh("cpu", (6,), mesh_dim_names=("all",)))
    lines(init_device_mesh("cpu", (2, 3), mesh_dim_names=("dp", "tp")))
    mesh = init_device_mesh("cpu", (3, 1, 2), mesh_dim_names=("pp", "dp", "tp"))
    lines(mesh)
    plane = mesh["pp", "tp"]
    assert plane.shape == (3, 2) and plane.mesh_dim_names == ("pp", "tp")
    lines(plane)
    flat = mesh["pp", "tp"]._flatten("world")
    assert flat.mesh.tolist() == list(range(6))
    check(flat.get_group(), list(range(6)), "flat")
    check(mesh["dp", "tp"]._flatten("dp_tp").get_group(), [me.rank // 2 * 2, me.rank // 2 * 2 + 1])
    # A part of the ranks.
    table = DeviceMesh("cpu", [[0, 3], [1, 5]], mesh_dim_names=("row", "column"))
    if me.rank in (0, 3, 1, 5):
        lines(table)


def test_meshes_of_one_to_three_dimensions_slice_and_flatten() -> None:
    run_ranks(meshes, 6)


def mesh_from_groups(me: Rank) -> None:
    columns = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    rows = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    mesh = DeviceMesh.from_group(
        [rows[me.rank % 2], columns[me.rank // 2]],
        "cpu",
        mesh=torch.arange(4).view(2, 2),
        mesh_dim_names=("dp", "tp"),
    )
    lines(mesh)
    assert mesh.get_group("tp")._get_backend(torch.device("cpu")).name() == "pycomm"


def test_a_mesh_may_be_made_of_groups() -> None:
    run_ranks(mesh_from_groups, 4)


# ---- threads


def run_all(threads: list[threading.Thread], errors: list[BaseException]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), errors
    assert not errors, errors


def threads_of_one_group(me: Rank) -> None:
    """Collectives take turns, as their order must be the same everywhere; messages need not."""
    p, rank, errors = me.world_size, me.rank, []
    turns, begun = threading.Condition(), []

    def collectives(index: int) -> None:
        try:
            for step in range(30):
                x = torch.full((index * 5000 + 1,), float(index + step))
                with turns:
                    turns.wait_for(lambda: len(begun) % 3 == index)
                    work = dist.all_reduce(x, async_op=True)
                    begun.append(index)
                    turns.notify_all()
                work.wait()
                assert (x == (index + step) * p).all(), (index, step)
        except BaseException as error:
            errors.append(error)

    def messages(tag: int) -> None:
        try:
            for step in range(30):
                x = torch.zeros(tag * 3000)
                after, before = (rank + 1) % p, (rank - 1) % p
                work = dist.isend(
                    torch.full((tag * 3000,), float(tag * step + rank)), after, tag=tag
                )
                dist.recv(x, before, tag=tag)
                work.wait()
                assert (x == tag * step + before).all(), (tag, step)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=collectives, args=(index,)) for index in range(3)]
    threads += [threading.Thread(target=messages, args=(tag,)) for tag in (1, 2, 3)]
    run_all(threads, errors)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_threads_may_share_a_group(transport: str) -> None:
    run_ranks(threads_of_one_group, 3, transport=transport)


def threads_of_crossing_groups(me: Rank) -> None:
    """Each thread has a row or a column of a grid; no order between the two exists."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("row", "column"))
    errors: list[BaseException] = []

    def use(name: str, seed: int) -> None:
        group, delays = mesh.get_group(name), random.Random(seed)
        try:
            for step in range(40):
                time.sleep(delays.random() / 2000)
                x = torch.full((1 + 20_000 * (step % 2),), 1.0 + step)
                dist.all_reduce(x, group=group)
                assert (x == 2 + 2 * step).all(), (name, step)
        except BaseException as error:
            errors.append(error)

    seeds = [10 * me.rank, 10 * me.rank + 1]
    print(f"seeds {seeds}")
    names = zip(("row", "column"), seeds, strict=True)
    run_all([threading.Thread(target=use, args=pair) for pair in names], errors)


def test_threads_may_use_crossing_groups_in_any_order() -> None:
    run_ranks(threads_of_crossing_groups, 4)
