# SPDX-License-Identifier: MIT
"""When models meet: what local SGD and DiLoCo have in common.

The model is cut into fragments, and every `interval` steps of the optimizer the next fragment takes
its turn: a round. Rounds have the same order on all ranks, so a rank that runs out of data early
goes on attending, adding nothing, until all are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Self

from pycomm.errors import UsageError
from pycomm.local_sgd.flat import Flat, local
from pycomm.local_sgd.mean import Mean
from pycomm.options import Options
from pycomm.replicas import check_same_on_all

WIRES = ("bf16", "fp16s", "int8", "int4")
Named = Sequence[tuple[str, nn.Parameter]]


class Fragment:
    """Some parameters of the model, and the vector in which they meet those of other ranks."""

    def __init__(self, named: Named, group: dist.ProcessGroup | None, wire: str | None) -> None:
        """Local."""
        self.names = [name for name, _ in named]
        self.flat = Flat([parameter for _, parameter in named])
        if wire is not None and self.flat.dtype != torch.float32:
            raise UsageError(
                f"wire={wire!r}: the model has float64 parameters, and narrow formats carry "
                "float32; leave wire= out, or convert the model"
            )
        self.mean = Mean(self.flat.empty(), self.flat.sizes, group, wire)
        self.steps = 0  # since its last round began

    def fill(self) -> None:
        """Puts what this rank adds into `mean.vector`."""
        self.flat.read(self.mean.vector)

    def apply(self, keep: float) -> None:
        """Makes the parameters what the mean says, but for `keep` of what they are."""
        self.flat.blend(self.mean.vector, keep)

    def settle(self) -> None:
        """At the very end: leaves nothing in the parameters that other ranks do not have."""

    def by_name(self, vector: Tensor) -> dict[str, Tensor]:
        """Copies of a vector's parts."""
        views = self.flat.views(vector)
        return {name: view.clone() for name, view in zip(self.names, views, strict=True)}

    def take(self, vector: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Fills a vector from what `by_name` gave, perhaps of a model cut in another way."""
        for name, view in zip(self.names, self.flat.views(vector), strict=True):
            if name not in parts or parts[name].shape != view.shape:
                raise UsageError(
                    f"load_state_dict: the state has no {name} of shape {tuple(view.shape)}; it is "
                    "of another model"
                )
            view.copy_(parts[name])


class Periodic:
    """Counts an optimizer's steps and holds the rounds; a context manager.

    Attributes:
        model: The model.
        sync_every: Steps in which every parameter takes part in one round.
        rounds: How many there have been.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sync_every: int,
        fragments: Sequence[Named],
        *,
        delay: int,
        keep: float,
        process_group: dist.ProcessGroup | None,
        wire: str | None,
    ) -> None:
        self._check(model, optimizer, sync_every, len(fragments), delay, wire)
        self.model, self.optimizer, self.sync_every = model, optimizer, sync_every
        self.rounds = 0
        self._interval, self._delay, self._keep = sync_every // len(fragments), delay, keep
        self._group = own_group(process_group)
        self._buffers = Flat([_as_real(b) for b in model.buffers() if _has_mean(b)])
        if self._group is not None:
            check_same_on_all(model, self._group, type(self).__name__)
            broadcast_from_first(model, self._group)
        wire = wire if self._group is not None else None
        self._fragments = [self._fragment(one, wire) for one in fragments]
        self._step = 0  # since the last round
        self._next = 0  # fragment
        self._under_way = False
        self._hook: Any = None

    def _check(
        self, model: nn.Module, optimizer: Optimizer, every: int, cut: int, delay: int, wire: Any
    ) -> None:
        who = type(self).__name__
        if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
            raise UsageError(
                f"{who}: got a {type(model).__name__} and a {type(optimizer).__name__}, expected a "
                "torch.nn.Module and the torch.optim.Optimizer that trains it"
            )
        if not any(p.requires_grad for p in model.parameters()):
            raise UsageError(f"{who}: no parameter of the model needs a gradient")
        if type(every) is not int or every < 1 or every % max(cut, 1):
            raise UsageError(
                f"{who}: got sync_every={every!r} with {cut} fragments, expected a number of "
                f"steps, 1 or more, that {cut} divides, so that fragments take turns evenly"
            )
        if type(delay) is not int or not 0 <= delay < every // cut:
            raise UsageError(
                f"{who}: got fragment_sync_delay={delay!r}, expected 0 to {every // cut - 1} "
                "steps: a round ends before the next one begins"
            )
        if wire is not None and wire not in WIRES:
            raise UsageError(
                f"{who}: got wire={wire!r}, expected None or one of {', '.join(WIRES)}"
            )
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise UsageError(
                f"{who}: the model is a DistributedDataParallel, which joins gradients in every "
                "step; give the plain module"
            )

    def _fragment(self, named: Named, wire: str | None) -> Fragment:
        return Fragment(named, self._group, wire)

    # ---- steps

    def __enter__(self) -> Self:
        """Begins to count the optimizer's steps; local."""
        self.attach()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends with equal models on all ranks (`finish`), unless an exception is on its way."""
        self.detach()
        if kind is None:
            self.finish()

    def attach(self) -> None:
        """Begins to count the optimizer's steps; local. `with` does it."""
        if self._hook is None:
            self._hook = self.optimizer.register_step_post_hook(lambda *_: self._on_step())

    def detach(self) -> None:
        """Counts no more; local."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.no_grad()
    def _on_step(self) -> None:
        self._step += 1
        for fragment in self._fragments:
            fragment.steps += 1
        if self._step == self._interval - self._delay:
            self._begin()
        if self._step == self._interval:
            self._end(self._keep)

    def _begin(self) -> None:
        """A round in which this rank adds. Collective, not blocking."""
        fragment = self._fragments[self._next]
        fragment.mean.attend(active=True, adds=True)
        fragment.fill()
        fragment.mean.begin()
        fragment.steps = 0
        self._under_way = True

    def _end(self, keep: float) -> None:
        """Collective, blocking."""
        fragment = self._fragments[self._next]
        there = fragment.mean.wait()
        fragment.apply(keep)
        self.rounds += 1
        self._under_way = False
        self._turn(there.adding, adds=True)

    def _turn(self, adding: int, adds: bool) -> None:
        """Buffers go with the last fragment; then it is the next one's turn."""
        if self._next == len(self._fragments) - 1 and adding:
            self._join_buffers(adding, adds)
        self._next = (self._next + 1) % len(self._fragments)
        self._step = 0

    def _join_buffers(self, adding: int, adds: bool) -> None:
        """Floating and complex buffers become their mean, others their maximum.

        Collective, blocking.
        """
        if self._group is None:
            return
        if self._buffers.tensors:
            mean = self._buffers.empty()
            if adds:
                self._buffers.read(mean)
            dist.all_reduce(mean, group=self._group)
            self._buffers.write(mean.div_(adding))
        for buffer in self.model.buffers():
            if not _has_mean(buffer):
                of_all = local(buffer).cpu()
                dist.all_reduce(of_all, dist.ReduceOp.MAX, group=self._group)
                local(buffer).copy_(of_all)

    # ---- the end

    @torch.no_grad()
    def finish(self) -> None:
        """Rounds until no rank has anything to add: then all models are equal, bit for bit.

        Collective, blocking. Ranks that made fewer steps wait here for the others, taking part in
        their rounds. `with` does it.

        Raises:
            CommError: a rank failed.
        """
        if self._under_way:
            self._end(self._keep)
        quiet = 0  # rounds since anybody trained
        while quiet < len(self._fragments):
            fragment = self._fragments[self._next]
            adds = fragment.steps > 0
            fragment.mean.attend(active=False, adds=adds)
            there = fragment.mean.attendance()
            if there.adding:
                fragment.steps = 0
                if adds:
                    fragment.fill()
                else:
                    fragment.mean.vector.zero_()
                fragment.mean.begin()
                fragment.mean.wait()
                fragment.apply(0.0)
                self.rounds += 1
            self._turn(there.adding, adds)
            quiet = 0 if there.active else quiet + 1
        for fragment in self._fragments:
            fragment.settle()

    # ---- what it is at, and what it costs

    @property
    def steps_since_round(self) -> int:
        """Steps of the optimizer since the last round: 0 right after one."""
        return self._step

    @property
    def bytes_sent(self) -> int:
        """Bytes of parameters that this rank has sent so far, without buffers and headers."""
        return sum(fragment.mean.bytes_sent for fragment in self._fragments)


def _has_mean(buffer: Tensor) -> bool:
    return buffer.is_floating_point() or buffer.is_complex()


def _as_real(buffer: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, in its memory; others as they are."""
    return torch.view_as_real(buffer) if buffer.is_complex() else buffer


def own_group(given: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """A group of exact sums over the same ranks, which nobody else uses; collective.

    None where there is but one rank: no group was made, or it has one rank.
    """
    if given is None:
        if not dist.is_initialized():
            return None
        given = dist.group.WORLD
    if not isinstance(given, dist.ProcessGroup):
        raise UsageError(
            f"process_group is a {type(given).__name__}, expected a ProcessGroup that this rank "
            "belongs to, or None"
        )
    if given.size() == 1:
        return None
    made = dist.new_group(
        dist.get_process_group_ranks(given),
        backend="pycomm",
        pg_options=Options(wire="fp32"),
        use_local_synchronization=True,
    )
    assert isinstance(made, dist.ProcessGroup)
    return made


def broadcast_from_first(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Gives every rank the parameters and buffers of the first; collective, blocking."""
    tensors: Iterable[Tensor] = (*model.parameters(), *model.buffers())
    for tensor in tensors:
        mine = local(tensor)
        value = mine.cpu().contiguous()
        dist.broadcast(value, group=group, group_src=0)
        mine.copy_(value)
