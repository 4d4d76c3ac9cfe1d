# SPDX-License-Identifier: MIT
"""Tensors that are not contiguous, and values that are not ordinary: NaN, infinities, -0."""

from __future__ import annotations

import math
from typing import Any

import calls
import pytest
import torch
from ranks import Rank, run_threads
from reference import COMPLEX, FLOATS, bits, make, same_bits, seed_of, torch_op

from pycomm.native import load

ALGORITHMS = list(load().algorithms_for("all_reduce"))


def data(shape: tuple[int, ...], *who: Any) -> torch.Tensor:
    return make(torch.int32, torch.Size(shape).numel(), seed_of(who)).view(shape)


def views() -> dict[str, Any]:
    """From a frame int32[4, 6, 8] to a view of it that is not contiguous, or has no dimension."""
    return {
        "transposed": lambda frame: frame[0].t(),
        "strided": lambda frame: frame[1:3, ::2, 1::3],
        "narrowed": lambda frame: frame[:, 2:5, 3:7],
        "0-dim": lambda frame: frame[2, 3, 4],
        "channels last": lambda frame: frame[None].to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("name", views())
def test_all_reduce_into_a_view_writes_the_view_and_nothing_else(name: str, is_async: bool) -> None:
    def body(me: Rank) -> None:
        frames = [data((4, 6, 8), rank) for rank in range(me.world_size)]
        for op in ("sum", "max"):
            frame = frames[me.rank].clone()
            view = views()[name](frame)
            outside = frame.clone()
            calls.all_reduce(me.backend, view, torch_op(op), is_async)
            stack = torch.stack([views()[name](one) for one in frames])
            expected = stack.sum(0, dtype=torch.int32) if op == "sum" else stack.amax(0)
            assert torch.equal(view, expected), f"{op}: got {view}, expected {expected}"
            views()[name](outside).copy_(expected)
            if view.untyped_storage().data_ptr() == frame.untyped_storage().data_ptr():
                assert torch.equal(frame, outside), f"{op}: wrote beside the view"

    for world_size in (1, 2, 3):
        run_threads(body, world_size)


@pytest.mark.parametrize("name", [name for name in views() if name != "0-dim"])
def test_moves_take_views_as_inputs_and_outputs(name: str) -> None:
    def body(me: Rank) -> None:
        p = me.world_size

        def view(*who: Any) -> torch.Tensor:
            return views()[name](data((4, 6, 8), *who))

        mine = view(me.rank)
        outs = [view("out") for _ in range(p)]
        calls.all_gather(me.backend, outs, mine)
        for rank, out in enumerate(outs):
            assert torch.equal(out, view(rank)), f"all_gather, rank {rank}"
        calls.all_to_all(me.backend, outs, [view(me.rank, peer) for peer in range(p)])
        for rank, out in enumerate(outs):
            assert torch.equal(out, view(rank, me.rank)), f"all_to_all, rank {rank}"
        out = view("out")
        calls.reduce_scatter(me.backend, out, [view(me.rank, peer) for peer in range(p)])
        expected = sum(view(rank, me.rank) for rank in range(p))
        assert torch.equal(out, expected), "reduce_scatter"
        out = mine if me.rank == 0 else view("out")
        calls.broadcast(me.backend, out, 0)
        assert torch.equal(out, view(0)), "broadcast"
        kept = mine.clone()
        calls.reduce(me.backend, mine, 1)
        if me.rank != 1:
            assert torch.equal(mine, kept), "reduce wrote on a rank that is not the root"

    for world_size in (2, 3):
        run_threads(body, world_size)


def test_a_conjugate_view_is_reduced_as_what_it_shows() -> None:
    def body(me: Rank) -> None:
        x = torch.tensor([1 + 2j, 3 - 1j]) * (me.rank + 1)
        view = x.conj()
        assert view.is_conj()
        calls.all_reduce(me.backend, view)
        assert torch.equal(view, torch.tensor([1 - 2j, 3 + 1j]) * 3)
        assert torch.equal(x, torch.tensor([1 + 2j, 3 - 1j]) * 3)

    run_threads(body, 2)


@pytest.mark.parametrize("is_async", [False, True])
def test_tensors_of_inference_mode_are_written(is_async: bool) -> None:
    def body(me: Rank) -> None:
        with torch.inference_mode():
            x = torch.full((3, 4), float(me.rank + 1))
            for view in (x, x.t()):
                calls.all_reduce(me.backend, view, is_async=is_async)
            assert (x == 6).all(), x

    run_threads(body, 2)


def test_a_leaf_that_requires_grad_is_written_like_any_tensor() -> None:
    def body(me: Rank) -> None:
        for shown in (lambda x: x, lambda x: x.detach().t()):
            x = torch.ones(2, 3, requires_grad=True)
            calls.all_reduce(me.backend, shown(x))
            assert (x == 2).all()

    run_threads(body, 2)


SPECIAL = [float("nan"), math.inf, -math.inf, -0.0, 0.0, 1.0]
# Those that have infinities and a negative zero.
HALVES = [torch.float16, torch.bfloat16]
IEEE_FLOATS = [*HALVES, torch.float32, torch.float64, torch.float8_e5m2]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nan_infinity_and_minus_zero_propagate(algorithm: str) -> None:
    first = torch.tensor([a for a in SPECIAL for _ in SPECIAL])
    others = torch.tensor([b for _ in SPECIAL for b in SPECIAL])

    def expected(op: str, p: int) -> torch.Tensor:
        a, b = first.double(), others.double()
        if op in ("sum", "avg"):
            total = a
            for _ in range(p - 1):
                total = total + b
            return total / (p if op == "avg" else 1)
        if op == "product":
            total = a
            for _ in range(p - 1):
                total = total * b
            return total
        low, high = (a, b) if op == "min" else (-a, -b)
        least = torch.minimum(low, high)
        zeros = (a == 0) & (b == 0)
        minus = torch.signbit(low) | torch.signbit(high)
        least = torch.where(zeros, torch.where(minus, -0.0, 0.0), least)
        return least if op == "min" else -least

    def body(me: Rank) -> None:
        for dtype in IEEE_FLOATS:
            for op in ("sum", "avg", "product", "min", "max"):
                x = (first if me.rank == 0 else others).to(dtype, copy=True)
                calls.all_reduce(me.backend, x, torch_op(op))
                got, want = x.double(), expected(op, me.world_size).to(dtype).double()
                what = f"{algorithm}, {op}, {dtype}: got {got}, expected {want}"
                assert torch.equal(got.isnan(), want.isnan()), what
                number = ~want.isnan()
                assert torch.equal(got[number], want[number]), what
                assert torch.equal(torch.signbit(got)[number], torch.signbit(want)[number]), what

    for world_size in (2, 3, 4):
        run_threads(body, world_size, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_ranks_get_the_same_bits_whatever_bits_go_in(algorithm: str) -> None:
    """Random bytes as floats: NaNs with payloads, subnormals, overflow."""
    seed = 20240607
    print("seed", seed)

    def body(me: Rank) -> list[torch.Tensor]:
        results = []
        for dtype in FLOATS + COMPLEX:
            for op in ("sum", "product") if dtype in COMPLEX else ("sum", "avg", "min", "product"):
                raw = make(torch.uint8, 777 * dtype.itemsize, seed + me.rank)
                x = raw.view(dtype)
                calls.all_reduce(me.backend, x, torch_op(op))
                results.append(x)
        return results

    for world_size in (2, 3, 7):
        everybody = run_threads(body, world_size, algorithm=algorithm)
        for rank, results in enumerate(everybody):
            for mine, theirs in zip(results, everybody[0], strict=True):
                assert same_bits(mine, theirs), (
                    f"{world_size} ranks, {mine.dtype}: rank {rank} differs in "
                    f"{int((bits(mine) != bits(theirs)).sum())} bytes, seed {seed}"
                )
