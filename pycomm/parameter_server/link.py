# SPDX-License-Identifier: MIT
"""A worker's side of one pair: its messages to one server, begun and awaited."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pycomm.communicator import Communicator
from pycomm.errors import CommError
from pycomm.parameter_server import pair
from pycomm.parameter_server.packing import Packing
from pycomm.parameter_server.shards import Piece


class Link:
    """What is said to one server. Calls come from one thread; memory is in use until `finish`.

    Attributes:
        server: Its index.
        comm: The pair's group.
        names: Of the parameters that it has pieces of.
        lowest: The slowest worker's clock, as the server last said.
    """

    def __init__(
        self, server: int, comm: Communicator, pieces: Sequence[Piece], wire: str, feeds: bool
    ) -> None:
        """Local."""
        self.server, self.comm = server, comm
        self.lowest = 0
        self.names = frozenset(piece.name for piece in pieces)
        self._packing = Packing(pieces, wire)
        self._gradient = torch.zeros(self._packing.size)
        self._message = self._packing.message(self._gradient)
        self._values = torch.zeros(self._packing.size)
        self._residual = torch.zeros(self._packing.size) if feeds else None
        self._head = pair.header()  # of the answer under way
        self._seen = 0  # updates in the parameters that the model has
        self._works: list[Any] = []

    def tell(self, kind: int, *numbers: int) -> None:
        """Begins to send a header."""
        with self._named():
            self._send(pair.header(kind, *numbers))

    def hear(self) -> pair.Header:
        """Receives a header; blocks."""
        head = pair.header()
        with self._named():
            self.comm.recv(head, pair.SERVER)
        return head

    def hear_report(self) -> Any:
        """Receives a report; blocks."""
        text = torch.empty(int(self.hear()[1]), dtype=torch.uint8)
        with self._named():
            self.comm.recv(text, pair.SERVER)
        self.finish()
        return pair.value_of(text)

    def push(self, gradients: Mapping[str, Tensor | None]) -> int:
        """Copies what there is of gradients and begins to send it; returns its bytes."""
        self.finish()
        missing = 0
        present = torch.ones(len(self._packing.pieces), dtype=torch.uint8)
        views = self._packing.views(self._gradient)
        for index, (piece, view) in enumerate(zip(self._packing.pieces, views, strict=True)):
            gradient = gradients[piece.name]
            if gradient is None:
                view.zero_()
                present[index] = 0
                missing += 1
            else:
                view.copy_(gradient.detach().reshape(-1)[piece.begin : piece.end])
        self._packing.encode(self._gradient, self._message, self._residual)
        with self._named():
            self._send(pair.header(pair.PUSH, self._seen, missing))
            if missing:
                self._send(present)
            self._send(self._message)
        return self._message.nbytes

    def pull(self, clock: int) -> None:
        """Asks for parameters and begins to receive them."""
        with self._named():
            self._send(pair.header(pair.PULL, clock))
            for memory in (self._head, self._values):
                self._works.append(self.comm.recv(memory, pair.SERVER, async_op=True))

    def finish(self) -> None:
        """Waits for all that is under way."""
        with self._named():
            for work in self._works:
                work.wait()
        self._works = []

    def unpack(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """Puts what has come into the model; returns its bytes."""
        self._seen, self.lowest = int(self._head[1]), int(self._head[2])
        views = self._packing.views(self._values)
        for piece, view in zip(self._packing.pieces, views, strict=True):
            whole = parameters[piece.name].detach()
            if whole.is_contiguous():
                whole.view(-1)[piece.begin : piece.end].copy_(view)
            else:  # flat order is that of the elements, not of memory
                flat = whole.reshape(-1)
                flat[piece.begin : piece.end].copy_(view)
                whole.copy_(flat.view(whole.shape))
        return self._values.nbytes

    def residuals(self) -> Iterator[tuple[Piece, Tensor]]:
        """What encoding has lost of each piece."""
        if self._residual is not None:
            yield from zip(self._packing.pieces, self._packing.views(self._residual), strict=True)

    def _send(self, memory: Any) -> None:
        self._works.append(self.comm.send(memory, pair.SERVER, async_op=True))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Says which server an error comes from, and what to do."""
        try:
            yield
        except CommError as error:
            named = type(error)(
                f"parameter server {self.server}: {error}; the model has the parameters that were "
                "pulled last: start the servers again, from their checkpoints if they write any, "
                "and join"
            )
            named.ranks = (self.server,)
            raise named from error
