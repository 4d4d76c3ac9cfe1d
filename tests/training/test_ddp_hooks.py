# SPDX-License-Identifier: MIT
"""DDP's communication hooks, against the same compression done in one process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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
    sgd,
    tokens_of,
    train,
)
from torch import Tensor
from torch.distributed import BuiltinCommHookType
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

SMALL_BUCKETS_MB = 0.002  # 2 KiB: several buckets in flight


def divide_then_add(gradients: Sequence[Tensor]) -> Tensor:
    """Unlike DDP without a hook, which multiplies by the reciprocal."""
    return functools.reduce(torch.add, [gradient / len(gradients) for gradient in gradients])


def narrow_mean(gradients: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Each rank rounds to dtype, and again when it divides; the sum is float32, rounded once."""
    narrow = [gradient.to(dtype).div_(len(gradients)).float() for gradient in gradients]
    return functools.reduce(torch.add, narrow).to(dtype).float()


def renamed(hook: Callable[..., Any]) -> Callable[..., Any]:
    """DDP refuses bfloat16 hooks by their names on machines without CUDA."""

    def under_another_name(state, bucket):  # annotations as text are refused too
        return hook(state, bucket)

    return under_another_name


fp16_mean = functools.partial(narrow_mean, dtype=torch.float16)
bf16_mean = functools.partial(narrow_mean, dtype=torch.bfloat16)
allreduce = default_hooks.allreduce_hook
HOOKS = {
    "allreduce": (allreduce, divide_then_add),
    "fp16": (default_hooks.fp16_compress_hook, fp16_mean),
    "bf16": (renamed(default_hooks.bf16_compress_hook), bf16_mean),
    "fp16_wrapper": (default_hooks.fp16_compress_wrapper(allreduce), fp16_mean),
    "bf16_wrapper": (renamed(default_hooks.bf16_compress_wrapper(allreduce)), bf16_mean),
    "built_in_allreduce": (BuiltinCommHookType.ALLREDUCE, divide_then_add),
    "built_in_fp16": (BuiltinCommHookType.FP16_COMPRESS, fp16_mean),
}


def hooked(me: Rank, name: str) -> Run:
    model = DistributedDataParallel(gpt(), bucket_cap_mb=SMALL_BUCKETS_MB)
    hook = HOOKS[name][0]
    if isinstance(hook, BuiltinCommHookType):
        model._register_builtin_comm_hook(hook)
    else:
        model.register_comm_hook(None, hook)
    return train(model, sgd(model.parameters()), tokens_of(me.rank))


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", HOOKS)
def test_comm_hook_equals_the_same_compression_in_one_process(name: str, world_size: int) -> None:
    shares = [tokens_of(rank) for rank in range(world_size)]
    combine = HOOKS[name][1]
    runs = run_in_rank_order(hooked, world_size, name)
    expect_equal(runs, alone(gpt, shares, combine=combine))
    if combine is not divide_then_add:  # compression is seen at all
        with pytest.raises(AssertionError, match="not equal"):
            expect_equal(runs, alone(gpt, shares))


# ---- PowerSGD


POWER_STEPS = 6
POWER_OPTIONS = {
    "plain": {},
    "without_error_feedback": {"use_error_feedback": False},
    "without_warm_start": {"warm_start": False},
    "many_buckets": {"buckets": {"bucket_cap_mb": 0.004}},
}


def power_sgd(me: Rank, shares: Sequence[Sequence[Tensor]], options: dict[str, Any]) -> Run:
    """Two steps as they are, the others with matrices of rank 2.

    All but the first collective of a bucket are called from callbacks, which run at other moments
    on each rank.
    """
    options = dict(options)
    buckets = options.pop("buckets", {})
    state = powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=2, start_powerSGD_iter=2, **options
    )
    model = DistributedDataParallel(gpt(), **buckets)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return train(model, sgd(model.parameters()), shares[me.rank])


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", POWER_OPTIONS)
def test_power_sgd_equals_power_sgd_on_one_process(name: str, world_size: int) -> None:
    """What the hook does is linear in the gradients, so one process does it on the whole batch.

    Sums are taken in another order, and orthogonalized: 1e-6 was seen in losses and 2e-7 in
    parameters. Ten times that is allowed; without compression parameters are 1e-2 away.
    """
    shares = [tokens_of(rank, POWER_STEPS) for rank in range(world_size)]
    whole = [torch.cat(batches) for batches in zip(*shares, strict=True)]
    runs = run_in_rank_order(power_sgd, world_size, shares, POWER_OPTIONS[name])
    (at_once,) = run_in_rank_order(power_sgd, 1, [whole], POWER_OPTIONS[name])
    mean = torch.tensor([run.losses for run in runs]).mean(0)
    torch.testing.assert_close(mean, torch.tensor(at_once.losses), rtol=0, atol=1e-5)
    plain = alone(gpt, shares)[0].state
    for key, value in at_once.state.items():
        for run in runs:
            torch.testing.assert_close(run.state[key], value, rtol=0, atol=2e-6, msg=key)
            assert run.state[key].equal(runs[0].state[key]), key  # ranks do not differ
    assert max((value - plain[key]).abs().max() for key, value in at_once.state.items()) > 5e-3
