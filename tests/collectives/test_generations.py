# SPDX-License-Identifier: MIT
"""Groups made and destroyed again in processes that live on: world sizes, names, stores, forks."""

from __future__ import annotations

import gc
import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks

import pycomm


def in_use() -> dict[str, int]:
    """What a process holds that a group could have left behind."""
    gc.collect()
    descriptors = os.listdir("/proc/self/fd")
    status = Path("/proc/self/status").read_text().splitlines()
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {
        "descriptors": len(descriptors),
        # Not a listing of /proc/self/task, which may miss a thread while another one ends.
        "tasks": next(int(line.split()[1]) for line in status if line.startswith("Threads:")),
        "threads": threading.active_count(),
        "memfds mapped": sum("memfd:" in line for line in maps),
    }


def use_everything(p: int, rank: int) -> None:
    """Starts each of a group's threads, and leaves nothing waiting."""
    x = torch.full((1000,), rank + 1.0)
    dist.all_reduce(x)
    assert (x == p * (p + 1) / 2).all()
    future = dist.all_reduce(x, async_op=True).get_future().then(lambda done: done.value()[0] / p)
    assert (future.wait() == p * (p + 1) / 2).all()
    if p > 1:
        sent = dist.isend(torch.ones(1) * rank, (rank + 1) % p)
        dist.recv(x[:1], (rank - 1) % p)
        sent.wait()
        assert x[0] == (rank - 1) % p
    half = dist.new_group(list(range((p + 1) // 2)))
    if rank < (p + 1) // 2:
        dist.barrier(group=half)


def begin(me: Rank, number: int, p: int, name: str = "pycomm", same: bool = False) -> None:
    dist.init_process_group(
        name,
        store=me.store if same else dist.PrefixStore(f"generation{number}", me.store),
        rank=me.rank,
        world_size=p,
        timeout=timedelta(seconds=60),
        pg_options=pycomm.Options(transport=("shm", "tcp")[number // 2 % 2]),
    )


def other_world_sizes(me: Rank) -> None:
    """Ten generations of 4, 3, 2, 1, 4, ... ranks; a rank that is not in one waits for the next."""
    for number in range(12):
        p = me.world_size - number % me.world_size
        if me.rank < p:
            begin(me, number, p)
            use_everything(p, me.rank)
            dist.destroy_process_group()
        if number == 3:
            before = in_use()
    # A thread that ran a callback may be on its way out.
    deadline = time.monotonic() + 10
    while any(in_use()[name] > before[name] for name in before) and time.monotonic() < deadline:
        time.sleep(0.05)
    after = in_use()
    assert all(after[name] <= before[name] for name in before), (
        f"after 4 generations {before}, after 12 {after}"
    )


def test_generations_of_other_world_sizes_leave_nothing_behind() -> None:
    run_ranks(other_world_sizes, 4, init=False)


def same_store(me: Rank) -> None:
    """No prefix of their own: the keys of one generation must not be read by the next."""
    for number in range(6):
        begin(me, number, me.world_size, same=True)
        use_everything(me.world_size, me.rank)
        if number % 2:
            dist.destroy_process_group()
        else:  # the subgroup first, then the default group by name
            for group in [
                g for g in dist.distributed_c10d._world.pg_map if g.size() < me.world_size
            ]:
                dist.destroy_process_group(group)
            dist.destroy_process_group(dist.group.WORLD)
        assert not dist.is_initialized()


def test_generations_may_share_a_store() -> None:
    for world_size in (2, 3):
        run_ranks(same_store, world_size, init=False)


NAMES = ["pycomm", "cpu:pycomm", "cpu:pycomm,cuda:pycomm", "cpu:pycomm,cuda:gloo"]


def names(me: Rank) -> None:
    for number, name in enumerate(NAMES):
        begin(me, number, me.world_size, name)
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))
        assert backend.name() == "pycomm", name
        if name != "cpu:pycomm,cuda:gloo":
            use_everything(me.world_size, me.rank)
        dist.barrier()
        subgroup = dist.new_group([0, 1])
        if me.rank < 2:
            x = torch.ones(1)
            dist.all_reduce(x, group=subgroup)
            assert x == 2, name
        objects: list[object] = [None] * me.world_size
        dist.all_gather_object(objects, me.rank)
        assert objects == list(range(me.world_size)), name
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        model(torch.ones(1, 2) * me.rank).sum().backward()
        mean = (me.world_size - 1) / 2
        assert (model.module.weight.grad == mean).all(), name
        dist.destroy_process_group()


def test_every_form_of_the_name_gives_a_group_that_works() -> None:
    run_ranks(names, 3, init=False)


def test_a_name_for_each_device_may_mix_backends() -> None:
    """No CUDA here: what torch makes of the name decides which backend serves which device."""
    config = dist.distributed_c10d.BackendConfig(dist.Backend("cpu:pycomm,cuda:nccl"))
    assert config.get_device_backend_map() == {"cpu": "pycomm", "cuda": "nccl"}
    config = dist.distributed_c10d.BackendConfig(dist.Backend("pycomm"))
    assert config.get_device_backend_map()["cpu"] == "pycomm"


# ---- processes that fork while they train


class Squares(torch.utils.data.Dataset):
    """Computed by workers that were forked from a rank with a living group."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tensor([float(index), 1.0]) / 24
        return x, x[:1] ** 2


def train_from_workers(me: Rank, workers: int) -> list[torch.Tensor]:
    torch.manual_seed(2)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = Squares()
    sampler = torch.utils.data.DistributedSampler(data, me.world_size, me.rank, shuffle=True)
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=4,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_training_reads_from_forked_workers(transport: str) -> None:
    expected = run_ranks(train_from_workers, 2, 0, transport=transport)
    for ours, theirs in zip(run_ranks(train_from_workers, 2, 2), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert all(map(torch.equal, *expected)), "ranks differ"
