# SPDX-License-Identifier: MIT
"""A server's side of one pair: what one worker asks, from its greeting to its leave.

Runs in a thread of the worker's own, which blocks in the pair's group or in the shard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pycomm.communicator import Communicator
from pycomm.errors import CommError
from pycomm.parameter_server import pair
from pycomm.parameter_server.clocks import Member
from pycomm.parameter_server.packing import WIRES, Packing
from pycomm.parameter_server.shard import Push, Shard


class Session:
    """One worker as its thread serves it.

    Attributes:
        member: The worker, once it has said who it is.
        received_bytes: Of gradients.
        sent_bytes: Of parameters.
        waited_s: Seconds that it waited for other workers.
    """

    def __init__(self, number: int, comm: Communicator, shard: Shard, pieces: Packing) -> None:
        """Local."""
        self.number, self.comm = number, comm
        self.member: Member | None = None
        self.received_bytes = self.sent_bytes = 0
        self.waited_s = 0.0
        self._shard, self._packing = shard, pieces

    def greet(self, timeout_s: float) -> Member:
        """Lets the worker in. It holds the others until it has heard from all servers.

        Raises:
            CommError: it died, or let timeout_s pass.
        """
        told = pair.header()
        self.comm.recv(told, pair.WORKER, async_op=True).wait(timeout_s)
        self._packing = Packing(self._packing.pieces, WIRES[told[2]])
        self.member = member = self._shard.join(self.number, int(told[1]))
        self.comm.send(pair.header(pair.HELLO, member.clock), pair.WORKER)
        self.comm.recv(told, pair.WORKER, async_op=True).wait(timeout_s)
        if told[0] != pair.ENTER:
            raise CommError(f"worker {self.number} sent {told.tolist()} where ENTER was expected")
        self._shard.enter(member, int(told[1]))
        return member

    def answer(self, member: Member, report: Callable[[], Any]) -> None:
        """Does what the worker asks until it leaves.

        Raises:
            CommError: it died, or the server was closed.
        """
        push = Push(self._packing)
        message = self._packing.message(push.vector)
        values = torch.empty(self._packing.size)
        told = pair.header()
        while True:
            self.comm.recv(told, pair.WORKER)
            kind, first, second, _ = told.tolist()
            if kind == pair.PUSH:
                push.seen, push.present = first, self._present(second)
                self.comm.recv(message, pair.WORKER)
                self._packing.decode(message, push.vector)
                self.received_bytes += message.nbytes
                self.waited_s += self._shard.push(member, push)
            elif kind == pair.PULL:
                updates, lowest, waited_s = self._shard.pull(member, values)
                self.waited_s += waited_s
                self.comm.send(pair.header(pair.PULL, updates, lowest), pair.WORKER)
                self.comm.send(values, pair.WORKER)
                self.sent_bytes += values.nbytes
            elif kind == pair.REPORT:
                text = pair.text_of(report())
                self.comm.send(pair.header(pair.REPORT, text.nbytes), pair.WORKER)
                self.comm.send(text, pair.WORKER)
            elif kind == pair.LEAVE:
                return
            else:
                raise CommError(f"worker {self.number} sent {told.tolist()}, which says nothing")

    def _present(self, missing: int) -> list[bool]:
        """Which pieces have a gradient."""
        mask = torch.ones(len(self._packing.pieces), dtype=torch.uint8)
        if missing:
            self.comm.recv(mask, pair.WORKER)
        return [bool(one) for one in mask.tolist()]
