# SPDX-License-Identifier: MIT
"""FullyShardedDataParallel on CPU: losses, parameters and optimizer state of one process."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Rank
from reference_run import (
    Run,
    accumulated_loss,
    adam,
    alone,
    collectives_run,
    expect_equal,
    gpt,
    odd,
    pairs_of,
    rows_of,
    run_in_rank_order,
    sgd,
    square_loss,
    tokens_of,
    train,
    whole_state,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp
from torch.distributed.fsdp import ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

CPU = torch.device("cpu")


def divide_around_sum(gradients: Sequence[Tensor]) -> Tensor:
    """Up to 4 ranks FSDP1 divides by 2 before the sum, and by the rest after it."""
    total = functools.reduce(torch.add, [gradient / 2 for gradient in gradients])
    return total / (len(gradients) / 2)


def wrapped(model: nn.Module, strategy: str, **options: Any) -> Fsdp:
    blocks = {type(block) for block in getattr(model, "blocks", [model])}
    return Fsdp(
        model,
        sharding_strategy=ShardingStrategy[strategy],
        auto_wrap_policy=ModuleWrapPolicy(blocks - {type(model)}),
        device_id=CPU,
        **options,
    )


def whole(model: Fsdp, losses: list[float]) -> Run:
    with Fsdp.summon_full_params(model):
        return Run(losses, whole_state(model), collectives_run())


def fsdp1(me: Rank, strategy: str, use_orig_params: bool) -> Run:
    model = wrapped(gpt(), strategy, use_orig_params=use_orig_params)
    losses = train(model, sgd(model.parameters()), tokens_of(me.rank)).losses
    return whole(model, losses)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("use_orig_params", [True, False], ids=["orig_params", "flat_params"])
@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"])
def test_fsdp1_equals_one_process(strategy: str, use_orig_params: bool, world_size: int) -> None:
    runs = run_in_rank_order(fsdp1, world_size, strategy, use_orig_params)
    shares = [tokens_of(rank) for rank in range(world_size)]
    expect_equal(runs, alone(gpt, shares, combine=divide_around_sum))
    if strategy == "NO_SHARD":
        assert runs[0].collectives == {"all_reduce sum"}
    else:
        assert runs[0].collectives == {"all_gather", "reduce_scatter sum"}


def in_pairs(gradients: Sequence[Tensor]) -> Tensor:
    """The sum of each shard group, then over the replicas; all divisors are powers of two."""
    return (sum(gradients[:2]) + sum(gradients[2:])) / len(gradients)


def hybrid(me: Rank, strategy: str) -> Run:
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = wrapped(gpt(), strategy, device_mesh=mesh, use_orig_params=True)
    return whole(model, train(model, sgd(model.parameters()), tokens_of(me.rank)).losses)


@pytest.mark.parametrize("strategy", ["HYBRID_SHARD", "_HYBRID_SHARD_ZERO2"])
def test_fsdp1_on_replicas_of_shards_equals_one_process(strategy: str) -> None:
    runs = run_in_rank_order(hybrid, 4, strategy)
    expect_equal(runs, alone(gpt, [tokens_of(rank) for rank in range(4)], combine=in_pairs))
    assert runs[0].collectives == {"all_gather", "reduce_scatter sum", "all_reduce sum"}


def uneven_fsdp1(me: Rank, use_orig_params: bool) -> Run:
    """151 numbers over 3 ranks: parameters are cut anywhere, the last shard is padded."""
    model = wrapped(odd(), "FULL_SHARD", use_orig_params=use_orig_params)
    optimizer = adam(model.parameters())
    run = whole(model, train(model, optimizer, rows_of(me.rank), square_loss).losses)
    options = StateDictOptions(full_state_dict=True)
    run.extra = get_optimizer_state_dict(model, optimizer, options=options)["state"]
    return run


@pytest.mark.parametrize("use_orig_params", [True, False], ids=["orig_params", "flat_params"])
def test_fsdp1_with_uneven_shards_and_its_optimizer_state_equal_one_process(
    use_orig_params: bool,
) -> None:
    expected = alone(odd, [rows_of(r) for r in range(3)], adam, divide_around_sum, square_loss)
    runs = run_in_rank_order(uneven_fsdp1, 3, use_orig_params)
    expect_equal(runs, expected)
    for i, (name, _) in enumerate(odd().named_parameters()):
        state, given = expected[0].extra["state"][i], runs[0].extra[name]
        assert given.keys() == state.keys()
        for key, value in state.items():
            # torch gathers the states of original parameters into one buffer, and on CPU, where it
            # makes no copy, all are the last one, on every backend.
            if not (use_orig_params and key == "exp_avg"):
                torch.testing.assert_close(given[key], value, rtol=0, atol=0)


# ---- clipping, accumulation


MAX_NORM = 0.2


def clip(model: nn.Module) -> None:
    if isinstance(model, Fsdp):
        norm = model.clip_grad_norm_(MAX_NORM)
    else:
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    assert norm > 2 * MAX_NORM  # it does something


def clipped(me: Rank) -> Run:
    model = wrapped(gpt(), "FULL_SHARD", use_orig_params=True)
    losses = train(model, sgd(model.parameters()), tokens_of(me.rank), before_step=clip).losses
    return whole(model, losses)


@pytest.mark.parametrize("world_size", [2, 3])
def test_fsdp1_clips_by_the_norm_over_all_shards(world_size: int) -> None:
    """The norm is a sum of squares over shards, in another order: some roundings of float32."""
    shares = [tokens_of(rank) for rank in range(world_size)]
    expected = alone(gpt, shares, combine=divide_around_sum, before_step=clip)
    expect_equal(run_in_rank_order(clipped, world_size), expected, rtol=1e-5, atol=1e-7)


def accumulating(me: Rank) -> Run:
    loss_of = functools.partial(accumulated_loss, without_reducing=Fsdp.no_sync)
    model = wrapped(gpt(), "FULL_SHARD", use_orig_params=True)
    optimizer = sgd(model.parameters())
    return whole(model, train(model, optimizer, pairs_of(me.rank), loss_of).losses)


def test_fsdp1_no_sync_accumulates_as_one_process() -> None:
    shares = [pairs_of(rank) for rank in range(2)]
    expected = alone(gpt, shares, combine=divide_around_sum, loss_of=accumulated_loss)
    expect_equal(run_in_rank_order(accumulating, 2), expected)
