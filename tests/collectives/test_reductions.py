# SPDX-License-Identifier: MIT
"""all_reduce, reduce, reduce_scatter against an 80-bit reference: all dtypes, ops, algorithms.

The bounds are stated in reference.py. Ranks are threads; a group goes through many cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import calls
import pytest
import torch
from ranks import Rank, run_threads
from reference import (
    DTYPES,
    FOLDS,
    Expected,
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

PAIRS = [(dtype, op) for dtype in DTYPES for op in ops_for(dtype)]


def algorithms(collective: str) -> list[str]:
    return list(load().algorithms_for(collective))


def sizes_for(world_size: int) -> list[int]:
    return sorted({0, 1, world_size - 1, world_size + 1, 17, 1000 + world_size})


@dataclass
class Case:
    """One call: what each rank gives, and what should come out."""

    dtype: torch.dtype
    op: str
    count: int
    inputs: list[torch.Tensor]
    expected: Expected
    root: int
    is_async: bool

    def __str__(self) -> str:
        return f"{self.op} of {self.dtype}[{self.count}], async={self.is_async}, root {self.root}"

    @property
    def torch_op(self) -> Any:
        if self.op == "premul_sum":
            return torch.distributed._make_nccl_premul_sum(factor_for(self.dtype))
        return torch_op(self.op)


def make_cases(
    world_size: int, sizes: list[int], pairs: list[tuple[torch.dtype, str]]
) -> list[Case]:
    cases = []
    for dtype, op in pairs:
        for count in sizes:
            seeds = [seed_of(dtype, op, count, rank) for rank in range(world_size)]
            inputs = [make(dtype, count, seed, op) for seed in seeds]
            number = len(cases)
            root, is_async = number % world_size, number % 3 == 0
            cases.append(Case(dtype, op, count, inputs, expect(inputs, op), root, is_async))
    return cases


def run_all_reduce(me: Rank, cases: list[Case]) -> list[torch.Tensor]:
    results = []
    for case in cases:
        x = case.inputs[me.rank].clone()
        calls.all_reduce(me.backend, x, case.torch_op, case.is_async)
        results.append(x)
    return results


def check_all_reduce(results: list[list[torch.Tensor]], cases: list[Case], algorithm: str) -> None:
    for index, case in enumerate(cases):
        what = f"{algorithm}, {len(results)} ranks, {case}"
        for rank, mine in enumerate(results):
            assert same_bits(mine[index], results[0][index]), f"{what}: rank {rank} has other bits"
        case.expected.check(results[0][index], algorithm in FOLDS["all_reduce"], what)


@pytest.mark.parametrize("world_size", range(1, 9))
def test_all_reduce_is_right_for_every_dtype_op_and_algorithm(world_size: int) -> None:
    cases = make_cases(world_size, sizes_for(world_size), PAIRS)
    for algorithm in algorithms("all_reduce"):
        results = run_threads(
            run_all_reduce, world_size, cases, algorithm=f"all_reduce={algorithm}"
        )
        check_all_reduce(results, cases, algorithm)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_all_reduce_over_tcp_is_right_for_every_dtype_op_and_algorithm(world_size: int) -> None:
    cases = make_cases(world_size, [1, 1000 + world_size], PAIRS)
    for algorithm in algorithms("all_reduce"):
        results = run_threads(
            run_all_reduce, world_size, cases, algorithm=algorithm, transport="tcp"
        )
        check_all_reduce(results, cases, algorithm)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("world_size", [2, 3, 5, 8])
def test_all_reduce_of_many_segments_is_right(world_size: int, transport: str) -> None:
    # 128 KiB a segment, 4 in flight: at two ranks a chunk is more than the slots hold.
    pairs = [(torch.float32, "sum"), (torch.bfloat16, "avg"), (torch.int64, "product")]
    cases = make_cases(world_size, [400_001], pairs)
    for algorithm in algorithms("all_reduce"):
        results = run_threads(
            run_all_reduce, world_size, cases, algorithm=algorithm, transport=transport
        )
        check_all_reduce(results, cases, algorithm)


def run_reduce(me: Rank, cases: list[Case]) -> list[torch.Tensor]:
    results = []
    for case in cases:
        x = case.inputs[me.rank].clone()
        calls.reduce(me.backend, x, case.root, case.torch_op, case.is_async)
        results.append(x)
    return results


@pytest.mark.parametrize("algorithm", algorithms("reduce"))
@pytest.mark.parametrize("world_size", range(1, 9))
def test_reduce_is_right_at_the_root_and_leaves_the_others_alone(
    world_size: int, algorithm: str
) -> None:
    cases = make_cases(world_size, [0, 1, world_size + 1, 1003], PAIRS)
    cases += make_cases(world_size, [300_001], [(torch.float32, "sum"), (torch.float16, "max")])
    results = run_threads(run_reduce, world_size, cases, algorithm=algorithm)
    for index, case in enumerate(cases):
        what = f"{algorithm}, {world_size} ranks, {case}"
        for rank, mine in enumerate(results):
            if rank != case.root:
                assert same_bits(mine[index], case.inputs[rank]), f"{what}: rank {rank} was changed"
        folds = algorithm in FOLDS["reduce"]
        case.expected.check(results[case.root][index], folds, what)


def run_reduce_scatter(
    me: Rank, cases: list[Case], from_list: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The inputs are cut in one block for each rank; returns the block and the input afterwards."""
    results = []
    for case in cases:
        given = case.inputs[me.rank].clone()
        out = torch.zeros(case.count // me.world_size, dtype=torch.uint8).to(case.dtype)
        if from_list:
            blocks = list(given.split(len(out) or 1)) if case.count else [given] * me.world_size
            calls.reduce_scatter(me.backend, out, blocks, case.torch_op, case.is_async)
        else:
            calls.reduce_scatter_from(me.backend, out, given, case.torch_op, case.is_async)
        results.append((out, given))
    return results


@pytest.mark.parametrize("algorithm", algorithms("reduce_scatter"))
@pytest.mark.parametrize("world_size", range(1, 9))
def test_reduce_scatter_is_right_and_leaves_its_input_alone(
    world_size: int, algorithm: str
) -> None:
    cases = make_cases(world_size, [b * world_size for b in (0, 1, 7, 501)], PAIRS)
    cases += make_cases(world_size, [100_003 * world_size], [(torch.float32, "avg")])
    for from_list in (False, True):
        results = run_threads(run_reduce_scatter, world_size, cases, from_list, algorithm=algorithm)
        for index, case in enumerate(cases):
            what = f"{algorithm}, {world_size} ranks, list={from_list}, {case}"
            for rank, mine in enumerate(results):
                assert same_bits(mine[index][1], case.inputs[rank]), f"{what}: input changed"
            whole = torch.cat([bits(mine[index][0]) for mine in results])
            got = whole.view(case.dtype)
            case.expected.check(got, algorithm in FOLDS["reduce_scatter"], what)
