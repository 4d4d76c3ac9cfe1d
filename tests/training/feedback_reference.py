# SPDX-License-Identifier: MIT
"""Error feedback by its definition, on all ranks in one process, and the script both sides follow.

A script is text such as "B0 S Z A1 B2 S": B backward, A backward under no_sync, S optimizer step,
Z zero_grad; numbers choose gradients. `Weighted` is a model whose gradients are what it is given.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from pycomm.native import load

BLOCKS = {"int8": 256, "int4": 64, "bf16": 1, "fp16s": 256}
# Whole blocks and rests, one element, one that is exact, more than the kernels take at a time.
SIZES = [300, 1, 4500, 64, 40, 129]
EXACT_BELOW = 50
SEED = 17


class Weighted(nn.Module):
    """The sum of parameters times given numbers: these are its gradients."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)

    def forward(self, factors: list[Tensor]) -> Tensor:
        pairs = zip(self.weights, factors, strict=True)
        return sum(((weight * factor).sum() for weight, factor in pairs), torch.zeros(()))


def gradients_of(rank: int, number: int) -> list[Tensor]:
    """Gradient `number` of a rank, whose elements differ in size by orders of magnitude."""
    generator = torch.Generator().manual_seed(SEED + 1000 * rank + number)
    return [
        torch.randn(size, generator=generator) * 10 ** torch.randn(size, generator=generator)
        for size in SIZES
    ]


def slices_of(index: int, size: int, world_size: int, wire: str) -> list[tuple[int, int, int, str]]:
    """(owner, begin, end, format) of each slice of a parameter."""
    wire = "fp32" if size < EXACT_BELOW else wire
    block = BLOCKS.get(wire, 1)
    blocks = -(-size // block)
    most = -(-blocks // world_size) * block
    begins = range(0, size, most)
    return [
        ((i + index) % world_size, begin, min(begin + most, size), wire)
        for i, begin in enumerate(begins)
    ]


def encoded(wire: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """(bytes, what they decode to)."""
    data = load().encode(wire, values)
    return data, load().decode(wire, data, values.numel())


class Group:
    """All ranks: what each keeps of each parameter, committed and staged, and its gradient."""

    def __init__(self, wire: str, world_size: int) -> None:
        self.wire, self.world_size = wire, world_size
        self.committed = [[torch.zeros(size) for size in SIZES] for _ in range(world_size)]
        self.staged = None
        self.grads = None  # by rank and parameter

    def follow(self, script: str) -> list[list[Tensor]]:
        """Rank 0's gradients after each reduction; all ranks have the same."""
        reduced = []
        for word in script.split():
            if word == "S":
                self.committed = self.staged or self.committed
                self.staged = None
            elif word == "Z":
                self.grads, self.staged = None, None  # a pass that was not stepped is for nothing
            else:
                given = [gradients_of(rank, int(word[1:])) for rank in range(self.world_size)]
                self.grads = given if self.grads is None else self.sums(self.grads, given)
                if word[0] == "B":
                    self.reduce()
                    reduced.append([grad.clone() for grad in self.grads[0]])
        return reduced

    @staticmethod
    def sums(many: list[list[Tensor]], more: list[list[Tensor]]) -> list[list[Tensor]]:
        return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(many, more, strict=True)]

    def reduce(self) -> None:
        kept = self.staged or [[one.clone() for one in rank] for rank in self.committed]
        for index, size in enumerate(SIZES):
            for owner, begin, end, wire in slices_of(index, size, self.world_size, self.wire):
                values = [self.grads[r][index][begin:end] for r in range(self.world_size)]
                memory = [kept[r][index][begin:end] for r in range(self.world_size)]
                arrived = []
                for r in range(self.world_size):
                    if r == owner:
                        arrived.append(values[r])
                        continue
                    wanted = values[r] + memory[r]
                    _, got = encoded(wire, wanted)
                    memory[r].copy_(wanted - got)
                    arrived.append(got)
                wanted = functools.reduce(torch.add, arrived) / self.world_size + memory[owner]
                _, got = encoded(wire, wanted)
                memory[owner].copy_(wanted - got)
                for r in range(self.world_size):
                    values[r].copy_(got)
        self.staged = kept
