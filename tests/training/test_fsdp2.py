# SPDX-License-Identifier: MIT
"""FSDP2 (fully_shard) and HSDP: losses, parameters and optimizer state of one process.

Both average with ReduceOp.AVG, or with PREMUL_SUM where a divisor is set, which Gloo refuses in
torch 2.13.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Rank
from reference_run import (
    Run,
    accumulated_loss,
    adam,
    add_then_divide,
    alone,
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
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def sharded_gpt(**options: Any) -> FSDPModule:
    """Each block is a group of parameters of its own, and the rest another."""
    model = gpt()
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def mesh_of(me: Rank, *shape: int) -> Any:
    """A mesh over the default group, which is made first: a mesh alone would make Gloo's."""
    names = ("replicate", "shard")[-len(shape) :]
    return dist.init_device_mesh("cpu", shape, mesh_dim_names=names)


def fsdp2(me: Rank, reshard: bool | int) -> Run:
    model = sharded_gpt(mesh=mesh_of(me, me.world_size), reshard_after_forward=reshard)
    run = train(model, sgd(model.parameters()), tokens_of(me.rank))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return run


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("reshard", [True, False])
def test_fsdp2_equals_one_process(reshard: bool, world_size: int) -> None:
    shares = [tokens_of(rank) for rank in range(world_size)]
    runs = run_in_rank_order(fsdp2, world_size, reshard)
    expect_equal(runs, alone(gpt, shares, combine=add_then_divide))
    assert runs[0].collectives >= {"all_gather", "reduce_scatter avg"}


def uneven_fsdp2(me: Rank) -> Run:
    """Sizes 11, 7 and 1 on 3 ranks: shards differ, some are empty."""
    model = fully_shard(odd())
    assert model.last.weight.to_local().numel() == (7 if me.rank == 0 else 0)
    return train(model, adam(model.parameters()), rows_of(me.rank), square_loss)


def test_fsdp2_with_uneven_and_empty_shards_equals_one_process() -> None:
    shares = [rows_of(rank) for rank in range(3)]
    expected = alone(odd, shares, adam, add_then_divide, square_loss)
    expect_equal(run_in_rank_order(uneven_fsdp2, 3), expected)


# ---- what the gradients are divided by, and in which dtype


def divided(me: Rank, factor: float) -> Run:
    model = sharded_gpt()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(factor)
    return train(model, sgd(model.parameters()), tokens_of(me.rank))


@pytest.mark.parametrize("factor", [2.0, 3.0, 5.0])
def test_fsdp2_with_a_divide_factor_equals_one_process(factor: float) -> None:
    combine = functools.partial(scale_then_add, divisor=factor)
    runs = run_in_rank_order(divided, 2, factor)
    expect_equal(runs, alone(gpt, [tokens_of(0), tokens_of(1)], combine=combine))
    # Other factors are PREMUL_SUM, which runs as a sum of what each rank has scaled.
    used = "reduce_scatter avg" if factor == 2 else "reduce_scatter sum"
    assert used in runs[0].collectives


class CastToNarrow(nn.Module):
    """Computes in bfloat16 with float32 parameters, whose gradients are bfloat16 widened."""

    def __init__(self) -> None:
        super().__init__()
        self.module = gpt()

    def forward(self, tokens: Tensor) -> Tensor:
        narrow = {name: p.bfloat16() for name, p in self.module.named_parameters()}
        return torch.func.functional_call(self.module, narrow, (tokens,))


def mixed(me: Rank, reduce_dtype: torch.dtype) -> Run:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduce_dtype)
    model = sharded_gpt(mp_policy=policy)
    return train(model, sgd(model.parameters()), tokens_of(me.rank))


def narrow_average(gradients: Sequence[Tensor]) -> Tensor:
    """AVG of bfloat16: float32 inside, rounded once."""
    return add_then_divide(gradients).bfloat16().float()


def fp16_average(gradients: Sequence[Tensor]) -> Tensor:
    """float16 may overflow, so FSDP2 divides by 2 before the SUM and by the rest after it."""
    halves = [(gradient.half() / 2).float() for gradient in gradients]
    return (functools.reduce(torch.add, halves).half() / (len(gradients) / 2)).float()


REDUCTIONS = {
    torch.float32: (add_then_divide, "reduce_scatter avg"),
    torch.bfloat16: (narrow_average, "reduce_scatter avg"),
    torch.float16: (fp16_average, "reduce_scatter sum"),
}


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("reduce_dtype", REDUCTIONS, ids=str)
def test_fsdp2_in_bf16_equals_one_process(reduce_dtype: torch.dtype, world_size: int) -> None:
    combine, collective = REDUCTIONS[reduce_dtype]
    shares = [tokens_of(rank) for rank in range(world_size)]
    runs = run_in_rank_order(mixed, world_size, reduce_dtype)
    expect_equal(runs, alone(CastToNarrow, shares, combine=combine))
    assert collective in runs[0].collectives


# ---- two dimensions


def in_pairs(gradients: Sequence[Tensor]) -> Tensor:
    """Shard group after shard group, then over the replicas: (0, 1), (2, 3)."""
    pairs = [add_then_divide(gradients[i : i + 2]) for i in range(0, len(gradients), 2)]
    return add_then_divide(pairs)


def hsdp(me: Rank, factor: float | None) -> Run:
    model = sharded_gpt(mesh=mesh_of(me, me.world_size // 2, 2))
    if factor:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(factor)
    return train(model, sgd(model.parameters()), tokens_of(me.rank))


@pytest.mark.parametrize("world_size", [4, 6])
def test_hsdp_equals_one_process(world_size: int) -> None:
    runs = run_in_rank_order(hsdp, world_size, None)
    shares = [tokens_of(rank) for rank in range(world_size)]
    expect_equal(runs, alone(gpt, shares, combine=in_pairs))
    assert runs[0].collectives >= {"all_gather", "reduce_scatter avg", "all_reduce avg"}


def test_hsdp_with_a_divide_factor_equals_one_process() -> None:
    def combine(gradients: Sequence[Tensor]) -> Tensor:
        pairs = [scale_then_add(gradients[i : i + 2], divisor=3) for i in (0, 2)]
        return pairs[0] + pairs[1]

    runs = run_in_rank_order(hsdp, 4, 3.0)
    expect_equal(runs, alone(gpt, [tokens_of(rank) for rank in range(4)], combine=combine))
    assert runs[0].collectives >= {"reduce_scatter sum", "all_reduce sum"}


# ---- clipping, accumulation, optimizer state


MAX_NORM = 0.2


def clip(model: nn.Module) -> None:
    norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    assert norm > 2 * MAX_NORM  # it does something


def clipped(me: Rank, replicas: int) -> Run:
    shape = (me.world_size,) if replicas == 1 else (replicas, me.world_size // replicas)
    model = sharded_gpt(mesh=mesh_of(me, *shape))
    return train(model, sgd(model.parameters()), tokens_of(me.rank), before_step=clip)


@pytest.mark.parametrize("world_size, replicas", [(2, 1), (3, 1), (4, 2)])
def test_fsdp2_clips_by_the_norm_over_all_shards(world_size: int, replicas: int) -> None:
    """The norm is a sum of squares over shards, in another order: some roundings of float32."""
    shares = [tokens_of(rank) for rank in range(world_size)]
    combine = in_pairs if replicas == 2 else add_then_divide
    expected = alone(gpt, shares, combine=combine, before_step=clip)
    expect_equal(run_in_rank_order(clipped, world_size, replicas), expected, rtol=1e-5, atol=1e-7)


@contextlib.contextmanager
def without_reducing(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    yield
    model.set_requires_gradient_sync(True)


def accumulating(me: Rank) -> Run:
    loss_of = functools.partial(accumulated_loss, without_reducing=without_reducing)
    model = sharded_gpt()
    return train(model, sgd(model.parameters()), pairs_of(me.rank), loss_of)


def test_fsdp2_accumulates_without_reducing_as_one_process() -> None:
    shares = [pairs_of(rank) for rank in range(2)]
    expected = alone(gpt, shares, combine=add_then_divide, loss_of=accumulated_loss)
    expect_equal(run_in_rank_order(accumulating, 2), expected)


def keeping_state(me: Rank) -> Run:
    model = sharded_gpt()
    optimizer = adam(model.parameters())
    run = train(model, optimizer, tokens_of(me.rank))
    options = StateDictOptions(full_state_dict=True)
    run.extra = get_optimizer_state_dict(model, optimizer, options=options)
    return run


def test_fsdp2_optimizer_state_equals_one_process() -> None:
    runs = run_in_rank_order(keeping_state, 3)
    expected = alone(gpt, [tokens_of(rank) for rank in range(3)], adam, add_then_divide)
    expect_equal(runs, expected)
    names = [name for name, _ in gpt().named_parameters()]
    by_name = {name: expected[0].extra["state"][i] for i, name in enumerate(names)}
    assert by_name.keys() == runs[0].extra["state"].keys()
    for name, state in by_name.items():
        torch.testing.assert_close(runs[0].extra["state"][name], state, rtol=0, atol=0)
