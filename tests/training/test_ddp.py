# SPDX-License-Identifier: MIT
"""DistributedDataParallel in its forms: losses, parameters, buffers of one process, bit for bit."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from ranks import Rank
from reference_run import (
    Odd,
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
    scale_then_add,
    sgd,
    square_loss,
    tokens_of,
    train,
    whole_state,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

SMALL_BUCKETS = {"bucket_cap_mb": 0.002}  # 2 KiB: every few parameters travel on their own
OPTIONS = {
    "plain": {},
    "many_buckets": SMALL_BUCKETS,
    "static_graph": {"static_graph": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "all_at_once": {"static_graph": True, "gradient_as_bucket_view": True, **SMALL_BUCKETS},
}


def with_options(me: Rank, options: dict[str, Any]) -> Run:
    model = DistributedDataParallel(gpt(), **options)
    return train(model, sgd(model.parameters()), tokens_of(me.rank))


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_ddp_equals_one_process(name: str, world_size: int) -> None:
    runs = run_in_rank_order(with_options, world_size, OPTIONS[name])
    expect_equal(runs, alone(gpt, [tokens_of(rank) for rank in range(world_size)]))
    assert "all_reduce sum" in runs[0].collectives


def with_adam(me: Rank) -> Run:
    model = DistributedDataParallel(gpt(), **SMALL_BUCKETS)
    return train(model, adam(model.parameters()), tokens_of(me.rank))


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_ddp_with_adam_on_4_ranks_equals_one_process(transport: str) -> None:
    runs = run_in_rank_order(with_adam, 4, transport=transport)
    expect_equal(runs, alone(gpt, [tokens_of(rank) for rank in range(4)], adam))


# ---- parameters that a rank does not use


class Branches(nn.Module):
    """Uses the branch that the batch's first number chooses; the third is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(5, 6)
        self.branches = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))

    def forward(self, rows: Tensor) -> Tensor:
        return self.branches[int(rows[0, 0] > 0)](torch.tanh(self.trunk(rows)))


def branches() -> nn.Module:
    torch.manual_seed(0)
    return Branches()


def on_branches(me: Rank) -> Run:
    model = DistributedDataParallel(branches(), find_unused_parameters=True, **SMALL_BUCKETS)
    return train(model, sgd(model.parameters()), rows_of(me.rank), square_loss)


def test_ddp_finds_parameters_that_are_unused_on_some_ranks_or_on_all() -> None:
    shares = [rows_of(rank) for rank in range(3)]
    chosen = [{int(rows[0, 0] > 0) for rows in at_step} for at_step in zip(*shares, strict=True)]
    assert {0, 1} in chosen  # ranks differ at some step
    assert any(len(one) == 1 for one in chosen)  # all ranks leave a used branch out at some step
    expect_equal(run_in_rank_order(on_branches, 3), alone(branches, shares, loss_of=square_loss))


# ---- uneven inputs, accumulation


STEPS_OF_RANK = [5, 2, 4]


def joined(me: Rank, by_all: bool) -> Run:
    model = DistributedDataParallel(gpt(), **SMALL_BUCKETS)
    with model.join(divide_by_initial_world_size=by_all):
        batches = tokens_of(me.rank, STEPS_OF_RANK[me.rank])
        losses = train(model, sgd(model.parameters()), batches).losses
    return Run(losses, whole_state(model), collectives_run())


@pytest.mark.parametrize("by_all", [True, False], ids=["divide_by_all", "divide_by_active"])
def test_ddp_join_with_uneven_inputs_equals_one_process(by_all: bool) -> None:
    shares = [tokens_of(rank, steps) for rank, steps in enumerate(STEPS_OF_RANK)]
    combine = functools.partial(scale_then_add, divisor=3) if by_all else scale_then_add
    runs = run_in_rank_order(joined, 3, by_all)
    expect_equal(runs, alone(gpt, shares, combine=combine))
    assert [len(run.losses) for run in runs] == STEPS_OF_RANK


def accumulating(me: Rank, options: dict[str, Any]) -> Run:
    loss_of = functools.partial(accumulated_loss, without_reducing=DistributedDataParallel.no_sync)
    model = DistributedDataParallel(gpt(), **options)
    return train(model, sgd(model.parameters()), pairs_of(me.rank), loss_of)


@pytest.mark.parametrize("name", ["plain", "gradient_as_bucket_view"])
def test_ddp_no_sync_accumulates_as_one_process(name: str) -> None:
    shares = [pairs_of(rank) for rank in range(2)]
    expected = alone(gpt, shares, loss_of=accumulated_loss)
    expect_equal(run_in_rank_order(accumulating, 2, OPTIONS[name]), expected)


# ---- buffers, shared parameters


class Centred(nn.Module):
    """Subtracts a running mean before a layer: what a rank computes depends on its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.layer = nn.Linear(5, 1)

    def forward(self, rows: Tensor) -> Tensor:
        centred = rows - self.mean.clone()
        self.mean.lerp_(rows.mean(0), 0.5)
        self.batches += 1
        return self.layer(centred)


def centred() -> nn.Module:
    torch.manual_seed(0)
    return Centred()


def with_buffers(me: Rank) -> Run:
    model = centred()
    model.mean += me.rank  # the constructor's broadcast takes it back
    model = DistributedDataParallel(model)
    return train(model, sgd(model.parameters()), rows_of(me.rank), square_loss)


def test_ddp_broadcasts_buffers_of_rank_0_before_each_step() -> None:
    runs = run_in_rank_order(with_buffers, 3)
    expect_equal(runs, alone(centred, [rows_of(rank) for rank in range(3)], loss_of=square_loss))
    means = [run.state["mean"] for run in runs]
    assert not means[0].equal(means[1])  # after the last forward each rank has its own again


def batch_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))


def with_batch_norm(me: Rank) -> Run:
    model = DistributedDataParallel(batch_norm())
    return train(model, sgd(model.parameters()), rows_of(me.rank), square_loss)


def test_ddp_with_batch_norm_equals_one_process() -> None:
    expected = alone(batch_norm, [rows_of(rank) for rank in range(2)], loss_of=square_loss)
    expect_equal(run_in_rank_order(with_batch_norm, 2), expected)


def shared() -> nn.Module:
    """Two layers with one weight, two biases."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1))
    model[2].weight = model[0].weight
    return model


def sharing(me: Rank, options: dict[str, Any]) -> Run:
    model = DistributedDataParallel(shared(), **options)
    run = train(model, sgd(model.parameters()), rows_of(me.rank), square_loss)
    assert model.module[0].weight is model.module[2].weight
    return run


@pytest.mark.parametrize("name", ["plain", "all_at_once"])
def test_ddp_with_shared_parameters_equals_one_process(name: str) -> None:
    expected = alone(shared, [rows_of(rank) for rank in range(3)], loss_of=square_loss)
    expect_equal(run_in_rank_order(sharing, 3, OPTIONS[name]), expected)


def differing(me: Rank) -> Run:
    """Ranks begin with other weights, and one of them has a layer that is not trained."""
    torch.manual_seed(me.rank)
    model = Odd()
    model.first.weight.requires_grad_(False)
    model = DistributedDataParallel(model)
    return train(
        model, sgd(p for p in model.parameters() if p.requires_grad), rows_of(me.rank), square_loss
    )


def frozen() -> nn.Module:
    model = odd()
    model.first.weight.requires_grad_(False)
    return model


def test_ddp_starts_from_the_weights_of_rank_0() -> None:
    expected = alone(frozen, [rows_of(rank) for rank in range(2)], loss_of=square_loss)
    expect_equal(run_in_rank_order(differing, 2), expected)
