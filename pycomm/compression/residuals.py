# SPDX-License-Identifier: MIT
"""What encoding has lost of each parameter's gradient and not delivered yet, on one rank.

There are two memories. One holds what the last committed step left of a parameter, the other what
the step under way would leave; a commit makes the second the first, a discard forgets it. Nothing
here knows of ranks or of bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


class Residuals:
    """Two memories of all parameters, one behind the other in the model's order."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Begins with zeros for parameters of these numbers of elements. Local."""
        self.sizes = list(sizes)
        self.offsets = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        # Pages of zeros cost nothing until a parameter's residual is written.
        self.memories = [torch.zeros(sum(self.sizes)) for _ in range(2)]
        self._committed = [0] * len(self.sizes)  # the memory that holds what is committed
        self._staged: set[int] = set()

    @property
    def staged(self) -> Collection[int]:
        """The parameters of which a step is under way."""
        return self._staged

    def stage(self, indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """Begins, or goes on with, a step of these parameters.

        Returns:
            For each the memory to read and the memory to write. They are the same when the
            parameter is staged already: a second backward pass before the step continues from the
            first, whose gradient it adds to.
        """
        write = [1 - self._committed[i] for i in indices]
        read = [w if i in self._staged else 1 - w for i, w in zip(indices, write, strict=True)]
        self._staged.update(indices)
        return read, write

    def commit(self, indices: Collection[int]) -> None:
        """What is staged of these parameters now counts."""
        for index in self._staged.intersection(indices):
            self._committed[index] = 1 - self._committed[index]
            self._staged.remove(index)

    def discard(self, indices: Collection[int] | None = None) -> None:
        """Forgets what is staged, of these parameters or of all."""
        self._staged.difference_update(self._staged.copy() if indices is None else indices)

    def rescale(self, factor: float) -> None:
        """Multiplies what is committed and what is staged."""
        for memory in self.memories:
            memory.mul_(factor)

    def committed(self, index: int) -> Tensor:
        """The committed residual of one parameter, one-dimensional; a view."""
        begin = self.offsets[index]
        return self.memories[self._committed[index]][begin : begin + self.sizes[index]]
