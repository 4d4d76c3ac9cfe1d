# SPDX-License-Identifier: MIT
"""Options(inter=): collectives on a device that go within hosts and, by another backend, between.

Hosts are faked: ranks of one machine that give different host ids share no memory.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from fake_cuda.device_ranks import DEVICE, gpu, here
from fake_cuda.hosts import handed_over, run_on_hosts
from ranks import Rank
from test_device_collectives import coalesced, every_collective, layouts, overlapping
from test_device_streams import (
    blocking,
    captured,
    follows_the_current_stream,
    host_runs_ahead,
    late_one,
    letting_go,
    several_streams,
)
from torch import Tensor


def all_kinds(me: Rank) -> str:
    every_collective(me, 1000, async_op=False)
    # Each share of an all_reduce crosses by itself, and some elements are left over.
    every_collective(me, 20_003, async_op=True)
    for async_op in (False, True):
        layouts(me, async_op)
        overlapping(me, async_op, 1000)
    coalesced(me)
    dist.all_reduce(nothing := torch.empty(0, device=here()))
    dist.all_gather_into_tensor(torch.empty(0, device=here()), nothing)
    return handed_over()


@pytest.mark.parametrize(
    ("hosts", "mode", "inter", "told"),
    [
        ("aabb", "auto", "pycomm", "2 hosts of 2 ranks, pycomm between them; on this host S"),
        ("ababab", "H", "handed", "2 hosts of 3 ranks, handed between them; on this host H"),
        ("abcd", "H", "pycomm", "4 hosts of 1 rank, pycomm between them"),
    ],
)
def test_every_collective_gives_what_its_definition_says(
    hosts: str, mode: str, inter: str, told: str
) -> None:
    for text in run_on_hosts(all_kinds, hosts, mode=mode, inter=inter):
        assert told in text


@pytest.mark.skipif(DEVICE != "cuda", reason="NCCL needs GPUs, one for each rank")
@pytest.mark.parametrize("hosts", ["ab", "aabb"])
def test_nccl_carries_what_crosses_between_hosts(hosts: str) -> None:
    for text in run_on_hosts(all_kinds, hosts, mode="K", inter="nccl"):
        assert "nccl between them" in text


SIZES = [1, 5, 4096, 16_384, 50_001]
OPS = [dist.ReduceOp.SUM, dist.ReduceOp.AVG, dist.ReduceOp.MIN, dist.ReduceOp.MAX]


def numbers(rank: int, count: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + count)
    if dtype.is_floating_point:
        return torch.rand(count, generator=generator, dtype=torch.float64).sub(0.4).to(dtype)
    return torch.randint(-3, 9, (count,), generator=generator).to(dtype)


def reductions(me: Rank, dtype: torch.dtype) -> list[Tensor]:
    results = []
    for count in SIZES:
        for op in OPS:
            if op == dist.ReduceOp.AVG and not dtype.is_floating_point:
                continue
            x = numbers(me.rank, count, dtype).to(here())
            dist.all_reduce(x, op=op)
            results.append(x.cpu())
            whole = numbers(me.rank, count * me.world_size, dtype).to(here())
            part = torch.empty(count, dtype=dtype, device=here())
            dist.reduce_scatter_tensor(part, whole, op=op)
            out = torch.empty(count * me.world_size, dtype=dtype, device=here())
            dist.all_gather_into_tensor(out, part)
            results.append(out.cpu())
    return results


def wanted(world_size: int, dtype: torch.dtype) -> list[Tensor]:
    results = []
    for count in SIZES:
        for op in OPS:
            if op == dist.ReduceOp.AVG and not dtype.is_floating_point:
                continue
            for times in (1, world_size):
                exact = torch.float64 if dtype.is_floating_point else torch.int64
                rows = [numbers(rank, count * times, dtype).to(exact) for rank in range(world_size)]
                all_rows = torch.stack(rows)
                total = all_rows.sum(0)
                if op == dist.ReduceOp.AVG:
                    total = total / world_size
                elif op == dist.ReduceOp.MIN:
                    total = all_rows.amin(0)
                elif op == dist.ReduceOp.MAX:
                    total = all_rows.amax(0)
                results.append(total)
    return results


@pytest.mark.parametrize(
    ("hosts", "mode", "dtype", "error"),
    [
        ("aabb", "K", torch.float32, 1e-6),
        ("aaabbb", "S", torch.bfloat16, 4e-2),
        ("abba", "S", torch.int64, 0.0),
    ],
)
def test_reductions_are_right_and_the_same_on_all_ranks(
    hosts: str, mode: str, dtype: torch.dtype, error: float
) -> None:
    ranks = run_on_hosts(reductions, hosts, dtype, mode=mode)
    for rank in ranks[1:]:
        for one, other in zip(ranks[0], rank, strict=True):
            assert torch.equal(one, other)
    for got, exact in zip(ranks[0], wanted(len(hosts), dtype), strict=True):
        torch.testing.assert_close(got.to(exact.dtype), exact, rtol=error, atol=error)


def other_dtypes(me: Rank) -> None:
    """What others may not have goes the usual way; what is only moved has no dtype to speak of."""
    for dtype in (torch.int16, torch.bool, torch.complex64, torch.complex128, torch.float8_e5m2):
        part = torch.full((9,), me.rank, device="cpu").to(dtype).to(here())
        out = torch.zeros(9 * me.world_size, device="cpu").to(dtype).to(here())
        dist.all_gather_into_tensor(out, part)
        rows = [torch.full((9,), rank).to(dtype) for rank in range(me.world_size)]
        assert torch.equal(out.cpu().view(torch.uint8), torch.cat(rows).view(torch.uint8))
    x = torch.full((70_000,), me.rank + 1, dtype=torch.int16, device=here())
    dist.all_reduce(x)
    assert torch.equal(x.cpu(), torch.full((70_000,), 10, dtype=torch.int16))
    bits = torch.full((5,), 1 << me.rank, device=here())
    dist.all_reduce(bits, op=dist.ReduceOp.BOR)
    assert torch.equal(bits.cpu(), torch.full((5,), 15))
    halved = torch.full((5,), me.rank + 1.0, device=here())
    dist.all_reduce(halved, op=dist._make_nccl_premul_sum(0.5))
    assert torch.equal(halved.cpu(), torch.full((5,), 5.0))


def test_every_dtype_and_op_is_served_one_way_or_the_other() -> None:
    run_on_hosts(other_dtypes, "aabb")


def as_ever(me: Rank) -> str:
    every_collective(me, 1000, async_op=True)
    return handed_over()


@pytest.mark.parametrize("hosts", ["aa", "aab"])
def test_one_host_and_hosts_of_different_size_work_as_ever(hosts: str) -> None:
    for text in run_on_hosts(as_ever, hosts):
        assert "between" not in text


def streams(me: Rank) -> None:
    host_runs_ahead(me)
    follows_the_current_stream(me)
    several_streams(me)
    letting_go(me)
    assert "pycomm between" in handed_over()


def test_streams_keep_the_order_that_c10d_demands() -> None:
    run_on_hosts(streams, "ab")
    last, (too_early, completed, waited) = run_on_hosts(late_one, "ab")
    assert (too_early, completed, waited, last) == (1.0, False, 2.0, 2.0)


def test_blocking_waits_and_captures_are_as_ever() -> None:
    run_on_hosts(blocking, "ab", env={"PYCOMM_BLOCKING_WAIT": "1"})
    for said in run_on_hosts(captured, "ab"):
        assert "a graph is being captured" in said


def futures(me: Rank) -> None:
    x = torch.full((40_000,), me.rank + 1.0, device=here())
    future = dist.all_reduce(x, async_op=True).get_future()
    doubled = future.then(lambda done: done.value()[0] * 2)
    assert torch.equal(doubled.wait().cpu(), torch.full((40_000,), 6.0))
    held = [torch.ones(30_000, device=here()) for _ in range(3)]
    with dist._coalescing_manager(device=here(), async_ops=True) as manager:
        for one in held:
            dist.all_reduce(one)
    manager.wait()
    assert all(torch.equal(one.cpu(), torch.full((30_000,), 2.0)) for one in held)


def test_futures_carry_the_device() -> None:
    run_on_hosts(futures, "ab")


def in_children(me: Rank) -> list[str]:
    dist.init_process_group(
        "pycomm", store=me.store, rank=me.rank, world_size=me.world_size, device_id=here()
    )
    told = []
    pairs = dist.split_group(split_ranks=[[0, 1], [2, 3]])
    across = dist.new_group([0, 2])
    for group in (pairs, across):
        if group is None or dist.get_rank(group) < 0:
            continue
        x = torch.full((40_000,), me.rank + 1.0, device=here())
        dist.all_reduce(x, group=group)
        ranks = dist.get_process_group_ranks(group)
        assert torch.equal(x.cpu(), torch.full((40_000,), sum(ranks) + len(ranks) + 0.0))
        told.append(group._get_backend(here()).device_mode())
    gpu().synchronize()
    dist.destroy_process_group()
    return told


def test_groups_of_a_group_inherit_the_setting() -> None:
    told = run_on_hosts(in_children, "aabb", init=False)
    for within in told:
        assert "between" not in within[0]
    for rank in (0, 2):
        assert "2 hosts of 1 rank, pycomm between them" in told[rank][1]
