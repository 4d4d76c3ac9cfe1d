# SPDX-License-Identifier: MIT
"""Exact inputs, what every rank must hold afterwards, and the count of wrong elements.

Each rank's input repeats a short pattern of small integers. They are chosen so that every partial
result, in whatever order ranks are combined, is representable in the dtype: results are compared
for equality. The period is a prime, so a block that lands at the wrong offset shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from functools import reduce as fold

import torch

from pycomm.bench.cells import BITWISE_OPS, DTYPES, Cell, Whole

PERIOD = 1009
TILE = PERIOD * 64  # 64 Ki elements: long enough to copy at full speed, small enough to stay cached
VALUE_MAX = 1000

PAIRWISE: dict[str, Callable[[int, int], int]] = {
    "sum": lambda a, b: a + b,
    "avg": lambda a, b: a + b,
    "prod": lambda a, b: a * b,
    "min": min,
    "max": max,
    "band": lambda a, b: a & b,
    "bor": lambda a, b: a | b,
    "bxor": lambda a, b: a ^ b,
}


class NotMeasurable(ValueError):
    """A cell makes no sense: no exact inputs exist, or there are too few ranks."""


def integers(dtype: str, op: str, world: int, rank: int) -> list[int]:
    """Returns one period of a rank's input, as integers that ``dtype`` represents exactly.

    Raises:
        NotMeasurable: the op is bitwise and the dtype is not an integer, or the world is too large.
    """
    kind = DTYPES[dtype]
    if op in BITWISE_OPS and kind.floating:
        raise NotMeasurable(f"{op} needs an integer dtype, got {dtype}")
    draw = random.Random(f"{dtype}/{op}/{world}/{rank}")
    signs = (1, -1) if kind.signed else (1,)
    limit = min(kind.exact_max, VALUE_MAX)
    if op == "prod":
        # One rank holds a factor above 1 at each index, the others hold +1 or -1.
        factors = [
            draw.randint(2, min(7, limit)) if i % world == rank else 1 for i in range(PERIOD)
        ]
        return [factor * draw.choice(signs) for factor in factors]
    unit, share = 1, limit
    if op in ("sum", "avg"):
        # A mean over 2^k ranks only moves the exponent; any other mean needs multiples of world.
        shifts = kind.floating and world & (world - 1) == 0
        unit = world if op == "avg" and not shifts else 1
        share = min(kind.exact_max // world, VALUE_MAX)
    steps = share // unit
    if steps >= 1:
        return [unit * draw.randint(-steps if kind.signed else 0, steps) for _ in range(PERIOD)]
    # Too narrow for world terms: one rank holds a term at each index, the others hold 0.
    steps = limit // unit
    if steps < 1:
        raise NotMeasurable(f"{op} over {world} ranks has no exact inputs in {dtype}")
    terms = [unit * draw.randint(1, steps) * draw.choice(signs) for _ in range(PERIOD)]
    return [term if i % world == rank else 0 for i, term in enumerate(terms)]


@lru_cache(maxsize=32)
def input_tile(dtype: str, op: str, world: int, rank: int) -> torch.Tensor:
    """Returns ``TILE`` elements of a rank's input, in ``dtype``."""
    return _tile(integers(dtype, op, world, rank), dtype)


@lru_cache(maxsize=32)
def reduced_tile(dtype: str, op: str, world: int) -> torch.Tensor:
    """Returns ``TILE`` elements of the exact reduction over all ranks' inputs, in ``dtype``."""
    columns = zip(*(integers(dtype, op, world, rank) for rank in range(world)), strict=True)
    totals = [fold(PAIRWISE[op], column) for column in columns]
    if op != "avg":
        return _tile(totals, dtype)
    if DTYPES[dtype].floating:
        return _tile([total / world for total in totals], dtype)
    return _tile([total // world for total in totals], dtype)


def _tile(period: list[int] | list[float], dtype: str) -> torch.Tensor:
    """Repeats one period to ``TILE`` elements."""
    exact = torch.tensor(period, dtype=torch.float64 if DTYPES[dtype].floating else torch.int64)
    return exact.repeat(TILE // PERIOD).to(getattr(torch, dtype))


def steady_value(op: str) -> int:
    """Returns a value that the op maps to itself: repeated calls in place never overflow."""
    return 0 if op in ("sum", "bxor") else 1


@dataclass(frozen=True)
class Segment:
    """A run of ``length`` elements from ``offset`` that continues a tile from element ``phase``."""

    offset: int
    length: int
    tile: torch.Tensor
    phase: int

    def _pieces(self, target: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (piece of target, piece of tile); every piece starts at the same phase."""
        start = self.phase % PERIOD
        stride = TILE - PERIOD  # a multiple of PERIOD, so start + stride never leaves the tile
        for done in range(0, self.length, stride):
            length = min(stride, self.length - done)
            begin = self.offset + done
            yield target[begin : begin + length], self.tile[start : start + length]

    def write(self, target: torch.Tensor) -> None:
        """Writes the pattern into ``target``."""
        for piece, expected in self._pieces(target):
            piece.copy_(expected)

    def wrong(self, target: torch.Tensor) -> int:
        """Counts the elements of ``target`` that differ from the pattern; a NaN differs."""
        return sum(_differing(piece, expected) for piece, expected in self._pieces(target))


def _differing(actual: torch.Tensor, expected: torch.Tensor) -> int:
    """Counts unequal elements; one-byte floats are compared in float32, which holds them all."""
    if actual.is_floating_point() and actual.element_size() == 1:
        actual, expected = actual.to(torch.float32), expected.to(torch.float32)
    return 0 if torch.equal(actual, expected) else int((actual != expected).sum())


def source_segment(cell: Cell, rank: int, length: int) -> Segment:
    """Returns what ``rank`` contributes: ``length`` elements of its own pattern."""
    return Segment(0, length, input_tile(cell.dtype, cell.op, cell.world, rank), 0)


def expected_segments(cell: Cell, rank: int) -> list[Segment]:
    """Returns what ``rank``'s target must hold after one call on fresh inputs (empty: nothing)."""
    spec, count, world = cell.spec, cell.count, cell.world
    if cell.collective == "barrier" or (spec.root_receives and rank != cell.root):
        return []
    if spec.reduces:
        phase = rank * count if spec.whole is Whole.SOURCE else 0
        return [Segment(0, count, reduced_tile(cell.dtype, cell.op, world), phase)]

    def of(sender: int) -> torch.Tensor:
        return input_tile(cell.dtype, cell.op, world, sender)

    if spec.whole is Whole.TARGET:  # all_gather, gather: one block from each rank
        return [Segment(s * count, count, of(s), 0) for s in range(world)]
    if spec.whole is Whole.BOTH:  # all_to_all: block number `rank` of each rank
        return [Segment(s * count, count, of(s), rank * count) for s in range(world)]
    if spec.whole is Whole.SOURCE:  # scatter
        return [Segment(0, count, of(cell.root), rank * count)]
    sender = cell.root if spec.rooted else (rank - 1) % world  # broadcast, send_recv
    return [Segment(0, count, of(sender), 0)]
