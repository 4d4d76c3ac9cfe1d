# SPDX-License-Identifier: MIT
"""ZeroRedundancyOptimizer: plain, and stepping within DDP's backward, which torch bans on Gloo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import Rank
from reference_run import (
    Run,
    alone,
    expect_equal,
    gpt,
    run_in_rank_order,
    tokens_of,
    train,
)
from test_ddp_hooks import divide_then_add
from torch.distributed.algorithms.ddp_comm_hooks.ddp_zero_hook import (
    hook_with_zero_step,
    hook_with_zero_step_interleaved,
)
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

SGD = {"optimizer_class": torch.optim.SGD, "lr": 0.3, "momentum": 0.9}
ADAM = {"optimizer_class": torch.optim.AdamW, "lr": 0.01}


def make(parameters: Any, optimizer_class: Any, **settings: Any) -> torch.optim.Optimizer:
    return optimizer_class(parameters, **settings)


def sharded(me: Rank, settings: dict[str, Any], bucket_view: bool) -> Run:
    model = DistributedDataParallel(gpt())
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), parameters_as_bucket_view=bucket_view, **settings
    )
    held = sum(len(group["params"]) for group in optimizer.optim.param_groups)
    assert 0 < held < len(list(model.parameters()))
    run = train(model, optimizer, tokens_of(me.rank))
    optimizer.consolidate_state_dict(to=1)
    run.extra = optimizer.state_dict() if me.rank == 1 else None
    return run


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("bucket_view", [False, True], ids=["parameters", "bucket_view"])
@pytest.mark.parametrize("settings", [SGD, ADAM], ids=["sgd", "adam"])
def test_zero_and_its_whole_state_equal_one_process(
    settings: dict[str, Any], bucket_view: bool, world_size: int
) -> None:
    runs = run_in_rank_order(sharded, world_size, settings, bucket_view)
    shares = [tokens_of(rank) for rank in range(world_size)]
    expected = alone(gpt, shares, lambda parameters: make(parameters, **settings))
    expect_equal(runs, expected)
    given, state = runs[1].extra["state"], expected[0].extra["state"]
    assert given.keys() == state.keys()
    for index, of_parameter in state.items():
        assert given[index].keys() == of_parameter.keys()
        for key, value in of_parameter.items():
            assert torch.as_tensor(given[index][key]).equal(torch.as_tensor(value)), (index, key)


# ---- overlapped with backward


STEPS = 6


class LateSgd(torch.optim.SGD):
    """Leaves out the first steps, as the overlapped hook does until DDP's buckets are known."""

    def __init__(self, parameters: Any, late: int) -> None:
        super().__init__(parameters, lr=0.3, momentum=0.9)
        self.late = late

    def step(self, closure: Any = None) -> None:
        self.late -= 1
        if self.late < 0:
            super().step(closure)


class Stepped:
    """An optimizer that has stepped when backward ends."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.zero_grad = optimizer.zero_grad

    def step(self) -> None:
        pass


def overlapped(me: Rank, options: dict[str, Any], shard_buckets: bool, hook: Any) -> Run:
    model = DistributedDataParallel(gpt(), **options)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), overlap_with_ddp=True, **SGD)
    model.register_comm_hook(None, hook(allreduce_hook, model, optimizer, shard_buckets))
    return train(model, Stepped(optimizer), tokens_of(me.rank, STEPS))


SMALL_BUCKETS = {"bucket_cap_mb": 0.004}  # 7 of them
OVERLAPS = {
    "one_bucket": ({}, False, hook_with_zero_step),
    "many_buckets": (SMALL_BUCKETS, False, hook_with_zero_step),
    "shard_buckets": (SMALL_BUCKETS, True, hook_with_zero_step),
    "static_graph": ({"static_graph": True, **SMALL_BUCKETS}, False, hook_with_zero_step),
    # Its broadcasts come from callbacks.
    "interleaved": ({}, False, hook_with_zero_step_interleaved),
    "interleaved_many_buckets": (SMALL_BUCKETS, False, hook_with_zero_step_interleaved),
}


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", OVERLAPS)
def test_zero_overlapped_with_ddp_equals_one_process(name: str, world_size: int) -> None:
    late = 3 if name == "static_graph" else 2
    shares = [tokens_of(rank, STEPS) for rank in range(world_size)]
    expected = alone(gpt, shares, lambda parameters: LateSgd(parameters, late), divide_then_add)
    runs = run_in_rank_order(overlapped, world_size, *OVERLAPS[name])
    expect_equal(runs, expected)
