# SPDX-License-Identifier: MIT
"""Every collective on tensors of a device: values, shapes, dtypes, lists and layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_cuda.device_ranks import DEVICE, gpu, here, mode_now, run_on_devices
from ranks import Rank
from torch import Tensor

MODES = ["H", "S", "K"]
LARGE = 3 * (1 << 20) + 5  # float32: four pieces through the host, the last one short


def counted(rank: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.arange(count, device=here()) % 7 + 10 * rank).to(dtype)


def expect(got: Tensor, wanted: Tensor) -> None:
    assert got.device == here()
    assert torch.equal(got.cpu(), wanted.cpu()), (got.cpu(), wanted.cpu())


def done(call: Any, *args: Any, async_op: bool, **given: Any) -> None:
    work = call(*args, async_op=async_op, **given)
    if async_op:
        work.wait()
    else:
        assert work is None


def every_collective(me: Rank, count: int, async_op: bool) -> None:
    p, mine = me.world_size, counted(me.rank, count)
    all_ranks = [counted(rank, count) for rank in range(p)]
    total = torch.stack(all_ranks).sum(0)

    x = mine.clone()
    done(dist.all_reduce, x, async_op=async_op)
    expect(x, total)
    x = mine.clone()
    done(dist.broadcast, x, src=p - 1, async_op=async_op)
    expect(x, all_ranks[p - 1])
    x = mine.clone()
    done(dist.reduce, x, dst=0, op=dist.ReduceOp.MAX, async_op=async_op)
    expect(x, all_ranks[-1] if me.rank == 0 else mine)
    out = torch.empty(p * count, device=here())
    done(dist.all_gather_into_tensor, out, mine, async_op=async_op)
    expect(out, torch.cat(all_ranks))
    outs = [torch.empty(count, device=here()) for _ in range(p)]
    done(dist.all_gather, outs, mine, async_op=async_op)
    expect(torch.cat(outs), torch.cat(all_ranks))
    out = torch.empty(count, device=here())
    done(dist.reduce_scatter_tensor, out, torch.cat([mine] * p), async_op=async_op)
    expect(out, total)
    out = torch.empty(count, device=here())
    parts = [mine + rank for rank in range(p)]
    done(dist.reduce_scatter, out, parts, async_op=async_op)
    expect(out, total + p * me.rank)
    gathered = [torch.empty(count, device=here()) for _ in range(p)] if me.rank == 0 else None
    done(dist.gather, mine, gathered, dst=0, async_op=async_op)
    if gathered:
        expect(torch.cat(gathered), torch.cat(all_ranks))
    out = torch.empty(count, device=here())
    done(dist.scatter, out, all_ranks if me.rank == 1 else None, src=1, async_op=async_op)
    expect(out, all_ranks[me.rank])
    out = torch.empty(p * count, device=here())
    done(dist.all_to_all_single, out, torch.cat([mine + r for r in range(p)]), async_op=async_op)
    expect(out, torch.cat([one + me.rank for one in all_ranks]))
    outs = [torch.empty(rank + me.rank, device=here()) for rank in range(p)]
    rows = [torch.full((rank + me.rank,), float(me.rank), device=here()) for rank in range(p)]
    done(dist.all_to_all, outs, rows, async_op=async_op)
    expect(torch.cat(outs), torch.cat([torch.full((r + me.rank,), float(r)) for r in range(p)]))


@pytest.mark.parametrize("async_op", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_collective_gives_what_its_definition_says(mode: str, async_op: bool) -> None:
    run_on_devices(every_collective, 3, 1000, async_op, mode=mode)


def large(me: Rank, mode: str) -> None:
    every_collective(me, LARGE // me.world_size, async_op=True)
    assert mode_now() == mode


@pytest.mark.parametrize("mode", MODES)
def test_large_tensors_go_in_pieces(mode: str) -> None:
    run_on_devices(large, 2, mode, mode=mode)


def dtypes_and_ops(me: Rank) -> None:
    ranks = range(me.world_size)
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8):
        x = torch.full((33,), me.rank + 1, dtype=dtype, device=here())
        dist.all_reduce(x)
        expect(x, torch.full((33,), sum(r + 1 for r in ranks), dtype=dtype))
    x = torch.full((5,), float(me.rank), device=here())
    dist.all_reduce(x, op=dist.ReduceOp.AVG)
    expect(x, torch.full((5,), sum(ranks) / me.world_size))
    x = torch.full((5,), float(me.rank + 1), device=here())
    kept = torch.ones(5 * me.world_size, device=here())
    dist.all_reduce(x, op=dist._make_nccl_premul_sum(0.5))
    expect(x, torch.full((5,), 0.5 * sum(r + 1 for r in ranks)))
    out = torch.empty(5, device=here())
    dist.reduce_scatter_tensor(out, kept, op=dist._make_nccl_premul_sum(0.25))
    expect(out, torch.full((5,), 0.25 * me.world_size))
    expect(kept, torch.ones(5 * me.world_size))
    flags = torch.tensor([me.rank == 0, False, True], device=here())
    dist.broadcast(flags, src=0)
    expect(flags, torch.tensor([True, False, True]))
    nothing = torch.empty(0, device=here())
    dist.all_reduce(nothing)
    complex_ones = torch.full((3,), complex(me.rank, 1), device=here())
    dist.all_reduce(complex_ones)
    expect(complex_ones, torch.full((3,), complex(sum(ranks), me.world_size)))


@pytest.mark.parametrize("mode", MODES)
def test_dtypes_ops_and_empty_tensors(mode: str) -> None:
    run_on_devices(dtypes_and_ops, 2, mode=mode)


def layouts(me: Rank, async_op: bool) -> None:
    columns = torch.zeros(6, 4, device=here())
    columns[:, 1] = me.rank + 1.0
    done(dist.all_reduce, columns[:, 1], async_op=async_op)
    wanted = torch.zeros(6, 4)
    wanted[:, 1] = sum(range(me.world_size + 1))
    expect(columns, wanted)
    turned = (torch.arange(6.0, device=here()).view(2, 3) + me.rank).t()
    out = torch.zeros(me.world_size, 2, 3, device=here()).transpose(1, 2)
    done(dist.all_gather, list(out.unbind(0)), turned, async_op=async_op)
    for rank in range(me.world_size):
        expect(out[rank], (torch.arange(6.0).view(2, 3) + rank).t())
    # In place: the input is this rank's part of the output.
    whole = torch.zeros(4 * me.world_size, device=here())
    part = whole[4 * me.rank : 4 * me.rank + 4].fill_(me.rank)
    done(dist.all_gather_into_tensor, whole, part, async_op=async_op)
    expect(whole, torch.arange(me.world_size).float().repeat_interleave(4))
    part.fill_(7.0)
    done(dist.reduce_scatter_tensor, part, whole, async_op=async_op)
    expect(part[:1], torch.tensor([7.0 + me.rank * (me.world_size - 1)]))


@pytest.mark.parametrize("async_op", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_tensors_need_not_be_contiguous_and_may_be_used_in_place(mode: str, async_op: bool) -> None:
    run_on_devices(layouts, 3, async_op, mode=mode)


def overlapping(me: Rank, async_op: bool, count: int) -> None:
    p, other = me.world_size, (me.rank + 1) % me.world_size
    # The input lies in the block of the next rank.
    whole = torch.zeros(p * count, device=here())
    blocks = whole.view(p, count)
    mine = blocks[other].copy_(counted(me.rank, count))
    done(dist.all_gather_into_tensor, whole, mine, async_op=async_op)
    expect(whole, torch.cat([counted(rank, count) for rank in range(p)]))
    # Across two blocks, as one of a list.
    whole.fill_(-1.0)
    across = whole[count // 2 : count // 2 + count].copy_(counted(me.rank, count))
    done(dist.all_gather, list(blocks.unbind(0)), across, async_op=async_op)
    expect(whole, torch.cat([counted(rank, count) for rank in range(p)]))
    # The result lies in what others are sent, and across it.
    for begin in (other * count, count // 2):
        whole.copy_(counted(me.rank, p * count))
        out = whole[begin : begin + count]
        done(dist.reduce_scatter_tensor, out, whole, async_op=async_op)
        total = sum(counted(rank, p * count) for rank in range(p))
        expect(out, total[me.rank * count : (me.rank + 1) * count])
    # A root that scatters what it overwrites, and gathers over what it gives.
    whole.copy_(torch.arange(p * count, device=here()) % 11)
    wanted = whole.clone()
    out = blocks[other] if me.rank == 0 else torch.zeros(count, device=here())
    done(
        dist.scatter,
        out,
        list(blocks.unbind(0)) if me.rank == 0 else None,
        src=0,
        async_op=async_op,
    )
    expect(out, wanted[me.rank * count : (me.rank + 1) * count])
    mine = blocks[other].copy_(counted(me.rank, count))
    into = list(blocks.unbind(0)) if me.rank == 0 else None
    done(dist.gather, mine, into, dst=0, async_op=async_op)
    if me.rank == 0:
        expect(whole, torch.cat([counted(rank, count) for rank in range(p)]))
    # Outputs that share memory are refused, and the group goes on.
    with pytest.raises(ValueError, match="outputs that share memory"):
        dist.all_gather([mine] * p, counted(me.rank, count))
    dist.all_reduce(x := torch.ones(3, device=here()))
    expect(x, torch.full((3,), float(p)))


@pytest.mark.parametrize("async_op", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_an_input_may_lie_where_results_are_written(mode: str, async_op: bool) -> None:
    run_on_devices(overlapping, 3, async_op, 1000, mode=mode)


def test_an_input_may_lie_where_results_are_written_in_pieces() -> None:
    run_on_devices(overlapping, 2, True, LARGE // 2, mode="S")


def by_choice(me: Rank) -> str:
    x = counted(me.rank, 200_000)
    dist.all_reduce(x)
    expect(x, sum(counted(rank, 200_000) for rank in range(me.world_size)))
    return dist.group.WORLD._get_backend(here()).device_mode()


def test_kernels_of_gpus_sum_by_the_algorithm_that_was_chosen() -> None:
    for said in run_on_devices(by_choice, 3, mode="K", env={"PYCOMM_ALGO": "all_reduce=ring"}):
        assert "all_reduce by ring" in said


def coalesced(me: Rank) -> None:
    group = dist.group.WORLD
    xs = [torch.full((n,), float(me.rank + 1), device=here()) for n in (3, 0, 5)]
    with dist._coalescing_manager(group=group, device=here(), async_ops=True) as manager:
        for x in xs:
            dist.all_reduce(x)
    manager.wait()
    for x in xs:
        expect(x, torch.full_like(x, sum(range(me.world_size + 1))))
    outs = [torch.empty(me.world_size * n, device=here()) for n in (2, 3)]
    with dist._coalescing_manager(group=group, device=here()):
        for out, n in zip(outs, (2, 3), strict=True):
            dist.all_gather_into_tensor(out, torch.full((n,), float(me.rank), device=here()))
    for out, n in zip(outs, (2, 3), strict=True):
        expect(out, torch.arange(me.world_size).float().repeat_interleave(n))


def test_coalesced_collectives() -> None:
    run_on_devices(coalesced, 2)


def mixed(me: Rank) -> None:
    on_device = torch.full((4,), float(me.rank + 1), device=here())
    on_cpu = torch.full((4,), float(me.rank + 1))
    works = [dist.all_reduce(x, async_op=True) for x in (on_device, on_cpu)]
    dist.all_reduce(on_cpu2 := torch.ones(1))
    for work in works:
        work.wait()
    expect(on_device, on_cpu)
    assert on_cpu.tolist() == [3.0] * 4
    assert on_cpu2.item() == 2
    said: list[Any] = [None] * me.world_size
    dist.all_gather_object(said, {"rank": me.rank})
    assert said == [{"rank": rank} for rank in range(me.world_size)]


def test_tensors_of_the_cpu_and_of_a_device_share_a_group() -> None:
    run_on_devices(mixed, 2)


def child_groups(me: Rank) -> None:
    dist.init_process_group(
        "pycomm",
        store=me.store,
        rank=me.rank,
        world_size=me.world_size,
        device_id=here(),
    )
    pairs = dist.split_group(split_ranks=[[0, 2], [1]])
    x = torch.full((3,), float(me.rank), device=here())
    if me.rank != 1:
        dist.all_reduce(x, group=pairs)
        expect(x, torch.full((3,), 2.0))
    some = dist.new_group([0, 1])
    y = torch.full((3,), float(me.rank + 1), device=here())
    if me.rank != 2:
        dist.all_reduce(y, group=some)
        expect(y, torch.full((3,), 3.0))
    dist.barrier()
    mesh = dist.device_mesh.init_device_mesh(DEVICE, (3,))
    z = torch.ones(2, device=here())
    dist.all_reduce(z, group=mesh.get_group())
    expect(z, torch.full((2,), 3.0))
    gpu().synchronize()
    dist.destroy_process_group()


def test_groups_of_a_group_that_is_bound_to_a_device() -> None:
    run_on_devices(child_groups, 3, init=False)
