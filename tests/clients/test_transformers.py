# SPDX-License-Identifier: MIT
"""The Transformers Trainer on pycomm: training, evaluation, checkpoints of a small GPT-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from client_runs import (
    ALONE,
    ONE_PROCESS,
    PROGRAMS,
    REPLACING_GLOO,
    TORCHRUN,
    WORLD_SIZE,
    expect_same,
    needs,
    result,
    run_program,
)

pytestmark = needs("transformers", "accelerate")

NUMBERS = ["losses", "norms", "eval_losses", "accuracies", "logits", "state"]


def train(folder: Path, launcher: list[str], processes: int, *options: str) -> dict[str, Any]:
    """Runs the program; returns what it found."""
    out = folder / "found.pt"
    program = [PROGRAMS / "transformers_program.py", "--processes", str(processes)]
    run_program(*launcher, *program, "--work", folder / "work", "--out", out, *options)
    assert (folder / "work" / "checkpoint-6").is_dir()
    return result(out)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same program in one process, with batches of as many rows as those of all ranks."""
    alone = train(tmp_path_factory.mktemp("alone"), ALONE, 1)
    assert len(alone["losses"]) == 6 and len(alone["eval_losses"]) == 2
    assert alone["losses"][-1] < alone["losses"][0]
    return alone


def test_the_trainer_runs_on_pycomm_in_place_of_gloo_and_has_its_bits(
    tmp_path: Path, one_process: dict[str, Any]
) -> None:
    (tmp_path / "mine").mkdir()
    found = train(tmp_path / "mine", [*TORCHRUN, *REPLACING_GLOO], WORLD_SIZE)
    assert (found["runs_on"], found["name"]) == ("pycomm", "gloo")
    assert found["wrapped"] == "DistributedDataParallel"
    expect_same(found, one_process, NUMBERS, **ONE_PROCESS)
    (tmp_path / "gloo").mkdir()
    gloo = train(tmp_path / "gloo", TORCHRUN, WORLD_SIZE)
    assert gloo["runs_on"] == "gloo"
    expect_same(found, gloo, NUMBERS)


def test_the_trainer_runs_on_a_pycomm_group_that_the_script_made(
    tmp_path: Path, one_process: dict[str, Any]
) -> None:
    found = train(tmp_path, TORCHRUN, WORLD_SIZE, "--init", "pycomm")
    assert (found["runs_on"], found["name"]) == ("pycomm", "pycomm")
    assert found["wrapped"] == "DistributedDataParallel"
    expect_same(found, one_process, NUMBERS, **ONE_PROCESS)
