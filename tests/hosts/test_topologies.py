# SPDX-License-Identifier: MIT
"""Ranks on several hosts: which transport joins them, which plan they use, and right results."""

from __future__ import annotations

import copy

import calls
import pytest
import torch
import torch.distributed as dist
from host_ranks import TOPOLOGIES, Places, backend
from ranks import Rank
from reference import expect, make, same_bits, seed_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

BIG = 64 * 1024  # bytes from which on an all_reduce has two levels, and then some


def transports(me: Rank) -> list[str]:
    return ["self" if p == me.rank else backend().transport_to(p) for p in range(me.world_size)]


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_ranks_of_one_host_share_memory_and_others_use_tcp(places: Places, name: str) -> None:
    hosts = TOPOLOGIES[name]
    joined = places.run(transports, hosts)
    for rank, host in enumerate(hosts):
        expected = ["shm" if other == host else "tcp" for other in hosts]
        expected[rank] = "self"
        assert joined[rank] == expected, f"rank {rank} of {name}"


def test_ranks_of_one_host_use_tcp_where_only_that_is_allowed(places: Places) -> None:
    joined = places.run(transports, TOPOLOGIES["2 hosts x 2 ranks"], transport="tcp")
    assert {one for row in joined for one in row} == {"self", "tcp"}


def algorithms(me: Rank) -> tuple[str, str, str]:
    choose = backend().algorithm_for
    return choose("all_reduce", 8), choose("all_reduce", BIG), choose("all_reduce", 1 << 26)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_big_sums_take_two_levels_where_a_host_has_several_ranks(places: Places, name: str) -> None:
    hosts = TOPOLOGIES[name]
    small, big, huge = zip(*places.run(algorithms, hosts), strict=True)
    assert len(set(small)) == len(set(big)) == len(set(huge)) == 1, "the same on all ranks"
    assert small[0] == "one_shot"
    several = len(set(hosts)) < len(hosts)
    assert (big[0] == "hierarchical") == several
    assert (huge[0] == "hierarchical") == several
    chosen = places.run(algorithms, hosts, env={"PYCOMM_ALGO": "all_reduce=ring"})
    assert chosen[0] == ("ring", "ring", "ring"), "what is asked for wins"


TWO_LEVELS = ("broadcast", "reduce", "all_gather", "reduce_scatter", "barrier")


def algorithms_of_others(me: Rank) -> dict[str, set[str]]:
    """What is chosen for each collective, whatever its size."""
    choose = backend().algorithm_for
    names = (*TWO_LEVELS, "gather", "scatter", "all_to_all")
    return {name: {choose(name, size) for size in (0, 8, BIG, 1 << 26)} for name in names}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_others_take_two_levels_at_every_size_where_there_is_such_a_plan(
    places: Places, name: str
) -> None:
    hosts = TOPOLOGIES[name]
    several = len(set(hosts)) < len(hosts)
    for chosen in places.run(algorithms_of_others, hosts):
        for collective, algorithms in chosen.items():
            two_levels = several and collective in TWO_LEVELS
            assert ("hierarchical" in algorithms) == two_levels, collective
            assert len(algorithms) == 1 or not two_levels, collective
    env = {"PYCOMM_ALGO": "all_gather=ring,broadcast=direct"}
    asked = places.run(algorithms_of_others, hosts, env=env)[0]
    assert (asked["all_gather"], asked["broadcast"]) == ({"ring"}, {"direct"})


def block(dtype: torch.dtype, count: int, *who: int) -> torch.Tensor:
    return make(dtype, count, seed_of(dtype, count, who))


def reductions(me: Rank, dtype: torch.dtype, count: int) -> list[torch.Tensor]:
    """Sums and maxima; the results that all ranks must share, bit for bit."""
    p, rank, b = me.world_size, me.rank, backend()
    inputs = [block(dtype, count, r) for r in range(p)]
    shared = []
    ops = ["sum"] if dtype.is_complex else ["sum", "avg", "max"]
    for op in ops:
        given = getattr(dist.ReduceOp, op.upper())
        x = inputs[rank].clone()
        calls.all_reduce(b, x, given, is_async=op == "avg")
        expect(inputs, op).check(x, False, f"all_reduce {op} {dtype} {count}")
        shared.append(x)
        x = inputs[rank].clone()
        calls.reduce(b, x, p - 1, given)
        if rank == p - 1:
            expect(inputs, op).check(x, False, f"reduce {op} {dtype} {count}")
        xs = [block(dtype, count, rank, to) for to in range(p)]
        out = torch.empty_like(xs[0])
        calls.reduce_scatter(b, out, xs, given)
        mine = [block(dtype, count, r, rank) for r in range(p)]
        expect(mine, op).check(out, False, f"reduce_scatter {op} {dtype} {count}")
    return shared


def moves(me: Rank, dtype: torch.dtype, count: int) -> None:
    p, rank, b = me.world_size, me.rank, backend()
    what = f"rank {rank}, {dtype}, {count}"
    blocks = [block(dtype, count, r) for r in range(p)]
    for root in range(p):
        x = blocks[rank].clone()
        calls.broadcast(b, x, root)
        assert same_bits(x, blocks[root]), f"broadcast from {root}, {what}"
        outs = [torch.empty_like(x) for _ in range(p)] if rank == root else None
        calls.gather(b, outs, blocks[rank], root)
        if outs is not None:
            assert all(map(same_bits, outs, blocks)), f"gather to {root}, {what}"
        x = torch.empty_like(x)
        calls.scatter(b, x, blocks if rank == root else None, root)
        assert same_bits(x, blocks[rank]), f"scatter from {root}, {what}"
    outs = [torch.empty_like(blocks[0]) for _ in range(p)]
    calls.all_gather(b, outs, blocks[rank])
    assert all(map(same_bits, outs, blocks)), f"all_gather, {what}"
    xs = [block(dtype, count, rank, to) for to in range(p)]
    calls.all_to_all(b, outs, xs)
    for r in range(p):
        assert same_bits(outs[r], block(dtype, count, r, rank)), f"all_to_all from {r}, {what}"


def every_collective(me: Rank) -> list[torch.Tensor]:
    shared = []
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.complex64):
        for count in (1, 1003, 50_001):
            shared += reductions(me, dtype, count)
            moves(me, dtype, count)
    dist.barrier()
    ahead, behind = (me.rank + 1) % me.world_size, (me.rank - 1) % me.world_size
    there, here = block(torch.float32, 70_001, me.rank), torch.empty(70_001)
    requests = [dist.isend(there, ahead, tag=7), dist.irecv(here, behind, tag=7)]
    for request in requests:
        request.wait()
    assert same_bits(here, block(torch.float32, 70_001, behind))
    return shared


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_collective_gives_what_it_should(places: Places, name: str) -> None:
    env = {"PYCOMM_CHECK_PLANS": "1"}
    results = places.run(every_collective, TOPOLOGIES[name], env=env)
    for rank, result in enumerate(results):
        assert all(map(same_bits, result, results[0])), f"ranks 0 and {rank} hold other bits"


def net() -> nn.Module:
    """Weights that are small multiples of 1/8: one step's arithmetic in float64 is exact."""
    model = nn.Sequential(nn.Linear(24, 160), nn.ReLU(), nn.Linear(160, 8)).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        size = parameter.shape
        parameter.data = torch.randint(-8, 9, size, generator=generator).double() / 8
    return model


def batch_of(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randint(-4, 5, (6, 24), generator=generator).double()


def one_step(model: nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(batch).square().sum().backward()
    optimizer.step()
    return copy.deepcopy(model.state_dict())


def ddp_step(me: Rank) -> dict[str, torch.Tensor]:
    model = DistributedDataParallel(net())
    return {
        name.removeprefix("module."): value
        for name, value in one_step(model, batch_of(me.rank)).items()
    }


def test_a_ddp_step_equals_one_process_exactly(places: Places) -> None:
    """DDP averages over 4 ranks, a power of two, so that nothing is rounded."""
    model = net()
    gradients = []
    for rank in range(4):
        model.zero_grad()
        model(batch_of(rank)).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for parameter, *shares in zip(model.parameters(), *gradients, strict=True):
        parameter.data -= 0.5 * (sum(shares) / 4)
    for rank, state in enumerate(places.run(ddp_step, TOPOLOGIES["3 hosts, 2 + 1 + 1 ranks"])):
        for key, value in model.state_dict().items():
            assert same_bits(state[key], value), f"{key} of rank {rank}"
