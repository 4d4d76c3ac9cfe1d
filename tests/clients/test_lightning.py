# SPDX-License-Identifier: MIT
"""Lightning's Trainer on pycomm: DDP and sharded (FSDP2), with metrics synchronised over ranks.

Its FSDPStrategy asks for GPUs; on CPU ranks ModelParallelStrategy is what shards.
"""

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

pytestmark = needs("lightning")

NUMBERS = ["losses", "metrics", "state"]


def fit(folder: Path, launcher: list[str], processes: int, *options: str) -> dict[str, Any]:
    """Runs the program; returns what it found."""
    out = folder / "found.pt"
    program = [PROGRAMS / "lightning_program.py", "--processes", str(processes)]
    run_program(*launcher, *program, "--work", folder, "--out", out, *options)
    assert list(folder.glob("checkpoints/*.ckpt"))
    return result(out)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same program in one process, with batches of as many rows as those of all ranks."""
    alone = fit(tmp_path_factory.mktemp("alone"), ALONE, 1)
    assert len(alone["losses"]) == 8
    return alone


def expect_all(found: dict[str, Any], alone: dict[str, Any], name: str, strategy: str) -> None:
    """The ranks computed what one process does, every group on pycomm, with `name` shown."""
    assert found["runs_on"] and set(found["runs_on"]) == {"pycomm"}
    assert (found["name"], found["strategy"]) == (name, strategy)
    assert (found["ranks"], found["word"]) == ([0, 1], "word of 0")
    # Rank 0 logs 0 with weight 3, rank 1 logs 1 with weight 4, three times. The mean of the int64
    # weights 9 and 12 is 10: ReduceOp.AVG on integers divides as NCCL does.
    metrics = dict(found["metrics"])
    assert metrics.pop("val_rank") == pytest.approx(12 / 2 / 10)
    expected = {key: value for key, value in alone["metrics"].items() if key != "val_rank"}
    expect_same(
        {**found, "metrics": metrics}, {**alone, "metrics": expected}, NUMBERS, **ONE_PROCESS
    )


def test_ddp_with_pycomm_as_lightnings_backend_equals_one_process(
    tmp_path: Path, one_process: dict[str, Any]
) -> None:
    found = fit(tmp_path, TORCHRUN, WORLD_SIZE, "--strategy", "ddp", "--backend", "pycomm")
    expect_all(found, one_process, "pycomm", "DDPStrategy")


def test_ddp_started_by_lightning_itself_runs_in_place_of_gloo_and_has_its_bits(
    tmp_path: Path, one_process: dict[str, Any]
) -> None:
    """Lightning starts the second rank by running the script again."""
    (tmp_path / "mine").mkdir()
    launcher = [*ALONE, *REPLACING_GLOO]
    found = fit(tmp_path / "mine", launcher, WORLD_SIZE, "--strategy", "ddp")
    expect_all(found, one_process, "gloo", "DDPStrategy")
    (tmp_path / "gloo").mkdir()
    gloo = fit(tmp_path / "gloo", ALONE, WORLD_SIZE, "--strategy", "ddp")
    assert gloo["runs_on"] == ["gloo"]
    expect_same(found, gloo, NUMBERS)


def test_a_sharded_model_equals_one_process(tmp_path: Path, one_process: dict[str, Any]) -> None:
    found = fit(tmp_path, TORCHRUN, WORLD_SIZE, "--strategy", "sharded", "--backend", "pycomm")
    expect_all(found, one_process, "pycomm", "ModelParallelStrategy")
