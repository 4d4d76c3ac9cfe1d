# SPDX-License-Identifier: MIT
"""What joins replicas in modes that do not average gradients."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.distributed_c10d import _get_default_store
from torch.optim.lr_scheduler import LambdaLR

from pycomm.errors import CommError, UsageError
from pycomm.layout import Layout
from pycomm.local_sgd import DiLoCo, LocalSGD
from pycomm.parameter_server import Server, Worker, same_as
from pycomm.train.buffers import take_the_first_replicas
from pycomm.train.groups import Groups

_END = "end_after"  # in the store: the step after which a signal ends the run
_sets = itertools.count()  # of servers that this process has met, the same on all ranks


def rounds_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    layout: Layout,
    group: dist.ProcessGroup,
) -> LocalSGD | DiLoCo:
    """Returns what makes the rounds of mode "local" or "diloco", attached; collective.

    From here on every step of the optimizer counts, and every sync_every-th makes a round.
    """
    wire = None if layout.wire == "fp32" else layout.wire
    rounds: LocalSGD | DiLoCo
    if layout.mode == "local":
        rounds = LocalSGD(model, optimizer, layout.sync_every, process_group=group, wire=wire)
    else:
        rounds = DiLoCo(
            model,
            optimizer,
            layout.sync_every,
            outer_lr=layout.outer_lr,
            outer_momentum=layout.outer_momentum,
            fragments=layout.fragments,
            fragment_sync_delay=layout.fragment_sync_delay,
            fragment_update_alpha=layout.fragment_update_alpha,
            process_group=group,
            wire=wire,
        )
    rounds.attach()
    return rounds


class Served:
    """One rank of the ps modes: a worker, and on the first ranks a server in threads besides.

    It begins with begin(), which names a folder for checkpoints, or else with the model's first
    forward.

    Args:
        model: The plain module; servers give it parameters.
        optimizer: What the servers' optimizers are made like.
        schedule: Factor of its learning rates by step.
        layout: Resolved.
        groups: Its groups.

    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float] | None,
        layout: Layout,
        groups: Groups,
    ) -> None:
        workers = layout.dp or 1
        if layout.servers > workers:
            raise UsageError(
                f"Layout(mode={layout.mode!r}, servers={layout.servers}): servers are threads of "
                f"the first ranks, and there are {workers}"
            )
        self._model, self._layout, self._group = model, layout, groups.of("dp")
        self._rank = groups.replica
        self._optimizer = same_as(optimizer, model)
        self._scheduler: Any = None
        if schedule is not None:
            self._scheduler = functools.partial(LambdaLR, lr_lambda=schedule)
        self._worker: Worker | None = None
        self._server: Server | None = None
        self._store: Store | None = None
        self._hook = model.register_forward_pre_hook(lambda *_: self._begin_anew())

    def _begin_anew(self) -> None:
        self.begin(None, 1)

    def begin(self, folder: Path | None, every: int) -> int:
        """Starts this rank's server, if it has one, and its worker; collective.

        Args:
            folder: Of the servers' checkpoints, from which they go on; None: they make none.
            every: Steps between two of these.

        Returns:
            The steps that were done before.
        """
        self._hook.remove()
        layout, workers = self._layout, self._layout.dp or 1
        self._store = store = PrefixStore(f"pycomm_servers{next(_sets)}", _get_default_store())
        if self._rank < layout.servers:
            self._server = Server(
                self._model,
                self._optimizer,
                store=store,
                index=self._rank,
                servers=layout.servers,
                workers=workers,
                mode=layout.mode.removeprefix("ps-"),
                staleness=layout.staleness if layout.mode == "ps-ssp" else None,
                scheduler=self._scheduler,
                checkpoint=folder,
                checkpoint_every=every,
            ).start()
        how: dict[str, Any] = {"wire": layout.wire, "overlap": layout.overlap}
        self._worker = Worker(self._model, store, rank=self._rank, **how)
        return self._worker.clock

    @property
    def lead(self) -> int:
        """Steps that this rank was ahead of the slowest when it last got parameters."""
        return 0 if self._worker is None else self._worker.lead

    def report(self) -> list[dict[str, Any]]:
        """Returns what the servers have counted: Server.report; it asks them."""
        return [] if self._worker is None else self._worker.report()

    def step(self) -> None:
        """Pushes gradients, forgets them, and pulls parameters."""
        assert self._worker is not None  # there has been a forward
        self._worker.step()

    @property
    def in_step(self) -> bool:
        """Whether no worker makes a step before all have made the one before."""
        return self._layout.mode == "ps-sync"

    def tell_to_end(self, step: int) -> None:
        """Tells all ranks to end, with in_step after a step; local."""
        assert self._store is not None
        self._store.set(_END, str(step))

    def told_to_end(self) -> int | None:
        """Returns the step after which the run ends, if any rank has told; it asks the store."""
        if self._store is None or not self._store.check([_END]):
            return None
        return int(self._store.get(_END))

    def leave(self) -> None:
        """Leaves the servers; this rank's own saves and ends when all workers have left."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
        if self._server is not None:
            self._server.wait()
            self._server.close()

    def finish(self) -> None:
        """Gives the model the parameters of all steps of all workers; collective.

        Workers wait for each other before they leave; the servers end when all have left.
        """
        worker, self._worker = self._worker, None
        if worker is None:
            return
        try:
            if self._group.size() > 1:
                dist.barrier(group=self._group)
                take_the_first_replicas(self._model, self._group)
        except CommError as error:  # who has died takes no more steps
            warnings.warn(f"training ends without a rank: {error}", stacklevel=2)
        worker.pull()
        worker.close()
        if self._server is not None:
            self._server.wait()
            self._server.close()
