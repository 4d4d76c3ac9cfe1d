# SPDX-License-Identifier: MIT
"""Calls of the backend without a second process: alone, and with a second rank in a thread.

Two threads of one interpreter share the GIL, so the times of two ranks hold hand-overs of it that
processes do not have: compare them with themselves only. make bench-micro.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_threads

STOP = 1.0


@pytest.fixture
def alone() -> Any:
    """A default group of one rank."""
    dist.init_process_group("pycomm", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_all_reduce_of_one_rank(benchmark: Any, alone: None) -> None:
    """What a call costs before any peer is involved."""
    benchmark(dist.all_reduce, torch.zeros(2))


def test_asynchronous_all_reduce_of_one_rank(benchmark: Any, alone: None) -> None:
    tensor = torch.zeros(2)
    benchmark(lambda: dist.all_reduce(tensor, async_op=True).wait())


def with_a_partner(benchmark: Any, count: int, call: Callable[[Rank, torch.Tensor], None]) -> None:
    """Times `call` on rank 0 while rank 1 answers it until it is told to stop."""

    def rank_main(me: Rank) -> None:
        tensor = torch.zeros(count)
        if me.rank == 0:
            benchmark(call, me, tensor)
            tensor[0] = STOP
            call(me, tensor)
            return
        while tensor[0] != STOP:
            call(me, tensor)

    run_threads(rank_main, 2)


@pytest.mark.parametrize("size", [8, 64 << 10, 1 << 20])
def test_all_reduce_of_two_threads(benchmark: Any, size: int) -> None:
    with_a_partner(benchmark, size // 4, lambda me, x: me.backend.allreduce([x]).wait())


def test_set_up_and_close_of_two_threads(benchmark: Any) -> None:
    benchmark.pedantic(run_threads, args=(lambda me: None, 2), rounds=20)
