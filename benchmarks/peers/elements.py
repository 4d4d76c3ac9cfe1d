# SPDX-License-Identifier: MIT
"""Inputs and expected results for ranks in Python: the pattern of elements.h.

Element i of rank r is (i + 3 r) mod 11. Buffers are handled as raw words of the dtype's size, so
bfloat16, which NumPy lacks, needs nothing of its own beyond `encode`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.cells import ITEMSIZES, Cell

PERIOD = 11
Words = Any  # a NumPy array of unsigned integers


def word_type(dtype: str) -> Any:
    """The unsigned integer of the dtype's size."""
    return np.dtype(f"u{ITEMSIZES[dtype]}")


def encode(dtype: str, values: list[int]) -> Words:
    """Small integers as words."""
    if dtype == "bfloat16":
        return (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.array(values, dtype).view(word_type(dtype))


def pattern(dtype: str, rank: int) -> Words:
    """What rank's elements repeat."""
    return encode(dtype, [(i + 3 * rank) % PERIOD for i in range(PERIOD)])


def sums(dtype: str, world: int) -> Words:
    """What the sum over all ranks repeats."""
    columns = [[(i + 3 * rank) % PERIOD for rank in range(world)] for i in range(PERIOD)]
    return encode(dtype, [sum(column) for column in columns])


def repeated(words: Words, count: int, phase: int = 0) -> Words:
    """`count` words that begin with words[phase]."""
    return np.resize(np.roll(words, -(phase % PERIOD)), count)


def block_of(cell: Cell) -> int:
    """Elements of one rank's block."""
    return cell.bytes // ITEMSIZES[cell.dtype] // cell.world


def inputs(cell: Cell, rank: int) -> Words:
    """What rank puts in."""
    words = pattern(cell.dtype, rank)
    count, block = cell.bytes // ITEMSIZES[cell.dtype], block_of(cell)
    if cell.collective == "all_gather":
        return repeated(words, block)
    if cell.collective == "all_to_all":
        return np.concatenate([repeated(words, block, to) for to in range(cell.world)])
    return repeated(words, count)


def outputs(cell: Cell, rank: int) -> Words:
    """What rank must hold afterwards."""
    count, block = cell.bytes // ITEMSIZES[cell.dtype], block_of(cell)
    if cell.collective == "all_reduce":
        return repeated(sums(cell.dtype, cell.world), count)
    if cell.collective == "reduce_scatter":
        return repeated(sums(cell.dtype, cell.world), block, rank * block)
    if cell.collective == "broadcast":
        return repeated(pattern(cell.dtype, 0), count)
    phase = rank if cell.collective == "all_to_all" else 0
    blocks = [repeated(pattern(cell.dtype, peer), block, phase) for peer in range(cell.world)]
    return np.concatenate(blocks)
