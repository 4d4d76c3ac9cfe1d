# SPDX-License-Identifier: MIT
"""Post-local SGD and averaging of models, against several models trained in one process."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.distributed as dist
from ranks import Rank
from reference_run import (
    Run,
    collectives_run,
    expect_equal,
    gpt,
    next_byte_loss,
    run_in_rank_order,
    sgd,
    tokens_of,
    train,
    whole_state,
)
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.hierarchical_model_averager import (
    HierarchicalModelAverager,
)
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

STEPS, WORLD_SIZE = 7, 4
LOCAL_FROM, PERIOD = 2, 3  # steps that are global; then models are averaged every PERIOD steps
ALL, PAIRS, NOBODY = [[0, 1, 2, 3]], [[0, 1], [2, 3]], []

Groups = Sequence[Sequence[int]]


def mean(tensors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, [tensor / len(tensors) for tensor in tensors])


def several_alone(
    gradients_over: Callable[[int], Groups], models_over: Callable[[int], Groups]
) -> list[Run]:
    """Trains one model for each rank; at step i means are taken over the groups of ranks given."""
    models = [gpt() for _ in range(WORLD_SIZE)]
    optimizers = [sgd(model.parameters()) for model in models]
    losses: list[list[float]] = [[] for _ in models]
    shares = [tokens_of(rank, STEPS) for rank in range(WORLD_SIZE)]
    for step in range(STEPS):
        for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            loss = next_byte_loss(model, shares[rank][step])
            loss.backward()
            losses[rank].append(loss.item())
        for group in gradients_over(step):
            for same in zip(*(models[rank].parameters() for rank in group), strict=True):
                gradient = mean([parameter.grad for parameter in same])
                for parameter in same:
                    parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
        for group in models_over(step):
            for same in zip(*(models[rank].parameters() for rank in group), strict=True):
                average = mean([parameter.detach() for parameter in same])
                for parameter in same:
                    parameter.data.copy_(average)
    return [Run(of_rank, whole_state(m)) for of_rank, m in zip(losses, models, strict=True)]


def post_local(me: Rank, reduce_locally: bool, resume: bool) -> Run:
    """As torch's documentation shows it; with `resume` in two parts, by state dicts."""
    pair, _ = dist.new_subgroups(group_size=2)
    hook_state = PostLocalSGDState(None, pair, LOCAL_FROM, reduce_locally)

    def make(model: torch.nn.Module) -> tuple[torch.nn.Module, PostLocalSGDOptimizer]:
        # Models differ between averages, and the constructor would broadcast rank 0's.
        model = DistributedDataParallel(model, init_sync=False)
        model.register_comm_hook(hook_state, post_localSGD_hook)
        averager = PeriodicModelAverager(PERIOD, warmup_steps=LOCAL_FROM)
        return model, PostLocalSGDOptimizer(sgd(model.parameters()), averager)

    model, optimizer = make(gpt())
    batches = tokens_of(me.rank, STEPS)
    if not resume:
        return train(model, optimizer, batches)
    half = STEPS // 2 + 1
    losses = train(model, optimizer, batches[:half]).losses
    saved = copy.deepcopy((model.module.state_dict(), optimizer.state_dict()))
    assert saved[1]["step"] == half
    model, optimizer = make(gpt())
    model.module.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    run = train(model, optimizer, batches[half:])
    return Run(losses + run.losses, run.state, run.collectives)


@pytest.mark.parametrize("resume", [False, True], ids=["whole", "resumed"])
@pytest.mark.parametrize("reduce_locally", [True, False], ids=["in_pairs", "alone"])
def test_post_local_sgd_equals_several_models_in_one_process(
    reduce_locally: bool, resume: bool
) -> None:
    local = PAIRS if reduce_locally else NOBODY
    expected = several_alone(
        lambda step: ALL if step < LOCAL_FROM else local,
        lambda step: ALL if step >= LOCAL_FROM and (step - LOCAL_FROM) % PERIOD == 0 else NOBODY,
    )
    runs = run_in_rank_order(post_local, WORLD_SIZE, reduce_locally, resume)
    expect_equal(runs, expected)
    # The last step was local: models differ between pairs, and within them if nothing was reduced.
    weights = [run.state["token.weight"] for run in runs]
    assert not weights[0].equal(weights[2])
    assert weights[0].equal(weights[1]) == reduce_locally


def hierarchical(me: Rank) -> Run:
    """No gradient travels; pairs average their models every second step, all every fourth."""
    model = gpt()
    periods = OrderedDict([(2, 2), (4, WORLD_SIZE)])
    averager = HierarchicalModelAverager(periods, warmup_steps=1)
    optimizer = PostLocalSGDOptimizer(sgd(model.parameters()), averager)
    run = train(model, optimizer, tokens_of(me.rank, STEPS))
    return Run(run.losses, run.state, collectives_run())


def test_hierarchical_averaging_equals_several_models_in_one_process() -> None:
    def models_over(step: int) -> Groups:
        if step == 0 or step % 2:
            return NOBODY
        return ALL if step % 4 == 0 else PAIRS

    expected = several_alone(lambda step: NOBODY, models_over)
    runs = run_in_rank_order(hierarchical, WORLD_SIZE)
    expect_equal(runs, expected)
    weights = [run.state["token.weight"] for run in runs]
    assert weights[0].equal(weights[1])  # the last step ended with pairs
    assert not weights[1].equal(weights[2])
