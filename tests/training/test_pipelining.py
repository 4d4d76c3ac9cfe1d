# SPDX-License-Identifier: MIT
"""Pipeline schedules: losses of every microbatch and parameters are those of one process."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from layered_gpt import layered_gpt, token_loss
from ranks import Rank, run_ranks
from reference_run import Run, alone, collectives_run, expect_equal, sgd, tokens_of, whole_state
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.pipelining import PipelineStage

MICROBATCHES = 6
BATCHES = tokens_of(0, count=2 * MICROBATCHES)


def parts_of(model: nn.Sequential, count: int) -> list[nn.Sequential]:
    """Consecutive layers, in as equal parts as they come; they keep their names."""
    edges = [round(i * len(model) / count) for i in range(count + 1)]
    return [model[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]


def stages_of(name: str, rank: int, world_size: int) -> list[int]:
    if name in ("ScheduleGPipe", "Schedule1F1B"):
        return [rank]
    if name == "ScheduleZBVZeroBubble":
        return [rank, 2 * world_size - 1 - rank]
    return [rank, rank + world_size]


def pipelined(me: Rank, name: str) -> Run:
    indices = stages_of(name, me.rank, me.world_size)
    count = len(indices) * me.world_size
    parts = parts_of(layered_gpt(), count)
    stages = [PipelineStage(parts[i], i, count, torch.device("cpu")) for i in indices]
    schedule = getattr(pipelining, name)(
        stages if len(indices) > 1 else stages[0], MICROBATCHES, loss_fn=token_loss
    )
    mine = nn.ModuleList(parts[i] for i in indices)
    optimizer = sgd(mine.parameters())
    losses: list[float] = []
    for tokens in BATCHES:
        optimizer.zero_grad()
        args = (tokens[:, :-1],) if 0 in indices else ()
        of_microbatches: list[Tensor] = []
        last = count - 1 in indices
        schedule.step(*args, target=tokens[:, 1:] if last else None, losses=of_microbatches)
        losses += [loss.item() for loss in of_microbatches]
        optimizer.step()
    state = {key: value for part in mine for key, value in whole_state(part).items()}
    return Run(losses, state, collectives_run())


def mean(gradients: Sequence[Tensor]) -> Tensor:
    """As a schedule computes it: added one microbatch after the other, then divided."""
    return sum(gradients) / len(gradients)


def in_one_process() -> Run:
    shares = [[batch[2 * i : 2 * i + 2] for batch in BATCHES] for i in range(MICROBATCHES)]
    runs = alone(
        layered_gpt,
        shares,
        combine=mean,
        loss_of=lambda model, tokens: token_loss(model(tokens[:, :-1]), tokens[:, 1:]),
    )
    by_step = [
        loss for losses in zip(*(run.losses for run in runs), strict=True) for loss in losses
    ]
    return Run(by_step, runs[0].state)


@pytest.mark.parametrize(
    ("name", "world_sizes"),
    [
        ("ScheduleGPipe", (2, 4)),
        ("Schedule1F1B", (2, 3)),
        ("ScheduleInterleaved1F1B", (2, 3)),
        ("ScheduleInterleavedZeroBubble", (2, 3)),
        ("ScheduleZBVZeroBubble", (2, 3)),
    ],
)
def test_pipelined_training_equals_one_process(name: str, world_sizes: Sequence[int]) -> None:
    expected = in_one_process()
    for world_size in world_sizes:
        runs = run_ranks(pipelined, world_size, name)
        losses = [run.losses for run in runs if run.losses]
        assert len(losses) == 1, "only the rank of the last stage has losses"
        whole = {key: value for run in runs for key, value in run.state.items()}
        assert sum(len(run.state) for run in runs) == len(whole)
        expect_equal([Run(losses[0], whole, runs[0].collectives)], [expected])
        for run in runs:
            assert {"send", "recv"} <= run.collectives
