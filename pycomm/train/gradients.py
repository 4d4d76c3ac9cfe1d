# SPDX-License-Identifier: MIT
"""Gradients of a model that is spread over ranks: their mean over replicas, norm and scale.

A gradient may be a plain tensor, which all tensor-parallel ranks hold alike, or a DTensor, of which
each rank has a part. Everything here works on the local parts, so that both are one case.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Variable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """Returns this rank's part of a DTensor, in its memory, or the tensor itself; local."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part


class MeanOverReplicas:
    """Averages gradients over a group at the end of each backward; for layouts with tp or pp.

    pycomm.DataParallel does this during backward, for models that are whole on each rank.

    Args:
        parameters: Of this rank's part of the model, in the same order on all ranks of the group.
        group: The ranks that hold the same part.
        hooked: Runs at the end of each autograd backward by itself; otherwise run() is called.

    Attributes:
        enabled: False: gradients stay local, for accumulation.
    """

    def __init__(
        self, parameters: Iterable[Tensor], group: dist.ProcessGroup, hooked: bool
    ) -> None:
        self.enabled = True
        self._parameters = [p for p in parameters if p.requires_grad]
        self._group = group
        self._task = -1  # autograd's number of the backward at whose end run() is called
        if hooked and group.size() > 1:
            for parameter in self._parameters:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    self._at_gradient
                )

    def _at_gradient(self, parameter: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._task:  # not a flag: a backward that raises would leave it set
            self._task = task
            Variable._execution_engine.queue_callback(self.run)

    def run(self) -> None:
        """Replaces every gradient by its mean over the group; collective."""
        if not self.enabled or self._group.size() == 1:
            return
        works = []
        for parameter in self._parameters:
            if parameter.grad is not None:
                part = local(parameter.grad)
                works.append(dist.all_reduce(part, dist.ReduceOp.AVG, self._group, async_op=True))
        for work in works:
            if work is not None:
                work.wait()


def global_norm(parameters: Iterable[Tensor], mesh: DeviceMesh, group: dist.ProcessGroup) -> float:
    """Returns the 2-norm of the gradients of the whole model; collective over group.

    Each rank adds the squares of its local parts, divided by the number of ranks that hold the same
    part, and the sum over all ranks is the whole model's.

    Args:
        parameters: Of this rank's part of the model.
        mesh: Of dp and tp, in which a plain tensor is the same on all ranks.
        group: All ranks of the layout.
    """
    total = torch.zeros((), dtype=torch.float64)
    for parameter in parameters:
        if (gradient := parameter.grad) is None:
            continue
        norm = torch.linalg.vector_norm(local(gradient), dtype=torch.float64)
        total += norm.square() / _copies(gradient, mesh)
    if group.size() > 1:
        dist.all_reduce(total, group=group)
    return math.sqrt(total.item())


def _copies(gradient: Tensor, mesh: DeviceMesh) -> int:
    copies = mesh.size()
    if isinstance(gradient, DTensor):
        for size, placement in zip(gradient.device_mesh.shape, gradient.placements, strict=True):
            if not placement.is_replicate():  # some kind of shard: summands are settled
                copies //= size
    return copies


def settle(parameters: Iterable[Tensor]) -> None:
    """Adds up gradients that ranks of a tensor-parallel group hold as summands; collective.

    Those of layer norms between sequence-parallel activations are: each rank has the sum over its
    positions.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if isinstance(gradient, DTensor) and any(p.is_partial() for p in gradient.placements):
            parameter.grad = gradient.redistribute(placements=parameter.placements)  # type: ignore[attr-defined]


def clip(parameters: Sequence[Tensor], norm: float, largest: float) -> None:
    """Scales gradients so that the model's norm is at most `largest`, as clip_grad_norm_; local."""
    factor = largest / (norm + 1e-6)
    if factor < 1:
        torch._foreach_mul_([local(p.grad) for p in parameters if p.grad is not None], factor)


class LossScaler(torch.amp.GradScaler):
    """torch's GradScaler where every rank has a part of the gradients: all skip a step, or none.

    Args:
        group: All ranks of the layout.
        device: The kind that the gradients are on.
        options: Those of torch.amp.GradScaler.
    """

    def __init__(self, group: dist.ProcessGroup, device: str = "cpu", **options: Any) -> None:
        super().__init__(device, **options)
        self._group = group

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: Tensor,
        found_inf: Tensor,
        allow_fp16: bool,
    ) -> dict[torch.device, Tensor]:
        with torch.no_grad():
            parts = [
                local(parameter.grad)
                for group in optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            ]
            for dtype in {part.dtype for part in parts}:
                torch._amp_foreach_non_finite_check_and_unscale_(
                    [part for part in parts if part.dtype == dtype], found_inf, inv_scale
                )
            if self._group.size() > 1:
                dist.all_reduce(found_inf, dist.ReduceOp.MAX, self._group)
        return {found_inf.device: found_inf}
