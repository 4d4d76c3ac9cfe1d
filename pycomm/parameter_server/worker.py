# SPDX-License-Identifier: MIT
"""A worker of parameter servers: pushes the gradients of a model, pulls its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import Store
from typing_extensions import Self

from pycomm.backend import shortened
from pycomm.errors import CommError, UsageError
from pycomm.parameter_server import pair
from pycomm.parameter_server.early import EarlyPush
from pycomm.parameter_server.link import Link
from pycomm.parameter_server.packing import WIRES, Packing, trained
from pycomm.parameter_server.pair import Meeting
from pycomm.parameter_server.server import digest_of
from pycomm.parameter_server.shards import deal


class Worker:
    """Trains a model with parameters that servers keep.

        with Worker(model, store="tcp://node0:29600") as worker:
            for batch in batches_of_this_worker:
                loss_of(model(batch)).backward()
                worker.step()                  # in place of optimizer.step() and zero_grad()

    Making one joins, at any time: it blocks until all servers have answered and the parameters are
    in the model. Buffers stay the worker's own.

    Args:
        model: The plain module, as the servers have it; its parameters are overwritten.
        store: As for Server; workers never listen.
        wire: What gradients travel as: "fp32", "bf16", "fp16s", "int8" or "int4", see
            docs/compression.md. Parameters come as float32.
        error_feedback: What a narrow format loses of a gradient is added to the next.
        overlap: step() begins to pull and returns; the next step() puts into the model what has
            come meanwhile. So each gradient is of parameters that are one step older.
        rank: The worker's place among others: sync adds gradients in this order. Default: the order
            of joining.
        name: Of the set of servers.
        timeout_s: Seconds that a server may take to answer, and so the longest wait for slower
            workers.
        connect_timeout_s: Seconds that joining may take.

    Attributes:
        clock: Steps so far; a worker that joins late begins where the others are.
        lead: Steps that it was ahead of the slowest worker when it last got parameters.
        bytes_sent: Of gradients, so far.
        bytes_received: Of parameters, so far.

    Raises:
        UsageError: an argument is not understood, or the servers have another model.
        CommError: the store or a server is not there.
    """

    def __init__(
        self,
        model: nn.Module,
        store: str | Store | None = None,
        *,
        wire: str = "fp32",
        error_feedback: bool = True,
        overlap: bool = False,
        rank: int | None = None,
        name: str = "default",
        timeout_s: float = 24 * 3600.0,
        connect_timeout_s: float = 60.0,
    ) -> None:
        self._named = trained(model)
        Packing([], wire)  # refuses an unknown format
        self._overlap = overlap
        self.clock = self.lead = self.bytes_sent = self.bytes_received = 0
        self._links: list[Link] = []
        self._pulling = False
        meeting = Meeting(store, name, False, connect_timeout_s)
        described = self._ask_servers(meeting)
        self.mode, self.servers = str(described["mode"]), int(described["servers"])
        sizes = {n: p.numel() for n, p in self._named.items()}
        dealt = deal(sizes, self.servers, described["shards"])
        number = meeting.number()
        try:
            for server, pieces in enumerate(dealt):
                comm = meeting.pair(number, server, pair.WORKER, timeout_s)
                feeds = error_feedback and wire != "fp32"
                self._links.append(Link(server, comm, pieces, wire, feeds))
            self._enter(number if rank is None else rank, WIRES.index(wire))
            meeting.all_come(int(described["workers"]), self.servers)
            self.pull()
        except BaseException as error:
            self._abandon(f"its worker could not join: {error}")
            raise

    def _ask_servers(self, meeting: Meeting) -> dict[str, Any]:
        first: dict[str, Any] = meeting.ask("server0", "server 0 is absent")
        for server in range(1, int(first["servers"])):
            other = meeting.ask(f"server{server}", f"server {server} is absent")
            if other != first:
                raise UsageError(
                    f"Worker: server {server} was made with {other}, server 0 with {first}; give "
                    "all servers the same model and arguments"
                )
        meeting.expect_servers(int(first["servers"]))
        if first["model"] != digest_of(self._named):
            raise UsageError(
                "Worker: the servers have a model with other parameters; build the same model on "
                "workers and servers"
            )
        return first

    def _enter(self, rank: int, wire: int) -> None:
        """Asks all servers where they stand, and begins where the last one does."""
        with self._ending():
            for link in self._links:
                link.tell(pair.HELLO, rank, wire)
            self.clock = max(int(link.hear()[1]) for link in self._links)
            for link in self._links:
                link.tell(pair.ENTER, self.clock)
                link.finish()

    # ---- a step

    def step(self, loss: Tensor | None = None) -> None:
        """Pushes the gradients, pulls parameters, and sets gradients to None.

        Given a loss it runs its backward, too, and each server's gradients leave as soon as they
        are complete, while backward goes on. An exception in that backward ends this worker, since
        some servers may have its gradients.

        Blocks until the parameters are there: in sync mode for all workers' gradients, in ssp while
        this worker is too far ahead. With overlap it blocks for those of the step before.

        Raises:
            PeerFailure: a server died.
            CommError: another failure; the text says what to do.
            UsageError: with a loss: a gradient came in several parts.
        """
        self.wait()
        if loss is None:
            self.push()
        else:
            self._push_during_backward(loss)
        self._begin_pull()
        for parameter in self._named.values():
            parameter.grad = None
        if not self._overlap:
            self.wait()

    def push(self) -> None:
        """Sends the gradients; returns when they have been copied.

        A parameter without one is not stepped.
        """
        self.wait()
        gradients = {name: parameter.grad for name, parameter in self._named.items()}
        with self._ending():
            for link in self._links:
                self.bytes_sent += link.push(gradients)
        self.clock += 1

    def _push_during_backward(self, loss: Tensor) -> None:
        with self._ending():
            push = EarlyPush(self._links, self._named)
            try:
                push.run(loss)
            except CommError:
                raise
            except BaseException as error:
                self._abandon(f"its backward raised {type(error).__name__}: {error}")
                raise
        self.bytes_sent += push.bytes_sent
        self.clock += 1

    def pull(self) -> None:
        """Gets the parameters as they are now; blocks as the mode has it."""
        self.wait()
        self._begin_pull()
        self.wait()

    def wait(self) -> None:
        """Puts into the model what an overlapped step has pulled; blocks until it has come."""
        if not self._pulling:
            return
        with self._ending(), torch.no_grad():
            for link in self._links:
                link.finish()
                self.bytes_received += link.unpack(self._named)
        self.lead = max(self.clock - link.lowest for link in self._links)
        self._pulling = False

    def _begin_pull(self) -> None:
        with self._ending():
            for link in self._links:
                link.pull(self.clock)
        self._pulling = True

    # ---- the rest

    def report(self) -> list[dict[str, Any]]:
        """What each server reports of itself (Server.report, with text for numbers as keys)."""
        self.wait()
        with self._ending():
            for link in self._links:
                link.tell(pair.REPORT)
            return [link.hear_report() for link in self._links]

    def state_dict(self) -> dict[str, Any]:
        """What a narrow format has lost and not sent yet, by parameter and place; copies."""
        return {
            "residual": {
                f"{piece.name}[{piece.begin}:{piece.end}]": part.clone()
                for link in self._links
                for piece, part in link.residuals()
            }
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what state_dict() gave; with other servers or formats, what is cut alike."""
        for link in self._links:
            for piece, part in link.residuals():
                saved = state["residual"].get(f"{piece.name}[{piece.begin}:{piece.end}]")
                if saved is not None:
                    part.copy_(saved)

    def close(self) -> None:
        """Leaves, after what is under way; the model has the last parameters that were pulled."""
        if not self._links:
            return
        self.wait()
        with self._ending():
            for link in self._links:
                link.tell(pair.LEAVE)
                link.finish()
        for link in self._links:
            link.comm.close("the worker has left")
        self._links = []

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Around all that is said to servers: without one of them there is no going on."""
        if not self._links:
            raise UsageError("Worker: it has left the servers; make a new one to join again")
        try:
            yield
        except CommError as error:
            self._abandon(f"its worker lost a server: {error}")
            raise

    def _abandon(self, reason: str) -> None:
        """Leaves as if it had died."""
        for link in self._links:
            link.comm.close(shortened(reason), False)
        self._links = []
        self._pulling = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves; after an exception as if it had died, with that for a reason."""
        if kind is None:
            self.close()
        else:
            self._abandon(f"its worker raised {kind.__name__}: {error}")
