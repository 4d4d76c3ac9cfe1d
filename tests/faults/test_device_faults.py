# SPDX-License-Identifier: MIT
"""What goes wrong while streams wait: all ranks raise and name the culprit; no stream stays held.

An asynchronous device cannot raise where the call is made, so an error is raised by the next wait()
or call, at the latest when a blocking one comes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from fake_cuda.device_ranks import DEVICE, busy, gpu, hear, here, meet, run_on_devices, tell
from ranks import Died, Rank

from pycomm.errors import CommError, Mismatch, UsageError

# As the tests of the CPU: benchmarks hold the targets.
WITHIN_S = 5.0
EVERY_MODE = pytest.mark.parametrize("mode", ["H", "S", "K"])


def said_by(call, *args, **given) -> CommError:
    with pytest.raises(CommError) as raised:
        call(*args, **given)
    return raised.value


def released() -> None:
    """Streams of this rank come to their end."""
    begun = time.monotonic()
    gpu().synchronize()
    assert time.monotonic() - begun < WITHIN_S


def killed(me: Rank) -> str:
    x = torch.ones(50_000, device=here())
    dist.all_reduce(x)
    gpu().synchronize()
    if me.rank == 2:
        for rank in (0, 1):
            hear(me, f"called{rank}")
        os.kill(os.getpid(), signal.SIGKILL)
    work = dist.all_reduce(x, async_op=True)
    work.wait()
    tell(me, f"called{me.rank}")
    released()
    error = said_by(dist.barrier)  # it blocks; streams are released a moment before ranks know
    assert error.ranks == (2,), error
    assert said_by(work.wait).ranks == (2,)
    assert said_by(dist.all_reduce, x).ranks == (2,)
    assert work.is_completed()
    assert not work.is_success()
    return str(error)


@EVERY_MODE
def test_a_killed_rank_is_named_by_all_and_releases_their_streams(mode: str) -> None:
    first, second, gone = run_on_devices(killed, 3, mode=mode, dies=(2,))
    assert "rank 2" in first
    assert "rank 2" in second
    assert isinstance(gone, Died)


def mismatched(me: Rank) -> str:
    meet()
    # Without the host the call itself says so if the other rank's was first.
    with contextlib.suppress(Mismatch):
        dist.all_reduce(torch.ones(10 + me.rank, device=here()), async_op=True).wait()
    released()
    return str(said_by(dist.barrier))


@EVERY_MODE
def test_a_mismatch_is_named_on_all_ranks(mode: str) -> None:
    for text in run_on_devices(mismatched, 2, mode=mode):
        assert "float32[10]" in text, text
        assert "float32[11]" in text, text


def expire_after(seconds: float) -> None:
    """From here on: who is slow to connect, on a busy machine, is not what is tested."""
    backend = dist.group.WORLD._get_backend(here())
    backend.set_timeout(timedelta(seconds=seconds))


def late(me: Rank) -> str:
    me.init()
    meet()
    expire_after(3)
    if me.rank == 1:
        hear(me, "given up")
        error = said_by(dist.all_reduce, torch.ones(8, device=here()))
        dist.destroy_process_group()
        return str(error)
    work = dist.all_reduce(torch.ones(8, device=here()), async_op=True)
    work.wait()
    released()
    error = said_by(work.wait)
    tell(me, "given up")
    dist.destroy_process_group()
    return str(error)


@EVERY_MODE
def test_a_timeout_releases_the_stream_and_names_who_did_not_come(mode: str) -> None:
    first, _ = run_on_devices(late, 2, mode=mode, init=False)
    assert "timeout after 3 s" in first
    assert "rank 1" in first


def held_up(me: Rank) -> str:
    """The stream of rank 0 does not come to the operation within the timeout."""
    me.init()
    meet()
    expire_after(3)
    x = torch.ones(8, device=here())
    gpu().synchronize()
    if me.rank == 0:
        gpu().sleep_ms(4500)
    dist.all_reduce(x)
    released()
    error = said_by(dist.barrier)
    dist.destroy_process_group()
    return str(error)


@pytest.mark.skipif(DEVICE != "fakegpu", reason="a fake GPU sleeps for as long as it is told")
@pytest.mark.parametrize("mode", ["H", "S"])  # in mode K as in S
def test_a_device_that_does_not_come_to_the_operation_is_named(mode: str) -> None:
    for text in run_on_devices(held_up, 2, mode=mode, init=False):
        assert "timeout after 3 s" in text, text


def aborted(me: Rank) -> None:
    meet()
    x = torch.ones(8, device=here())
    work = dist.all_reduce(x, async_op=True) if me.rank == 0 else None
    if me.rank == 1:
        hear(me, "called")
        dist.group.WORLD._get_backend(here()).abort()
    else:
        tell(me, "called")
        work.wait()
        released()
        assert "aborted by rank 1" in str(said_by(dist.barrier))
        assert "aborted by rank 1" in str(said_by(work.wait))
    said_by(dist.all_reduce, x)
    # The device is as good as before.
    assert x.add_(torch.ones(8, device=here())).sum().item() >= 16.0


@EVERY_MODE
def test_an_abort_leaves_the_device_usable(mode: str) -> None:
    run_on_devices(aborted, 2, mode=mode)


def failing_device(me: Rank, calls: int) -> str:
    x = torch.ones(8, device=here())
    dist.all_reduce(x)
    gpu().synchronize()
    if me.rank == 0:
        gpu().fail_after(gpu().current_device(), calls, "an injected failure")
    error = None
    for _ in range(3):
        try:
            dist.all_reduce(x)
            gpu().synchronize()
            dist.barrier()
        except (CommError, RuntimeError) as raised:
            error = error or str(raised)
    released()
    return str(error)


@pytest.mark.skipif(DEVICE != "fakegpu", reason="only a fake GPU fails when it is told")
@pytest.mark.parametrize(("mode", "calls"), [("H", 6), ("S", 2), ("K", 1)])
def test_a_failure_of_a_device_reaches_all_ranks(mode: str, calls: int) -> None:
    here_said, there_said = run_on_devices(failing_device, 2, calls, mode=mode)
    assert "an injected failure" in here_said
    assert "an injected failure" in there_said


def failing_call(me: Rank, calls: int) -> list[str]:
    """Rank 0 fails between announcing a collective and putting it on its stream, and goes on."""
    first, second = (
        torch.full((8,), scale * (me.rank + 1.0), device=here()) for scale in (1.0, 10.0)
    )
    dist.all_reduce(torch.ones(8, device=here()), async_op=True).wait()
    gpu().synchronize()
    if me.rank == 0:
        gpu().fail_after(gpu().current_device(), calls, "an injected failure")
    errors = []
    for x in (first, second):
        try:
            dist.all_reduce(x, async_op=True).wait()
        except (CommError, RuntimeError) as raised:
            errors.append(str(raised))
    released()
    errors.append(str(said_by(dist.barrier)))
    return errors


@pytest.mark.skipif(DEVICE != "fakegpu", reason="only a fake GPU fails when it is told")
@pytest.mark.parametrize(("mode", "calls"), [("S", 0), ("S", 1), ("K", 1)])
def test_no_call_is_taken_for_one_that_failed(mode: str, calls: int) -> None:
    for errors in run_on_devices(failing_call, 2, calls, mode=mode):
        for error in errors:
            assert "an injected failure" in error, errors


def memory_after_a_failure(me: Rank) -> None:
    """The stream of rank 0 comes to the collective only long after that has failed."""
    count = 54_321
    meet()
    part, out = torch.ones(count, device=here()), torch.zeros(2 * count, device=here())
    gpu().synchronize()
    if me.rank == 1:
        hear(me, "called")
        dist.group.WORLD._get_backend(here()).abort()
        said_by(dist.barrier)
        return
    side = gpu().Stream()
    with gpu().stream(side):
        busy(1500)
        work = dist.all_gather_into_tensor(out, part, async_op=True)
    tell(me, "called")
    while not work.is_completed():
        time.sleep(0.01)
    del work, part, out
    said_by(dist.barrier)
    said_by(dist.all_reduce, torch.ones(8, device=here()), async_op=True)
    fresh = [torch.full((n * count,), 7.0, device=here()) for n in (1, 2)]
    side.synchronize()
    time.sleep(0.3)  # no call waits for the group's own stream, which goes on now
    for x in fresh:
        assert torch.equal(x.cpu(), torch.full_like(x.cpu(), 7.0))


@EVERY_MODE
def test_a_stream_released_by_a_failure_writes_to_no_memory_that_was_given_away(mode: str) -> None:
    run_on_devices(memory_after_a_failure, 2, mode=mode)


def wrong_device(me: Rank) -> list[str]:
    texts = []
    dist.all_reduce(torch.ones(3, device=here(0)))
    for call in (
        lambda: dist.all_reduce(torch.ones(3, device=here(1))),
        lambda: dist.all_gather_into_tensor(torch.ones(6), torch.ones(3, device=here(0))),
    ):
        with pytest.raises((UsageError, RuntimeError)) as raised:
            call()
        texts.append(str(raised.value))
    x = torch.ones(3, device=here(0))
    dist.all_reduce(x)  # the group is as good as before
    assert x[0].item() == 2.0
    return texts


@pytest.mark.skipif(DEVICE != "fakegpu", reason="needs two devices for each rank")
def test_the_wrong_device_is_named() -> None:
    two = "uuid=A;uuid=B"
    for rank, texts in enumerate(run_on_devices(wrong_device, 2, gpus=two)):
        assert f"got a tensor on fakegpu:1, but rank {rank} is on fakegpu:0" in texts[0]
        assert (
            "got tensors on cpu and on fakegpu:0" in texts[1] or "expected one device" in texts[1]
        )
