# SPDX-License-Identifier: MIT
"""Modes of the five lines: what local, diloco and the parameter servers leave on the ranks."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from layout_runs import (
    ROUNDING,
    ROWS,
    Outcome,
    alone,
    expect_equal,
    model_of,
    optimizer_of,
    rows_of,
    train,
)
from ranks import Died, Rank, run_ranks
from transformer import token_loss

import pycomm

FLOAT = {"dtype": torch.float32}


def many(me: Rank, layouts: list[Mapping[str, Any]]) -> list[Outcome]:
    return [train(me, {**fields, **FLOAT}, 10) for fields in layouts]


def test_replicas_that_train_apart_are_one_model_in_the_end() -> None:
    layouts: list[dict[str, Any]] = [
        {"mode": "local", "sync_every": 3},
        {"mode": "local", "sync_every": 4, "wire": "bf16", "clip": 0.5},
        {"mode": "diloco", "sync_every": 3},
        {"mode": "diloco", "sync_every": 4, "fragments": 2, "fragment_sync_delay": 1},
        {"mode": "ps-async"},
        {"mode": "ps-ssp", "staleness": 1, "servers": 2, "accumulate": 2},
    ]
    outcomes = run_ranks(many, 2, layouts)
    start = alone(FLOAT, 1).losses[0]
    for index, fields in enumerate(layouts):
        first, other = (of_rank[index] for of_rank in outcomes)
        for name, value in first.state.items():
            assert torch.equal(value, other.state[name]), (fields, name)
        assert len(first.losses) == 10
        assert min(first.losses[5:]) < start, (fields, first.losses)


def test_a_synchronous_parameter_server_takes_the_steps_of_one_process() -> None:
    layouts = [{"mode": "ps-sync"}, {"mode": "ps-sync", "servers": 2, "accumulate": 2}]
    expected = alone(FLOAT, 10)
    for of_rank in run_ranks(many, 2, layouts):
        for fields, found in zip(layouts, of_rank, strict=True):
            expect_equal(found, expected, **ROUNDING[torch.float32], what=str(fields))


def resumed(me: Rank, fields: Mapping[str, Any], steps: int, folder: str) -> Outcome:
    return train(me, {**fields, **FLOAT}, steps, folder, every=2)


@pytest.mark.parametrize("mode", ["local", "diloco", "ps-sync"])
def test_a_mode_goes_on_from_its_checkpoint(mode: str, tmp_path: Path) -> None:
    fields = {"mode": mode, "sync_every": 4}
    straight = run_ranks(resumed, 2, fields, 10, str(tmp_path / "straight"))
    run_ranks(resumed, 2, fields, 4, str(tmp_path / "parts"))
    rest = run_ranks(resumed, 2, fields, 10, str(tmp_path / "parts"))
    for one, whole in zip(rest, straight, strict=True):
        found = Outcome(whole.losses[:4] + one.losses, [], one.state)
        expect_equal(found, whole, what=mode)


def without_a_worker(me: Rank) -> int:
    """Rank 1 dies in its third step; how many steps rank 0 makes."""
    ctx = pycomm.init(pycomm.Layout(mode="ps-async"), seed=7)
    model = model_of(torch.float32)
    model, _ = ctx.wrap(model, optimizer_of(model), loss=token_loss)
    ctx.watch(every=1, quiet=True)
    for inputs, targets in ctx.shard(rows_of(), ROWS):
        loss = model(inputs, targets)
        if me.rank == 1 and ctx.steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        ctx.step(loss)
    with pytest.warns(UserWarning, match="training ends without a rank: .*rank 1"):
        ctx.finish()
    return ctx.steps


def test_a_worker_that_is_killed_stops_nobody_in_asynchronous_mode() -> None:
    found, died = run_ranks(without_a_worker, 2, dies=[1])
    assert found == -(-len(rows_of()) // ROWS)
    assert isinstance(died, Died)
