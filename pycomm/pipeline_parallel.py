# SPDX-License-Identifier: MIT
"""Cuts a model into stages, and makes a pipeline of them look like a module that returns a loss.

    loss = pipeline(inputs, targets)      # all microbatches through all stages and back
    loss.backward()                       # hands the gradients out

The stages, their messages and the order of microbatches are torch.distributed.pipelining's. Its
schedules compute forwards and backwards in one go; the gradients they find are kept aside until
backward() is called on the loss, and are then scaled by the gradient of the loss and added to
param.grad. So accumulation, loss scaling and clipping are what they are with any other module.

A model can be cut if it is an nn.Sequential, or has a method pipeline_layers() that returns the
names of its submodules whose composition is its forward: ["embedding", "blocks.0", ..., "head"].
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import pipelining
from torch.distributed.pipelining import PipelineStage

from pycomm.errors import CommError, UsageError
from pycomm.layout import Layout

if TYPE_CHECKING:
    from pycomm.train.gradients import MeanOverReplicas

Loss = Callable[[Any, Any], Tensor]
_MAX_DIMS = 7  # of a tensor that travels between stages when there is no backward
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)


def layers_of(model: nn.Module) -> list[str]:
    """Returns the names of the layers whose composition is a model's forward; local.

    Raises:
        UsageError: the model does not say, or layers share a parameter.
    """
    told: Any = getattr(model, "pipeline_layers", None)
    if told is not None:
        names = [str(name) for name in told()]
    elif isinstance(model, nn.Sequential):
        names = [name for name, _ in model.named_children()]
    else:
        raise UsageError(
            f"pipeline parallel: {type(model).__name__} is no nn.Sequential and has no method "
            "pipeline_layers(), which returns the names of the submodules whose composition is its "
            'forward, such as ["embedding", "blocks.0", "blocks.1", "head"]'
        )
    holder: dict[int, str] = {}
    for name in names:
        for parameter in model.get_submodule(name).parameters():
            other = holder.setdefault(id(parameter), name)
            if other != name:
                raise UsageError(
                    f"pipeline parallel: layers {other} and {name} share a parameter of shape "
                    f"{tuple(parameter.shape)}; untie them, or use pp=1"
                )
    lost = [name for name, p in model.named_parameters() if id(p) not in holder]
    if lost:
        raise UsageError(
            f"pipeline parallel: no layer of pipeline_layers() has {', '.join(lost[:3])}; a "
            "pipeline can only hold parameters of its layers"
        )
    return names


def balanced(costs: Sequence[float], parts: int) -> list[int]:
    """Returns where to cut, so that the most expensive of the parts is as cheap as can be; local.

    Returns:
        parts + 1 indices, from 0 to len(costs); every part has a layer.
    """
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    n = len(costs)
    # best[k][i]: the dearest of k parts of the first i layers, and where the last one begins.
    best = [[(0.0 if i == 0 else float("inf"), 0) for i in range(n + 1)]]
    for part in range(1, parts + 1):
        row = [(float("inf"), 0)] * (n + 1)
        for i in range(part, n + 1):
            row[i] = min(
                (max(best[part - 1][j][0], total[i] - total[j]), j) for j in range(part - 1, i)
            )
        best.append(row)
    cuts = [n]
    for part in range(parts, 0, -1):
        cuts.append(best[part][cuts[-1]][1])
    return cuts[::-1]


def costs_of(
    model: nn.Module, names: Sequence[str], example: Any = None, repeats: int = 3
) -> list[float]:
    """Returns what each layer costs: seconds on an example, or else parameters; local.

    Args:
        model: The whole model, which keeps no trace of the trial.
        names: Its layers.
        example: Inputs of a micro-step; None: parameters are counted.
        repeats: The fastest of so many forwards and backwards counts.
    """
    layers = [model.get_submodule(name) for name in names]
    if example is None:
        return [float(sum(p.numel() for p in layer.parameters())) for layer in layers]
    costs, x = [], example
    with torch.random.fork_rng(devices=[]):
        for layer in layers:
            seconds = []
            for _ in range(repeats):
                given = x.detach().requires_grad_() if x.is_floating_point() else x
                with _unchanged_buffers(layer):
                    begin = time.perf_counter()
                    y = layer(given)
                    wanted = [p for p in (given, *layer.parameters()) if p.requires_grad]
                    torch.autograd.grad(y.sum(), wanted, allow_unused=True)
                    seconds.append(time.perf_counter() - begin)
            costs.append(min(seconds))
            x = y.detach()
    return costs


@contextlib.contextmanager
def _unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """In the end gives a module's buffers their values back: for trial forwards; local."""
    before = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            # Not seen by autograd, to which the trial's backward would need the changed ones.
            buffer.data.copy_(value)


class Stage(nn.Module):
    """Consecutive layers, in the precision that the layout names."""

    def __init__(self, layers: Sequence[nn.Module], autocast: Callable[[], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._autocast = autocast

    def forward(self, x: Any) -> Any:
        """Runs the layers one after the other."""
        with self._autocast():
            for layer in self.layers:
                x = layer(x)
        return x


class _ShapeFinding(PipelineStage):
    """torch's stage, which finds the shapes of messages by a forward that is no training."""

    def _forward_metadata_inference(self, *args: Any, **kwargs: Any) -> Any:
        with _unchanged_buffers(self.submod):
            return super()._forward_metadata_inference(*args, **kwargs)

    def _shape_inference(self, *args: Any, **kwargs: Any) -> Any:
        with _unchanged_buffers(self.submod):  # as earlier versions of torch call it
            return super()._shape_inference(*args, **kwargs)  # type: ignore[misc]


def part_of(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Returns a module that holds some layers under their names in the whole model; local."""
    part = nn.Module()
    for name in names:
        owner = part
        *path, last = name.split(".")
        for word in path:
            if not hasattr(owner, word):
                owner.add_module(word, nn.Module())
            owner = getattr(owner, word)
        owner.add_module(last, model.get_submodule(name))
    return part


class Pipeline(nn.Module):
    """This rank's stages of a pipeline, called as the whole model with its loss behind it.

    Called with gradients enabled and targets it trains, as above. Called otherwise it runs the
    stages one after the other and gives every rank the output, or the loss if there are targets.

    Args:
        part: This rank's layers under their names, which is what has parameters here.
        stages: This rank's stages by their number in the pipeline.
        loss: From the last stage's output and the targets to a mean over the microbatch.
        layout: Resolved.
        group: The pipeline's ranks.
        mean: Averages gradients over replicas; None: the stages do.

    Attributes:
        module: part.
        loss_scale: Says what losses are multiplied with while gradients are computed, for float16.
        autocast: Makes the context that losses are computed in.
    """

    def __init__(
        self,
        part: nn.Module,
        stages: dict[int, Stage],
        loss: Loss,
        layout: Layout,
        group: dist.ProcessGroup,
        mean: MeanOverReplicas | None,
        autocast: Callable[[], Any],
    ) -> None:
        super().__init__()
        self.module = part
        self._stages = stages
        self._loss, self._layout, self._group, self._mean = loss, layout, group, mean
        self._count = layout.pp * layout.stages
        self._schedules: dict[tuple[int, ...], Any] = {}
        self._anchor = torch.zeros((), requires_grad=True)
        self.loss_scale: Callable[[], float] = lambda: 1.0
        self._scale = 1.0  # of the schedule under way
        self.autocast = autocast

    def forward(self, inputs: Tensor, targets: Any = None) -> Tensor:
        """Returns the mean loss, the same on every rank, or without targets the output."""
        if targets is None or not torch.is_grad_enabled():
            output = self._in_turns(inputs)
            if targets is None:
                return output
            with self.autocast():
                return self._loss(output, targets)
        loss, gradients = self._train(inputs, targets)
        out: Tensor = _HandOut.apply(self._anchor, loss, self, gradients)  # type: ignore[no-untyped-call]
        return out

    def _train(self, inputs: Tensor, targets: Any) -> tuple[Tensor, list[Tensor | None]]:
        parameters = list(self.module.parameters())
        before = [p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        schedule, self._scale = self._schedule(tuple(inputs.shape)), self.loss_scale()
        losses: list[Tensor] = []
        last = self._count - 1 in self._stages
        try:
            schedule.step(
                *((inputs,) if 0 in self._stages else ()),
                target=targets if last else None,
                losses=losses if last else None,
                return_outputs=False,
            )
            gradients = [p.grad for p in parameters]
        except Exception as error:
            raise _cause_of(error) from None
        finally:
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient
        wide = any(p.dtype == torch.float64 for p in parameters)
        mean = torch.zeros((), dtype=torch.float64 if wide else torch.float32)
        if last:
            mean.copy_(torch.stack([one.detach() for one in losses]).mean() / self._scale)
        dist.broadcast(mean, group=self._group, group_src=self._owner(self._count - 1))
        return mean, gradients

    def _owner(self, stage: int) -> int:
        return stage % self._layout.pp

    def _schedule(self, shape: tuple[int, ...]) -> Any:
        """Returns the schedule of a shape: torch's stages remember those of their messages."""
        if shape not in self._schedules:
            stages = [
                _ShapeFinding(stage, index, self._count, torch.device("cpu"), group=self._group)
                for index, stage in self._stages.items()
            ]
            single = self._layout.schedule == "1f1b"
            kind: Any = pipelining.Schedule1F1B if single else pipelining.ScheduleInterleaved1F1B
            self._schedules[shape] = kind(
                stages[0] if single else stages,
                self._layout.microbatch_count,
                loss_fn=self._scaled_loss,
            )
        return self._schedules[shape]

    def _scaled_loss(self, output: Any, targets: Any) -> Tensor:
        with self.autocast():
            return self._loss(output, targets) * self._scale

    def _in_turns(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for index in range(self._count):
                mine = self._stages.get(index)
                y = None if mine is None else mine(x).contiguous()
                x = _send_to_all(y, self._owner(index), self._group)
        return x

    def hand_out(self, gradients: Sequence[Tensor | None], factor: float) -> None:
        """Adds gradients that a schedule has found to param.grad; collective over replicas."""
        for parameter, gradient in zip(self.module.parameters(), gradients, strict=True):
            if gradient is None:
                continue
            scaled = gradient if factor == 1 else gradient.mul_(factor)
            parameter.grad = scaled if parameter.grad is None else parameter.grad.add_(scaled)
        if self._mean is not None:
            self._mean.run()


class _HandOut(torch.autograd.Function):
    """A loss whose backward hands out gradients that are there already."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, loss: Tensor, pipeline: Pipeline, gradients: list[Any]
    ) -> Tensor:
        ctx.pipeline, ctx.gradients, ctx.scale = pipeline, gradients, pipeline._scale
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        if ctx.gradients is None:
            raise UsageError("the loss of a pipeline can go backward once; call forward again")
        ctx.pipeline.hand_out(ctx.gradients, gradient.item() / ctx.scale)
        ctx.gradients = None
        return None, None, None, None


def _cause_of(error: Exception) -> Exception:
    """The error of a rank that failed, where torch has wrapped it into one of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, CommError):
        cause = cause.__cause__
    return error if cause is None else cause


def _send_to_all(value: Tensor | None, owner: int, group: dist.ProcessGroup) -> Tensor:
    """Broadcasts a tensor whose shape only its owner knows; collective."""
    header = torch.zeros(2 + _MAX_DIMS, dtype=torch.int64)
    if value is not None:
        header[: 2 + value.dim()] = torch.tensor(
            [_DTYPES.index(value.dtype), value.dim(), *value.shape]
        )
    dist.broadcast(header, group=group, group_src=owner)
    dtype, dims, *shape = header.tolist()
    if value is None:
        value = torch.empty(shape[:dims], dtype=_DTYPES[dtype])
    dist.broadcast(value, group=group, group_src=owner)
    return value
