# SPDX-License-Identifier: MIT
"""pycomm.Communicator: every collective on plain arrays of every dtype, layout and library.

Ranks are processes without a process group of torch's.
"""

from __future__ import annotations

import array
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from ranks import Rank, run_ranks

import pycomm

DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
ROUNDS = {"sum": np.add, "product": np.multiply, "min": np.minimum, "max": np.maximum}


def connect(me: Rank, **options: Any) -> pycomm.Communicator:
    return pycomm.Communicator(me.rank, me.world_size, me.store, pycomm.Options(**options))


def values(rank: int, count: int, dtype: str = "float32") -> Any:
    """Small whole numbers, so that sums of three are exact in every dtype."""
    return ((np.arange(count) * 7 + rank * 3) % 5).astype(dtype)


def of_all(world: int, count: int, dtype: str = "float32") -> list[Any]:
    return [values(rank, count, dtype) for rank in range(world)]


def same(got: Any, wanted: Any) -> None:
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(got, wanted)


def every_collective(me: Rank, dtype: str) -> None:
    world, count = me.world_size, 3 * me.world_size
    inputs = of_all(world, count, dtype)
    total = np.sum(inputs, axis=0, dtype=dtype)
    with connect(me) as comm:
        assert (comm.rank, comm.world_size) == (me.rank, world)
        mine, kept = inputs[me.rank].copy(), inputs[me.rank].copy()
        out = np.empty((3, world), dtype)
        assert comm.all_reduce(mine, out) is out
        same(out.ravel(), total)
        same(mine, kept)
        assert comm.all_reduce(mine) is mine
        same(mine, total)
        for root in range(world):
            mine = kept.copy()
            assert comm.broadcast(mine, root=root) is mine
            same(mine, inputs[root])
            mine = kept.copy()
            result = comm.reduce(mine, op="sum", root=root)
            assert result is (mine if me.rank == root else None)
            same(mine, total if me.rank == root else kept)
            out = np.empty(count, dtype) if me.rank == root else None
            assert comm.reduce(kept, out, root=root) is out
            if out is not None:
                same(out, total)
            out = np.empty((world, count), dtype) if me.rank == root else None
            assert comm.gather(kept, out, root) is out
            if out is not None:
                same(out, np.stack(inputs))
            block = np.empty(3, dtype)
            assert comm.scatter(kept if me.rank == root else None, block, root) is block
            same(block, inputs[root][3 * me.rank :][:3])
        out = np.empty((world, count), dtype)
        assert comm.all_gather(kept, out=out) is out
        same(out, np.stack(inputs))
        assert comm.reduce_scatter(kept, block) is block
        same(block, total[3 * me.rank :][:3])
        out = np.empty(count, dtype)
        exchanged = np.concatenate([one[3 * me.rank :][:3] for one in inputs])
        assert comm.all_to_all(kept, out) is out
        same(out, exchanged)
        mine = kept.copy()
        same(comm.all_to_all(mine, mine), exchanged)
        assert comm.barrier() is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_collective_gives_what_numpy_gives(dtype: str) -> None:
    run_ranks(every_collective, 3 if dtype in ("float32", "bool") else 2, dtype, init=False)


def every_op(me: Rank) -> None:
    with connect(me) as comm:
        inputs = of_all(me.world_size, 11)
        for op, by_numpy in ROUNDS.items():
            same(comm.all_reduce(inputs[me.rank].copy(), op=op), by_numpy.reduce(inputs))
        same(comm.all_reduce(inputs[me.rank].copy(), op="avg") * 3, np.sum(inputs, axis=0))
        inputs = of_all(me.world_size, 11, "uint16")
        bitwise = {"band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor}
        for op, by_numpy in bitwise.items():
            same(comm.all_reduce(inputs[me.rank].copy(), op=op), by_numpy.reduce(inputs))


def test_every_op_gives_what_numpy_gives() -> None:
    run_ranks(every_op, 3, init=False)


VIEWS = [
    lambda cube: cube[::-1],
    lambda cube: cube[:, ::2],
    lambda cube: cube[1:3, 1:3, 1:3],
    lambda cube: cube.T,
    lambda cube: cube[:, :, 3],
    lambda cube: cube[::-2, :, ::-1].transpose(1, 2, 0),
    lambda cube: cube[:0, ::2],
    lambda cube: cube[2, 2, 2:3],
    lambda cube: cube[3, 3, 3, ...],  # without dimensions
    lambda cube: cube.view("i1")[1:2, 0, 1:-3].view(ODD)["b"],  # not aligned either
]
ODD = np.dtype([("a", "i1"), ("b", "<i4")])


def layouts(me: Rank) -> None:
    with connect(me) as comm:
        for make_view in VIEWS:
            base = np.full((6, 4, 6), -1, np.int32)
            view = make_view(base)
            inputs = [values(r, view.size, "int32").reshape(view.shape) for r in range(2)]
            view[...] = inputs[me.rank]
            comm.all_reduce(view)
            same(np.array(view), inputs[0] + inputs[1])
            view[...] = -1
            assert (base == -1).all()  # nothing beside the view was touched
            out = np.asfortranarray(np.empty((2, *view.shape), np.int32))
            view[...] = inputs[me.rank]
            comm.all_gather(view, out)
            same(np.array(out), np.stack(inputs))
            out_view = np.zeros((*view.shape, 2), np.int32)[..., 0]
            same(np.array(comm.all_reduce(view, out_view)), inputs[0] + inputs[1])
        repeated = np.broadcast_to(np.float64(me.rank + 1), (4,))
        same(comm.all_reduce(repeated, np.empty(4)), np.full(4, 3.0))


def test_arrays_need_not_be_contiguous() -> None:
    run_ranks(layouts, 2, init=False)


class OnlyDLPack:
    """An array of a library that has nothing else; `old`: from before DLPack had versions."""

    def __init__(self, tensor: torch.Tensor, old: bool) -> None:
        self.tensor, self.old = tensor, old

    def __dlpack__(self, **keywords: Any) -> Any:
        if self.old and keywords:
            raise TypeError("unexpected keyword argument 'max_version'")
        return self.tensor.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


def libraries(me: Rank) -> None:
    with connect(me) as comm:
        plain = array.array("d", [1.0, 2.0])
        assert comm.all_reduce(plain) is plain
        assert list(plain) == [2.0, 4.0]
        letters = bytearray(b"ab" if me.rank else b"  ")
        assert comm.broadcast(letters, root=1) == b"ab"
        assert list(comm.all_reduce(memoryview(plain)[1:])) == [8.0]
        tensor = torch.ones(2, 3, dtype=torch.bfloat16)
        assert comm.all_reduce(tensor.t(), op="sum") is not None
        assert tensor.tolist() == [[2.0] * 3] * 2
        for old in (False, True):
            tensor = torch.full((2, 3), me.rank + 0.5, dtype=torch.bfloat16)
            comm.all_reduce(OnlyDLPack(tensor.t(), old))
            assert tensor.tolist() == [[2.0] * 3] * 2
            small = torch.full((4,), 0.5).to(torch.float8_e5m2)
            comm.all_reduce(OnlyDLPack(small, old))
            assert small.float().tolist() == [1.0] * 4
        if find_spec("ml_dtypes"):
            import ml_dtypes

            narrow = np.full((2, 4), 1.5, ml_dtypes.bfloat16)
            comm.all_reduce(narrow[:, ::2])
            assert narrow.astype(float).tolist() == [[3.0, 1.5, 3.0, 1.5]] * 2
        references = sys.getrefcount(tensor)
        comm.all_reduce(tensor)
        assert sys.getrefcount(tensor) == references
        plain.append(3.0)  # refused while the buffer is lent


def test_arrays_of_other_libraries_are_taken_as_they_are() -> None:
    run_ranks(libraries, 2, init=False)


def shared(me: Rank) -> None:
    with connect(me) as comm:
        for shape, dtype in [((3, 50_000), "float32"), (7, "int16"), (0, "float64"), ((), bool)]:
            one = comm.empty(shape, dtype)
            assert one.dtype == np.dtype(dtype)
            assert one.shape == (shape if isinstance(shape, tuple) else (shape,))
            one[...] = values(me.rank, one.size, dtype).reshape(one.shape)
            comm.all_reduce(one, op="max")
            same(one.ravel(), np.maximum.reduce(of_all(me.world_size, one.size, dtype)))
    one[...] = True  # it outlives the group


def test_arrays_made_in_shared_memory_are_arrays_like_others() -> None:
    run_ranks(shared, 2, init=False)
