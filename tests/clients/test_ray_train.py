# SPDX-License-Identifier: MIT
"""Ray Train's TorchTrainer on pycomm, two workers on this host; nothing of Ray stays behind."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_runs import (
    ALONE,
    ONE_PROCESS,
    PROGRAMS,
    REPLACING_GLOO,
    expect_same,
    needs,
    result,
    run_program,
)

# Ray starts a dozen processes, each of which imports torch or Ray.
TIMEOUT_S = 300
# make test brings Ray, but not Accelerate: there test_five_lines.py has to do, as each start of Ray
# takes a quarter of a minute.
pytestmark = [needs("ray", "accelerate"), pytest.mark.timeout(2 * TIMEOUT_S)]


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder for Ray with a short name: its sockets' paths may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_torch_trainer_with_pycomm_as_its_backend_equals_one_process(work: Path) -> None:
    program = PROGRAMS / "ray_program.py"
    run_program(*ALONE, program, "--out", work / "alone.pt")
    command = [*ALONE, program, "--backend", "pycomm", "--work", work]
    run_program(*command, "--out", work / "found.pt", timeout_s=TIMEOUT_S)
    found, alone = result(work / "found.pt"), result(work / "alone.pt")
    assert (found["runs_on"], found["name"], found["world_size"]) == ("pycomm", "pycomm", 2)
    assert len(alone["losses"]) == 3
    expect_same(found, alone, ["losses", "state"], **ONE_PROCESS)


def test_the_linear_example_that_ray_ships_runs_on_pycomm_in_place_of_gloo(work: Path) -> None:
    """It says nothing of a backend, so Ray takes Gloo for it, in workers that Ray starts."""
    example = "ray.train.examples.pytorch.torch_linear_example"
    text = run_program(
        *ALONE,
        *[*REPLACING_GLOO, "-m", example, "--smoke-test"],
        env={"RAY_TMPDIR": str(work), "HOME": str(work)},
        timeout_s=TIMEOUT_S,
    )
    assert 'init_process_group("gloo") runs on pycomm' in text
    loss = re.findall(r"^\{'loss': ([\d.]+)", text, re.MULTILINE)
    # Untrained it is at least 89, whatever the model begins with, which is not seeded.
    assert len(loss) == 1 and float(loss[0]) < 10
