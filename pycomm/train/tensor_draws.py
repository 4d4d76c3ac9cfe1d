# SPDX-License-Identifier: MIT
"""Random numbers in tensor-parallel layouts: what ranks drop of the same activations is the same.

torch's generator stands alike on all ranks of a tensor-parallel group, so that dropout of
activations that each of them has whole is the same on all. Between the matrices of a pair each
rank has heads and channels of its own, and with sequence parallel, within the blocks, positions of
its own. There every rank draws from a stream of its own, or the heads of all ranks would lose the
same.

That stream is seeded from the rank and a number drawn from the common one. So all follows from
where the common one stands when the pair, or the block, begins, and activation checkpointing, which
puts it there again, draws the same once more. DTensor's own way to do this is for generators with
an offset, as those of GPUs; the CPU's has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from pycomm.data.order import hashes


class _Stream:
    """Torch's CPU generator, which is this rank's own from begin() to end(), for training."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._common: Tensor | None = None  # where the common one stands meanwhile

    def begin(self, module: nn.Module) -> None:
        if module.training and self._common is None:
            drawn = torch.empty((), dtype=torch.int64).random_()
            self._common = torch.get_rng_state()
            own = hashes(np.array([drawn.item()]), self._rank)[0]
            torch.default_generator.manual_seed(int(own >> np.uint64(1)))

    def end(self) -> None:
        if self._common is not None:
            torch.set_rng_state(self._common)
            self._common = None

    def forget(self) -> None:
        """A forward was cut short, as recomputing ones are, and others have set the generator."""
        self._common = None


def draw_apart(model: nn.Module, rank: int, blocks: Sequence[str] = ()) -> None:
    """Lets each rank draw from its own stream where activations are shared out; local.

    Args:
        model: With matrices that are shared by parallelize_module.
        rank: Of the tensor-parallel group.
        blocks: Modules in which activations are split by position, for sequence parallel. Others:
            from a pair's matrices by columns to that by rows.
    """
    stream = _Stream(rank)
    for name in blocks:
        _hook_block(model.get_submodule(name), stream)
    for pair, columns, rows in [] if blocks else _pairs(model):
        _hook_pair(pair, columns, rows, stream)


def _hook_block(block: nn.Module, stream: _Stream) -> None:
    def before(module: nn.Module, _inputs: Any) -> None:
        stream.forget()
        stream.begin(module)

    block.register_forward_pre_hook(before)
    block.register_forward_hook(lambda *_: stream.end(), always_call=True)


def _hook_pair(
    pair: nn.Module, columns: Sequence[nn.Module], rows: nn.Module, stream: _Stream
) -> None:
    pair.register_forward_pre_hook(lambda *_: stream.forget())
    for column in columns:
        column.register_forward_hook(lambda *_: stream.begin(pair))
    rows.register_forward_hook(lambda *_: stream.end())
    pair.register_forward_hook(lambda *_: stream.end(), always_call=True)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module], nn.Module]]:
    """Modules with linear layers shared by columns, and one by rows, among their children."""
    for module in model.modules():
        by: dict[int, list[nn.Module]] = {0: [], 1: []}
        for child in module.children():
            weight = child.weight if isinstance(child, nn.Linear) else None
            if isinstance(weight, DTensor):
                for placement in weight.placements:
                    if isinstance(placement, Shard):
                        by[placement.dim].append(child)
        if by[0] and len(by[1]) == 1:
            yield module, by[0], by[1][0]
