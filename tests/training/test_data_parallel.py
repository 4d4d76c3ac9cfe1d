# SPDX-License-Identifier: MIT
"""pycomm.DataParallel against torch's DDP, both on pycomm: the same bits after some steps."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from ranks import Rank
from reference_run import (
    Run,
    alone,
    collectives_run,
    expect_equal,
    gpt,
    run_in_rank_order,
    scale_then_add,
    sgd,
    tokens_of,
    train,
    whole_state,
)
from replica_scenarios import DDP_OPTIONS, SCENARIOS, differing
from torch.nn.parallel import DistributedDataParallel

import pycomm

SMALL_BUCKETS = 2048  # several buckets of every model


def both_ways(me: Rank, names: list[str]) -> dict[str, list[str]]:
    """By scenario, what differs between DDP and DataParallel on this rank."""
    wrong = {}
    for name in names:
        wrap = functools.partial(DistributedDataParallel, **DDP_OPTIONS[name])
        expected = SCENARIOS[name](me.rank, wrap)
        assert expected
        for bucket_bytes in (None, SMALL_BUCKETS):
            wrap = functools.partial(pycomm.DataParallel, bucket_bytes=bucket_bytes)
            wrong[f"{name}, {bucket_bytes}"] = differing(SCENARIOS[name](me.rank, wrap), expected)
    return {name: what for name, what in wrong.items() if what}


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", SCENARIOS)
def test_parameters_are_those_of_ddp_bit_for_bit(name: str, world_size: int) -> None:
    assert run_in_rank_order(both_ways, world_size, [name]) == [{}] * world_size


def test_4_ranks_over_tcp_and_without_an_arena_are_as_ddp() -> None:
    names = ["a_gpt_with_tied_weights", "large_and_small_gradients"]
    assert run_in_rank_order(both_ways, 4, names, transport="tcp") == [{}] * 4


def plain(me: Rank) -> Run:
    model = pycomm.DataParallel(gpt())
    return train(model, sgd(model.parameters()), tokens_of(me.rank))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_data_parallel_equals_one_process(world_size: int) -> None:
    runs = run_in_rank_order(plain, world_size)
    if world_size == 1:
        runs[0].collectives = {"none"}  # and none are needed
    expect_equal(runs, alone(gpt, [tokens_of(rank) for rank in range(world_size)]))


STEPS_OF_RANK = [5, 2, 4]


def joined(me: Rank, by_all: bool) -> Run:
    model = pycomm.DataParallel(gpt(), bucket_bytes=SMALL_BUCKETS)
    with model.join(divide_by_initial_world_size=by_all):
        batches = tokens_of(me.rank, STEPS_OF_RANK[me.rank])
        losses = train(model, sgd(model.parameters()), batches).losses
    return Run(losses, whole_state(model), collectives_run())


@pytest.mark.parametrize("by_all", [True, False], ids=["divide_by_all", "divide_by_active"])
def test_join_with_uneven_inputs_equals_one_process(by_all: bool) -> None:
    shares = [tokens_of(rank, steps) for rank, steps in enumerate(STEPS_OF_RANK)]
    combine: Any = functools.partial(scale_then_add, divisor=3) if by_all else scale_then_add
    runs = run_in_rank_order(joined, 3, by_all)
    expect_equal(runs, alone(gpt, shares, combine=combine))
