# SPDX-License-Identifier: MIT
"""Narrow wire formats on real ranks: which calls they touch, the bits, the error, and who is told.

tests/cpp/engine_wire_test.cc has the formats in all orders of events and in large groups.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from typing import Any

import calls
import pytest
import torch
import torch.distributed as dist
from ranks import Died, Pool, Rank, run_ranks

import pycomm

SEED = 20261121
WIRES = ["bf16", "fp16s", "int8"]
LEAST = 16384  # elements that are 64 KiB
# Relative error of a sum of independent normal values, narrowed before and after the addition.
BOUNDS = {"bf16": 2.6e-3, "fp16s": 3.3e-4, "int8": 1.1e-2}


def values(rank: int, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED + rank)
    return (torch.randn(count, generator=generator) * 8).to(dtype)


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def backend_of(group: Any) -> Any:
    return group._get_backend(torch.device("cpu"))


def init(me: Rank, layout: str, wire: str | None = None) -> None:
    """The default group: all on one host, or two hosts of two ranks each."""
    host = f"wire{me.rank // 2}" if layout == "hosts" else None
    transport = None if layout == "hosts" else layout
    me.init(pycomm.Options(transport=transport, host_id=host, wire=wire))


def error_of(got: torch.Tensor, world_size: int, op: Any) -> float:
    exact = sum(values(rank, got.numel()).double() for rank in range(world_size))
    exact = exact / world_size if op == dist.ReduceOp.AVG else exact
    return float((got.double() - exact).norm() / exact.norm())


def sums(me: Rank, layout: str) -> list[str]:
    """Checks what one rank can; returns digests that must be the same on all ranks."""
    digests = []
    for wire in WIRES:
        init(me, layout, wire)
        levels = 1.5 if layout == "hosts" else 1
        for number, count in enumerate((LEAST, LEAST + 1, 100_003)):
            op = [dist.ReduceOp.SUM, dist.ReduceOp.AVG][number % 2]
            x = values(me.rank, count)
            work = dist.all_reduce(x, op, async_op=number == 2)
            if work is not None:
                work.wait()
            error = error_of(x, me.world_size, op)
            assert 1e-9 < error < levels * BOUNDS[wire], f"{wire}, {count}: {error}, seed {SEED}"
            digests.append(digest(x))
            # Not contiguous: the same bits through a temporary.
            wide = torch.zeros(count, 2)
            wide[:, 1] = values(me.rank, count)
            dist.all_reduce(wide[:, 1], op)
            assert same_bits(wide[:, 1], x), f"{wire}, {count}, strided"
            assert not wide[:, 0].any()
        digests += special(me, wire)
        digests += scattered(me, wire, levels)
        dist.destroy_process_group()
    return digests


def special(me: Rank, wire: str) -> list[str]:
    """NaN and Inf stay, values beyond float16 do not overflow, those below it are not lost."""
    x = torch.ones(LEAST * 2)
    x[256:512], x[512:768], x[768:1024] = 1e6, 1e-12, -0.0
    x[1024 + me.rank % 2] = [float("inf"), float("nan")][me.rank % 2]
    dist.all_reduce(x, dist.ReduceOp.AVG)
    bits = digest(x)
    assert torch.allclose(x[256:512], torch.tensor(1e6), rtol=0.01), wire
    assert torch.allclose(x[512:768], torch.tensor(1e-12), rtol=0.01, atol=0), wire
    assert (x[768:1024] == 0).all() and (wire == "int8" or x[768:1024].signbit().all()), wire
    if wire == "int8":
        assert x[1024:1026].isnan().all()
    else:
        assert x[1024] == float("inf") and x[1025].isnan(), f"{wire}: {x[1024:1026]}"
    assert x[1300:].isfinite().all()
    return [bits]


def scattered(me: Rank, wire: str, levels: float) -> list[str]:
    """reduce_scatter in its forms; what is put together again is the same on all ranks."""
    p = me.world_size
    block = LEAST // p + 3
    whole = values(me.rank, p * block)
    out = torch.empty(block)
    dist.reduce_scatter_tensor(out, whole)
    assert same_bits(whole, values(me.rank, p * block)), "the input was written"
    every = [torch.empty(block) for _ in range(p)]
    dist.all_gather(every, out)
    error = error_of(torch.cat(every), p, dist.ReduceOp.SUM)
    assert 1e-9 < error < levels * BOUNDS[wire], f"{wire}, reduce_scatter: {error}, seed {SEED}"
    listed = torch.empty(block)
    dist.reduce_scatter(listed, list(whole.split(block)))
    assert same_bits(listed, out), "a list of inputs"
    return [digest(torch.cat(every))]


@pytest.mark.parametrize(
    ("layout", "world_size"),
    [("shm", 2), ("shm", 3), ("tcp", 3), ("shm", 5), ("tcp", 8), ("hosts", 4)],
)
def test_all_ranks_hold_the_same_bits_and_the_error_is_that_of_one_narrowing(
    layout: str, world_size: int
) -> None:
    digests = run_ranks(sums, world_size, layout, init=False)
    for rank, mine in enumerate(digests):
        assert mine == digests[0], f"rank {rank}, seed {SEED}"


def untouched(me: Rank) -> None:
    me.init()
    p = me.world_size
    groups = [dist.new_group(pg_options=pycomm.Options(wire=wire)) for wire in [None, *WIRES]]
    ops = dist.ReduceOp
    premultiplied = dist._make_nccl_premul_sum(0.5)

    def all_reduce(group: Any, count: int, dtype: torch.dtype, op: Any) -> torch.Tensor:
        x = values(me.rank, count, dtype)
        dist.all_reduce(x, op, group=group)
        return x

    def everything(group: Any) -> list[torch.Tensor]:
        made = [
            all_reduce(group, LEAST - 1, torch.float32, ops.SUM),
            all_reduce(group, 1, torch.float32, ops.AVG),
            all_reduce(group, 0, torch.float32, ops.SUM),
            all_reduce(group, LEAST, torch.float32, ops.MIN),
            all_reduce(group, LEAST, torch.float32, ops.PRODUCT),
            all_reduce(group, LEAST, torch.float32, premultiplied),
            all_reduce(group, LEAST, torch.float64, ops.SUM),
            all_reduce(group, 2 * LEAST, torch.bfloat16, ops.AVG),
            all_reduce(group, LEAST, torch.int32, ops.SUM),
        ]
        x, y = values(me.rank, LEAST), values(me.rank, LEAST)
        dist.broadcast(x, 0, group=group)
        dist.reduce(y, 0, group=group)
        gathered, exchanged = torch.empty(p * LEAST), torch.empty(LEAST // p * p)
        dist.all_gather_into_tensor(gathered, values(me.rank, LEAST), group=group)
        dist.all_to_all_single(exchanged, values(me.rank, LEAST // p * p), group=group)
        least = torch.empty(LEAST // p // 2)
        dist.reduce_scatter_tensor(least, values(me.rank, p * least.numel()), group=group)
        return [*made, x, y, gathered, exchanged, least]

    expected = everything(groups[0])
    for wire, group in zip(WIRES, groups[1:], strict=True):
        for number, (got, plain) in enumerate(zip(everything(group), expected, strict=True)):
            assert same_bits(got, plain), f"{wire}, result {number}, seed {SEED}"
    shown(me, groups)
    dist.destroy_process_group()


def shown(me: Rank, groups: list[Any]) -> None:
    """What would be used, and what was."""
    plain, narrow = backend_of(groups[0]), backend_of(groups[1])
    assert narrow.algorithm_for("all_reduce", 4 * LEAST) == "direct as bf16"
    assert "as bf16" not in narrow.algorithm_for("all_reduce", 4 * LEAST - 1)
    assert narrow.algorithm_for("reduce_scatter", 4 * LEAST) == "direct as bf16"
    assert narrow.algorithm_for("broadcast", 1 << 20) == plain.algorithm_for("broadcast", 1 << 20)
    dist.all_reduce(values(me.rank, LEAST), group=groups[1])
    last = json.loads(narrow.flight_json())["entries"][-1]
    assert last["algorithm"] == "direct as bf16", last


def test_whatever_is_no_large_float32_sum_has_the_bits_it_always_had() -> None:
    run_ranks(untouched, 3, init=False)


def coalesced(me: Rank) -> list[str]:
    """Calls in a row, from a coalescing block and by hand, with sizes on both sides of the rule."""
    init(me, "shm", "fp16s")
    counts = [10, LEAST, 3, 50_001, LEAST - 1]
    with dist._coalescing_manager(device=torch.device("cpu"), async_ops=True) as manager:
        first = [values(me.rank, count) for count in counts]
        for x in first:
            dist.all_reduce(x)
    manager.wait()
    second = [values(me.rank, count) for count in counts]
    for work in [dist.all_reduce(x, async_op=True) for x in second]:
        work.wait()
    third = [values(me.rank, count) for count in counts]
    calls.all_reduce_coalesced(dist.group.WORLD, third)
    for a, b, c in zip(first, second, third, strict=True):
        assert same_bits(a, b) and same_bits(a, c)
    dist.destroy_process_group()
    return [digest(x) for x in first]


def test_coalesced_and_asynchronous_calls_follow_the_same_rules() -> None:
    digests = run_ranks(coalesced, 3, init=False)
    assert digests[1] == digests[0] and digests[2] == digests[0]


def in_arena(me: Rank) -> list[str]:
    """Tensors that peers could reach: encoded all the same where the link is narrow."""
    digests = []
    for layout in ("shm", "hosts"):
        init(me, layout, "bf16")
        with pycomm.arena():
            x = values(me.rank, 300_001)
        y = values(me.rank, 300_001)
        for _ in range(3):
            dist.all_reduce(x, dist.ReduceOp.AVG)
            dist.all_reduce(y, dist.ReduceOp.AVG)
        assert same_bits(x, y), layout
        digests.append(digest(x))
        dist.destroy_process_group()
    return digests


def test_tensors_in_the_arena_travel_narrow_with_the_same_bits() -> None:
    digests = run_ranks(in_arena, 4, init=False)
    assert all(mine == digests[0] for mine in digests)


def disagrees(me: Rank, odd: int, layout: str) -> str:
    init(me, layout, "bf16" if me.rank == odd else ["fp32", "int8"][odd % 2])
    x = values(me.rank, 4 * LEAST)
    try:
        dist.all_reduce(x)
    except pycomm.CommError as error:
        text = str(error)
    else:
        text = "no error"
    dist.destroy_process_group()
    return text


@pytest.mark.parametrize(("odd", "layout"), [(0, "shm"), (1, "tcp"), (2, "hosts")])
def test_ranks_with_different_wire_formats_are_all_told_both(odd: int, layout: str) -> None:
    world_size = 4 if layout == "hosts" else 3
    for rank, text in enumerate(run_ranks(disagrees, world_size, odd, layout, init=False)):
        other = "as int8" if odd % 2 else "float32[65536], sum)"
        for part in ("as bf16", other, "PYCOMM_WIRE"):
            assert part in text, f"rank {rank}: {text}"


def chosen(me: Rank) -> None:
    both = "PYCOMM_WIRE=bf16 with PYCOMM_ALGO=all_reduce=ring"
    with pytest.raises(pycomm.UsageError, match=both):
        me.init(pycomm.Options(wire="bf16", algorithm="ring"))
    me.init(pycomm.Options(wire="auto", algorithm="ring"))
    dist.destroy_process_group()


def test_an_algorithm_that_rounds_at_every_hop_is_refused_at_set_up() -> None:
    run_ranks(chosen, 2, init=False)


def automatic(me: Rank, layout: str) -> tuple[str, str]:
    init(me, layout, "auto")
    backend = backend_of(dist.group.WORLD)
    wire = backend.wire()
    label = backend.algorithm_for("all_reduce", 1 << 20)
    assert label.endswith(f" as {wire}") == (wire != "fp32"), label
    x = values(me.rank, 100_003)
    dist.all_reduce(x)
    bound = BOUNDS["bf16"] * (1.5 if layout == "hosts" else 1)
    assert error_of(x, me.world_size, dist.ReduceOp.SUM) < (1e-6 if wire == "fp32" else bound)
    dist.destroy_process_group()
    return wire, digest(x)


@pytest.mark.parametrize(("layout", "world_size"), [("shm", 2), ("tcp", 3), ("hosts", 4)])
def test_auto_decides_the_same_on_all_ranks_and_leaves_shared_memory_alone(
    layout: str, world_size: int
) -> None:
    found = run_ranks(automatic, world_size, layout, init=False)
    assert all(one == found[0] for one in found), found
    assert found[0][0] in (["fp32"] if layout == "shm" else ["fp32", "fp16s", "bf16"])


def only_some_auto(me: Rank) -> None:
    with pytest.raises(pycomm.UsageError, match="PYCOMM_WIRE is .*must be the same") as caught:
        init(me, "tcp", "auto" if me.rank == 1 else "bf16")
    assert "auto on rank 1" in str(caught.value) and "bf16 on rank" in str(caught.value)


def test_auto_on_some_ranks_only_is_refused_on_all_at_set_up() -> None:
    run_ranks(only_some_auto, 3, init=False)


# Who has chosen such an algorithm does not race, and the others must not wait for it.
def some_cannot_race(me: Rank) -> None:
    ring = pycomm.Options(transport="tcp", wire="auto", algorithm="ring")
    race = pycomm.Options(transport="tcp", wire="auto")
    with pytest.raises(pycomm.UsageError, match="PYCOMM_ALGO=all_reduce=ring on rank 1") as caught:
        me.init(ring if me.rank == 1 else race)
    assert "auto on rank" in str(caught.value)


def test_auto_with_an_algorithm_that_rules_it_out_on_some_ranks_is_refused_on_all() -> None:
    run_ranks(some_cannot_race, 2, init=False)


def dies_within(me: Rank) -> None:
    x = torch.ones(4 << 20)
    dist.all_reduce(x)
    if me.rank == 1:
        # Somewhere within the calls that follow.
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    with pytest.raises(pycomm.PeerFailure, match="rank 1"):
        while True:
            dist.all_reduce(x, dist.ReduceOp.AVG)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_rank_that_dies_amid_a_narrow_sum_is_named(transport: str) -> None:
    pool = Pool()
    try:
        env = {"PYCOMM_WIRE": "int8"}
        results = run_ranks(
            dies_within, 3, dies=[1], pool=pool, timeout_s=30, transport=transport, env=env
        )
        assert isinstance(results[1], Died)
    finally:
        pool.close()


def trains(me: Rank) -> tuple[str, float, float]:
    """A plain DDP script: nothing in it knows of formats."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)
    )
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    losses = []
    for step in range(8):
        generator = torch.Generator().manual_seed(1000 * (step % 2) + me.rank)
        batch = torch.randn(32, 256, generator=generator)
        labels = torch.randint(10, (32,), generator=generator)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(ddp(batch), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    used = [e["algorithm"] for e in json.loads(_flight())["entries"]]
    assert any("as bf16" in name for name in used), used
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
    return digest(parameters), losses[0], losses[-1]


def _flight() -> str:
    return str(backend_of(dist.group.WORLD).flight_json())


def test_an_unchanged_ddp_script_trains_with_the_variable_and_ranks_stay_equal() -> None:
    results = run_ranks(trains, 3, env={"PYCOMM_WIRE": "bf16"})
    for bits, first, last in results:
        assert bits == results[0][0]
        assert last < first
