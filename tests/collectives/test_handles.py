# SPDX-License-Identifier: MIT
"""Handles of asynchronous calls: futures and what is chained to them, states, errors, patience."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks
from torch.futures import Future, collect_all

import pycomm


def every_asynchronous_call(p: int, rank: int) -> dict[str, Callable[[], dist.Work]]:
    a = {"async_op": True}

    def blocks() -> list[torch.Tensor]:
        return [torch.ones(2) for _ in range(p)]

    def one() -> torch.Tensor:
        return torch.ones(2)

    root = rank == 0
    return {
        "all_reduce": lambda: dist.all_reduce(one(), **a),
        "broadcast": lambda: dist.broadcast(one(), 1, **a),
        "reduce": lambda: dist.reduce(one(), 0, **a),
        "all_gather": lambda: dist.all_gather(blocks(), one(), **a),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(
            torch.ones(2 * p), one(), **a
        ),
        "gather": lambda: dist.gather(one(), blocks() if root else None, 0, **a),
        "scatter": lambda: dist.scatter(one(), blocks() if root else None, 0, **a),
        "reduce_scatter": lambda: dist.reduce_scatter(one(), blocks(), **a),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(one(), torch.ones(2 * p), **a),
        "all_to_all": lambda: dist.all_to_all(blocks(), blocks(), **a),
        "all_to_all_single": lambda: dist.all_to_all_single(
            torch.ones(2 * p), torch.ones(2 * p), **a
        ),
        "barrier": lambda: dist.barrier(**a),
        "isend": lambda: dist.isend(one(), (rank + 1) % p),
        "irecv": lambda: dist.irecv(one(), (rank - 1) % p),
    }


def states_and_futures(me: Rank) -> None:
    for name, call in every_asynchronous_call(me.world_size, me.rank).items():
        work = call()
        future = work.get_future()
        doubled = future.then(lambda done: [2 * tensor for tensor in done.value()])
        assert work.wait() is True, name
        assert work.is_completed() and work.exception() is None, name
        future.wait()
        assert future.done(), name
        for twice, tensor in zip(doubled.wait(), future.value(), strict=True):
            assert torch.equal(twice, 2 * tensor), name
        assert work.wait() is True, f"{name}: a second wait()"
        assert work.get_future().value() is not None, name


def test_every_asynchronous_call_has_a_future_and_says_when_it_is_done() -> None:
    for world_size in (2, 3):
        run_ranks(states_and_futures, world_size)


def chains(me: Rank) -> None:
    """Futures joined, chained, and chained to operations that callbacks begin."""
    p = me.world_size
    xs = [torch.full((n,), float(me.rank + 1)) for n in (1, 70_000, 3)]
    futures = [dist.all_reduce(x, async_op=True).get_future() for x in xs]
    total = collect_all(futures).then(
        lambda all_done: sum(float(future.value()[0][0]) for future in all_done.value())
    )
    assert total.wait() == 3 * p * (p + 1) / 2

    def reduce_again(done: Future) -> torch.Tensor:
        x = done.value()[0].clone()
        dist.all_reduce(x, async_op=True).wait()
        return x

    future = dist.all_reduce(torch.ones(5), async_op=True).get_future()
    for _ in range(3):
        future = future.then(reduce_again).then(lambda done: [done.value()])
    assert (future.wait()[0] == float(p**4)).all()

    seen, called = [], threading.Event()

    def callback(done: Future) -> None:
        seen.append(float(done.value()[0]))
        called.set()

    dist.all_reduce(torch.ones(1), async_op=True).get_future().add_done_callback(callback)
    assert called.wait(20)
    assert seen == [p]


def raising_callback(me: Rank) -> None:
    """What a callback raises is told by the future it made; the group goes on."""

    def divide(done: Future) -> float:
        return float(done.value()[0]) / 0

    future = dist.all_reduce(torch.ones(1), async_op=True).get_future().then(divide)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        future.wait()
    x = torch.ones(1)
    dist.all_reduce(x)
    assert x == me.world_size


@pytest.mark.parametrize("function", [chains, raising_callback], ids=lambda one: one.__name__)
def test_futures_chain(function: Callable[[Rank], None]) -> None:
    run_ranks(function, 3)


def not_yet_done(me: Rank) -> None:
    """A handle of an operation that another rank holds up, seen from all sides."""
    if me.rank == 0:
        x = torch.ones(4)
        work = dist.all_reduce(x, async_op=True)
        future = work.get_future()
        assert not work.is_completed() and not future.done()
        began = time.monotonic()
        with pytest.raises(pycomm.Timeout, match="the timeout given to wait"):
            work.wait(timedelta(milliseconds=50))
        assert time.monotonic() - began >= 0.05
        assert not work.is_completed()
        me.store.set("go", "1")
        assert work.wait(timedelta(seconds=30))
        assert (x == me.world_size).all() and work.is_completed()
    else:
        me.store.wait(["go"])
        dist.all_reduce(torch.ones(4))


def test_a_handle_knows_that_its_operation_is_not_done() -> None:
    run_ranks(not_yet_done, 2)


def failed(me: Rank) -> None:
    """A failed operation is completed; wait(), exception() and the future all tell its cause."""
    work = dist.all_reduce(torch.ones(4 + me.rank), async_op=True)
    future = work.get_future()
    chained = future.then(lambda done: done.value())
    with pytest.raises(pycomm.Mismatch) as first:
        work.wait()
    assert work.is_completed()
    with pytest.raises(pycomm.Mismatch) as again:
        work.wait()
    assert str(again.value) == str(first.value)
    for one in (future, chained):
        with pytest.raises(Exception, match="float32.4"):
            one.wait()
    with pytest.raises(pycomm.Mismatch, match=r"float32\[4\]"):
        dist.all_reduce(torch.ones(4))


def test_a_failed_operation_tells_its_cause_everywhere() -> None:
    run_ranks(failed, 2, env={"PYCOMM_LOG": "error"})


def averages(me: Rank) -> None:
    """What Lightning asks of every backend but gloo, on its counts of batches too."""
    p = me.world_size
    for dtype in (torch.int64, torch.int32, torch.uint8):
        x = torch.tensor([10, 7, 0], dtype=dtype) + me.rank
        dist.all_reduce(x, op=dist.ReduceOp.AVG)
        base = torch.tensor([10, 7, 0]) * p + p * (p - 1) // 2
        assert torch.equal(x.long(), base // p), dtype
    block = torch.zeros(1, dtype=torch.int64)
    given = torch.arange(p) + me.rank
    work = dist.reduce_scatter_tensor(block, given, op=dist.ReduceOp.AVG, async_op=True)
    work.get_future().wait()
    assert block == (me.rank * p + p * (p - 1) // 2) // p


def test_avg_of_integers_is_the_sum_divided() -> None:
    for world_size in (2, 3):
        run_ranks(averages, world_size)
