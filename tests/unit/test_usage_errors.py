# SPDX-License-Identifier: MIT
"""A mistake in a call raises UsageError at the call, says how to mend it, and harms nothing.

Every text has what was given, what is expected, and what to do. torch's Python layer catches some
of these first, so the backend's own methods are called.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_threads
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllToAllOptions,
    BroadcastOptions,
    GatherOptions,
    ReduceOptions,
    ReduceScatterOptions,
    ScatterOptions,
)

import pycomm

WORLD_SIZE = 2
Op = dist.ReduceOp


def rooted(kind: Any, root: int) -> Any:
    options = kind()
    options.rootRank = root
    return options


def f32(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


def expanded() -> torch.Tensor:
    return torch.ones(1).expand(3)


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(f32(3), 0.1, 0, torch.qint8)


@dataclass
class Mistake:
    """A wrong call and three pieces of the text it should raise."""

    name: str
    call: Callable[[Rank, Any], Any]
    given: str
    expected: str
    advice: str


def split(sizes: list[int], out_sizes: list[int], rows: int = 4) -> Callable[[Rank, Any], Any]:
    return lambda me, b: b.alltoall_base(f32(rows), f32(rows), out_sizes, sizes, AllToAllOptions())


TENSORS = [
    Mistake(
        "a tensor on another device",
        lambda me, b: b.allreduce([torch.empty(2, 3, device="meta")]),
        "float32[2, 3] on meta",
        "expected a tensor on cpu",
        "move it with .cpu()",
    ),
    Mistake(
        "a sparse tensor",
        lambda me, b: b.allreduce([f32(3).to_sparse()], dist.ReduceOp.MAX),
        "a sparse tensor",
        "only sum and avg",
        "call to_dense()",
    ),
    Mistake(
        "a quantized tensor",
        lambda me, b: b.allreduce([quantized()]),
        "qint8",
        "expected a boolean, integer, floating or complex dtype",
        "int_repr()",
    ),
    Mistake(
        "an output whose elements share memory",
        lambda me, b: b.allreduce([expanded()]),
        "float32[3] on cpu with strides [0]",
        "expected one place for each",
        "call clone()",
    ),
    Mistake(
        "several tensors at once",
        lambda me, b: b.allreduce([f32(2), f32(2)]),
        "a list of 2 tensors",
        "expected one tensor",
        "all_reduce_coalesced",
    ),
    Mistake(
        "mixed dtypes in a list",
        lambda me, b: b.allgather([[f32(2), f32(2).double()]], [f32(2)]),
        "float64[2] on cpu and float32[2] on cpu",
        "expected one dtype",
        "convert one of them",
    ),
    Mistake(
        "another dtype for the output",
        lambda me, b: b._reduce_scatter_base(f32(2).half(), f32(4), ReduceScatterOptions()),
        "float16[2] on cpu and float32[4] on cpu",
        "expected one dtype",
        "convert one of them",
    ),
]

OPS = [
    Mistake(
        f"{op} of {dtype}",
        lambda me, b, op=op, dtype=dtype: b.allreduce([torch.ones(3, dtype=dtype)], op),
        f"op {name} has no meaning on {str(dtype).removeprefix('torch.')}",
        "expected another op or dtype",
        "convert the tensor",
    )
    for op, name, dtype in [
        (Op.BAND, "band", torch.float32),
        (Op.BOR, "bor", torch.float64),
        (Op.BXOR, "bxor", torch.complex64),
        (Op.MIN, "min", torch.complex64),
        (Op.MAX, "max", torch.complex128),
        (Op.AVG, "avg", torch.bool),
        (dist._make_nccl_premul_sum(2.0), "premul_sum", torch.int32),
    ]
]

SHAPES = [
    Mistake(
        "too few outputs for all_gather",
        lambda me, b: b.allgather([[f32(2)]], [f32(2)]),
        "got 1 output tensors",
        "expected one for each of 2 ranks",
        "make the list as long as the group",
    ),
    Mistake(
        "an output of another size for all_gather",
        lambda me, b: b.allgather([[f32(3), f32(3)]], [f32(2)]),
        "float32[3] on cpu but should hold float32[2] on cpu",
        "expected the same number of elements",
        "resize one of them",
    ),
    Mistake(
        "an output of the wrong size for all_gather into a tensor",
        lambda me, b: b._allgather_base(f32(3), f32(2), AllgatherOptions()),
        "the output is float32[3] on cpu",
        "expected 2 times the input float32[2]",
        "make it hold 4 elements",
    ),
    Mistake(
        "an input of the wrong size for reduce_scatter",
        lambda me, b: b._reduce_scatter_base(f32(2), f32(5), ReduceScatterOptions()),
        "the input is float32[5] on cpu",
        "expected 2 times the output float32[2]",
        "make it hold 4 elements",
    ),
    Mistake(
        "too many inputs for reduce_scatter",
        lambda me, b: b.reduce_scatter([f32(2)], [[f32(2)] * 3]),
        "got 3 input tensors",
        "expected one for each of 2 ranks",
        "make the list as long as the group",
    ),
    Mistake(
        "too few inputs for all_to_all",
        lambda me, b: b.alltoall([f32(2), f32(2)], [f32(2)], AllToAllOptions()),
        "got 1 input tensors",
        "expected one for each of 2 ranks",
        "make the list as long as the group",
    ),
    Mistake(
        "a negative split",
        split([-1, 5], []),
        "negative split size -1",
        "expected 0 or more",
        "give one row count for each rank",
    ),
    Mistake(
        "splits that do not add up",
        split([], [1, 1]),
        "the split sizes of the output sum to 2",
        "expected its 4 rows",
        "give one row count for each rank",
    ),
    Mistake(
        "too many splits",
        split([1, 1, 2], []),
        "got 3 split sizes for the input",
        "expected one for each of 2 ranks",
        "give one row count for each rank",
    ),
    Mistake(
        "rows that do not divide",
        split([], [], rows=3),
        "float32[3] on cpu has 3 rows",
        "expected a multiple of the world size 2",
        "pad it or give split sizes",
    ),
]

RANKS = [
    Mistake(
        "a root outside the group",
        lambda me, b: b.broadcast([f32(2)], rooted(BroadcastOptions, 2)),
        "got root 2",
        "expected 0 to 1",
        "roots are ranks of the group",
    ),
    Mistake(
        "a negative root",
        lambda me, b: b.reduce([f32(2)], rooted(ReduceOptions, -1)),
        "got root -1",
        "expected 0 to 1",
        "roots are ranks of the group",
    ),
    Mistake(
        "gather outputs where they do not belong",
        lambda me, b: b.gather(
            [] if me.rank == 0 else [[f32(2)] * 2], [f32(2)], rooted(GatherOptions, 0)
        ),
        "output lists on rank",
        "expected",
        "only the root, rank 0, gives outputs",
    ),
    Mistake(
        "scatter inputs where they do not belong",
        lambda me, b: b.scatter(
            [f32(2)], [] if me.rank == 1 else [[f32(2)] * 2], rooted(ScatterOptions, 1)
        ),
        "input lists on rank",
        "expected",
        "only the root, rank 1, gives inputs",
    ),
    Mistake(
        "a peer outside the group",
        lambda me, b: b.send([f32(2)], 2, 0),
        "got peer 2",
        "expected a rank of the group, 0 to 1",
        "name another rank",
    ),
    Mistake(
        "a negative peer",
        lambda me, b: b.recv([f32(2)], -3, 0),
        "got peer -3",
        "expected a rank of the group, 0 to 1",
        "name another rank",
    ),
    Mistake(
        "a message to oneself",
        lambda me, b: b.send([f32(2)], me.rank, 0),
        "got peer",
        "expected another rank",
        "copy the tensor instead",
    ),
    Mistake(
        "a negative tag",
        lambda me, b: b.send([f32(2)], 1 - me.rank, -1),
        "got tag -1",
        "expected 0 or more",
        "choose another tag",
    ),
]


@pytest.mark.parametrize("mistake", TENSORS + OPS + SHAPES + RANKS, ids=lambda one: one.name)
def test_a_mistake_says_what_to_do_and_leaves_the_group_usable(mistake: Mistake) -> None:
    def body(me: Rank) -> None:
        with pytest.raises(pycomm.UsageError) as caught:
            mistake.call(me, me.backend)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, RuntimeError)
        for part in (mistake.given, mistake.expected, mistake.advice):
            assert part in str(caught.value), f"no '{part}' in: {caught.value}"
        x = torch.full((3,), float(me.rank))
        me.backend.allreduce([x]).wait()
        assert torch.equal(x, torch.full((3,), 1.0)), "the group was harmed"

    run_threads(body, WORLD_SIZE)


def test_a_closed_group_says_that_it_is_closed_and_what_to_do() -> None:
    def body(me: Rank) -> None:
        me.backend.allreduce([f32(2)]).wait()
        me.backend.shutdown()
        for call in (
            lambda: me.backend.allreduce([f32(2)]),
            lambda: me.backend.send([f32(2)], 1 - me.rank, 0),
            lambda: me.backend.barrier(),
        ):
            with pytest.raises(pycomm.CommError) as caught:
                call()
            for part in ("closed", "destroy_process_group() was called", "make a new one"):
                assert part in str(caught.value), f"no '{part}' in: {caught.value}"

    run_threads(body, WORLD_SIZE)


def test_a_recv_in_a_group_of_one_is_refused() -> None:
    def body(me: Rank) -> None:
        with pytest.raises(pycomm.UsageError, match="one rank, so nobody can send to it"):
            me.backend.recv_anysource([f32(2)], 0)

    run_threads(body, 1)


def test_a_timeout_that_is_no_duration_is_refused() -> None:
    from datetime import timedelta

    def body(me: Rank) -> None:
        with pytest.raises(pycomm.UsageError, match="got 0 ms, expected a positive duration"):
            me.backend.set_timeout(timedelta(0))
        me.backend.allreduce([f32(2)]).wait()

    run_threads(body, 1)


def make_backend(rank: int, world_size: int) -> Any:
    from pycomm.native import load

    module = load()
    return module.Backend(dist.HashStore(), rank, world_size, module.BackendOptions())


@pytest.mark.parametrize(
    ("rank", "world_size", "text"),
    [
        (2, 2, "got rank 2, expected 0 to 1"),
        (-1, 2, "got rank -1, expected 0 to 1"),
        (0, 0, "got world size 0, expected 1 to 1024"),
        (0, 5000, "got world size 5000, expected 1 to 1024"),
    ],
)
def test_a_rank_outside_the_group_is_refused(rank: int, world_size: int, text: str) -> None:
    # c10d::Backend itself stores what it is given.
    with pytest.raises(pycomm.UsageError, match=text):
        make_backend(rank, world_size)
