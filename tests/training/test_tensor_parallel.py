# SPDX-License-Identifier: MIT
"""Tensor parallelism, with sequence parallelism and FSDP2: losses and parameters of one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from layered_gpt import LAYERS, ROUNDING, layered_gpt
from ranks import Rank, run_ranks
from reference_run import Run, alone, expect_equal, next_byte_loss, sgd, tokens_of, train
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)


def by_rows_and_columns() -> Mapping[str, ParallelStyle]:
    """Two linear layers in a row: the first by columns, the second by rows, one sum behind them."""
    plan: dict[str, ParallelStyle] = {
        "token": RowwiseParallel(input_layouts=Replicate()),
        "output": ColwiseParallel(output_layouts=Replicate()),
    }
    for i in range(LAYERS):
        for name in ("attention.query", "attention.key", "attention.value", "hidden.0"):
            plan[f"layer{i}.{name}"] = ColwiseParallel()
        for name in ("attention.out", "hidden.2"):
            plan[f"layer{i}.{name}"] = RowwiseParallel()
    return plan


def with_sequence_parallel() -> Mapping[str, ParallelStyle]:
    """Between those pairs each rank has a part of the positions instead of all of them."""
    plan = dict(by_rows_and_columns())
    plan["token"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
    plan["norm"] = SequenceParallel()
    plan["output"] = ColwiseParallel(
        input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False
    )
    for i in range(LAYERS):
        for name in ("norm_attention", "norm_hidden"):
            plan[f"layer{i}.{name}"] = SequenceParallel()
        for name in ("attention", "hidden"):
            plan[f"layer{i}.{name}"] = PrepareModuleInput(
                input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)
            )
        for name in ("attention.out", "hidden.2"):
            plan[f"layer{i}.{name}"] = RowwiseParallel(output_layouts=Shard(1))
    return plan


def sharded_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """The loss of logits that stay split by byte; its backward has to run under loss_parallel."""
    return next_byte_loss(model, tokens).full_tensor()


def batches_of(rank: int, columns: int) -> list[Tensor]:
    """Two positions for each rank: SequenceParallel needs as many on every one."""
    return [tokens[:, : 2 * columns + 1] for tokens in tokens_of(rank)]


def tensor_parallel(me: Rank, plan: str) -> Run:
    mesh = init_device_mesh("cpu", (me.world_size,))
    batches = batches_of(0, me.world_size)
    if plan == "rows and columns":
        model = parallelize_module(layered_gpt(), mesh, by_rows_and_columns())
        return train(model, sgd(model.parameters()), batches)
    model = parallelize_module(layered_gpt(), mesh, with_sequence_parallel())
    with loss_parallel():
        return train(model, sgd(model.parameters()), batches, sharded_loss)


@pytest.mark.parametrize("plan", ["rows and columns", "sequence"])
def test_tensor_parallel_equals_one_process(plan: str) -> None:
    """The 256 rows of the embedding and of the output do not divide by 3: shards are uneven."""
    for world_size in (2, 3, 4):
        expected = alone(layered_gpt, [batches_of(0, world_size)])
        runs = run_ranks(tensor_parallel, world_size, plan)
        expect_equal(runs, expected * world_size, **ROUNDING)
        ran = {"all_reduce sum", "all_gather"} if plan != "sequence" else {"reduce_scatter sum"}
        assert ran <= runs[0].collectives, runs[0].collectives


def shard_layers(model: nn.Module, mesh: DeviceMesh, **options: Any) -> nn.Module:
    for name, part in model.named_children():
        if name.startswith("layer"):
            fully_shard(part, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def two_dimensional(me: Rank, sizes: tuple[int, int]) -> Run:
    """FSDP2 between the rows of a mesh, tensor and sequence parallel within each."""
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("dp", "tp"))
    model = parallelize_module(layered_gpt(), mesh["tp"], with_sequence_parallel())
    shard_layers(model, mesh["dp"])
    placements = model.get_parameter("layer0.attention.query.weight").placements
    assert len(placements) == 2, placements
    with loss_parallel():
        batches = batches_of(mesh.get_local_rank("dp"), sizes[1])
        return train(model, sgd(model.parameters()), batches, sharded_loss)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 2), (2, 3)], ids=str)
def test_tensor_parallel_with_fsdp2_equals_one_process(sizes: tuple[int, int]) -> None:
    rows, columns = sizes
    expected = alone(layered_gpt, [batches_of(row, columns) for row in range(rows)])
    runs = run_ranks(two_dimensional, rows * columns, sizes)
    expect_equal(runs, [expected[rank // columns] for rank in range(len(runs))], **ROUNDING)
    assert {"reduce_scatter sum", "all_gather"} <= runs[0].collectives
