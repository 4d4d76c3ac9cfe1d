# SPDX-License-Identifier: MIT
"""Local SGD: every rank trains alone, and every so many steps parameters become their mean.

Reference: Stich 2019, "Local SGD converges fast and communicates little".
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from pycomm.local_sgd.periodic import Fragment, Named, Periodic


class LocalSGD(Periodic):
    """Averages the parameters over all ranks every `sync_every` steps of the optimizer.

        with LocalSGD(model, optimizer, sync_every=8):
            ...                                # a loop that knows of no other rank

    Making one is collective and blocking: parameters and buffers of rank 0 go to all ranks. Between
    rounds models differ; after a round, and after the with block, they have the same bits on all
    ranks. The optimizer's own state stays each rank's. With sync_every=1 and plain SGD it is
    synchronous averaging of gradients.

    Args:
        model: The plain module; it keeps its names and its tensors.
        optimizer: What trains it. A step that a GradScaler leaves out does not count.
        sync_every: Steps from one round to the next.
        process_group: Whose ranks train together; a new group over them is made. Default: the
            default group, or this process alone if there is none.
        wire: "bf16", "fp16s", "int8" or "int4": what has changed since the last round travels in
            that format, see docs/compression.md. Default: parameters, as they are.

    Attributes:
        rounds: How many there have been.

    Raises:
        UsageError: an argument is not understood, or the model differs between ranks.
        CommError: a rank failed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sync_every: int,
        *,
        process_group: dist.ProcessGroup | None = None,
        wire: str | None = None,
    ) -> None:
        trained = [pair for pair in model.named_parameters() if pair[1].requires_grad]
        super().__init__(
            model,
            optimizer,
            sync_every,
            [trained],
            delay=0,
            keep=0.0,
            process_group=process_group,
            wire=wire,
        )

    def _fragment(self, named: Named, wire: str | None) -> Fragment:
        kind = Fragment if wire is None else _Changes
        return kind(named, self._group, wire)

    def state_dict(self) -> dict[str, Any]:
        """Returns where it stands, beside the model's and the optimizer's own state; local.

        Between rounds models and optimizers differ between ranks, so each rank saves its own. Right
        after a round (`steps_since_round` is 0) only optimizers differ.
        """
        (whole,) = self._fragments
        state: dict[str, Any] = {
            "steps_since_round": self._step,
            "steps": whole.steps,
            "rounds": self.rounds,
        }
        if isinstance(whole, _Changes):
            state["reference"] = whole.by_name(whole.reference)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state_dict(); local. The model and its optimizer are the caller's to load.

        Raises:
            UsageError: it is of another model.
        """
        (whole,) = self._fragments
        if isinstance(whole, _Changes):
            # Without one the model that the caller has loaded is what all ranks have.
            if "reference" in state:
                whole.take(whole.reference, state["reference"])
            else:
                whole.flat.read(whole.reference)
        self._step, whole.steps = int(state["steps_since_round"]), int(state["steps"])
        self.rounds = int(state["rounds"])


class _Changes(Fragment):
    """Sends the difference to the last mean: it bears the rounding of a narrow format."""

    def __init__(self, named: Named, group: dist.ProcessGroup | None, wire: str | None) -> None:
        super().__init__(named, group, wire)
        self.reference = self.flat.empty()
        self.flat.read(self.reference)

    def fill(self) -> None:
        super().fill()
        self.mean.vector.sub_(self.reference)

    def apply(self, keep: float) -> None:
        self.reference.add_(self.mean.vector)
        self.flat.blend(self.reference, keep)

    def settle(self) -> None:
        self.flat.write(self.reference)
