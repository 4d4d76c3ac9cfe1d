# SPDX-License-Identifier: MIT
"""The five lines that make a training loop of one process one of many.

    ctx = pycomm.init()                                 # 1: who am I, who started me
    model, optimizer = ctx.wrap(model, optimizer)       # 2: spread over the ranks
    loader = ctx.shard(loader)                          # 3: this rank's share of each batch
    ctx.checkpoint("out")                               # 4: saves from now on, resumes
    for inputs, targets in loader:
        loss = loss_of(model(inputs), targets)
        ctx.step(loss)                                  # 5: backward, optimizer.step, zero_grad

The same script runs alone and under torchrun, srun, mpirun and Ray Train, and takes the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ParallelStyle
from torch.utils.data import DataLoader, Dataset

from pycomm.errors import UsageError
from pycomm.layout import Layout
from pycomm.pipeline_parallel import Loss, Pipeline
from pycomm.train.batches import StepLoader, loader_of
from pycomm.train.gradients import LossScaler, clip, global_norm, settle
from pycomm.train.groups import Groups, join
from pycomm.train.launch import Launch, detect
from pycomm.train.wrapping import Wrapped, spread


def init(
    layout: Layout | str | Path | None = None, *, seed: int = 0, timeout_s: float | None = None
) -> Context:
    """Joins the ranks that were started together, or is alone; collective, blocking.

    A default process group that is there already is used; otherwise one is made from what the
    environment says: torchrun, srun, mpirun, Ray Train or nothing.

    Args:
        layout: How the ranks share the work, or a YAML file that says so. None: every rank trains a
            replica.
        seed: Of torch's generator, of the order of data and of dropout. Weights are rank 0's.
        timeout_s: Seconds an operation may take. Default: torch's 30 minutes.

    Raises:
        UsageError: the environment contradicts itself, or the layout does not fit the ranks.
        CommError: a rank did not come.
    """
    if isinstance(layout, (str, Path)):
        layout = Layout.from_yaml(layout)
    return Context(layout or Layout(), seed, timeout_s)


class Context:
    """One rank of a training run; pycomm.init makes it.

    Attributes:
        launch: Who started this process.
        layout: How the ranks share the work, with dp filled in.
        rank: This rank.
        world_size: How many there are.
        mesh: torch's DeviceMesh of pp x dp x tp.
        steps: Steps of the optimizer so far, those before a resume included.
        norm: The global norm of the last step's gradients, where the layout clips; else None.
        scaler: What losses are scaled by with precision="fp16"; else None.
    """

    def __init__(self, layout: Layout, seed: int, timeout_s: float | None) -> None:
        self.launch: Launch = detect()
        if dist.is_initialized():
            self.world_size = dist.get_world_size()
            self.layout = layout.resolved(self.world_size)
        else:
            self.world_size = self.launch.world_size
            self.layout = layout.resolved(self.world_size)
        self._owns_group = join(self.launch, self.layout, timeout_s)
        self.rank = dist.get_rank()
        self._groups = Groups(self.layout)
        self.mesh = self._groups.mesh
        self.steps = 0
        self.norm: float | None = None
        self.scaler: LossScaler | None = None
        self._seed = seed
        self._micro_steps = 0
        self._wrapped: Wrapped | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._loaders: list[StepLoader] = []
        torch.manual_seed(seed)

    # ---- the model

    def wrap(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        loss: Loss | None = None,
        plan: Mapping[str, ParallelStyle] | None = None,
        example: Tensor | None = None,
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Spreads a model and its optimizer over the ranks as the layout says; collective.

        Args:
            model: The whole model, on every rank; rank 0's weights are taken.
            optimizer: Any of torch's, with parameters of the model, that has taken no step. It is
                changed in place: its groups keep what this rank has.
            loss: From outputs and targets to the mean loss. With it the model that is returned is
                called as model(inputs, targets) and returns the loss; model(inputs) returns
                outputs. A pipeline needs it.
            plan: How tp shares matrices, as parallelize_module takes it. None: found by the rules
                in pycomm.tensor_parallel.
            example: Inputs of a micro-step, for a pipeline balanced by time.

        Returns:
            What to train, and the optimizer.

        Raises:
            UsageError: the model does not fit the layout.
        """
        if self._wrapped is not None:
            raise UsageError("wrap: this context has a model already; make another context")
        self._wrapped = spread(model, optimizer, self.layout, self._groups, loss, plan, example)
        self._optimizer = optimizer
        if self.layout.precision == "fp16":
            self.scaler = LossScaler(self._groups.all)
        self._expect_micro_step()
        # Ranks of a tensor-parallel group drop the same activations, other ranks others.
        place = self._groups.rank_in("dp") * self.layout.pp + self._groups.rank_in("pp")
        torch.manual_seed(self._seed + 1 + place)
        return self._wrapped.model, optimizer  # type: ignore[return-value]

    def unwrap(self, model: nn.Module | None = None) -> nn.Module:
        """Returns the model as one process has it, with the weights as they are; collective.

        Of a model that is whole on each rank it is the module that was given to wrap; otherwise a
        copy that has all parameters, on every rank.
        """
        wrapped = self._given()
        if model is not None and model is not wrapped.model:
            raise UsageError("unwrap: this is not the model that wrap returned")
        layout = self.layout
        if layout.tp == layout.pp == 1 and not layout.shard:
            return wrapped.part
        return wrapped.directory.restored()

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the whole model's state_dict, with the names of one process, on every rank.

        Collective. Tensors are copies.
        """
        return self._given().directory.gather()

    # ---- data

    def shard(
        self, data: DataLoader[Any] | Dataset[Any], batch_size: int | None = None
    ) -> StepLoader:
        """Returns a loader of this rank's share of each batch; local.

        A step has the same samples whatever the layout: the batch_size of the loader is that of one
        step over all ranks, and is cut into micro-steps and replicas.

        Args:
            data: A DataLoader over a dataset with a length, or such a dataset, which is shuffled.
            batch_size: Rows of one step over all ranks. Default: the loader's.

        Raises:
            UsageError: the batch cannot be cut into equal parts; the text says which can.
        """
        loader = loader_of(data, batch_size)
        rows = batch_size or loader.batch_size or 0
        found = StepLoader(
            loader,
            rows,
            self.layout.check_batch(rows),
            self._groups.replica,
            self.layout.dp or 1,
            self._seed,
        )
        self._loaders.append(found)
        return found

    # ---- steps

    def step(self, loss: Tensor) -> bool:
        """Does backward, and with the last of the layout's micro-steps the optimizer's step.

        Collective. Gradients are averaged over replicas and micro-steps, clipped where the layout
        says so, and set to None after the step.

        Args:
            loss: The mean loss of this rank's rows.

        Returns:
            Whether the optimizer has taken a step: then it is time for a scheduler's.
        """
        self.backward(loss)
        if self._micro_steps < self.layout.accumulate:
            return False
        self._micro_steps = 0
        self._update()
        self._expect_micro_step()
        self.steps += 1
        return True

    def backward(self, loss: Tensor) -> None:
        """Does the backward of one micro-step and no step of the optimizer; collective."""
        self._given()
        scaled = loss / self.layout.accumulate if self.layout.accumulate > 1 else loss
        if self.scaler is not None:
            scaled = self.scaler.scale(scaled)
        scaled.backward()  # type: ignore[no-untyped-call]
        self._micro_steps += 1
        self._expect_micro_step()

    def _expect_micro_step(self) -> None:
        """Before a forward: gradients travel with the last micro-step only."""
        wrapped = self._given()
        wrapped.reduce(self._micro_steps >= self.layout.accumulate - 1)
        if self.scaler is not None and isinstance(wrapped.model, Pipeline):
            wrapped.model.loss_scale = self.scaler.get_scale()

    def _update(self) -> None:
        optimizer, layout = self._optimizer, self.layout
        if optimizer is None:
            raise UsageError("step: no optimizer was given to wrap; use ctx.backward(loss)")
        parameters = list(self._given().part.parameters())
        settle(parameters)
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        if layout.clip is not None:
            self.norm = self._clip(parameters, layout.clip)
        if self.scaler is not None:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad()

    def _clip(self, parameters: Sequence[Tensor], largest: float) -> float:
        layout = self.layout
        if layout.tp == layout.pp == 1 and not layout.shard:
            return float(nn.utils.clip_grad_norm_(parameters, largest))
        norm = global_norm(parameters, self.mesh["dp", "tp"], self._groups.all)
        clip(parameters, norm, largest)
        return norm

    def _given(self) -> Wrapped:
        if self._wrapped is None:
            raise UsageError("no model yet: call model, optimizer = ctx.wrap(model, optimizer)")
        return self._wrapped

    # ---- the end

    def close(self) -> None:
        """Leaves the groups; collective where this context has made them."""
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.close()
