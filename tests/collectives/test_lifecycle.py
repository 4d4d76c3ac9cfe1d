# SPDX-License-Identifier: MIT
"""Works, queues, threads, forks, subgroups, and groups that come and go in one process."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import calls
import pytest
import torch
import torch.distributed as dist
from machine_clock import MachineClock
from ranks import Rank, run_ranks, run_threads

import pycomm


def total(me: Rank) -> float:
    """What an all_reduce of rank + 1 gives."""
    return me.world_size * (me.world_size + 1) / 2


def check_usable(me: Rank) -> None:
    x = torch.tensor([me.rank + 1.0])
    dist.all_reduce(x)
    assert x == total(me), f"the group gives {x}"


# ---- works


def out_of_order(me: Rank) -> None:
    xs = [torch.full((n,), float(me.rank + 1)) for n in (200_000, 1, 50_000, 3)]
    works = [dist.all_reduce(x, async_op=True) for x in xs]
    for index in (3, 0, 2, 1):
        works[index].wait()
        assert (xs[index] == total(me)).all(), f"work {index}"
        assert works[index].is_completed()


def futures(me: Rank) -> None:
    x = torch.full((5,), float(me.rank + 1))
    future = dist.all_reduce(x, async_op=True).get_future()
    halved = future.then(lambda done: done.value()[0] / 2)
    assert torch.equal(halved.wait(), torch.full((5,), total(me) / 2))
    assert future.value()[0].data_ptr() == x.data_ptr()
    # Of every collective, not of all_reduce alone.
    p = me.world_size
    out, block = torch.zeros(5 * p), torch.zeros(1)
    works = [
        dist.all_gather_into_tensor(out, x, async_op=True),
        dist.reduce_scatter_tensor(block, torch.ones(p), async_op=True),
        dist.broadcast(x, 0, async_op=True),
        dist.barrier(async_op=True),
    ]
    torch.futures.wait_all([work.get_future() for work in works])
    assert (out == total(me)).all()
    assert block == p


def late_future(me: Rank) -> None:
    """A future asked for after the end is complete; a callback of one may call the group."""
    work = dist.all_reduce(torch.ones(1), async_op=True)
    work.wait()
    assert work.get_future().done()
    chained = dist.all_reduce(torch.ones(2), async_op=True).get_future()
    again = chained.then(lambda done: dist.all_reduce(done.value()[0], async_op=True))
    again.wait().wait()


def hurried_wait(me: Rank) -> None:
    """wait() with a timeout gives up the waiting, not the operation."""
    dist.barrier()
    if me.rank == 1:
        me.store.wait(["gave up"])
    x = torch.full((3,), float(me.rank + 1))
    work = dist.all_reduce(x, async_op=True)
    if me.rank == 0:
        clock = MachineClock.shared()
        began = time.monotonic()
        with pytest.raises(pycomm.Timeout, match="0.1 s, the timeout given to wait"):
            work.wait(timedelta(milliseconds=100))
        ended = time.monotonic()
        assert ended - began >= 0.1
        assert clock.took(began, ended) < 0.5, "not the timeout given to wait()"
        assert not work.is_completed()
        me.store.set("gave up", "1")
    work.wait(timedelta(seconds=20))
    assert (x == total(me)).all()
    check_usable(me)


def long_queue(me: Rank) -> None:
    xs = [torch.full((i % 97 + 1,), float(me.rank + 1)) for i in range(500)]
    works = [dist.all_reduce(x, async_op=True) for x in xs]
    check_usable(me)  # a synchronous call behind them all
    assert works[-1].is_completed(), "a synchronous call overtook queued ones"
    for work in works:
        work.wait()
    assert all((x == total(me)).all() for x in xs)


def forgotten(me: Rank) -> None:
    """Works and tensors that nobody keeps stay alive until they are done."""
    for _ in range(50):
        dist.all_reduce(torch.ones(100_000), async_op=True)
    check_usable(me)


WORKS = [out_of_order, futures, late_future, long_queue, forgotten]


@pytest.mark.parametrize("function", WORKS, ids=lambda one: one.__name__)
def test_asynchronous_works_keep_their_promises(function: object) -> None:
    run_ranks(function, 2)
    run_ranks(function, 3, transport="tcp")


def test_a_wait_that_times_out_leaves_the_operation_running() -> None:
    run_ranks(hurried_wait, 2)


def test_synchronous_and_asynchronous_calls_keep_their_order() -> None:
    def body(me: Rank) -> None:
        x = torch.ones(1000, dtype=torch.int64)
        for step in range(300):
            if step % 3 == me.rank % 3:  # which rank calls how does not matter
                calls.all_reduce(me.backend, x, is_async=False)
            else:
                me.backend.allreduce([x]).wait()
            x //= me.world_size
            x += step
        assert (x == 1 + sum(range(300))).all()

    for transport in ("shm", "tcp"):
        run_threads(body, 4, transport=transport)


# ---- threads and subgroups


def thread_names() -> set[str]:
    names = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            names.add((task / "comm").read_text().strip())
    return names


def test_threads_of_a_group_have_names() -> None:
    def seen(me: Rank) -> bool:
        me.backend.allreduce([torch.ones(4)]).wait()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if {"pycomm_progress", "pycomm_watcher"} <= thread_names():
                return True
        return False

    assert run_threads(seen, 2) == [True, True]


def threads_and_groups(me: Rank) -> None:
    groups = [dist.new_group() for _ in range(4)]
    errors = []

    def use(index: int) -> None:
        try:
            for step in range(100):
                x = torch.full((index * 1000 + 1,), float(index + step))
                dist.all_reduce(x, group=groups[index], async_op=step % 2 == 0)
                dist.barrier(group=groups[index])
                assert (x == (index + step) * me.world_size).all(), (index, step)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_threads_of_a_rank_may_use_different_groups_at_once() -> None:
    run_ranks(threads_and_groups, 2)


def overlapping(me: Rank) -> None:
    subsets = [[0, 1], [1, 2], [0, 2, 3], [3], [0, 1, 2, 3], [3, 1]]
    groups = [dist.new_group(subset) for subset in subsets]
    for _ in range(5):
        for subset, group in zip(subsets, groups, strict=True):
            if me.rank not in subset:
                continue
            x = torch.tensor([2.0**me.rank])
            dist.all_reduce(x, group=group)
            assert x == sum(2.0**rank for rank in subset), subset
            y = torch.tensor([float(me.rank)])
            dist.broadcast(y, src=subset[-1], group=group)
            assert y == subset[-1], subset
    dist.destroy_process_group(groups[4])
    check_usable(me)


def test_subgroups_may_overlap_and_end_before_others() -> None:
    run_ranks(overlapping, 4)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def come_and_go(me: Rank) -> None:
    counts = []
    for step in range(8):
        me.init(options=pycomm.Options(transport=("shm", "tcp")[step % 2]))
        dist.all_reduce(torch.ones(10), async_op=True).wait()
        check_usable(me)
        dist.destroy_process_group()
        counts.append((open_files(), threading.active_count(), len(os.listdir("/proc/self/task"))))
    assert counts[-1] == counts[3], f"files, threads, tasks after each group: {counts}"


def test_a_process_may_make_and_destroy_groups_again_and_again() -> None:
    run_ranks(come_and_go, 3, init=False)


def make_groups_while_others_make_objects(me: Rank) -> int:
    """pybind11's table of objects has no lock but the GIL; a constructor that waits drops it."""
    from pycomm.native import load

    module, stop, made = load(), time.monotonic() + 2, []
    sys.setswitchinterval(1e-5)

    def make() -> None:
        while time.monotonic() < stop:
            made.append(module.Backend(me.store, 0, 1, module.BackendOptions()).size())

    def churn() -> None:
        while time.monotonic() < stop:
            _ = [dist.AllreduceOptions() for _ in range(50)]

    threads = [threading.Thread(target=target) for target in (make, churn, make, churn)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(0.005)
    return len(made)


def test_making_a_group_does_not_race_with_other_threads() -> None:
    assert run_ranks(make_groups_while_others_make_objects, 1, init=False)[0] > 10


# ---- forks


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[int, str]:
        try:
            dist.all_reduce(torch.ones(1))
        except pycomm.UsageError as error:
            return index, str(error)
        return index, "no error"


def fork_workers(me: Rank) -> None:
    check_usable(me)
    dist.all_reduce(torch.ones(1), async_op=True).wait()  # a progress thread that forks lose
    loader = torch.utils.data.DataLoader(
        Numbers(), batch_size=3, num_workers=2, multiprocessing_context="fork"
    )
    seen = []
    for indices, texts in loader:
        seen += indices.tolist()
        for text in texts:
            assert "forked" in text, text
            assert "call init_process_group in the child" in text, text
        check_usable(me)  # while the workers live
    assert sorted(seen) == list(range(12))
    check_usable(me)


def fork_and_exit(me: Rank) -> None:
    """A child that leaves the usual way, running what atexit holds and dropping its group."""
    check_usable(me)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            atexit._run_exitfuncs()
            dist.destroy_process_group()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    for _ in range(20):
        check_usable(me)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("function", [fork_workers, fork_and_exit], ids=lambda one: one.__name__)
def test_forked_children_do_not_disturb_the_group(function: object, transport: str) -> None:
    run_ranks(function, 2, transport=transport)


# ---- the end


def use_after_destroy(me: Rank) -> None:
    group = dist.group.WORLD
    check_usable(me)
    dist.destroy_process_group()
    with pytest.raises(pycomm.CommError, match="the group is closed.*make a new one"):
        group.allreduce([torch.ones(1)]).wait()
    me.init()


def test_a_destroyed_group_says_so_and_a_new_one_works() -> None:
    run_ranks(use_after_destroy, 2)
