# SPDX-License-Identifier: MIT
"""The pieces of one server as one vector, and that vector as the bytes of a message.

Pieces of fewer than 1024 elements lie at the vector's end and travel as float32 in every format:
they are few bytes, and losses feel their errors most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pycomm.compression.hook import EXACT_BELOW
from pycomm.errors import UsageError
from pycomm.native import load
from pycomm.parameter_server.shards import Piece

WIRES = ("fp32", "bf16", "fp16s", "int8", "int4")


class Packing:
    """Where each piece lies, and what a vector of them is on the wire. Immutable.

    Attributes:
        pieces: In the order in which they lie.
        size: Elements of a vector.
        wire: The format of `encode` and `decode`.
    """

    def __init__(self, pieces: Sequence[Piece], wire: str = "fp32") -> None:
        """Local.

        Raises:
            UsageError: there is no such format.
        """
        if wire not in WIRES:
            raise UsageError(f"wire={wire!r}: expected one of {', '.join(WIRES)}")
        coded = [piece for piece in pieces if piece.size >= EXACT_BELOW]
        exact = [piece for piece in pieces if piece.size < EXACT_BELOW]
        self.pieces = coded + exact
        self.size = sum(piece.size for piece in self.pieces)
        self.wire = wire
        self._coded = sum(piece.size for piece in coded)
        self._coded_bytes = 0 if wire == "fp32" else load().wire_bytes(wire, self._coded)

    def views(self, vector: Tensor) -> list[Tensor]:
        """The pieces of a vector."""
        return list(torch.split(vector, [piece.size for piece in self.pieces]))

    def slices(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The pieces of whole tensors, flat; of one that is contiguous it shares the memory."""
        return [
            tensors[piece.name].detach().reshape(-1)[piece.begin : piece.end]
            for piece in self.pieces
        ]

    def message(self, vector: Tensor) -> Tensor:
        """Memory for what a vector is on the wire: in fp32 the vector itself, else uint8."""
        if self.wire == "fp32":
            return vector
        return torch.zeros(self._coded_bytes + 4 * (self.size - self._coded), dtype=torch.uint8)

    def encode(self, vector: Tensor, message: Tensor, residual: Tensor | None) -> None:
        """Fills a message.

        With a residual, float32[size], what it holds is added first and what encoding loses is left
        in it.
        """
        if self.wire == "fp32":
            return
        coded, out = vector[: self._coded], message[: self._coded_bytes]
        if residual is None:
            load().encode(self.wire, coded, out)
        else:
            load().encode_with_residual(self.wire, coded, residual[: self._coded], out)
        exact = vector[self._coded :].view(torch.uint8)
        message[self._coded_bytes :] = exact

    def decode(self, message: Tensor, vector: Tensor) -> None:
        """Fills a vector from a message."""
        if self.wire == "fp32":
            return
        encoded = message[: self._coded_bytes]
        load().decode(self.wire, encoded, self._coded, vector[: self._coded])
        vector[self._coded :].view(torch.uint8).copy_(message[self._coded_bytes :])


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that servers keep, by name.

    Raises:
        UsageError: there is none, or one that float32 cannot hold.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise UsageError("no parameter of the model needs a gradient, so there is nothing to train")
    for name, parameter in named.items():
        if not parameter.is_floating_point() or parameter.dtype == torch.float64:
            raise UsageError(
                f"parameter {name} is {parameter.dtype}; servers keep float32, which holds that, "
                "float16 and bfloat16: convert the model"
            )
    return named
