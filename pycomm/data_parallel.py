# SPDX-License-Identifier: MIT
"""DataParallel: the same model on every rank, gradients averaged while backward goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join, Joinable, JoinHook

from pycomm.errors import UsageError
from pycomm.native import load
from pycomm.replicas import (
    CPU,
    backend_of,
    check_model,
    check_same_on_all,
    inner_of,
    settings_of,
)

# The default in front, then what is tried besides.
_BUCKET_BYTES = [4 << 20, 1 << 20, 25 << 20]
# Torch's. Nothing is tried: the clock of a host that does not wait says nothing of its device.
_DEVICE_BUCKET_BYTES = [25 << 20]
# Formats that are dtypes: packing converts to them, and less goes to the host and back.
_NARROWED_BY_GPUS = {"bf16": torch.bfloat16}


class DataParallel(nn.Module, Joinable):
    """Trains a model on every rank of a group with the mean of all ranks' gradients.

        model = pycomm.DataParallel(build())
        loss = model(batch).sum()
        loss.backward()                  # each param.grad is the mean over all ranks

    Making one is collective and blocking: parameters and buffers of rank 0 go to all ranks.
    forward, backward, no_sync, join and the keys of state_dict are those of torch's
    DistributedDataParallel, and gradients are bit for bit those that it computes. Parameters that
    a backward does not use, or uses several times, need no flag. Attributes that this class does
    not have are the module's. What differs is in docs/data_parallel.md.

    Args:
        module: The model: the same on all ranks, on cpu or on one GPU.
        process_group: A group of the backend pycomm. Default: the default group.
        bucket_bytes: Bytes of gradients that go out together, 1 or more. Default: 4 MiB, or
            another size if that turns out to be faster in the first steps; on a GPU 25 MiB.
        wire: What float32 gradients of 64 KiB and more travel as, see docs/wire.md; makes a group
            of its own for them. On a GPU all of them travel so, and the GPU itself narrows to
            "bf16". Default: the format of the process group.
        broadcast_buffers: Each forward begins with the buffers of rank 0.

    Attributes:
        module: The model.
        process_group: The group.

    Raises:
        UsageError: an argument is not understood, no parameter needs a gradient, one is not dense
            or elsewhere than the others, or the model differs between ranks; the text says where.
        CommError: a rank failed.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        process_group: dist.ProcessGroup | None = None,
        bucket_bytes: int | None = None,
        wire: str | None = None,
        broadcast_buffers: bool = True,
    ) -> None:
        super().__init__()
        Joinable.__init__(self)
        backend, self.process_group = backend_of(process_group)
        self._device = check_model(module)
        backend_of(self.process_group, self._device)
        if bucket_bytes is not None and (type(bucket_bytes) is not int or bucket_bytes < 1):
            raise UsageError(
                f"DataParallel: got bucket_bytes={bucket_bytes!r}, expected a number of bytes, "
                "1 or more, or None"
            )
        self.module = module
        self._backend = backend
        self._reduces = True
        self._reducer: Any = None
        self._broadcasts_buffers = False
        self._buffers_are_due = True
        self._divides_by_all = True
        if self.process_group.size() == 1:
            return
        check_same_on_all(module, self.process_group)
        load().broadcast_tensors(backend, _state_of(module), 0)
        self._broadcasts_buffers = broadcast_buffers
        on_host = self._device == CPU
        default = _BUCKET_BYTES if on_host else _DEVICE_BUCKET_BYTES
        narrow = None if on_host else _NARROWED_BY_GPUS.get(wire or "")
        own_group = wire is not None and narrow is None
        gradients = self._group_with(wire or "") if own_group else backend
        self._reducer = self._make_reducer(
            gradients,
            gradients if on_host else self._group_of_hosts(gradients),
            [bucket_bytes] if bucket_bytes else default,
            narrow,
        )

    def _group_with(self, wire: str) -> Any:
        ranks = dist.get_process_group_ranks(self.process_group)
        # A format is pycomm's own, so nothing is handed to others.
        options = replace(settings_of(self._backend), wire=wire, inter="none")
        options.resolved()  # refuses an unknown format here, on every rank alike
        group = dist.new_group(
            ranks, backend="pycomm", pg_options=options, use_local_synchronization=True
        )
        return backend_of(group)[0]

    def _group_of_hosts(self, gradients: Any) -> Any:
        """Returns what the hosts tell each other by without waiting for what is on the device."""
        hosts = self._group_with("fp32")
        load().fails_with(inner_of(hosts), inner_of(gradients))
        return hosts

    def _make_reducer(
        self, backend: Any, hosts: Any, bucket_bytes: list[int], narrow: torch.dtype | None
    ) -> Any:
        trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        self._names = list(trained)
        self._known = {id(p) for p in trained.values()}
        self._holders = [
            (owner._parameters, name, p, (p.requires_grad, p.dtype))
            for owner in self.module.modules()
            for name, p in owner._parameters.items()
            if p is not None
        ]
        ranks = self.process_group.size()
        # DDP multiplies with the inverse before it adds. For powers of two the collective's own
        # division, which costs nothing, has the same bits; narrow formats know no other.
        power_of_two = ranks & (ranks - 1) == 0
        return load().BucketReducer(
            backend=backend,
            hosts=hosts,
            parameters=list(trained.values()),
            names=self._names,
            bucket_bytes=bucket_bytes,
            average=power_of_two or bool(narrow) or inner_of(backend).options.wire != "fp32",
            narrow=narrow,
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's forward; collective where there are buffers to broadcast."""
        reducer = self._reducer
        if reducer is None:
            return self.module(*args, **kwargs)
        trains = torch.is_grad_enabled()
        reducer.recover()
        if self._join_config.enable:
            self._tell_joined_ranks(trains)
        elif self._buffers_are_due:
            self._broadcast_buffers(0)
        output = self.module(*args, **kwargs)
        if trains:
            self._check_parameters()
            reducer.arm(list(_tensors_in(output)), self._reduces)
        self._buffers_are_due = trains and self._reduces
        return output

    def _check_parameters(self) -> None:
        """Raises UsageError where a parameter would be trained without the other ranks."""
        if all(
            held.get(name) is p and (p.requires_grad, p.dtype) == before
            for held, name, p, before in self._holders
        ):
            return
        for _, name, p, (trained, dtype) in self._holders:
            if trained and p.dtype != dtype:  # autograd has forgotten its hook
                raise UsageError(
                    f"DataParallel: parameter {name} was {dtype} when DataParallel was made and is "
                    f"{p.dtype}; convert the model first and wrap it then"
                )
        for name, p in self.module.named_parameters():
            if p.requires_grad and id(p) not in self._known:
                raise UsageError(
                    f"DataParallel: parameter {name} is new, or was frozen, since DataParallel was "
                    "made, so its gradient would stay on this rank; load_state_dict without "
                    "assign=True, or make a new DataParallel after such a change"
                )

    def _broadcast_buffers(self, source: int) -> None:
        # Asked for anew: a forward may assign a buffer instead of changing it.
        if self._broadcasts_buffers and (buffers := list(self.module.buffers())):
            load().broadcast_tensors(self._backend, buffers, source)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """A context for gradient accumulation: backwards of forwards within it stay local."""
        before, self._reduces = self._reduces, False
        try:
            yield
        finally:
            self._reduces = before

    def buckets(self) -> list[list[str]]:
        """Returns the names of the parameters by bucket, in the order in which they go out; local.

        They are laid out again at the end of the first backward, and when a size is tried.
        """
        if self._reducer is None:
            return []
        return [[self._names[index] for index in bucket] for bucket in self._reducer.buckets()]

    def bucket_bytes(self) -> tuple[int, bool]:
        """Returns the size of buckets, and whether it stays (or others are still tried); local."""
        found: tuple[int, bool] = (
            (0, True) if self._reducer is None else self._reducer.bucket_bytes()
        )
        return found

    def __getattr__(self, name: str) -> Any:
        """Finds what this class does not have in the module."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":  # not there yet
                raise
            return getattr(self.module, name)

    def __getstate__(self) -> Any:
        """Refuses pickle and copy.deepcopy: a group stays in its process."""
        raise UsageError(
            "DataParallel cannot be pickled or copied, as its group cannot; save or copy its "
            "state_dict() or its .module"
        )

    # ---- uneven inputs

    def join(
        self,
        divide_by_initial_world_size: bool = True,
        enable: bool = True,
        throw_on_early_termination: bool = False,
    ) -> Join:
        """Returns a context for ranks with different numbers of batches; collective.

        It works as that of DistributedDataParallel.

        Args:
            divide_by_initial_world_size: Gradients are divided by the group's size; False: by the
                number of ranks that still have batches.
            enable: False: the context does nothing.
            throw_on_early_termination: Raise on all ranks when the first one has no more batches.
        """
        return Join(
            [self],
            enable,
            throw_on_early_termination,
            divide_by_initial_world_size=divide_by_initial_world_size,
        )

    def join_hook(self, **kwargs: Any) -> JoinHook:
        """Returns what a rank without batches does; see torch.distributed.algorithms.join."""
        return _JoinedRank(self, kwargs.get("divide_by_initial_world_size", True))

    @property
    def join_device(self) -> torch.device:
        """Where join() keeps its counters."""
        return torch.device("cpu")

    @property
    def join_process_group(self) -> dist.ProcessGroup:
        """The group in which join() counts."""
        return self.process_group

    def _tell_joined_ranks(self, trains: bool) -> None:
        present = Join.notify_join_context(self)
        if present is not None and not self._divides_by_all:
            present.wait()
            self._reducer.set_divisor(int(present.result()[0].item()))
        self._broadcast_buffers_of_last(present=True)
        self._anybody(trains and self._reduces)

    def _broadcast_buffers_of_last(self, present: bool) -> None:
        if self._buffers_are_due and self._broadcasts_buffers:
            self._broadcast_buffers(self._last_rank(present))

    def _begin_join(self, divides_by_all: bool) -> None:
        self._divides_by_all = divides_by_all

    def _expect_backward(self) -> bool:
        """What a joined rank does in place of a forward; whether a backward follows."""
        self._broadcast_buffers_of_last(present=False)
        self._buffers_are_due = self._anybody(False)
        return self._buffers_are_due

    def _last_rank(self, candidate: bool) -> int:
        """The highest candidate; collective."""
        rank = torch.tensor(self.process_group.rank() if candidate else -1)
        dist.all_reduce(rank, dist.ReduceOp.MAX, group=self.process_group)
        return int(rank)

    def _anybody(self, here: bool) -> bool:
        """Whether it holds on any rank; collective."""
        flag = torch.tensor(here)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.process_group)
        return bool(flag)


class _JoinedRank(JoinHook):
    """Answers the collectives of ranks that still have batches."""

    def __init__(self, model: DataParallel, divides_by_all: bool) -> None:
        self.model = model
        model._begin_join(divides_by_all)

    def main_hook(self) -> None:
        """Shadows one forward and its backward."""
        model = self.model
        if model._expect_backward():
            if not model._divides_by_all:
                model._reducer.set_divisor(1)  # of zeros
            model._reducer.shadow()

    def post_hook(self, is_last_joiner: bool) -> None:
        """Gives every rank the model of one that was there to the end."""
        model = self.model
        if model._reducer is None:
            return
        source = model._last_rank(is_last_joiner)
        load().broadcast_tensors(model._backend, _state_of(model.module), source)
        model._reducer.set_divisor(0)


def _state_of(module: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]


def _tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors in what a forward returned, as deep as containers go."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for one in output.values():
            yield from _tensors_in(one)
    elif isinstance(output, (list, tuple)):
        for one in output:
            yield from _tensors_in(one)
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from _tensors_in(getattr(output, field.name))
