# SPDX-License-Identifier: MIT
"""What goes wrong where another backend carries what goes between hosts: all ranks name the culprit
in the group's numbering, and no stream stays held."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
import torch
import torch.distributed as dist
from fake_cuda.device_ranks import DEVICE, hear, here, meet, tell
from fake_cuda.hosts import REGISTERED, handed_over, run_on_hosts
from ranks import Died, Rank
from test_device_faults import aborted, held_up, killed, late, mismatched, released, said_by

from pycomm.errors import CommError, Mismatch

COUNT = 50_000  # of float32: every rank's share crosses by itself


def killed_far_away(me: Rank) -> str:
    """Rank 3 dies while the three others wait, one of them on its own host."""
    x = torch.ones(COUNT, device=here())
    dist.all_reduce(x)
    if me.rank == 3:
        for rank in range(3):
            hear(me, f"called{rank}")
        os.kill(os.getpid(), signal.SIGKILL)
    work = dist.all_reduce(x, async_op=True)
    work.wait()
    tell(me, f"called{me.rank}")
    released()
    assert said_by(dist.barrier).ranks == (3,)
    assert said_by(work.wait).ranks == (3,)
    return str(said_by(dist.all_reduce, x))


@pytest.mark.parametrize(("scenario", "hosts"), [(killed, "abc"), (killed_far_away, "aabb")])
def test_a_killed_rank_is_named_by_all_and_releases_their_streams(scenario, hosts: str) -> None:
    gone = len(hosts) - 1
    results = run_on_hosts(scenario, hosts, dies=(gone,))
    assert isinstance(results.pop(), Died)
    for text in results:
        assert f"rank {gone}" in text


def one_of_two_ways(me: Rank) -> str:
    """What rank 1 calls does not go through the halves."""
    for dtype in (torch.int16, torch.float32):  # both ways are set up
        dist.all_reduce(torch.ones(10, dtype=dtype, device=here()))
    dtype = torch.int16 if me.rank else torch.float32
    with contextlib.suppress(Mismatch):
        dist.all_reduce(torch.ones(10, dtype=dtype, device=here()), async_op=True).wait()
    released()
    return str(said_by(dist.barrier))


def other_list(me: Rank) -> str:
    xs = [torch.ones(n, device=here()) for n in (4, 5 + me.rank)]
    with contextlib.suppress(Mismatch), dist._coalescing_manager(device=here()):
        for x in xs:
            dist.all_reduce(x)
    released()
    return str(said_by(dist.barrier))


def test_a_mismatch_is_named_on_all_ranks() -> None:
    for text in run_on_hosts(other_list, "ab"):
        assert "coalesces other tensors with all_reduce(float32[4], sum)" in text, text
    for text in run_on_hosts(mismatched, "ab"):
        assert "float32[10]" in text, text
        assert "float32[11]" in text, text
    for text in run_on_hosts(one_of_two_ways, "ab"):
        assert "int16[10]" in text, text


def test_a_timeout_names_who_did_not_come() -> None:
    first, _ = run_on_hosts(late, "ab", init=False, inter="handed")
    assert "timeout after 3 s" in first
    assert "rank 1" in first


@pytest.mark.skipif(DEVICE != "fakegpu", reason="a fake GPU sleeps for as long as it is told")
def test_a_device_that_does_not_come_to_the_operation_is_named() -> None:
    for text in run_on_hosts(held_up, "ab", init=False):
        assert "timeout after 3 s" in text, text


def aborted_far_away(me: Rank) -> None:
    """No half of rank 3 has rank 0, which aborts, but it waits for rank 2, which waits for that."""
    meet()
    dist.barrier()
    if me.rank == 0:
        for rank in (1, 2, 3):
            hear(me, f"called{rank}")
        dist.group.WORLD._get_backend(here()).abort()
        return
    work = dist.all_reduce(torch.ones(COUNT, device=here()), async_op=True)
    work.wait()
    tell(me, f"called{me.rank}")
    released()
    assert "aborted by rank 0" in str(said_by(work.wait))


def test_an_abort_leaves_the_device_usable() -> None:
    run_on_hosts(aborted, "ab")
    run_on_hosts(aborted_far_away, "aabb")


def half_aborted(me: Rank) -> str:
    """Rank 2's backend between hosts dies by itself, while its peer is still to come."""
    meet()
    dist.barrier()
    assert "handed between" in handed_over()
    x = torch.ones(COUNT, device=here())
    if me.rank == 0:
        hear(me, "aborted")
    with contextlib.suppress(CommError):  # of rank 0, whose half has heard by then
        dist.all_reduce(x, async_op=True)
    if me.rank == 2:
        REGISTERED[0].abort()
        tell(me, "aborted")
    released()
    error = said_by(dist.barrier)
    assert error.ranks == (2,), error
    return str(error)


def test_a_half_that_fails_by_itself_fails_the_group() -> None:
    for text in run_on_hosts(half_aborted, "aabb", inter="handed"):
        assert "its ranks 0 to 1 are ranks 0, 2 of the group" in text, text
