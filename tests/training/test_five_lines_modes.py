# SPDX-License-Identifier: MIT
"""Modes of the five lines: what local, diloco and the parameter servers leave on the ranks."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
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
from torch.utils.data import DataLoader
from transformer import token_loss

import pycomm
from pycomm.train.context import Context
from pycomm.train.saves import Saves

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
        {"mode": "ps-ssp", "staleness": 1, "overlap": True},
        {"mode": "diloco", "sync_every": 3, "outer_lr": 1.0, "outer_momentum": 0.0},
    ]
    outcomes = run_ranks(many, 2, layouts)
    start = alone(FLOAT, 1).losses[0]
    for index, fields in enumerate(layouts):
        first, other = (of_rank[index] for of_rank in outcomes)
        for name, value in first.state.items():
            assert torch.equal(value, other.state[name]), (fields, name)
        assert len(first.losses) == 10
        assert min(first.losses[5:]) < start, (fields, first.losses)
    averaged, stepped = outcomes[0][0], outcomes[0][-1]  # an outer step of 1 takes the mean
    expect_equal(stepped, averaged, **ROUNDING[torch.float32], what="diloco beside local")


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


# ---- another number of ranks


@dataclass
class Apart:
    """What a rank has when a run begins, or goes on, and when it is left."""

    began: int
    first: dict[str, Any]
    last: dict[str, Any]


def have(ctx: Context, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    stepper = ctx.stepper
    assert stepper.rounds is not None
    return copy.deepcopy(
        {
            "model": ctx.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rounds": stepper.rounds.state_dict(),
        }
    )


def left_after(me: Rank, fields: Mapping[str, Any], steps: int, folder: str) -> Apart | str:
    """Goes on to `steps`, saves, and leaves as if killed: nothing is joined."""
    ctx = pycomm.init(pycomm.Layout(**fields), seed=7)
    model = model_of(torch.float32)
    model, optimizer = ctx.wrap(model, optimizer_of(model), loss=token_loss)
    loader = ctx.shard(rows_of(), ROWS)
    try:
        began = ctx.checkpoint(folder, every=1000)
    except pycomm.UsageError as refused:
        return str(refused)
    first = have(ctx, optimizer)
    for inputs, targets in loader:
        ctx.step(model(inputs, targets))
        if ctx.steps == steps:
            break
    ctx.save()
    assert isinstance(ctx._saves, Saves)
    ctx._saves._checkpointer.close()
    return Apart(began, first, have(ctx, optimizer))


@pytest.mark.parametrize("mode", ["local", "diloco"])
def test_replicas_that_train_apart_go_on_with_another_number_right_after_a_round(
    mode: str, tmp_path: Path
) -> None:
    fields, folder = {"mode": mode, "sync_every": 2}, str(tmp_path)
    runs: list[list[Apart]] = []
    # One process alone is always one model.
    for begin, (ranks, steps) in zip((0, 2, 3), ((2, 2), (1, 3), (4, 5)), strict=True):
        runs.append(run_ranks(left_after, ranks, fields, steps, folder))
        assert [one.began for one in runs[-1]] == [begin] * ranks
        for rank, one in enumerate(runs[-1] if begin else []):
            before = runs[-2][rank % len(runs[-2])].last
            torch.testing.assert_close(one.first, before, rtol=0, atol=0)
    first, *others = (one.last["model"]["output.weight"] for one in runs[-1])
    assert not any(torch.equal(first, one) for one in others)
    for refused in run_ranks(left_after, 2, fields, 6, folder):
        assert "that of step 5 was made by 4 ranks" in refused
        assert "let every= be a multiple of sync_every" in refused


# ---- parameter servers


def until_a_signal(me: Rank, fields: Mapping[str, Any], steps: int, folder: str) -> Any:
    """Rank 1 is asked to end before its fourth step; losses, exit code, first step."""
    ctx = pycomm.init(pycomm.Layout(**fields), seed=7)
    model = model_of(torch.float32)
    model, _ = ctx.wrap(model, optimizer_of(model), loss=token_loss)
    loader = ctx.shard(DataLoader(rows_of(), ROWS, shuffle=True))
    began = ctx.checkpoint(folder, every=100)
    before = signal.getsignal(signal.SIGTERM)
    losses: list[float] = []
    try:
        while ctx.steps < steps:
            for inputs, targets in loader:
                loss = model(inputs, targets)
                losses.append(loss.item())
                if (began, ctx.steps, me.rank) == (0, 3, 1):
                    os.kill(os.getpid(), signal.SIGTERM)
                ctx.step(loss)
                if ctx.steps == steps:
                    break
    except SystemExit as ended:
        assert signal.getsignal(signal.SIGTERM) is not before
        return losses, ended.code, began
    ctx.finish()
    return losses, None, began


@pytest.mark.parametrize("fields", [{"mode": "ps-sync"}, {"mode": "ps-ssp", "servers": 2}], ids=str)
def test_a_signal_to_a_worker_ends_all_with_a_checkpoint_of_the_servers(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    ended = run_ranks(until_a_signal, 2, fields, 10, str(tmp_path))
    rest = run_ranks(until_a_signal, 2, fields, 10, str(tmp_path))
    assert [code for _, code, _ in ended + rest] == [0, 0, None, None]
    steps = [len(losses) for losses, _, _ in ended]
    assert [began for _, _, began in rest] == [max(steps)] * 2
    assert [max(steps) + len(losses) for losses, _, _ in rest] == [10, 10]
    if fields["mode"] == "ps-sync":
        assert steps == [5, 5]  # all end after the same step
        means = [
            sum(both) / 2
            for part in (ended, rest)
            for both in zip(*(losses for losses, _, _ in part), strict=True)
        ]
        expected = alone(FLOAT, 10).losses
        torch.testing.assert_close(means, expected, **ROUNDING[torch.float32])


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
