# SPDX-License-Identifier: MIT
"""Streams: what an operation on a device waits for, what waits for it, and what the host does.

Nothing here depends on how long anything takes: a rank that must be late waits to be told.
"""

from __future__ import annotations

import gc
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_cuda.device_ranks import DEVICE, busy, gpu, hear, here, meet, run_on_devices, tell
from ranks import Rank

from pycomm.errors import CommError

EVERY_MODE = pytest.mark.parametrize("mode", ["H", "S", "K"])


def late_one(me: Rank) -> Any:
    """Rank 0 joins only when rank 1 has looked."""
    meet()
    x = torch.ones(1000, device=here())
    if me.rank == 0:
        hear(me, "looked")
        dist.all_reduce(x)
        return x[0].item()
    work = dist.all_reduce(x, async_op=True)
    too_early = x[0].item()
    completed = work.is_completed()
    tell(me, "looked")
    work.wait()
    return too_early, completed, x[0].item()


@EVERY_MODE
def test_a_stream_that_does_not_wait_sees_what_was_there_before(mode: str) -> None:
    last, (too_early, completed, waited) = run_on_devices(late_one, 2, mode=mode)
    assert (too_early, completed, waited, last) == (1.0, False, 2.0, 2.0)


def host_runs_ahead(me: Rank) -> None:
    """All calls of rank 1 have returned before rank 0 begins."""
    meet()
    xs = [torch.full((70_000,), float(me.rank + i), device=here()) for i in range(6)]
    if me.rank == 0:
        hear(me, "ahead")
    for x in xs:
        dist.all_reduce(x)
    if me.rank == 1:
        tell(me, "ahead")
    for i, x in enumerate(xs):
        assert torch.equal(x.cpu(), torch.full((70_000,), 2.0 * i + 1)), i


@EVERY_MODE
def test_a_synchronous_call_holds_the_stream_and_not_the_host(mode: str) -> None:
    run_on_devices(host_runs_ahead, 2, mode=mode)


def follows_the_current_stream(me: Rank) -> None:
    x = torch.zeros(5000, device=here())
    for _ in range(3):
        busy(30)
        x.fill_(me.rank + 1.0)
        work = dist.all_reduce(x, async_op=True)
        work.wait()
        x.mul_(2.0)
        assert torch.equal(x.cpu(), torch.full((5000,), 6.0))
    side = gpu().Stream()
    with gpu().stream(side):
        busy(30)
        x.fill_(me.rank + 1.0)
        dist.all_reduce(x)
        x.add_(torch.ones(5000, device=here()))
    side.synchronize()
    assert torch.equal(x.cpu(), torch.full((5000,), 4.0))


@EVERY_MODE
def test_operations_follow_what_the_callers_stream_was_given(mode: str) -> None:
    run_on_devices(follows_the_current_stream, 2, mode=mode)


def several_streams(me: Rank) -> None:
    """Nothing orders the two streams but that the group's operations run one behind the other."""
    streams = [gpu().Stream(), gpu().Stream()]
    xs = [torch.full((9000,), float(me.rank), device=here()) for _ in range(8)]
    gpu().synchronize()
    for i, x in enumerate(xs):
        with gpu().stream(streams[i % 2]):
            if i == 0:
                busy(50)
            x.add_(torch.ones(9000, device=here()), alpha=float(i))
            if i % 3:
                dist.all_reduce(x)
            else:
                dist.all_reduce(x, async_op=True).wait()
    gpu().synchronize()
    for i, x in enumerate(xs):
        assert torch.equal(x.cpu(), torch.full((9000,), 2.0 * i + 1)), i


@EVERY_MODE
def test_a_groups_operations_keep_their_order_over_streams(mode: str) -> None:
    run_on_devices(several_streams, 2, mode=mode)


def letting_go(me: Rank) -> None:
    """Nobody but the group holds the tensors, and memory that is freed is overwritten."""
    p = me.world_size
    total = torch.zeros(p * 3000, device=here())
    works = []
    for i in range(10):
        busy(3)
        part = torch.full((3000,), float(me.rank + i), device=here())
        out = torch.empty(p * 3000, device=here())
        works.append((dist.all_gather_into_tensor(out, part, async_op=True), out))
        del part, out
        dist.all_reduce(torch.ones(500, device=here()), async_op=True)
    gc.collect()
    for work, out in works:
        work.wait()
        total.add_(out)
    del works, work, out
    wanted = [sum(float(rank + i) for i in range(10)) for rank in range(p)]
    assert torch.equal(total.cpu(), torch.tensor(wanted).repeat_interleave(3000))


@EVERY_MODE
def test_tensors_live_until_the_stream_has_done_with_them(mode: str) -> None:
    run_on_devices(letting_go, 2, mode=mode)


def given_back(me: Rank) -> None:
    """Rank 1 waits and lets go of its input before rank 0 has joined."""
    meet()
    p, count = me.world_size, 12_345
    out = torch.empty(p * count, device=here())
    part = torch.full((count,), float(me.rank + 1), device=here())
    if me.rank == 0:
        hear(me, "let go")
        dist.all_gather_into_tensor(out, part)
    else:
        work = dist.all_gather_into_tensor(out, part, async_op=True)
        work.wait()
        where = part.data_ptr()
        del part
        again = torch.full((count,), 99.0, device=here())
        assert again.data_ptr() == where
        tell(me, "let go")
    assert torch.equal(out.cpu(), torch.arange(1.0, p + 1).repeat_interleave(count))


@EVERY_MODE
def test_a_stream_that_waits_for_the_end_gets_the_memory_back(mode: str) -> None:
    run_on_devices(given_back, 2, mode=mode)


def futures(me: Rank) -> None:
    x = torch.zeros(800, device=here())
    busy(20)
    x.fill_(me.rank + 1.0)
    work = dist.all_reduce(x, async_op=True)
    doubled = work.get_future().then(lambda done: done.value()[0] * 2)
    tripled = work.get_future().then(lambda done: done.value()[0].clone().mul_(3.0))
    assert torch.equal(doubled.wait().cpu(), torch.full((800,), 6.0))
    assert torch.equal(tripled.wait().cpu(), torch.full((800,), 9.0))
    over = work.get_future_result()
    assert over.wait() == 0


@EVERY_MODE
def test_callbacks_of_futures_see_the_result(mode: str) -> None:
    run_on_devices(futures, 2, mode=mode)


def host_waits(me: Rank) -> None:
    meet()
    x = torch.ones(100, device=here())
    if me.rank == 0:
        hear(me, "timed out")
        dist.all_reduce(x)
    else:
        work = dist.all_reduce(x, async_op=True)
        try:
            work.wait(timedelta(seconds=0.2))
        except CommError as error:
            assert "the timeout given to wait()" in str(error)
        else:
            raise AssertionError("nothing was raised")
        assert not work.is_completed()
        tell(me, "timed out")
        work.wait(timedelta(seconds=30))
        assert work.is_completed()
        assert work.is_success()
    assert x[0].item() == 2.0


@EVERY_MODE
def test_wait_with_a_timeout_waits_on_the_host(mode: str) -> None:
    run_on_devices(host_waits, 2, mode=mode)


def barrier(me: Rank) -> bool:
    x = torch.zeros(10, device=here())
    dist.all_reduce(x)
    busy(100)
    dist.barrier()
    return gpu().current_stream().query()


def test_a_barrier_covers_what_the_current_stream_was_given() -> None:
    assert run_on_devices(barrier, 2) == [True, True]


def titles(me: Rank) -> list[str]:
    from torch.profiler import ProfilerActivity, profile

    x = torch.ones(64, device=here())
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        dist.all_reduce(x)
        dist.all_reduce(x, async_op=True).wait()
        dist.barrier()
    gpu().synchronize()
    return [event.name for event in seen.events() if event.name.startswith("pycomm:")]


def test_the_profiler_sees_each_operation_by_name() -> None:
    for names in run_on_devices(titles, 2):
        assert sorted(names) == ["pycomm:all_reduce", "pycomm:all_reduce", "pycomm:barrier"]


def blocking(me: Rank) -> None:
    x = torch.ones(5000, device=here())
    busy(50)
    dist.all_reduce(x)
    work = dist.all_reduce(x, async_op=True)
    work.wait()
    assert work.is_completed()
    with pytest.raises(CommError, match=r"float32\[5000\]"):
        dist.all_reduce(x[me.rank :])


def test_with_blocking_wait_a_call_ends_and_fails_when_the_operation_does() -> None:
    run_on_devices(blocking, 2, env={"PYCOMM_BLOCKING_WAIT": "1"})


def captured(me: Rank) -> str:
    x = torch.ones(16, device=here())
    dist.all_reduce(x)
    gpu().synchronize()
    side = gpu().Stream()
    graph = gpu().Graph() if DEVICE == "fakegpu" else gpu().CUDAGraph()
    said = ""
    with gpu().stream(side):
        graph.capture_begin()
        try:
            dist.all_reduce(x)
        except RuntimeError as error:
            said = str(error)
        graph.capture_end()
    dist.all_reduce(x)
    assert x[0].item() == 4.0
    return said


def test_a_capture_is_refused_where_ranks_exchange_through_the_host() -> None:
    for said in run_on_devices(captured, 2, mode="H"):
        assert "a graph is being captured" in said


def replayed(me: Rank) -> None:
    """One all_reduce in order, one beside it on the group's stream, and what comes between."""
    x = torch.full((16,), 1.0, device=here())
    y = torch.full((300_000,), 1.0, device=here())
    one = torch.ones(16, device=here())
    dist.all_reduce(torch.ones(1, device=here()))
    gpu().synchronize()
    graph = gpu().Graph() if DEVICE == "fakegpu" else gpu().CUDAGraph()
    side = gpu().Stream()
    with gpu().stream(side):
        graph.capture_begin()
        work = dist.all_reduce(y, async_op=True)
        x.add_(one)
        dist.all_reduce(x)
        work.wait()
        graph.capture_end()
        wanted = 1.0
        for step in range(4):
            graph.replay()
            wanted = 2 * (wanted + 1)
            if step == 1:  # between replays all is as ever
                dist.all_reduce(one.clone())
        expected = torch.full((16,), wanted)
    side.synchronize()
    assert torch.equal(x.cpu(), expected)
    assert torch.equal(y.cpu(), torch.full((300_000,), 16.0))


@pytest.mark.parametrize("mode", ["S", "K"])
def test_a_graph_replays_collectives_where_the_host_has_no_part_in_them(mode: str) -> None:
    run_on_devices(replayed, 2, mode=mode)
