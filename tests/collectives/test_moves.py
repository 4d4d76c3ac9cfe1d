# SPDX-License-Identifier: MIT
"""Collectives that only move data deliver every byte: every dtype, layout, size and algorithm."""

from __future__ import annotations

import functools
from typing import Any

import calls
import pytest
import torch
from ranks import Rank, run_threads
from reference import DTYPES, bits, make, same_bits, seed_of

from pycomm.native import load

TRANSPORTS = ["shm", "tcp"]
WORLD_SIZES = {"shm": range(1, 9), "tcp": (2, 3, 5, 8)}
# Many segments of 128 KiB, more than the 4 slots of a channel.
LARGE = 200_003


def algorithms(collective: str) -> list[str]:
    return list(load().algorithms_for(collective))


def plan(world_size: int) -> list[tuple[torch.dtype, int]]:
    """The (dtype, elements) of each call."""
    large = [(torch.int64, LARGE)] if world_size in (2, 5) else []
    return [(d, n) for d in DTYPES for n in (0, 1, 1003)] + large


@functools.cache
def data(dtype: torch.dtype, count: int, *who: Any) -> torch.Tensor:
    return make(dtype, count, seed_of(dtype, count, who))


def empty(dtype: torch.dtype, count: int) -> torch.Tensor:
    """An output that holds something else so far."""
    return torch.full((count * dtype.itemsize,), 0x5A, dtype=torch.uint8).view(dtype)


def expect_same(got: torch.Tensor, expected: torch.Tensor, *what: Any) -> None:
    assert same_bits(got, expected), f"{what}: got {got}, expected {expected}"


def run_broadcast(me: Rank) -> None:
    for number, (dtype, count) in enumerate(plan(me.world_size)):
        root = number % me.world_size
        x = data(dtype, count, root).clone() if me.rank == root else empty(dtype, count)
        calls.broadcast(me.backend, x, root, number % 2 == 0)
        expect_same(x, data(dtype, count, root), dtype, count, root)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("algorithm", algorithms("broadcast"))
def test_broadcast_gives_everybody_the_roots_bytes(algorithm: str, transport: str) -> None:
    for world_size in WORLD_SIZES[transport]:
        run_threads(run_broadcast, world_size, algorithm=algorithm, transport=transport)


def run_all_gather(me: Rank) -> None:
    p = me.world_size
    for number, (dtype, count) in enumerate(plan(p)):
        is_async = number % 2 == 0
        mine = data(dtype, count, me.rank).clone()
        everything = [data(dtype, count, rank) for rank in range(p)]
        outs = [empty(dtype, count) for _ in range(p)]
        calls.all_gather(me.backend, outs, mine, is_async)
        for rank, out in enumerate(outs):
            expect_same(out, everything[rank], "list", dtype, count, rank)
        into = empty(dtype, count * p)
        calls.all_gather_into(me.backend, into, mine, is_async)
        expect_same(bits(into), torch.cat([bits(x) for x in everything]), "into", dtype, count)
        expect_same(mine, everything[me.rank], "the input", dtype, count)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("algorithm", algorithms("all_gather"))
def test_all_gather_collects_every_ranks_bytes_in_order(algorithm: str, transport: str) -> None:
    for world_size in WORLD_SIZES[transport]:
        run_threads(run_all_gather, world_size, algorithm=algorithm, transport=transport)


def run_all_gather_in_place(me: Rank) -> None:
    for count in (1, 1003, LARGE):
        everything = [data(torch.float32, count, rank) for rank in range(me.world_size)]
        into = empty(torch.float32, count * me.world_size)
        mine = into[me.rank * count : (me.rank + 1) * count]
        mine.copy_(everything[me.rank])
        calls.all_gather_into(me.backend, into, mine)
        expect_same(into, torch.cat(everything), count)


@pytest.mark.parametrize("algorithm", algorithms("all_gather"))
def test_all_gather_may_read_its_input_from_the_output(algorithm: str) -> None:
    for world_size in (1, 2, 5):
        run_threads(run_all_gather_in_place, world_size, algorithm=algorithm)


def run_uneven_all_gather(me: Rank) -> None:
    """Blocks of different sizes; rank r gives r * 1000 elements, rank 0 none."""
    everything = [data(torch.int32, 1000 * rank, rank) for rank in range(me.world_size)]
    outs = [empty(torch.int32, 1000 * rank) for rank in range(me.world_size)]
    calls.all_gather(me.backend, outs, everything[me.rank].clone())
    for rank, out in enumerate(outs):
        expect_same(out, everything[rank], rank)


@pytest.mark.parametrize("algorithm", algorithms("all_gather"))
def test_all_gather_takes_blocks_of_different_sizes(algorithm: str) -> None:
    for world_size in (2, 3, 8):
        run_threads(run_uneven_all_gather, world_size, algorithm=algorithm)


def run_gather_and_scatter(me: Rank) -> None:
    p = me.world_size
    for number, (dtype, count) in enumerate(plan(p)):
        root, is_async = number % p, number % 2 == 0
        mine = data(dtype, count, me.rank).clone()
        everything = [data(dtype, count, rank) for rank in range(p)]
        outs = [empty(dtype, count) for _ in range(p)] if me.rank == root else None
        calls.gather(me.backend, outs, mine, root, is_async)
        for rank, out in enumerate(outs or []):
            expect_same(out, everything[rank], "gather", dtype, count, rank)
        expect_same(mine, everything[me.rank], "the input of gather", dtype, count)
        out = empty(dtype, count)
        blocks = [x.clone() for x in everything]
        calls.scatter(me.backend, out, blocks if me.rank == root else None, root, is_async)
        expect_same(out, mine, "scatter", dtype, count)
        for rank, x in enumerate(blocks):
            expect_same(x, everything[rank], "the input of scatter", dtype, count, rank)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_gather_and_scatter_move_every_block_to_its_place(transport: str) -> None:
    for world_size in WORLD_SIZES[transport]:
        run_threads(run_gather_and_scatter, world_size, transport=transport)


def run_all_to_all(me: Rank) -> None:
    p = me.world_size
    for number, (dtype, count) in enumerate(plan(p)):
        is_async = number % 2 == 0
        xs = [data(dtype, count, me.rank, peer).clone() for peer in range(p)]
        expected = torch.cat([bits(data(dtype, count, peer, me.rank)) for peer in range(p)])
        outs = [empty(dtype, count) for _ in range(p)]
        calls.all_to_all(me.backend, outs, xs, is_async)
        expect_same(torch.cat([bits(out) for out in outs]), expected, "list", dtype, count)
        whole = torch.cat([bits(x) for x in xs]).view(dtype)
        out = empty(dtype, count * p)
        calls.all_to_all_single(me.backend, out, whole, is_async=is_async)
        expect_same(bits(out), expected, "single", dtype, count)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_to_all_exchanges_every_block(transport: str) -> None:
    for world_size in WORLD_SIZES[transport]:
        run_threads(run_all_to_all, world_size, transport=transport)


def run_uneven_all_to_all(me: Rank, dtype: torch.dtype, row: tuple[int, ...]) -> None:
    """Rank s sends (3 s + 5 d) % 7 rows to rank d: some blocks are empty."""
    p = me.world_size

    def rows(source: int, target: int) -> int:
        return (3 * source + 5 * target) % 7

    def block(source: int, target: int) -> torch.Tensor:
        elements = rows(source, target) * torch.Size(row).numel()
        return data(dtype, elements, source, target).view(rows(source, target), *row)

    xs = [block(me.rank, peer) for peer in range(p)]
    expected = [block(peer, me.rank) for peer in range(p)]
    outs = [torch.zeros_like(x) for x in expected]
    calls.all_to_all(me.backend, outs, xs)
    for out, want in zip(outs, expected, strict=True):
        expect_same(out, want, "list")
    out = torch.zeros_like(torch.cat(expected))
    sizes = [len(x) for x in xs]
    calls.all_to_all_single(me.backend, out, torch.cat(xs), [len(x) for x in expected], sizes)
    expect_same(out, torch.cat(expected), "single")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_to_all_takes_uneven_splits(transport: str) -> None:
    for world_size in WORLD_SIZES[transport]:
        run_threads(run_uneven_all_to_all, world_size, torch.int16, (3, 2), transport=transport)
        large = (torch.float64, (30_000,))
        run_threads(run_uneven_all_to_all, world_size, *large, transport=transport)


def run_coalesced(me: Rank) -> None:
    p = me.world_size
    counts = [0, 1, 1003, LARGE]
    everything = [[data(torch.float32, n, rank) for n in counts] for rank in range(p)]
    mine = [x.clone() for x in everything[me.rank]]
    outs = [empty(torch.float32, n * p) for n in counts]
    me.group.allgather_into_tensor_coalesced(outs, mine).wait()
    for i, out in enumerate(outs):
        expect_same(out, torch.cat([xs[i] for xs in everything]), "all_gather", counts[i])

    sums = [sum(x.double() for x in xs) for xs in zip(*everything, strict=True)]
    calls.all_reduce_coalesced(me.group, mine)
    for x, total in zip(mine, sums, strict=True):
        torch.testing.assert_close(x.double(), total, rtol=1e-5, atol=1e-5)

    wholes = [torch.cat([x] * p) for x in everything[me.rank]]
    blocks = [empty(torch.float32, n) for n in counts]
    me.group.reduce_scatter_tensor_coalesced(blocks, wholes).wait()
    for block, total in zip(blocks, sums, strict=True):
        torch.testing.assert_close(block.double(), total, rtol=1e-5, atol=1e-5)


def test_coalesced_calls_treat_every_tensor_of_the_list() -> None:
    for world_size in (1, 2, 3, 8):
        run_threads(run_coalesced, world_size)


def run_barrier(me: Rank, arrived: list[int]) -> None:
    for number in range(200):
        arrived[me.rank] = number
        calls.barrier(me.backend, number % 2 == 0)
        assert min(arrived) >= number, f"a rank left barrier {number} while {arrived} had arrived"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nobody_leaves_a_barrier_before_everybody_has_come(transport: str) -> None:
    for world_size in WORLD_SIZES[transport]:
        run_threads(run_barrier, world_size, [-1] * world_size, transport=transport)
