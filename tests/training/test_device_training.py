# SPDX-License-Identifier: MIT
"""Training on a device: DDP and FSDP2 on tensors of a GPU leave what one process leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_cuda.device_ranks import DEVICE, gpu, here, run_on_devices
from fake_cuda.hosts import run_on_hosts
from ranks import Rank
from reference_run import (
    Run,
    add_then_divide,
    alone,
    expect_equal,
    gpt,
    next_byte_loss,
    sgd,
    tokens_of,
    train,
)
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import pycomm
from pycomm import Layout
from pycomm.errors import UsageError

BOTH = pytest.mark.parametrize("mode", ["H", "S"])
SMALL_BUCKETS = {"bucket_cap_mb": 0.002}
# The fake GPU computes with the kernels of the CPU, but on copies, which may be laid out otherwise.
CLOSE = {"rtol": 1e-5, "atol": 1e-6} if DEVICE == "fakegpu" else {"rtol": 1e-3, "atol": 1e-4}
IN_RANK_ORDER = {"PYCOMM_ALGO": "all_reduce=direct,reduce_scatter=direct"}


def on_device(me: Rank, wrap: Callable[[nn.Module], nn.Module]) -> Run:
    model = wrap(gpt().to(here()))
    batches = [batch.to(here()) for batch in tokens_of(me.rank)]
    run = train(model, sgd(model.parameters()), batches)
    run.state = {name: value.cpu() for name, value in run.state.items()}
    gpu().synchronize()
    return run


def data_parallel(me: Rank, options: dict[str, Any]) -> Run:
    return on_device(me, lambda model: DistributedDataParallel(model, **options))


@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (2, {}),
        (4, SMALL_BUCKETS | {"gradient_as_bucket_view": True}),
    ],
    ids=["plain", "4_ranks_views_of_many_buckets"],
)
@BOTH
def test_ddp_on_one_gpu_equals_one_process(
    mode: str, world_size: int, options: dict[str, Any]
) -> None:
    runs = run_on_devices(data_parallel, world_size, options, env=IN_RANK_ORDER, mode=mode)
    expect_equal(runs, alone(gpt, [tokens_of(rank) for rank in range(world_size)]), **CLOSE)
    assert "all_reduce sum" in runs[0].collectives


def replicated(me: Rank) -> Run:
    return on_device(me, pycomm.DataParallel)


def test_data_parallel_over_two_hosts_equals_one_process() -> None:
    one = alone(gpt, [tokens_of(rank) for rank in range(4)])
    views = SMALL_BUCKETS | {"gradient_as_bucket_view": True}
    expect_equal(run_on_hosts(data_parallel, "aabb", views), one, **CLOSE)
    expect_equal(run_on_hosts(replicated, "abab"), one, **CLOSE)


def halving(me: Rank) -> Run:
    def average(group, bucket):
        work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
        return work.get_future().then(lambda done: done.value()[0] / me.world_size)

    def wrap(model: nn.Module) -> nn.Module:
        wrapped = DistributedDataParallel(model, **SMALL_BUCKETS)
        wrapped.register_comm_hook(None, average)
        return wrapped

    return on_device(me, wrap)


def test_a_hook_of_ddp_works_on_what_has_been_reduced() -> None:
    runs = run_on_devices(halving, 2, env=IN_RANK_ORDER)
    expect_equal(
        runs, alone(gpt, [tokens_of(rank) for rank in range(2)], combine=add_then_divide), **CLOSE
    )


def fully_sharded(me: Rank) -> Run:
    mesh = dist.device_mesh.init_device_mesh(DEVICE, (me.world_size,))

    def wrap(model: nn.Module) -> nn.Module:
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    return on_device(me, wrap)


@BOTH
def test_fsdp2_on_one_gpu_equals_one_process(mode: str) -> None:
    world_size = 3
    runs = run_on_devices(fully_sharded, world_size, env=IN_RANK_ORDER, mode=mode)
    shares = [tokens_of(rank) for rank in range(world_size)]
    expect_equal(runs, alone(gpt, shares, combine=add_then_divide), **CLOSE)
    assert {"all_gather", "reduce_scatter avg"} <= runs[0].collectives


def test_fsdp2_over_two_hosts_equals_one_process() -> None:
    runs = run_on_hosts(fully_sharded, "abab")
    shares = [tokens_of(rank) for rank in range(4)]
    expect_equal(runs, alone(gpt, shares, combine=add_then_divide), **CLOSE)


def five_lines(me: Rank, where: str) -> tuple[list[float], dict[str, Any]]:
    ctx = pycomm.init(Layout(clip=0.5, accumulate=2))
    model = gpt().to(where)
    model, optimizer = ctx.wrap(model, sgd(model.parameters()))
    losses = []
    for batch in tokens_of(me.rank):
        loss = next_byte_loss(model, batch.to(where))
        losses.append(loss.item())
        ctx.step(loss)
    state = {name: value.cpu() for name, value in ctx.state_dict().items()}
    ctx.finish()
    return losses, state


def test_the_five_lines_train_replicas_on_a_device_as_on_the_cpu() -> None:
    on_cpu = run_on_devices(five_lines, 2, "cpu", env=IN_RANK_ORDER)
    for (losses, state), (wanted, parameters) in zip(
        run_on_devices(five_lines, 2, DEVICE, env=IN_RANK_ORDER), on_cpu, strict=True
    ):
        assert losses == pytest.approx(wanted, rel=CLOSE["rtol"], abs=CLOSE["atol"])
        assert state.keys() == parameters.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, parameters[name], **CLOSE)


def refused(me: Rank, options: dict[str, Any]) -> str:
    ctx = pycomm.init(Layout(**options))
    model = gpt().to(here())
    with pytest.raises(UsageError) as raised:
        ctx.wrap(model, sgd(model.parameters()), loss=lambda outputs, targets: outputs.sum())
    return str(raised.value)


@pytest.mark.parametrize(
    "options", [{"tp": 2}, {"pp": 2}, {"shard": True}, {"mode": "diloco"}], ids=str
)
def test_other_layouts_of_a_model_on_a_device_are_refused(options: dict[str, Any]) -> None:
    for text in run_on_devices(refused, 2, options):
        assert "is on " in text and "expected cpu: on a GPU a layout has replicas alone" in text
