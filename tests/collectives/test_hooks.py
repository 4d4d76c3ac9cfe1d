# SPDX-License-Identifier: MIT
"""Who is told when operations end or fail: completion hooks, pending works, results, traces."""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks, run_threads
from torch._C._distributed_c10d import Backend
from torch.profiler import ProfilerActivity, profile

import pycomm


def completion_hook(me: Rank) -> None:
    world = dist.group.WORLD
    infos = []

    def hook(info) -> None:
        time.sleep(0.002)  # slower than the works: pending ones must be waited for
        infos.append((str(info.op_type), info.seq, info.active_duration, threading.get_ident()))

    world._register_on_completion_hook(hook)
    assert world._has_hooks()
    with pytest.raises(RuntimeError, match="has one already"):
        world._register_on_completion_hook(hook)
    x = torch.ones(100)
    for _ in range(5):
        dist.all_reduce(x)  # synchronous calls are told of, too
        dist.broadcast(x, 0, async_op=True)
    world._wait_for_pending_works()
    assert len(infos) == 10
    assert [info[1] for info in infos] == sorted(info[1] for info in infos)
    assert "ALLREDUCE" in infos[0][0] and "BROADCAST" in infos[1][0]
    # In whole microseconds, which a call to ranks that are there already need not take.
    assert all(info[2] >= timedelta(0) for info in infos)
    assert any(info[2] > timedelta(0) for info in infos)
    assert all(info[3] != threading.get_ident() for info in infos)
    # A hook that raises harms nobody; a hook may use the group.
    assert torch.isfinite(x).all()


def test_a_completion_hook_hears_of_every_operation_in_order() -> None:
    run_ranks(completion_hook, 2)


def pending(me: Rank) -> None:
    x = torch.ones(1 << 20)
    for _ in range(4):
        dist.all_reduce(x, async_op=True)
    dist.group.WORLD._wait_for_pending_works()
    assert (x == me.world_size**4).all()


def test_waiting_for_pending_works_waits_without_a_hook_too() -> None:
    run_ranks(pending, 2)


def results(me: Rank) -> None:
    x = torch.ones(3)
    work = me.group.allreduce([x])
    assert work.get_future_result().wait() == 0
    work.wait()
    assert work._get_duration() > 0
    assert work._get_sequence_number() == 1 if hasattr(work, "_get_sequence_number") else True
    bad = me.group.allreduce([torch.ones(3 + me.rank)])
    assert bad.get_future_result().wait() == 2, "COMM_ERROR"
    with pytest.raises(pycomm.Mismatch):
        bad.wait()
    assert bad.is_completed() and not bad.is_success()


def test_a_work_tells_how_it_ended() -> None:
    run_threads(results, 2)


def slow(me: Rank, told: threading.Event) -> None:
    if me.rank == 0:
        work = me.group.allreduce([torch.ones(3)])
        assert work.get_future_result().wait() == 1, "TIMEOUT"
        with pytest.raises(pycomm.Timeout):
            work.wait()
        told.set()
    else:
        assert told.wait(30)  # present, and not at the operation


def test_a_timeout_is_told_as_one() -> None:
    run_threads(slow, 2, threading.Event(), options={"timeout_ms": 500})


def block_stream(me: Rank) -> None:
    x = torch.ones(1 << 18)
    work = dist.all_reduce(x, async_op=True)
    work.block_current_stream()
    assert work.is_completed() and (x == me.world_size).all()


def test_blocking_the_current_stream_waits_for_cpu_tensors() -> None:
    run_ranks(block_stream, 2)


def abort_hooks(me: Rank) -> list[str]:
    calls: list[str] = []
    me.backend.register_abort_hook(1, lambda: calls.append("one"))
    me.backend.register_abort_hook(2, lambda: calls.append("two"))
    me.backend.unregister_abort_hook(2)
    assert me.backend.supports_abort_hooks
    work = me.group.allreduce([torch.ones(3 + me.rank)])
    with pytest.raises(pycomm.Mismatch):
        work.wait()
    return calls


@pytest.mark.skipif(
    not hasattr(Backend, "register_abort_hook"), reason="this torch has no abort hooks"
)
def test_abort_hooks_run_before_anybody_learns_of_a_failure() -> None:
    for calls in run_threads(abort_hooks, 2):
        assert calls == ["one"]


def traced(me: Rank, folder: str) -> None:
    x = torch.ones(6, 4)
    out = torch.empty(6 * me.world_size, 4)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        dist.all_reduce(x)
        dist.all_gather_into_tensor(out, x)
        if me.rank == 0:
            dist.send(x, 1)
        elif me.rank == 1:
            dist.recv(x, 0)
    if me.rank:
        return
    path = Path(folder) / "trace.json"
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    calls = [event["args"] for event in events if event["name"] == "record_param_comms"]
    by_name = {call["Collective name"]: call for call in calls}
    assert set(by_name) == {"all_reduce", "all_gather", "send"}
    gather = by_name["all_gather"]
    assert (gather["In msg nelems"], gather["Out msg nelems"]) == (24, 24 * me.world_size)
    assert gather["dtype"] == "Float" and gather["Group size"] == me.world_size
    assert by_name["all_reduce"]["Seq"] + 1 == gather["Seq"]


def test_a_trace_holds_what_analysers_want_of_each_call(tmp_path: Path) -> None:
    run_ranks(traced, 2, str(tmp_path))


# ---- collectives called in callbacks


def called_in_callbacks(me: Rank) -> None:
    """The same program, with delays of its own on each rank, so that callbacks run now or later."""
    a, b, c, d = (torch.ones(n) for n in (10, 20, 30, 40))
    for round_ in range(6):
        first = dist.all_reduce(a, async_op=True)
        second = dist.all_reduce(b, async_op=True)
        if (me.rank + round_) % 2:
            time.sleep(0.02)
        future = first.get_future().then(lambda done: dist.all_reduce(c))
        with pytest.raises(pycomm.UsageError):
            dist.all_gather_into_tensor(torch.empty(5), torch.ones(4))
        third = dist.all_reduce(d, async_op=True)
        if (me.rank + round_) % 3:
            time.sleep(0.02)
        for work in (second, third):
            work.wait()
        future.wait()
    for x in (a, b, c, d):
        assert (x == me.world_size**6).all()


@pytest.mark.parametrize("world_size", [2, 3])
def test_collectives_of_callbacks_have_one_place_on_all_ranks(world_size: int) -> None:
    run_ranks(called_in_callbacks, world_size)


def callback_waits_for_a_later_call(me: Rank, step: int) -> bool:
    """Whether the callback waited; it runs on the spot if the first all_reduce is over already."""
    a, b = torch.ones(10), torch.ones(20)
    called = threading.Event()
    later = []
    here = threading.get_ident()
    ran_on = []

    def callback(done) -> None:
        ran_on.append(threading.get_ident())
        if ran_on[0] != here:
            called.wait()
            later[0].wait()

    # One rank comes late, once the other has attached the callback.
    late = step % 2 == me.rank
    if late:
        me.store.wait([f"attached{step}"])
    future = dist.all_reduce(a, async_op=True).get_future().then(callback)
    if not late:
        me.store.set(f"attached{step}", "1")
    later.append(dist.all_reduce(b, async_op=True))
    called.set()
    future.wait()
    later[0].wait()
    assert (b == me.world_size).all()
    return ran_on[0] != here


def callbacks_wait_for_later_calls(me: Rank) -> None:
    waited = [callback_waits_for_a_later_call(me, step) for step in range(6)]
    assert all(waited[1 - me.rank :: 2]), waited


def test_a_callback_may_wait_for_what_was_called_later() -> None:
    run_ranks(callbacks_wait_for_later_calls, 2, timeout_s=20)


def refused_works(me: Rank) -> int:
    me.backend.close("the test ends it", False)
    before = 0
    for number in range(20):
        if number == 10:  # the first error loads code
            before = resident_kib()
        with pytest.raises(RuntimeError):
            me.group.allreduce([torch.ones(4_000_000)])
    return resident_kib() - before


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def test_a_refused_call_does_not_keep_its_tensors() -> None:
    (grown,) = run_threads(refused_works, 1)
    assert grown < 60_000, f"{grown} KiB of 160 MB"
