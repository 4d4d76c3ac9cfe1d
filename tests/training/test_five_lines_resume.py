# SPDX-License-Identifier: MIT
"""Runs that are stopped and go on in another layout: the losses of one that was never stopped."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_runs import FailingFiles
from layout_runs import (
    ROUNDING,
    ROWS,
    STEPS,
    Outcome,
    alone,
    expect_equal,
    order_of,
    rows_of,
    train,
)
from layout_runs import fingerprints as prints_of
from ranks import Died, Rank, run_ranks

from pycomm.checkpoint import Checkpointer
from pycomm.errors import CommError
from pycomm.train import saves
from pycomm.train.context import Context

STOP = 8  # steps of the first part
EVERY = 3  # between saves

Ranks = tuple[int, Mapping[str, Any]]  # how many, and their layout's fields


@pytest.fixture(scope="module")
def undisturbed() -> Outcome:
    """One process, never stopped."""
    return alone({"clip": 0.5})


def steps_of(me: Rank, fields: Mapping[str, Any], steps: int, folder: str) -> Outcome:
    return train(me, {**fields, "clip": 0.5}, steps, folder)


def expect_the_rest(
    parts: Sequence[Sequence[Outcome]], undisturbed: Outcome, begins: Sequence[int]
) -> None:
    """Each part's losses and samples from the step it began with, and in the end the model."""
    order, rows = order_of(STEPS), rows_of()[:][0]
    for begin, outcomes in zip(begins, parts, strict=True):
        for one in outcomes:
            expected = undisturbed.losses[begin : begin + len(one.losses)]
            torch.testing.assert_close(one.losses, expected, **ROUNDING[torch.float64])
        # Every sample of these steps once, whoever was given it.
        given = [number for one in replicas(outcomes) for number in one.extra["given"]]
        end = begin + len(outcomes[0].losses)
        assert sorted(given) == sorted(prints_of(rows[order[begin * ROWS : end * ROWS]]))
    for one in parts[-1]:
        whole = Outcome(undisturbed.losses, undisturbed.norms, one.state)
        expect_equal(whole, undisturbed, **ROUNDING[torch.float64])


def replicas(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One rank of each replica."""
    return list({one.extra["replica"]: one for one in outcomes}.values())


@pytest.mark.parametrize(
    "layouts",
    [
        [(2, {}), (2, {}), (1, {}), (2, {"pp": 2})],
        [(2, {"tp": 2}), (4, {"pp": 2}), (1, {}), (4, {"tp": 2, "shard": True})],
        [(4, {"pp": 2, "shard": True}), (2, {"tp": 2}), (8, {"tp": 2, "pp": 2}), (1, {})],
        [
            (1, {}),
            (8, {"tp": 2, "pp": 2}),
            (2, {"pp": 2, "schedule": "interleaved", "stages": 2}),
            (4, {"pp": 4, "microbatches": 4}),
        ],
    ],
    ids=str,
)
def test_a_run_goes_on_from_layout_to_layout(
    layouts: Sequence[Ranks], undisturbed: Outcome, tmp_path: Path
) -> None:
    part = STEPS // len(layouts)
    parts = [
        run_ranks(steps_of, ranks, fields, number * part, str(tmp_path))
        for number, (ranks, fields) in enumerate(layouts, 1)
    ]
    expect_the_rest(parts, undisturbed, range(0, STEPS, part))


# ---- disturbed

SAME: tuple[Ranks, Ranks] = ((2, {}), (2, {}))
OTHERS: list[tuple[Ranks, Ranks]] = [
    ((4, {"tp": 2}), (2, {"pp": 2})),
    ((4, {"tp": 2, "pp": 2}), (4, {"shard": True})),
    ((4, {"pp": 2}), (1, {})),
]


def until_a_signal(me: Rank, fields: Mapping[str, Any], folder: str) -> Outcome:
    def before_step(ctx: Context) -> None:
        if ctx.steps == STOP - 1 and me.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return train(me, {**fields, "clip": 0.5}, STEPS, folder, before_step=before_step)


@pytest.mark.parametrize("first, then", [SAME, *OTHERS], ids=str)
def test_sigterm_to_one_rank_ends_all_with_a_checkpoint(
    first: Ranks, then: Ranks, undisturbed: Outcome, tmp_path: Path
) -> None:
    ended = run_ranks(until_a_signal, *first, str(tmp_path))
    assert [one.extra["exit"] for one in ended] == [0] * first[0]
    rest = run_ranks(steps_of, *then, STEPS, str(tmp_path))
    expect_the_rest([ended, rest], undisturbed, [0, STOP])


class KillRank(FailingFiles):
    def fail(self, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def until_killed(me: Rank, fields: Mapping[str, Any], folder: str, at: int | None) -> str:
    """Rank 1 dies in a step, or at an operation of its third save, while training goes on."""

    def before_step(ctx: Context) -> None:
        if ctx.steps == 3 * EVERY - 1:
            files.done, files.at = 0, at if me.rank == 1 else None
        if ctx.steps == STOP and me.rank == 1 and at is None:
            os.kill(os.getpid(), signal.SIGKILL)

    files = KillRank(None)
    saves.Checkpointer = functools.partial(Checkpointer, files=files)  # type: ignore[misc, assignment]
    try:
        layout = {**fields, "clip": 0.5}
        train(me, layout, STEPS, folder, every=EVERY, before_step=before_step)
    except CommError as error:
        return str(error)
    finally:
        saves.Checkpointer = Checkpointer  # type: ignore[misc]
    return "nothing happened"


@pytest.mark.parametrize(
    "first, then, at",
    [(*SAME, None), (*SAME, 0), (*OTHERS[0], None), (*OTHERS[1], 2), (*OTHERS[2], 100)],
    ids=str,
)
def test_kill_in_mid_step_or_mid_checkpoint_costs_the_steps_since_the_last_one(
    first: Ranks, then: Ranks, at: int | None, undisturbed: Outcome, tmp_path: Path
) -> None:
    found = run_ranks(until_killed, *first, str(tmp_path), at, dies=[1])
    assert isinstance(found[1], Died) and "nothing happened" not in found, found
    assert any("died" in str(said) for said in found), found
    rest = run_ranks(steps_of, *then, STEPS, str(tmp_path))
    begin = STEPS - len(rest[0].losses)
    # That of step 6 may have been under way, if steps are faster than the disk.
    assert begin in (EVERY, 2 * EVERY), begin
    expect_the_rest([rest], undisturbed, [begin])
