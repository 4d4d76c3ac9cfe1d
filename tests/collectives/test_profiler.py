# SPDX-License-Identifier: MIT
"""What torch.profiler sees: one asynchronous event for each call, with its title and shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks


def record() -> torch.profiler.profile:
    cpu = torch.profiler.ProfilerActivity.CPU
    return torch.profiler.profile(activities=[cpu], record_shapes=True)


def every_call(p: int, rank: int, is_async: bool) -> dict[str, tuple[Callable[[], object], list]]:
    """Title to the call that should show it once, and the shapes of its inputs on this rank."""
    a = {"async_op": is_async}
    x = torch.ones(p, 3)

    def rows() -> list[torch.Tensor]:
        return [torch.zeros(3) for _ in range(p)]

    root = rank == 0
    return {
        "all_reduce": (lambda: dist.all_reduce(x, **a), [[p, 3]]),
        "broadcast": (lambda: dist.broadcast(x, 1, **a), [[p, 3]]),
        "reduce": (lambda: dist.reduce(x, 0, **a), [[p, 3]]),
        "all_gather": (lambda: dist.all_gather(rows(), x[0], **a), [[3]]),
        "gather": (lambda: dist.gather(x[0], rows() if root else None, 0, **a), [[3]]),
        "scatter": (
            lambda: dist.scatter(x[0], rows() if root else None, 0, **a),
            [[3]] * p if root else [],
        ),
        "reduce_scatter": (lambda: dist.reduce_scatter(x[0], rows(), **a), [[3]] * p),
        "all_to_all": (lambda: dist.all_to_all(rows(), rows(), **a), [[3]] * p),
        "barrier": (lambda: dist.barrier(**a), []),
    }


def events_of_calls(me: Rank, is_async: bool) -> None:
    for title, (call, shapes) in every_call(me.world_size, me.rank, is_async).items():
        with record() as profile:
            work = call()
            if is_async:
                work.wait()
        events = [event for event in profile.events() if event.name.startswith("pycomm:")]
        assert [event.name for event in events] == [f"pycomm:{title}"], title
        (event,) = events
        assert event.is_async and event.count == 1, title
        assert event.time_range.elapsed_us() > 0, title
        got = [shape for shape in event.input_shapes if shape]
        assert got == shapes, f"{title}: recorded {event.input_shapes}, given {shapes}"


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_each_collective_is_one_asynchronous_event_with_its_input_shapes(is_async: bool) -> None:
    for world_size in (2, 3):
        run_ranks(events_of_calls, world_size, is_async)


def events_of_tensor_forms(me: Rank) -> None:
    """The forms that take one large tensor and those that take several at once share titles."""
    p = me.world_size
    whole, block = torch.ones(p, 3), torch.ones(1, 3)
    for title, shape, call in (
        ("all_gather", [1, 3], lambda: dist.all_gather_into_tensor(whole, block)),
        ("reduce_scatter", [p, 3], lambda: dist.reduce_scatter_tensor(block, whole)),
        ("all_to_all", [p, 3], lambda: dist.all_to_all_single(torch.zeros(p, 3), whole)),
    ):
        with record() as profile:
            call()
        events = [event for event in profile.events() if event.name == f"pycomm:{title}"]
        assert len(events) == 1 and events[0].input_shapes == [shape], (title, events)
    with record() as profile, dist._coalescing_manager():
        for _ in range(3):
            dist.all_reduce(block)
    events = [event for event in profile.events() if event.name == "pycomm:all_reduce"]
    assert len(events) == 1 and events[0].input_shapes == [[1, 3]] * 3, events


def test_calls_that_take_whole_tensors_are_one_event_too() -> None:
    run_ranks(events_of_tensor_forms, 2)


def events_of_messages(me: Rank) -> None:
    x = torch.ones(2, 5)
    for is_async in (False, True):
        with record() as profile:
            if me.rank == 0:
                one = dist.isend(x, 1) if is_async else dist.send(x, 1)
            elif is_async:
                one = dist.irecv(x, 0)
            else:
                one = dist.recv(x, 0)
            if is_async:
                one.wait()
        title = "pycomm:send" if me.rank == 0 else "pycomm:recv"
        events = [event for event in profile.events() if event.name.startswith("pycomm:")]
        assert [event.name for event in events] == [title]
        assert events[0].is_async
        assert me.rank == 1 or events[0].input_shapes == [[2, 5]]
    with record() as profile:
        if me.rank == 0:
            dist.send(x, 1)
        else:
            dist.recv(x)
    events = [event for event in profile.events() if event.name.startswith("pycomm:")]
    title = "pycomm:send" if me.rank == 0 else "pycomm:recvAnySource"
    assert [event.name for event in events] == [title]


def test_each_message_is_one_asynchronous_event_on_both_sides() -> None:
    run_ranks(events_of_messages, 2)


def trace_of_training(me: Rank, folder: str) -> None:
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    with record() as profile:
        model(torch.ones(2, 4)).sum().backward()
        with torch.profiler.record_function("after"):
            dist.barrier()
    profile.export_chrome_trace(f"{folder}/{me.rank}.json")
    assert "pycomm:all_reduce" in profile.key_averages().table()


def test_a_chrome_trace_shows_the_gradients_reduction_on_every_rank(tmp_path: Path) -> None:
    run_ranks(trace_of_training, 2, str(tmp_path))
    for rank in range(2):
        trace = json.loads((tmp_path / f"{rank}.json").read_text())
        names = [event.get("name") for event in trace["traceEvents"]]
        assert "after" in names
        for title in ("pycomm:all_reduce", "pycomm:barrier"):
            assert title in names, f"rank {rank}: no {title}"


def names_given_by_the_program(me: Rank) -> list[str]:
    with record() as profile:
        with dist.record_comm("layer 1: gradients"):
            dist.all_reduce(torch.ones(3))
            dist.all_reduce(torch.ones(3), async_op=True).wait()
        dist.all_reduce(torch.ones(3))
    return sorted(
        event.name
        for event in profile.events()
        if event.name == "layer 1: gradients" or event.name.startswith("pycomm:")
    )


@pytest.mark.skipif(not hasattr(dist, "record_comm"), reason="torch before 2.13")
def test_record_comm_gives_calls_another_title() -> None:
    for names in run_ranks(names_given_by_the_program, 2):
        assert names == ["layer 1: gradients"] * 2 + ["pycomm:all_reduce"]


def unprofiled_afterwards(me: Rank) -> None:
    with record():
        pending = dist.all_reduce(torch.ones(200_000), async_op=True)
    pending.wait()  # begun under the profiler, finished after it
    x = torch.ones(3)
    dist.all_reduce(x)
    assert (x == me.world_size).all()


def test_an_operation_may_outlive_the_profiler_that_saw_it_begin() -> None:
    run_ranks(unprofiled_afterwards, 2)
