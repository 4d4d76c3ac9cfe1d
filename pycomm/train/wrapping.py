# SPDX-License-Identifier: MIT
"""Spreads a model over the ranks of a layout: into stages, shared matrices and shards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor.parallel import ParallelStyle

from pycomm.data_parallel import DataParallel
from pycomm.errors import UsageError
from pycomm.layout import Layout
from pycomm.pipeline_parallel import (
    Loss,
    Pipeline,
    Stage,
    balanced,
    costs_of,
    layers_of,
    part_of,
)
from pycomm.tensor_parallel import Plan, apply_plan, blocks_of, find_plan
from pycomm.train.buffers import take_the_first_replicas
from pycomm.train.gradients import MeanOverReplicas
from pycomm.train.groups import Groups
from pycomm.train.named import Directory, outline, retarget
from pycomm.train.tensor_draws import draw_apart

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Wrapped:
    """A model that has been spread over ranks.

    Attributes:
        model: What the program calls.
        part: This rank's parameters under the names of one process.
        directory: Finds the whole model again.
        mean: Averages gradients where neither DataParallel nor FSDP2 does.
        replicas: The ranks that hold the same part, where buffers are the first one's; None:
            replicas train apart.
    """

    model: nn.Module
    part: nn.Module
    directory: Directory
    mean: MeanOverReplicas | None
    replicas: dist.ProcessGroup | None

    def same_buffers(self) -> None:
        """Gives all replicas the first one's buffers, unless they train apart; collective."""
        if self.replicas is not None:
            take_the_first_replicas(self.part, self.replicas)

    def after_backward(self) -> None:
        """To be called when the gradients of a step are there; collective."""
        if not isinstance(self.model, DataParallel):  # which does so before the next forward
            self.same_buffers()

    def reduce(self, wanted: bool) -> None:
        """Says whether the next backward averages over replicas; local."""
        if isinstance(self.model, DataParallel):
            self.model._reduces = wanted
        if self.mean is not None:
            self.mean.enabled = wanted
        for module in self.part.modules():
            if isinstance(module, FSDPModule) and not isinstance(self.model, Pipeline):
                module.set_requires_gradient_sync(wanted, recurse=False)


class WithLoss(nn.Module):
    """A model with its loss behind it, in the precision that the layout names.

    Called with inputs and targets it returns the loss, with inputs alone the model's output.
    """

    def __init__(self, module: nn.Module, loss: Loss | None, autocast: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self._loss, self._autocast = loss, autocast

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model, then the loss where targets are given."""
        with self._autocast():
            if self._loss is None or len(args) < 2:
                return self.module(*args, **kwargs)
            return self._loss(self.module(*args[:-1], **kwargs), args[-1])


def autocast_of(precision: str, device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Returns what makes the context of forwards on a kind of device; local."""
    if precision == "fp32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device, _DTYPES[precision])


def spread(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    layout: Layout,
    groups: Groups,
    loss: Loss | None,
    plan: Mapping[str, ParallelStyle] | None,
    example: Tensor | None,
) -> Wrapped:
    """Spreads a model, and an optimizer of its parameters, over the ranks; collective.

    All ranks give the same whole model; rank 0's weights are taken.

    Raises:
        UsageError: the model does not fit the layout; the text lists the layouts that do.
    """
    _check_device(model, layout)
    found = _check_fits(model, layout, loss, plan)
    whole = outline(model)
    names = {id(p): name for name, p in model.named_parameters()}
    if groups.all.size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0, group=groups.all)
    cuts = _cuts(model, layout, groups, example) if layout.pp > 1 else {}
    if found is not None:
        apply_plan(model, found, groups.mesh["tp"])
        blocks = blocks_of(model) if layout.sequence and isinstance(found, Plan) else []
        draw_apart(model, groups.rank_in("tp"), blocks)
    autocast = autocast_of(layout.precision, next(model.parameters()).device.type)
    part, wrapped, mean = model, model, None
    if layout.pp > 1:
        assert loss is not None
        stages = {
            index: Stage([model.get_submodule(name) for name in layers], autocast)
            for index, layers in cuts.items()
        }
        part = part_of(model, [name for layers in cuts.values() for name in layers])
        if layout.shard:
            for stage in stages.values():
                fully_shard(stage, mesh=groups.mesh["dp"])
        else:
            mean = MeanOverReplicas(part.parameters(), groups.of("dp"), hooked=False)
        wrapped = Pipeline(part, stages, loss, layout, groups.of("pp"), mean, autocast)
    else:
        if layout.shard:
            for name in blocks_of(model):
                fully_shard(model.get_submodule(name), mesh=groups.mesh["dp"])
            fully_shard(model, mesh=groups.mesh["dp"])
        if loss is not None or layout.precision != "fp32":
            wrapped = WithLoss(model, loss, autocast)
        if not layout.shard and layout.tp > 1:
            mean = MeanOverReplicas(part.parameters(), groups.of("dp"), hooked=True)
        elif not layout.shard and layout.mode == "sync":
            wrapped = DataParallel(wrapped, process_group=groups.of("dp"))
    if optimizer is not None:
        retarget(optimizer, names, dict(part.named_parameters()))
    pipeline = groups.of("pp") if layout.pp > 1 else None
    replicas = groups.of("dp") if layout.mode == "sync" else None
    return Wrapped(wrapped, part, Directory(part, whole, pipeline), mean, replicas)


def _check_device(model: nn.Module, layout: Layout) -> None:
    """Raises UsageError for a model on a GPU in a layout whose parts are made for the CPU."""
    replicas = layout.tp == layout.pp == 1 and not layout.shard and layout.mode == "sync"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu" and not replicas:
            raise UsageError(
                f"wrap: {name} is on {tensor.device}, expected cpu: on a GPU a layout has replicas "
                'alone (tp=1, pp=1, shard=False, mode="sync"); give it those, or use torch\'s '
                "parallelize_module, pipelining and fully_shard on pycomm's groups"
            )


def _check_fits(
    model: nn.Module,
    layout: Layout,
    loss: Loss | None,
    plan: Mapping[str, ParallelStyle] | None,
) -> Plan | Mapping[str, ParallelStyle] | None:
    """The plan of tp; raises UsageError before anything is changed."""
    found: Plan | Mapping[str, ParallelStyle] | None = None
    layers = len(layers_of(model)) if layout.pp > 1 else None
    if layout.tp > 1:
        found = find_plan(model, layout.sequence) if plan is None else plan
    layout.check_model(found.heads if isinstance(found, Plan) else (), layers)
    if layout.pp > 1 and loss is None:
        raise UsageError(
            "wrap: a pipeline computes forwards and backwards in one go and so needs the loss; "
            "write model, optimizer = ctx.wrap(model, optimizer, loss=loss_of) with "
            "loss_of(outputs, targets), then loss = model(inputs, targets)"
        )
    return found


def _cuts(
    model: nn.Module, layout: Layout, groups: Groups, example: Tensor | None
) -> dict[int, list[str]]:
    """Names of the layers of this rank's stages; rank 0's measurement is everybody's."""
    names = layers_of(model)
    if layout.balance == "time" and example is None:
        raise UsageError(
            'wrap: balance="time" measures the layers; give wrap example=, inputs of a micro-step'
        )
    costs = costs_of(model, names, example if layout.balance == "time" else None)
    agreed = torch.tensor(costs, dtype=torch.float64)
    dist.broadcast(agreed, 0, group=groups.all)
    count = layout.pp * layout.stages
    edges = balanced(agreed.tolist(), count)
    mine = range(groups.rank_in("pp"), count, layout.pp)
    return {index: names[edges[index] : edges[index + 1]] for index in mine}
