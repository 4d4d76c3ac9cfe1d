# SPDX-License-Identifier: MIT
"""Hugging Face Accelerate on pycomm: a loop as users write it, and Accelerate's own checks."""

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
    expect_same,
    needs,
    result,
    run_program,
)

pytestmark = needs("accelerate")

PROGRAM = PROGRAMS / "accelerate_program.py"
NUMBERS = ["losses", "norms", "predictions", "indices", "state"]
RUN_HERE = 'pycomm run: init_process_group("gloo") runs on pycomm'


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same program in one process, with batches of as many rows as those of all ranks."""
    out = tmp_path_factory.mktemp("alone") / "found.pt"
    run_program(*ALONE, PROGRAM, "--out", out)
    return result(out)


def expect_all(found: dict[str, Any], alone: dict[str, Any], name: str) -> None:
    """The ranks computed what one process does, on pycomm, with `name` shown."""
    assert (found["runs_on"], found["name"]) == ("pycomm", name)
    assert found["kind"] == "DistributedType.MULTI_CPU"
    assert len(alone["losses"]) == 12 and len(alone["norms"]) == 6
    assert alone["indices"].tolist() == list(range(29))
    expect_same(found, alone, NUMBERS, **ONE_PROCESS)
    assert found["ragged"] == [1, 0, 2, 2]
    assert found["objects"] == [{"rank": 0}, {"rank": 1}]
    assert found["plan"] == ["plan of 0"]


def test_a_loop_that_lets_accelerate_choose_gloo_runs_on_pycomm_and_has_its_bits(
    tmp_path: Path, one_process: dict[str, Any]
) -> None:
    text = run_program(*TORCHRUN, *REPLACING_GLOO, PROGRAM, "--out", tmp_path / "found.pt")
    assert RUN_HERE in text
    found = result(tmp_path / "found.pt")
    expect_all(found, one_process, "gloo")
    run_program(*TORCHRUN, PROGRAM, "--out", tmp_path / "gloo.pt")
    gloo = result(tmp_path / "gloo.pt")
    assert gloo["runs_on"] == "gloo"
    expect_same(found, gloo, NUMBERS)


def test_a_loop_that_makes_the_default_group_first_runs_on_pycomm(
    tmp_path: Path, one_process: dict[str, Any]
) -> None:
    run_program(*TORCHRUN, PROGRAM, "--init", "pycomm", "--out", tmp_path / "found.pt")
    expect_all(result(tmp_path / "found.pt"), one_process, "pycomm")


# accelerate.test_utils.scripts.test_distributed_data_loop is left out: joining uneven inputs is
# for GPUs there, and its CPU ranks call different collectives; on Gloo it does not end.
@pytest.mark.parametrize("script", ["test_script", "test_sync"])
def test_the_checks_that_accelerate_ships_pass(script: str) -> None:
    module = f"accelerate.test_utils.scripts.{script}"
    text = run_program(*TORCHRUN, *REPLACING_GLOO, "-m", module, env={"ACCELERATE_USE_CPU": "1"})
    assert RUN_HERE in text
