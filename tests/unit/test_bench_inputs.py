# SPDX-License-Identifier: MIT
"""Inputs of the bench are exact in every dtype, and one wrong element is counted as one."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import reduce as fold
from itertools import accumulate, product

import pytest
import torch

from pycomm.bench.calls import Arena, buffers_for
from pycomm.bench.cells import BITWISE_OPS, DTYPES, OPS, SPECS, Cell, cells_of
from pycomm.bench.inputs import (
    PAIRWISE,
    PERIOD,
    TILE,
    NotMeasurable,
    Segment,
    expected_segments,
    input_tile,
    integers,
    reduced_tile,
    steady_value,
)

WORLDS = range(1, 9)
CASES = [
    (dtype, op)
    for dtype, op in product(DTYPES, OPS)
    if not (op in BITWISE_OPS and DTYPES[dtype].floating)
]


def representable(values: Sequence[Fraction | int], dtype: str) -> bool:
    """Whether a dtype holds every value exactly."""
    kind = torch.float64 if DTYPES[dtype].floating else torch.int64
    plain = [float(v) if DTYPES[dtype].floating else int(v) for v in values]
    exact = torch.tensor(plain, dtype=kind)
    return torch.equal(exact.to(getattr(torch, dtype)).to(kind), exact)


@pytest.mark.parametrize(("dtype", "op"), CASES)
def test_inputs_partial_results_and_result_are_exact_up_to_eight_ranks(dtype: str, op: str) -> None:
    for world in WORLDS:
        columns = list(zip(*(integers(dtype, op, world, r) for r in range(world)), strict=True))
        for step in (1, -1):
            partials = [list(accumulate(column[::step], PAIRWISE[op])) for column in columns]
            assert representable([value for line in partials for value in line], dtype)
        totals: list[Fraction | int] = [fold(PAIRWISE[op], column) for column in columns]
        if op == "avg":
            means = [Fraction(total, world) for total in totals]
            assert representable(means, dtype)
            assert DTYPES[dtype].floating or all(mean.denominator == 1 for mean in means)
            totals = list(means)
        assert any(totals), "all-zero results would hide missing terms"
        expected = torch.tensor([float(total) for total in totals], dtype=torch.float64)
        assert torch.equal(reduced_tile(dtype, op, world)[:PERIOD].to(torch.float64), expected)


@pytest.mark.parametrize("op", ["sum", "prod"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_missing_rank_changes_the_result(dtype: str, op: str) -> None:
    columns = list(zip(*(integers(dtype, op, 4, rank) for rank in range(4)), strict=True))
    for missing in range(4):
        kept = [column[:missing] + column[missing + 1 :] for column in columns]
        assert any(
            fold(PAIRWISE[op], a) != fold(PAIRWISE[op], b)
            for a, b in zip(kept, columns, strict=True)
        )


@pytest.mark.parametrize("op", OPS)
def test_the_steady_value_is_a_fixed_point(op: str) -> None:
    value = steady_value(op)
    assert PAIRWISE[op](value, value) // (2 if op == "avg" else 1) == value


def test_a_bitwise_op_on_floats_is_refused() -> None:
    with pytest.raises(NotMeasurable, match="band needs an integer dtype, got float32"):
        integers("float32", "band", 2, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_flipped_element_counts_as_one_wrong(dtype: str) -> None:
    segment = Segment(3, 3 * TILE + 17, input_tile(dtype, "none", 2, 0), phase=PERIOD + 5)
    target = torch.zeros(3 * TILE + 20).to(getattr(torch, dtype))
    segment.write(target)
    assert segment.wrong(target) == 0
    for index in (3, TILE, 3 * TILE + 19):
        target[index : index + 1].view(torch.uint8)[0] ^= 0x10
    assert segment.wrong(target) == 3


@pytest.mark.parametrize("dtype", ["float32", "float8_e4m3fn", "float8_e5m2"])
def test_a_nan_counts_as_wrong(dtype: str) -> None:
    segment = Segment(0, 100, input_tile(dtype, "sum", 2, 1), phase=0)
    target = torch.zeros(100).to(getattr(torch, dtype))
    segment.write(target)
    target[7:8] = torch.tensor([float("nan")]).to(target.dtype)
    assert segment.wrong(target) == 1


@pytest.mark.parametrize("collective", [name for name in SPECS if name != "barrier"])
def test_a_call_that_does_nothing_leaves_wrong_elements(collective: str) -> None:
    for cell in cells_of(collective, 2, [4096], ["float32"], ["sum"], ["in", "out"], 0):
        wrong = 0
        for rank in range(2):
            buffers = buffers_for(cell, rank, Arena(cell.bytes))
            buffers.fill(cell, rank)
            wrong += buffers.wrong(expected_segments(cell, rank))
        assert wrong > cell.count / 4, cell


def test_blocks_in_the_wrong_order_are_wrong() -> None:
    cell = Cell("all_gather", 8192, 1024, "float32", "none", -1, "out", 2)
    target = torch.empty(2048)
    for block, sender in ((0, 1), (1, 0)):
        tile = input_tile("float32", "none", 2, sender)
        Segment(block * 1024, 1024, tile, 0).write(target)
    assert sum(s.wrong(target) for s in expected_segments(cell, 0)) > 2000
