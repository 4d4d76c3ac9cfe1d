# SPDX-License-Identifier: MIT
"""Tensors of any shape and device as one vector in host memory, there and back.

float32 holds every narrower float exactly, so a vector is float32 unless a tensor is float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, detached; it shares the tensor's memory."""
    mine: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return mine.detach()


class Flat:
    """Some tensors, and where each lies in a vector."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Local; copies nothing yet. `tensors` keep their identity: parameters, not their data."""
        self.tensors = list(tensors)
        self.shapes = [local(one).shape for one in self.tensors]
        self.sizes = [shape.numel() for shape in self.shapes]
        wide = any(one.dtype == torch.float64 for one in self.tensors)
        self.dtype = torch.float64 if wide else torch.float32

    def empty(self) -> Tensor:
        """A vector for all of them."""
        return torch.zeros(sum(self.sizes), dtype=self.dtype)

    def views(self, vector: Tensor) -> list[Tensor]:
        """The parts of a vector, shaped as the tensors are."""
        return [
            part.view(shape)
            for part, shape in zip(torch.split(vector, self.sizes), self.shapes, strict=True)
        ]

    def read(self, vector: Tensor) -> None:
        """Copies the tensors into a vector."""
        for tensor, view in zip(self.tensors, self.views(vector), strict=True):
            view.copy_(local(tensor))

    def write(self, vector: Tensor) -> None:
        """Copies a vector into the tensors, rounding to their dtypes."""
        for tensor, view in zip(self.tensors, self.views(vector), strict=True):
            local(tensor).copy_(view)

    def blend(self, vector: Tensor, keep: float) -> None:
        """Makes each tensor keep * itself + (1 - keep) * its part of the vector."""
        if keep == 0:  # whatever the tensors hold, also Inf and NaN
            self.write(vector)
            return
        for tensor, view in zip(self.tensors, self.views(vector), strict=True):
            mine = local(tensor)
            mine.copy_(torch.lerp(view, mine.to(view), keep))
