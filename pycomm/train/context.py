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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ParallelStyle
from torch.utils.data import DataLoader, Dataset

from pycomm.errors import UsageError
from pycomm.launch import Launch, detect
from pycomm.layout import Layout
from pycomm.pipeline_parallel import Loss
from pycomm.train.batches import StepLoader, loader_of
from pycomm.train.groups import Groups, join
from pycomm.train.leaving import Leaving
from pycomm.train.saves import Saves
from pycomm.train.steps import Schedule, Steps
from pycomm.train.watch import Figures, Watch
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
        self._seed = seed
        self._wrapped: Wrapped | None = None
        self._stepper: Steps | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._loaders: list[StepLoader] = []
        self._saves: Saves | Leaving | None = None
        self._watch: Watch | None = None
        torch.manual_seed(seed)

    # ---- the model

    def wrap(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        loss: Loss | None = None,
        schedule: Schedule | None = None,
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
            schedule: The factor of the optimizer's learning rates in a step, by its number, as
                LambdaLR takes it. It is followed from then on, also by parameter servers.
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
        self._stepper = Steps(self._wrapped, optimizer, schedule, self.layout, self._groups)
        self.seed_for_this_place()
        return self._wrapped.model, optimizer  # type: ignore[return-value]

    def seed_for_this_place(self, salt: int = 0) -> None:
        """Seeds torch's generator: ranks of a tensor-parallel group alike, others apart; local.

        So what is dropped of activations that these ranks have whole is the same on all of them;
        of those that they share out see pycomm.train.tensor_draws.
        """
        place = self._groups.rank_in("dp") * self.layout.pp + self._groups.rank_in("pp")
        torch.manual_seed(self._seed + 1 + place + 1_000_003 * salt)

    def unwrap(self, model: nn.Module | None = None) -> nn.Module:
        """Returns the model as one process has it, with the weights as they are; collective.

        Of a model that is whole on each rank it is the module that was given to wrap; otherwise a
        copy that has all parameters, on every rank.
        """
        wrapped = self._given()
        if model is not None and model is not wrapped.model:
            raise UsageError("unwrap: this is not the model that wrap returned")
        wrapped.same_buffers()
        layout = self.layout
        if layout.tp == layout.pp == 1 and not layout.shard:
            return wrapped.part
        return wrapped.directory.restored()

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the whole model's state_dict, with the names of one process, on every rank.

        Collective. Tensors are copies.
        """
        self._given().same_buffers()
        return self._given().directory.gather()

    # ---- data

    def shard(
        self, data: DataLoader[Any] | Dataset[Any], batch_size: int | None = None
    ) -> StepLoader:
        """Returns a loader of this rank's share of each batch; local.

        A step has the same samples whatever the layout: the batch_size of the loader is that of one
        step over all ranks, and is cut into micro-steps and replicas. Its order has no end, so
        it is for training: an evaluation loops over range(ctx.replica, len(dataset), ctx.layout.dp)
        and adds with over_replicas().

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
            Whether the optimizer has taken a step.

        Raises:
            SystemExit: with code 0, after a signal, when the checkpoint is on the disk.
        """
        if not self.backward(loss):
            return False
        self.stepper.update()
        self.steps += 1
        if self._watch is not None:
            extra = {} if self.norm is None else {"norm": self.norm}
            if self.stepper.served is not None:
                extra["staleness"] = float(self.stepper.served.lead)
            self._watch.step(self.steps, extra)
        if self._saves is not None:
            try:
                self._saves.after_step(self.steps)
            except SystemExit:
                self._end_watch()
                raise
        return True

    def backward(self, loss: Tensor) -> bool:
        """Does the backward of one micro-step and no step of the optimizer; collective.

        Returns:
            Whether it was the last micro-step, so that gradients are those of the whole step.
        """
        stepper = self.stepper
        if self._watch is not None:
            self._watch.loss(loss)
        return stepper.backward(loss)

    @property
    def stepper(self) -> Steps:
        """What makes the steps: its scaler, scheduler, rounds and served are there to be looked at.

        Raises:
            UsageError: nothing has been wrapped.
        """
        self._given()
        assert self._stepper is not None
        return self._stepper

    @property
    def norm(self) -> float | None:
        """The norm of the last step's gradients before clipping; None: nothing is clipped."""
        return None if self._stepper is None else self._stepper.norm

    def _given(self) -> Wrapped:
        if self._wrapped is None:
            raise UsageError("no model yet: call model, optimizer = ctx.wrap(model, optimizer)")
        return self._wrapped

    # ---- the end

    # ---- checkpoints and figures

    def checkpoint(
        self, folder: str | Path, *, every: int | None = None, keep: int | None = 3, **more: Any
    ) -> int:
        """Resumes from the newest whole checkpoint in a folder, and saves from now on; collective.

        Saved are the model, the optimizer, scaler and schedule, every loader that shard has
        returned, random generators, and the number of steps: call it after wrap and shard. A run
        may go on with another number of ranks and in another layout; then dropout draws other
        numbers. SIGTERM and SIGUSR1 end the run after the step that is under way, with a checkpoint
        and exit code 0.

        In the ps modes servers save what they have, every 100 steps if not said otherwise and at
        the end. Modes local and diloco go on with another number of ranks from a checkpoint that
        was made right after a round.

        Args:
            folder: On a file system that all ranks see; made if it is not there.
            every: Steps between saves. None: at the end, on a signal, and when save() is called.
            keep: How many to keep; None: all.
            more: By name, what else is to be saved: anything with state_dict and load_state_dict.

        Returns:
            The steps that have been done: 0 in a new folder.

        Raises:
            CheckpointError: there are checkpoints and none can be loaded.
        """
        served = self.stepper.served
        if served is None:
            self._saves = Saves(self, Path(folder), every, keep, more)
            return self.steps
        self.steps = served.begin(Path(folder), every or 100)
        for loader in self._loaders:
            loader.consumed = self.steps * loader.rows
        self._saves = Leaving(served)
        return self.steps

    def save(self) -> None:
        """Saves a checkpoint now; collective."""
        if self._saves is None:
            raise UsageError("save: call ctx.checkpoint(folder) first")
        self._saves.save(self.steps)

    def watch(self, folder: str | Path | None = None, **options: Any) -> Watch:
        """Shows and writes figures of the training from now on; collective.

        Args:
            folder: For what rank 0 writes; None: nothing is written.
            options: Those of pycomm.train.watch.Figures: every, tokens, flops, steps, plot, trace,
                quiet.
        """
        figures = Figures(None if folder is None else Path(folder), **options)
        rows = self._loaders[0].rows if self._loaders else 0
        figures = figures.filled(rows, self._given().directory.parameters)
        named = [self._groups.of(name) for name in ("dp", "tp", "pp")]
        groups = [self._groups.all, *(one for one in named if one is not self._groups.all)]
        apart = self.layout.mode in ("ps-async", "ps-ssp")
        self._watch = Watch(figures, groups, self.steps, apart)
        return self._watch

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def over_replicas(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over replicas, on every rank; collective.

        For figures of an evaluation: sums and counts of each replica's share.
        """
        total = values.detach().clone()
        if self._groups.of("dp").size() > 1:
            dist.all_reduce(total, group=self._groups.of("dp"))
        return total

    @property
    def replica(self) -> int:
        """This rank's replica, from 0 to layout.dp - 1: which share of data it works on."""
        return self._groups.replica

    def finish(self) -> None:
        """Ends the training; collective.

        Replicas that train apart are joined for good, the last checkpoint is on the disk, the last
        figures are written.
        """
        if self._stepper is not None:
            self._stepper.finish()
        self._end_watch()
        if self._saves is not None:
            self._saves.close(self.steps)
            self._saves = None

    def close(self) -> None:
        """Finishes, then leaves the groups that this context has made; collective."""
        self.finish()
        if self._owns_group and dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.close()
