# SPDX-License-Identifier: MIT
"""Every layout of up to 8 ranks: losses, norms and parameters of one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from layout_runs import ROUNDING, STEPS, alone, expect_equal, train_each
from ranks import run_ranks

from pycomm.layout import fitting

FEW = 4  # steps where not every grid is tried; there they are more than an epoch
CLIP = 0.5  # below the norm of nearly all steps, so that clipping is seen


def expect_one_process(
    world_size: int, layouts: Sequence[Mapping[str, Any]], steps: int = FEW
) -> None:
    """The ranks take the layouts in turns, so that they start once."""
    outcomes = run_ranks(train_each, world_size, layouts, steps, timeout_s=170)
    known: dict[str, Any] = {}
    for index, fields in enumerate(layouts):
        names = ("dtype", "layers", "clip")
        reference = {name: fields[name] for name in names if name in fields}
        key = repr(reference)
        if key not in known:
            known[key] = alone(reference, steps)
        check = ROUNDING[fields.get("dtype", torch.float64)]
        for rank, of_rank in enumerate(outcomes):
            what = f"{dict(fields)}, rank {rank}"
            expect_equal(of_rank[index], known[key], **check, what=what)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_every_grid_of_dp_tp_and_pp_equals_one_process(world_size: int) -> None:
    layouts = []
    for dp, tp, pp in fitting(world_size):
        layers = 6 if pp == 8 else 2
        fields = {"dp": dp, "tp": tp, "pp": pp, "clip": CLIP, "layers": layers}
        layouts.append({**fields, "microbatches": pp})
    expect_one_process(world_size, layouts, STEPS)


def test_odd_grids_equal_one_process() -> None:
    """A batch of 16 rows has no third: so three stages of four microbatches."""
    expect_one_process(3, [{"pp": 3, "microbatches": 4, "clip": CLIP}])


def test_float32_equals_one_process_within_its_rounding() -> None:
    grids = [{"dp": 4}, {"pp": 4}, {"dp": 2, "tp": 2}]
    more = {"dtype": torch.float32, "clip": CLIP}
    expect_one_process(4, [{**grid, **more} for grid in grids])


def test_sharded_parameters_equal_one_process() -> None:
    grids = [{}, {"tp": 2}, {"pp": 2}, {"accumulate": 2}]
    expect_one_process(4, [{**grid, "shard": True, "clip": CLIP} for grid in grids])


def test_sequence_parallel_equals_one_process() -> None:
    grids = [{"tp": 4}, {"tp": 2, "pp": 2}]
    expect_one_process(4, [{**grid, "sequence": True, "clip": CLIP} for grid in grids])


def test_interleaved_stages_equal_one_process() -> None:
    more = {"schedule": "interleaved", "stages": 2, "clip": CLIP}
    expect_one_process(2, [{"pp": 2, **more}, {"pp": 2, "balance": "time", **more}])


def test_accumulation_equals_one_process() -> None:
    grids = [{"dp": 4}, {"dp": 2, "tp": 2}, {"dp": 2, "pp": 2}, {"tp": 2, "pp": 2}]
    expect_one_process(4, [{**grid, "accumulate": 2, "clip": CLIP} for grid in grids])


def test_a_deterministic_run_repeats_its_bits() -> None:
    more = {"dtype": torch.float32, "deterministic": True, "clip": CLIP}
    grids = [{"dp": 2, "tp": 2}, {"dp": 2, "pp": 2}, {"dp": 4, "shard": True}]
    for of_rank in run_ranks(train_each, 4, [{**grid, **more} for grid in grids * 2], FEW):
        for first, again in zip(of_rank[: len(grids)], of_rank[len(grids) :], strict=True):
            expect_equal(again, first)


def test_replicas_that_add_in_rank_order_equal_one_process_bit_for_bit() -> None:
    """One process that takes the replicas' rows one after the other adds gradients as they do.

    With as many micro-batches as replicas, that is. With others the sum has another bracketing, for
    which ranks would have to wait for each other: (a + b) + (c + d) is not ((a + b) + c) + d.
    """
    for world_size in (1, 2, 4):
        fields = {"dp": world_size, "deterministic": True, "clip": CLIP, "dtype": torch.float32}
        (first, *rest) = run_ranks(train_each, world_size, [fields], FEW)
        expected = alone({"parts": world_size, "clip": CLIP, "dtype": torch.float32}, FEW)
        for found in (first, *rest):
            expect_equal(found[0], expected, what=f"{world_size} ranks")
