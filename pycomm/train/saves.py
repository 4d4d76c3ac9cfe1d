# SPDX-License-Identifier: MIT
"""What a run saves and resumes from: pycomm.checkpoint with all that a context knows of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycomm.checkpoint import Checkpointer, PerRank
from pycomm.errors import UsageError

if TYPE_CHECKING:
    from pycomm.train.context import Context


class Saves:
    """The checkpoints of one context; making it resumes. Collective, as are its methods.

    Args:
        ctx: With its model wrapped and its loaders made.
        folder: Where checkpoints are.
        every: Steps between saves.
        keep: How many to keep.
        more: What else is saved, by name.
    """

    def __init__(
        self,
        ctx: Context,
        folder: Path,
        every: int | None,
        keep: int | None,
        more: Mapping[str, Any],
    ) -> None:
        self._checkpointer = Checkpointer(
            folder, keep=keep, every=every, process_group=ctx._groups.all
        )
        self._saved = ctx.steps
        part, optimizer, stepper = ctx._given().part, ctx._optimizer, ctx.stepper
        run = _Run(ctx)
        self._state: dict[str, Any] = {"run": run}
        # Replicas that train apart differ: each rank has its own. Right after a round it is only
        # the optimizers that do, and any number of ranks may go on.
        apart = stepper.rounds is not None
        self._signals_every = ctx.layout.sync_every if apart else 1
        self._state["model"] = PerRank(part, cyclic=True) if apart else part
        if optimizer is not None:
            self._state["optimizer"] = PerRank(optimizer, cyclic=True) if apart else optimizer
        for name in ("rounds", "scaler", "scheduler"):
            if getattr(stepper, name) is not None:
                self._state[name] = getattr(stepper, name)
        for number, loader in enumerate(ctx._loaders):
            self._state[f"loader{number}"] = loader
        self._state |= more
        if self._checkpointer.load(self._state) is not None and run.elsewhere:
            ctx.seed_for_this_place(salt=ctx.steps)
        self._saved = ctx.steps
        self._checkpointer.on_signal()

    def after_step(self, steps: int) -> None:
        """Saves where it is time to; raises SystemExit after a signal.

        Replicas that train apart ask each other for signals where they meet anyway.
        """
        every = self._checkpointer.every
        if steps % self._signals_every == 0 or (every is not None and steps % every == 0):
            self._checkpointer.after_step(steps, self._state)

    def save(self, steps: int) -> None:
        """Saves now."""
        self._checkpointer.save(steps, self._state)
        self._saved = steps

    def close(self, steps: int) -> None:
        """Saves the last steps, and returns when that is on the disk."""
        every = self._checkpointer.every
        if steps != self._saved and (every is None or steps % every):
            self.save(steps)
        self._checkpointer.close()


class _Run:
    """The context's own state; it is the same on all ranks."""

    def __init__(self, ctx: Context) -> None:
        self._ctx, self.elsewhere = ctx, False

    def state_dict(self) -> dict[str, Any]:
        joined = self._ctx.stepper.joined
        return {"steps": self._ctx.steps, "grid": _grid(self._ctx), "joined": joined}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # A generator's state is kept by rank, which has had another place in another grid.
        self.elsewhere = list(state["grid"]) != _grid(self._ctx)
        layout = self._ctx.layout
        if self.elsewhere and not state["joined"]:
            raise UsageError(
                f"checkpoint: that of step {state['steps']} was made by {state['grid'][0]} ranks "
                f"whose models differed: mode={layout.mode!r} makes them equal in rounds, every "
                f"sync_every={layout.sync_every} steps, with fragments=1 and "
                f"fragment_update_alpha=0. Go on with {state['grid'][0]} ranks, or let every= be a "
                "multiple of sync_every"
            )
        self._ctx.steps = int(state["steps"])


def _grid(ctx: Context) -> list[int]:
    return [ctx.layout.dp or 1, ctx.layout.tp, ctx.layout.pp]
