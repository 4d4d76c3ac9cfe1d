# SPDX-License-Identifier: MIT
"""torch.distributed's own functions over real processes: the calls programs make."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from ranks import Rank, run_ranks
from reference import (
    DTYPES,
    FOLDS,
    bits,
    expect,
    factor_for,
    make,
    ops_for,
    same_bits,
    seed_of,
    torch_op,
)

from pycomm.native import load

ALGORITHMS = list(load().algorithms_for("all_reduce"))


def digest(results: list[torch.Tensor]) -> str:
    whole = hashlib.sha256()
    for one in results:
        whole.update(bits(one).numpy().tobytes())
    return whole.hexdigest()


def reductions(me: Rank, algorithm: str) -> None:
    """Every dtype and op; the ranks compare their bits by a hash that travels as an object."""
    results = []
    for dtype in DTYPES:
        for op in ops_for(dtype):
            given = torch_op(op)
            if op == "premul_sum":
                given = dist._make_nccl_premul_sum(factor_for(dtype))
            if dtype.is_complex and op not in ("sum", "avg"):
                continue  # torch refuses these itself
            seeds = [seed_of(dtype, op, rank) for rank in range(me.world_size)]
            inputs = [make(dtype, 1003, seed, op) for seed in seeds]
            x = inputs[me.rank].clone()
            work = dist.all_reduce(x, given, async_op=len(results) % 2 == 0)
            if work is not None:
                work.wait()
            expect(inputs, op).check(x, algorithm in FOLDS["all_reduce"], f"{dtype} {op}")
            results.append(x)
    digests = [None] * me.world_size
    dist.all_gather_object(digests, digest(results))
    assert len(set(digests)) == 1, f"ranks differ: {digests}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_ranks_hold_the_same_right_bits(algorithm: str) -> None:
    env = {"PYCOMM_ALGO": f"all_reduce={algorithm}"}
    for world_size, transport in ((2, "shm"), (3, "tcp"), (5, "shm")):
        run_ranks(reductions, world_size, algorithm, transport=transport, env=env)


def every_function(me: Rank) -> None:
    """Each function of torch.distributed once, in the form programs use."""
    p, rank = me.world_size, me.rank
    root = p - 1
    mine = torch.arange(6.0) + 10 * rank
    everybody = [torch.arange(6.0) + 10 * r for r in range(p)]
    total = torch.stack(everybody).sum(0)

    x = mine.clone()
    dist.broadcast(x, root)
    assert torch.equal(x, everybody[root])
    x = mine.clone()
    dist.reduce(x, root)
    assert torch.equal(x, total if rank == root else mine)
    outs = [torch.zeros(6) for _ in range(p)]
    dist.all_gather(outs, mine)
    assert all(map(torch.equal, outs, everybody))
    out = torch.zeros(p, 6)
    dist.all_gather_into_tensor(out, mine)
    assert torch.equal(out, torch.stack(everybody))
    outs = [torch.zeros(6) for _ in range(p)] if rank == root else None
    dist.gather(mine, outs, root)
    assert outs is None or all(map(torch.equal, outs, everybody))
    out = torch.zeros(6)
    dist.scatter(out, everybody if rank == root else None, root)
    assert torch.equal(out, mine)
    dist.reduce_scatter(out, [mine * (r + 1) for r in range(p)])
    assert torch.equal(out, total * (rank + 1))
    dist.reduce_scatter_tensor(out, torch.cat([mine] * p), op=dist.ReduceOp.MAX)
    assert torch.equal(out, everybody[-1])
    outs = [torch.zeros(1) for _ in range(p)]
    dist.all_to_all(outs, [torch.tensor([float(10 * rank + r)]) for r in range(p)])
    assert [int(one) for one in outs] == [10 * r + rank for r in range(p)]
    out = torch.zeros(p * (rank + 1))
    dist.all_to_all_single(
        out,
        torch.full((p * (p + 1) // 2,), float(rank)),
        output_split_sizes=[rank + 1] * p,
        input_split_sizes=[r + 1 for r in range(p)],
    )
    assert torch.equal(out, torch.arange(float(p)).repeat_interleave(rank + 1))
    dist.barrier()


def coalesced(me: Rank) -> None:
    p = me.world_size
    xs = [torch.full((n,), float(me.rank + 1)) for n in (3, 0, 70_000)]
    with dist._coalescing_manager():
        for x in xs:
            dist.all_reduce(x)
    assert all((x == p * (p + 1) / 2).all() for x in xs)
    outs = [torch.zeros(2 * p), torch.zeros(3 * p)]
    with dist._coalescing_manager(async_ops=True) as manager:
        for out in outs:
            dist.all_gather_into_tensor(out, torch.full((len(out) // p,), float(me.rank)))
    manager.wait()
    for out in outs:
        assert torch.equal(out, torch.arange(float(p)).repeat_interleave(len(out) // p))
    blocks = [torch.zeros(2), torch.zeros(5)]
    with dist._coalescing_manager():
        for block in blocks:
            dist.reduce_scatter_tensor(block, torch.ones(len(block) * p))
    assert all((block == p).all() for block in blocks)


def messages(me: Rank) -> None:
    p, rank = me.world_size, me.rank
    after, before = (rank + 1) % p, (rank - 1) % p
    received = torch.zeros(70_000)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, torch.full((70_000,), float(rank)), after),
            dist.P2POp(dist.irecv, received, before),
        ]
    )
    for work in works:
        work.wait()
    assert (received == before).all()
    if rank == 0:
        for _ in range(p - 1):
            x = torch.zeros(1)
            assert dist.recv(x) == int(x), "recv() returns the rank that sent"
        dist.send(torch.tensor([7.0]), 1, tag=3)
    else:
        dist.send(torch.tensor([float(rank)]), 0)
    if rank == 1:
        x = torch.zeros(1)
        dist.irecv(x, 0, tag=3).wait()
        assert x == 7


def objects(me: Rank) -> None:
    p, rank = me.world_size, me.rank
    gathered: list[object] = [None] * p
    dist.all_gather_object(gathered, {"rank": rank, "text": "x" * 100 * rank})
    assert gathered == [{"rank": r, "text": "x" * 100 * r} for r in range(p)]
    sent: list[object] = ["hello", 3, None] if rank == 1 else [None] * 3
    dist.broadcast_object_list(sent, 1)
    assert sent == ["hello", 3, None]
    outs: list[object] | None = [None] * p if rank == 0 else None
    dist.gather_object(rank * 2, outs, 0)
    assert outs is None or outs == [2 * r for r in range(p)]
    got: list[object] = [None]
    dist.scatter_object_list(got, list("abcdefgh"[:p]) if rank == 0 else None, 0)
    assert got == ["abcdefgh"[rank]]
    if rank == 0:
        dist.send_object_list(["one", {2: 3}], 1)
    if rank == 1:
        some: list[object] = [None, None]
        dist.recv_object_list(some, 0)
        assert some == ["one", {2: 3}]


def functionals(me: Rank) -> None:
    p, rank = me.world_size, me.rank
    world = dist.group.WORLD
    x = torch.full((4,), float(rank))
    total = p * (p - 1) / 2
    assert torch.equal(functional.all_reduce(x, "sum", world), torch.full((4,), total))
    assert (x == rank).all(), "a functional collective wrote its input"
    gathered = functional.all_gather_tensor(x, 0, world)
    assert torch.equal(gathered, torch.arange(float(p)).repeat_interleave(4))
    block = functional.reduce_scatter_tensor(torch.arange(float(p)), "sum", 0, world)
    assert torch.equal(block, torch.tensor([float(rank * p)]))
    out = functional.all_to_all_single(torch.full((p,), float(rank)), None, None, world)
    assert torch.equal(out, torch.arange(float(p)))
    first, second = functional.all_reduce_coalesced([x, x * 2], "sum", world)
    assert (first == total).all()
    assert (second == 2 * total).all()
    assert torch.equal(functional.broadcast(x, 1, world), torch.full((4,), 1.0))


def dtensors(me: Rank) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (me.world_size,))
    assert mesh.get_group()._get_backend(torch.device("cpu")).name() == "pycomm"
    full = torch.arange(7 * 5.0).view(7, 5)  # 7 rows: not divisible
    sharded = distribute_tensor(full, mesh, [Shard(0)])
    assert torch.equal(sharded.full_tensor(), full)
    assert torch.equal(sharded.redistribute(placements=[Shard(1)]).full_tensor(), full)
    assert torch.equal(sharded.redistribute(placements=[Replicate()]).to_local(), full)
    product = sharded.redistribute(placements=[Shard(1)]) @ distribute_tensor(
        full.t().contiguous(), mesh, [Shard(0)]
    )
    assert product.placements == (Partial(),)
    assert torch.equal(product.full_tensor(), full @ full.t())


FUNCTIONS = [every_function, coalesced, messages, objects, functionals, dtensors]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.__name__)
def test_torchs_functions_work_over_processes(function: object, transport: str) -> None:
    for world_size in (2, 3):
        run_ranks(function, world_size, transport=transport)


def mixed_devices(me: Rank) -> None:
    me.init(name="cpu:pycomm,cuda:pycomm")
    x = torch.ones(3)
    dist.all_reduce(x)
    assert (x == me.world_size).all()
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    assert backend.name() == "pycomm"
    assert dist.group.WORLD._get_backend(torch.device("cuda")) is backend
    dist.destroy_process_group()


def test_a_name_for_each_device_gives_one_backend_for_both() -> None:
    run_ranks(mixed_devices, 2, init=False)


def profiled(me: Rank) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        x = torch.ones(4, 3)
        dist.all_reduce(x)
        dist.broadcast(x, 0, async_op=True).wait()
        dist.barrier()
    return [event.name for event in profile.events() if event.name.startswith("pycomm:")]


def test_the_profiler_shows_each_call_once_under_its_title() -> None:
    for names in run_ranks(profiled, 2):
        assert sorted(names) == ["pycomm:all_reduce", "pycomm:barrier", "pycomm:broadcast"]


def scaled(me: Rank) -> torch.Tensor:
    x = torch.tensor([1.0, 2.0, 4.0]) * (me.rank + 1)
    dist.all_reduce(x, dist._make_nccl_premul_sum(0.25))
    block = torch.zeros(1)
    given = torch.ones(me.world_size)
    dist.reduce_scatter_tensor(block, given, dist._make_nccl_premul_sum(torch.tensor([0.5])))
    assert (given == 1).all(), "premul_sum scaled an input that the caller keeps"
    assert block == me.world_size / 2
    return x


def test_premul_sum_scales_every_ranks_input_first() -> None:
    for x in run_ranks(scaled, 3):
        assert same_bits(x, torch.tensor([1.5, 3.0, 6.0]))
