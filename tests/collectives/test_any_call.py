# SPDX-License-Identifier: MIT
"""A property test: any sequence of calls, dtypes, sizes and algorithms gives what it should."""

from __future__ import annotations

from typing import Any

import calls
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from ranks import Rank, run_threads
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

REDUCTIONS = ["all_reduce", "reduce", "reduce_scatter"]
MOVES = ["broadcast", "all_gather", "gather", "scatter", "all_to_all"]


@st.composite
def sequences(draw: Any) -> dict[str, Any]:
    """A group and up to eight calls for it."""
    world_size = draw(st.integers(1, 6))
    algorithms = ",".join(
        f"{name}={draw(st.sampled_from(list(load().algorithms_for(name))))}"
        for name in REDUCTIONS + MOVES
    )
    steps = []
    for _ in range(draw(st.integers(1, 8))):
        dtype = draw(st.sampled_from(DTYPES))
        steps.append(
            {
                "collective": draw(st.sampled_from(REDUCTIONS + MOVES)),
                "dtype": dtype,
                "op": draw(st.sampled_from(ops_for(dtype))),
                "count": draw(st.one_of(st.integers(0, 70), st.integers(0, 70_000))),
                "root": draw(st.integers(0, world_size - 1)),
                "is_async": draw(st.booleans()),
                "seed": draw(st.integers(0, 2**32 - 1)),
            }
        )
    return {
        "world_size": world_size,
        "algorithms": algorithms,
        "transport": draw(st.sampled_from(["shm", "tcp"])),
        "segment_bytes": draw(st.sampled_from([4096, 8192, 128 * 1024])),
        "steps": steps,
    }


def block(step: dict[str, Any], *who: int) -> torch.Tensor:
    return make(step["dtype"], step["count"], seed_of(step["seed"], who), step["op"])


def join(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([bits(x) for x in tensors])


def reduce_step(me: Rank, step: dict[str, Any], folds: set[str]) -> None:
    op = step["op"]
    given_op = torch_op(op)
    if op == "premul_sum":
        given_op = torch.distributed._make_nccl_premul_sum(factor_for(step["dtype"]))
    p, kind, is_async = me.world_size, step["collective"], step["is_async"]
    what = f"rank {me.rank}: {step}"
    if kind == "reduce_scatter":
        xs = [block(step, me.rank, peer) for peer in range(p)]
        out = block(step, -1)
        calls.reduce_scatter(me.backend, out, xs, given_op, is_async)
        mine = [block(step, rank, me.rank) for rank in range(p)]
        expect(mine, op).check(out, kind in folds, what)
        assert same_bits(join(xs), join([block(step, me.rank, peer) for peer in range(p)])), what
        return
    x = block(step, me.rank)
    if kind == "all_reduce":
        calls.all_reduce(me.backend, x, given_op, is_async)
    else:
        calls.reduce(me.backend, x, step["root"], given_op, is_async)
    if kind == "reduce" and me.rank != step["root"]:
        assert same_bits(x, block(step, me.rank)), f"{what}: changed"
        return
    expect([block(step, rank) for rank in range(p)], op).check(x, kind in folds, what)


def move_step(me: Rank, step: dict[str, Any]) -> None:
    p, kind, root, is_async = me.world_size, step["collective"], step["root"], step["is_async"]
    backend, is_root = me.backend, me.rank == step["root"]
    mine, out = block(step, me.rank), block(step, -1)
    outs = [block(step, -1) for _ in range(p)]
    all_blocks = [block(step, rank) for rank in range(p)]
    if kind == "broadcast":
        out = mine if is_root else out
        calls.broadcast(backend, out, root, is_async)
        got, want = [out], [block(step, root)]
    elif kind == "all_gather":
        calls.all_gather(backend, outs, mine, is_async)
        got, want = outs, all_blocks
    elif kind == "gather":
        calls.gather(backend, outs if is_root else None, mine, root, is_async)
        got, want = (outs, all_blocks) if is_root else ([mine], [block(step, me.rank)])
    elif kind == "scatter":
        calls.scatter(backend, out, all_blocks if is_root else None, root, is_async)
        got, want = [out], [block(step, me.rank)]
    else:
        xs = [block(step, me.rank, peer) for peer in range(p)]
        calls.all_to_all(backend, outs, xs, is_async)
        got, want = outs, [block(step, peer, me.rank) for peer in range(p)]
    assert same_bits(join(got), join(want)), f"rank {me.rank}: {step}: got {got}, expected {want}"


@settings(
    max_examples=120,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(sequences())
def test_any_sequence_of_calls_gives_what_it_should(sequence: dict[str, Any]) -> None:
    note(str(sequence))
    chosen = dict(one.split("=") for one in sequence["algorithms"].split(","))
    folds = {name for name, fold in FOLDS.items() if chosen[name] in fold}

    def body(me: Rank) -> None:
        for step in sequence["steps"]:
            if step["collective"] in REDUCTIONS:
                reduce_step(me, step, folds)
            else:
                move_step(me, step)

    run_threads(
        body,
        sequence["world_size"],
        algorithm=sequence["algorithms"],
        transport=sequence["transport"],
        options={"segment_bytes": sequence["segment_bytes"]},
    )
