# SPDX-License-Identifier: MIT
"""Runs that are stopped and go on in another layout: the losses of one that was never stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from layout_runs import ROUNDING, ROWS, STEPS, Outcome, alone, expect_equal, rows_of, train
from layout_runs import fingerprints as prints_of
from ranks import Died, Rank, run_ranks

from pycomm.errors import CommError
from pycomm.train.context import Context

STOP = 8  # steps of the first part


@pytest.fixture(scope="module")
def undisturbed() -> Outcome:
    """One process, never stopped."""
    return alone({"clip": 0.5})


def steps_of(me: Rank, fields: Mapping[str, Any], steps: int, folder: str) -> Outcome:
    return train(me, {**fields, "clip": 0.5}, steps, folder)


def expect_the_rest(
    parts: Sequence[Sequence[Outcome]], undisturbed: Outcome, begins: Sequence[int]
) -> None:
    """Each part's losses from the step it began with, and in the end the model."""
    for begin, outcomes in zip(begins, parts, strict=True):
        for one in outcomes:
            expected = undisturbed.losses[begin : begin + len(one.losses)]
            torch.testing.assert_close(one.losses, expected, **ROUNDING[torch.float64])
    for one in parts[-1]:
        whole = Outcome(undisturbed.losses, undisturbed.norms, one.state)
        expect_equal(whole, undisturbed, **ROUNDING[torch.float64])


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((2, {}), (2, {})),
        ((2, {}), (1, {})),
        ((2, {"tp": 2}), (4, {"pp": 2})),
        ((4, {"pp": 2, "shard": True}), (2, {"tp": 2})),
        ((1, {}), (4, {"tp": 2, "shard": True})),
    ],
    ids=str,
)
def test_a_run_goes_on_in_another_layout(
    first: Any, then: Any, undisturbed: Outcome, tmp_path: Path
) -> None:
    parts = [
        run_ranks(steps_of, ranks, fields, steps, str(tmp_path))
        for (ranks, fields), steps in ((first, STOP), (then, STEPS))
    ]
    expect_the_rest(parts, undisturbed, [0, STOP])
    # Every sample of the steps once, whoever was given it.
    given = [print_ for part in parts for one in replicas(part) for print_ in one.extra["given"]]
    first_epoch = sorted(prints_of(rows_of()[:][0]))
    order = sorted(given)
    assert len(order) == STEPS * ROWS
    assert set(order) == set(first_epoch)
    epochs = STEPS * ROWS // len(first_epoch)
    assert all(order.count(one) >= epochs * first_epoch.count(one) for one in set(first_epoch))


def replicas(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One rank of each replica."""
    return list({one.extra["replica"]: one for one in outcomes}.values())


def until_a_signal(me: Rank, folder: str) -> Outcome:
    def before_step(ctx: Context) -> None:
        if ctx.steps == STOP - 1 and me.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return train(me, {"clip": 0.5}, STEPS, folder, before_step=before_step)


def test_sigterm_to_one_rank_ends_all_with_a_checkpoint(
    undisturbed: Outcome, tmp_path: Path
) -> None:
    ended = run_ranks(until_a_signal, 2, str(tmp_path))
    assert [one.extra["exit"] for one in ended] == [0, 0]
    rest = run_ranks(steps_of, 2, {}, STEPS, str(tmp_path))
    expect_the_rest([ended, rest], undisturbed, [0, STOP])


def until_killed(me: Rank, folder: str) -> str:
    def before_step(ctx: Context) -> None:
        if ctx.steps == STOP and me.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        train(me, {"clip": 0.5}, STEPS, folder, every=3, before_step=before_step)
    except CommError as error:
        return str(error)
    return "nothing happened"


@pytest.mark.parametrize("ranks", [2, 4])
def test_kill_in_mid_step_costs_the_steps_since_the_last_checkpoint(
    ranks: int, undisturbed: Outcome, tmp_path: Path
) -> None:
    found = run_ranks(until_killed, 2, str(tmp_path), dies=[1])
    assert "rank 1" in found[0] and isinstance(found[1], Died), found
    rest = run_ranks(steps_of, ranks, {}, STEPS, str(tmp_path))
    begin = STEPS - len(rest[0].losses)
    assert begin in (3, 6), begin  # the checkpoint of step 6 may have been under way
    expect_the_rest([rest], undisturbed, [begin])
