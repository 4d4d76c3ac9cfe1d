# SPDX-License-Identifier: MIT
"""Every collective of a backend as one blocking function, called either way."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceCoalescedOptions,
    AllreduceOptions,
    AllToAllOptions,
    BarrierOptions,
    BroadcastOptions,
    GatherOptions,
    ReduceOptions,
    ReduceScatterOptions,
    ScatterOptions,
)

Tensor = torch.Tensor


def _options(kind: Any, is_async: bool, **values: Any) -> Any:
    options = kind()
    options.asyncOp = is_async
    for name, value in values.items():
        setattr(options, name, value)
    return options


def finish(work: Any, is_async: bool) -> None:
    """Waits; a synchronous call has nothing to wait for."""
    assert (work is not None) == is_async, f"async={is_async} returned {work}"
    if work is not None:
        work.wait()


def broadcast(backend: Any, x: Tensor, root: int, is_async: bool = False) -> None:
    options = _options(BroadcastOptions, is_async, rootRank=root, rootTensor=0)
    finish(backend.broadcast([x], options), is_async)


def all_reduce(
    backend: Any, x: Tensor, op: Any = dist.ReduceOp.SUM, is_async: bool = False
) -> None:
    finish(backend.allreduce([x], _options(AllreduceOptions, is_async, reduceOp=op)), is_async)


def all_reduce_coalesced(group: Any, xs: list[Tensor], op: Any = dist.ReduceOp.SUM) -> None:
    group.allreduce_coalesced(xs, _options(AllreduceCoalescedOptions, True, reduceOp=op)).wait()


def reduce(
    backend: Any, x: Tensor, root: int, op: Any = dist.ReduceOp.SUM, is_async: bool = False
) -> None:
    options = _options(ReduceOptions, is_async, reduceOp=op, rootRank=root, rootTensor=0)
    finish(backend.reduce([x], options), is_async)


def all_gather(backend: Any, outs: list[Tensor], x: Tensor, is_async: bool = False) -> None:
    finish(backend.allgather([outs], [x], _options(AllgatherOptions, is_async)), is_async)


def all_gather_into(backend: Any, out: Tensor, x: Tensor, is_async: bool = False) -> None:
    finish(backend._allgather_base(out, x, _options(AllgatherOptions, is_async)), is_async)


def gather(
    backend: Any, outs: list[Tensor] | None, x: Tensor, root: int, is_async: bool = False
) -> None:
    lists = [] if outs is None else [outs]
    finish(backend.gather(lists, [x], _options(GatherOptions, is_async, rootRank=root)), is_async)


def scatter(
    backend: Any, out: Tensor, xs: list[Tensor] | None, root: int, is_async: bool = False
) -> None:
    lists = [] if xs is None else [xs]
    finish(
        backend.scatter([out], lists, _options(ScatterOptions, is_async, rootRank=root)), is_async
    )


def reduce_scatter(
    backend: Any, out: Tensor, xs: list[Tensor], op: Any = dist.ReduceOp.SUM, is_async: bool = False
) -> None:
    options = _options(ReduceScatterOptions, is_async, reduceOp=op)
    finish(backend.reduce_scatter([out], [xs], options), is_async)


def reduce_scatter_from(
    backend: Any, out: Tensor, x: Tensor, op: Any = dist.ReduceOp.SUM, is_async: bool = False
) -> None:
    options = _options(ReduceScatterOptions, is_async, reduceOp=op)
    finish(backend._reduce_scatter_base(out, x, options), is_async)


def all_to_all(backend: Any, outs: list[Tensor], xs: list[Tensor], is_async: bool = False) -> None:
    finish(backend.alltoall(outs, xs, _options(AllToAllOptions, is_async)), is_async)


def all_to_all_single(
    backend: Any,
    out: Tensor,
    x: Tensor,
    out_sizes: list[int] | None = None,
    sizes: list[int] | None = None,
    is_async: bool = False,
) -> None:
    options = _options(AllToAllOptions, is_async)
    finish(backend.alltoall_base(out, x, out_sizes or [], sizes or [], options), is_async)


def barrier(backend: Any, is_async: bool = False) -> None:
    finish(backend.barrier(_options(BarrierOptions, is_async)), is_async)
