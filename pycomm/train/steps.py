# SPDX-License-Identifier: MIT
"""One step of training in any layout and mode: micro-steps, clipping, scaling, the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pycomm.errors import UsageError
from pycomm.layout import Layout
from pycomm.local_sgd import DiLoCo, LocalSGD
from pycomm.pipeline_parallel import Pipeline
from pycomm.train.gradients import LossScaler, clip, global_norm, settle
from pycomm.train.groups import Groups
from pycomm.train.modes import Served, rounds_of
from pycomm.train.wrapping import Wrapped

Schedule = Callable[[int], float]


class Steps:
    """Takes the losses of micro-steps and makes steps of the optimizer of them.

    Making it is collective where the mode trains replicas apart.

    Args:
        wrapped: The model.
        optimizer: Of this rank's part of it; None: only backward() is possible.
        schedule: From a step's number to the factor of the optimizer's learning rates.
        layout: Resolved.
        groups: Its groups.

    Attributes:
        norm: The gradients' norm in the last step, where the layout clips.
        scaler: What losses are scaled by with precision="fp16".
        scheduler: Of the schedule.
        rounds: What joins replicas in modes local and diloco.
        served: What joins them in the ps modes.
    """

    def __init__(
        self,
        wrapped: Wrapped,
        optimizer: torch.optim.Optimizer | None,
        schedule: Schedule | None,
        layout: Layout,
        groups: Groups,
    ) -> None:
        self._wrapped, self._optimizer = wrapped, optimizer
        self._layout, self._groups = layout, groups
        self._done = 0  # micro-steps of the step under way
        self._was_called = self._finished = False
        self._first_call = wrapped.model.register_forward_pre_hook(self._note_call)
        self.norm: float | None = None
        self.scaler: LossScaler | None = None
        if layout.precision == "fp16":
            where = next(wrapped.part.parameters()).device
            self.scaler = LossScaler(groups.all, where.type)
        if self.scaler is not None and isinstance(wrapped.model, Pipeline):
            wrapped.model.loss_scale = self.scaler.get_scale
        self.scheduler: LambdaLR | None = None
        self.rounds: LocalSGD | DiLoCo | None = None
        self.served: Served | None = None
        if layout.mode != "sync" and optimizer is None:
            raise UsageError(f"wrap: mode={layout.mode!r} needs the optimizer, too")
        if optimizer is not None and layout.mode in ("local", "diloco"):
            self.rounds = rounds_of(wrapped.part, optimizer, layout, groups.of("dp"))
        if optimizer is not None and layout.mode.startswith("ps-"):
            self.served = Served(wrapped.part, optimizer, schedule, layout, groups)
        elif optimizer is not None and schedule is not None:
            self.scheduler = LambdaLR(optimizer, schedule)
        self._expect_micro_step()

    def _note_call(self, model: nn.Module, inputs: object) -> None:
        self._was_called = True
        self._first_call.remove()

    def backward(self, loss: Tensor) -> bool:
        """Does the backward of a micro-step; returns whether it was the last of its step.

        Raises:
            UsageError: the model that wrap returned was never called, so that gradients of this
                loss would stay this rank's own.
        """
        if not self._was_called:
            raise UsageError(
                "step: the model that wrap returned was not called, so this loss is of another; "
                "write model, optimizer = ctx.wrap(model, optimizer)"
            )
        accumulate = self._layout.accumulate
        scaled = loss / accumulate if accumulate > 1 else loss
        if self.scaler is not None:
            scaled = self.scaler.scale(scaled)
        scaled.backward()  # type: ignore[no-untyped-call]
        self._done = (self._done + 1) % accumulate
        self._expect_micro_step()
        if self._done == 0:
            self._wrapped.after_backward()
        return self._done == 0

    def _expect_micro_step(self) -> None:
        """Before a forward: gradients travel with the last micro-step only."""
        self._wrapped.reduce(self._done == self._layout.accumulate - 1)

    def update(self) -> None:
        """Makes the optimizer's step of the gradients there are, and forgets them; collective.

        Raises:
            UsageError: there is no optimizer.
        """
        optimizer, scaler = self._optimizer, self.scaler
        if optimizer is None:
            raise UsageError("step: no optimizer was given to wrap; use ctx.backward(loss)")
        parameters = list(self._wrapped.part.parameters())
        settle(parameters)
        if scaler is not None:
            scaler.unscale_(optimizer)
        if self._layout.clip is not None:
            self.norm = self._clip(parameters, self._layout.clip)
        if self.served is not None:
            self.served.step()
            return
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        optimizer.zero_grad()

    def _clip(self, parameters: Sequence[Tensor], largest: float) -> float:
        layout, mesh = self._layout, self._groups.mesh
        if layout.tp == layout.pp == 1 and not layout.shard:
            return float(nn.utils.clip_grad_norm_(parameters, largest))
        norm = global_norm(parameters, mesh["dp", "tp"], self._groups.all)
        clip(parameters, norm, largest)
        return norm

    @property
    def joined(self) -> bool:
        """Whether all replicas have the same parameters, as right after a round; local."""
        layout, rounds = self._layout, self.rounds
        if rounds is None or self._finished or layout.dp == 1:
            return True
        whole = layout.fragments == 1 and layout.fragment_update_alpha == 0
        return whole and rounds.steps_since_round == 0

    def finish(self) -> None:
        """Joins replicas that train apart for good; collective."""
        self._wrapped.same_buffers()
        if self.rounds is not None:
            self.rounds.finish()
            self.rounds.detach()
        if self.served is not None:
            self.served.finish()
        self._finished = True
