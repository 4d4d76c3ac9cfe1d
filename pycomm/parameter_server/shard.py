# SPDX-License-Identifier: MIT
"""What one server keeps: its pieces of the parameters, the optimizer that steps them, the clocks.

One lock guards all of it. A worker's thread decodes what it has received before it takes the lock,
and sends what it has copied after it has let go, so that only the optimizer's step is serial.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pycomm.backend import shortened
from pycomm.errors import Aborted, UsageError
from pycomm.parameter_server.clocks import Clocks, Member
from pycomm.parameter_server.packing import Packing

MakeOptimizer = Callable[[list[tuple[str, nn.Parameter]]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]
# Seconds after which a waiting thread looks again whether the server still runs.
_TICK_S = 1.0


class Push:
    """One worker's gradient, as its thread has received it."""

    def __init__(self, packing: Packing) -> None:
        """Memory for one; it is used again for each."""
        self.vector = torch.zeros(packing.size)
        self.views = packing.views(self.vector)
        self.present = [True] * len(self.views)  # whether the piece has a gradient
        self.seen = 0  # updates in the parameters of which it is the gradient


class Shard:
    """The pieces of one server. All methods are thread-safe.

    Attributes:
        changed: Of whoever waits for clocks, members or steps.
        done: In sync mode the steps made, else the lowest clock.
    """

    def __init__(
        self,
        packing: Packing,
        model: dict[str, nn.Parameter],
        make_optimizer: MakeOptimizer,
        make_scheduler: MakeScheduler | None,
        clocks: Clocks,
    ) -> None:
        """Begins with the model's values. Local."""
        self._pieces = [
            [piece.name, piece.begin, piece.end, list(model[piece.name].shape)]
            for piece in packing.pieces
        ]
        self.values = torch.zeros(packing.size)
        views = packing.views(self.values)
        for view, given in zip(views, packing.slices(dict(model)), strict=True):
            view.copy_(given)
        self._parameters = [nn.Parameter(view) for view in views]
        names = [piece.name for piece in packing.pieces]
        self.optimizer = make_optimizer(list(zip(names, self._parameters, strict=True)))
        self.scheduler = make_scheduler(self.optimizer) if make_scheduler else None
        self.clocks = clocks
        self.changed = threading.Condition()
        self.done = clocks.lowest
        self.updates = 0
        self.staleness: Counter[int] = Counter()
        self.on_step: Callable[[int], None] = lambda clock: None  # under the lock
        self._scheduled = clocks.highest
        self._pushed: dict[int, tuple[Member, Push]] = {}  # of the step under way; sync
        self._closed = ""
        self._error: BaseException | None = None  # of a step that a worker's leave completed

    # ---- workers come and go

    def join(self, number: int, rank: int) -> Member:
        """A worker comes; see Clocks.join."""
        with self.changed:
            return self.clocks.join(number, rank)

    def enter(self, member: Member, clock: int) -> None:
        """It begins; see Clocks.enter."""
        with self.changed:
            self.clocks.enter(member, clock)
            self._settle()

    def leave(self, member: Member) -> None:
        """It has left or died. What it has pushed as a whole still counts.

        An error in the step that others waited for on its account is raised where they wait.
        """
        with self.changed, torch.no_grad():
            self.clocks.leave(member)
            try:
                self._settle()
            except BaseException as error:  # noqa: BLE001
                self._error = error
                self.changed.notify_all()

    def close(self, reason: str) -> None:
        """Ends every wait with this reason."""
        with self.changed:
            self._closed = self._closed or reason
            self.changed.notify_all()

    # ---- what they ask

    def push(self, member: Member, push: Push) -> float:
        """Takes a gradient: at once, or in sync mode into the step under way, which it waits for.

        Returns:
            Seconds that it waited.

        Raises:
            Aborted: the server is closed.
        """
        with self.changed, torch.no_grad():
            self.clocks.advance(member)
            if self.clocks.mode == "sync":
                self._pushed[member.number] = member, push
            else:
                self.staleness[self.updates - push.seen] += 1
                self._step(push.views, push.present)
            self._settle()
            return self._wait(lambda: self.clocks.mode != "sync" or self.done >= member.clock)

    def pull(self, member: Member, out: Tensor) -> tuple[int, int, float]:
        """Waits until the worker may go on, and copies the values.

        Returns:
            How many updates are in them, the lowest clock, and the seconds it had to wait.

        Raises:
            Aborted: the server is closed.
        """
        with self.changed:
            waited_s = self._wait(lambda: self.clocks.may_pull(member, self.done))
            out.copy_(self.values)
            lowest = self.clocks.pulled(member)
            return self.updates, lowest, waited_s

    # ---- under the lock

    def _wait(self, ready: Callable[[], bool]) -> float:
        begin = time.monotonic()
        while not self._closed and self._error is None and not ready():
            self.changed.wait(_TICK_S)
        if self._error is not None:
            raise self._error
        if self._closed:
            raise Aborted(self._closed)
        return time.monotonic() - begin

    def _settle(self) -> None:
        """Makes the step that clocks now allow, and tells those who wait."""
        lowest = self.clocks.lowest
        if lowest > self.done:
            if self._pushed:
                self._step_together()
            self.done = lowest
            self.on_step(lowest)
        self.changed.notify_all()

    def _step_together(self) -> None:
        """One step with the mean of what was pushed, added in the workers' order."""
        pushes = [push for _, push in sorted(self._pushed.values(), key=lambda one: one[0].order)]
        self._pushed.clear()
        first, *others = pushes
        for other in others:
            first.vector.add_(other.vector)
        if others:
            first.vector.div_(len(pushes))
        for push in pushes:
            self.staleness[self.updates - push.seen] += 1
        present = [any(one) for one in zip(*(push.present for push in pushes), strict=True)]
        self._step(first.views, present)

    def _step(self, gradients: Sequence[Tensor], present: Sequence[bool]) -> None:
        for parameter, gradient, there in zip(self._parameters, gradients, present, strict=True):
            parameter.grad = gradient if there else None
        self.optimizer.step()
        self.updates += 1
        if self.scheduler is not None:
            while self._scheduled < self.clocks.highest:
                self.scheduler.step()
                self._scheduled += 1

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        """Everything that a server needs to go on; `values` and the optimizer's are not copied."""
        return {
            "pieces": self._pieces,
            "scheduled": self._scheduled,
            "updates": self.updates,
            "values": self.values,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a state; before any worker comes. The clocks are the caller's.

        Raises:
            UsageError: it is of another model, or of other shards of it.
        """
        saved = state.get("pieces")
        if saved != self._pieces:
            raise UsageError(
                f"parameter server: the checkpoint has pieces {shortened(str(saved))}, here they "
                f"are {shortened(str(self._pieces))} (name, begin, end, shape of the parameter); "
                "give the model and shards= that it was saved with, or another folder"
            )
        self.values.copy_(state["values"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.updates, self._scheduled = int(state["updates"]), int(state["scheduled"])
