# SPDX-License-Identifier: MIT
"""A script of five lines, started by torchrun, srun, mpiexec, Ray and nobody: equal training.

make test installs two MPIs' mpiexec and Ray where there are wheels; Slurm is the system's.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm_node
from client_runs import ALONE, PROGRAMS, TORCHRUN, expect_same, needs, result, run_program

PROGRAM = PROGRAMS / "five_lines_program.py"
ROUNDING = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process that nobody has started computes."""
    out = tmp_path_factory.mktemp("alone") / "found.pt"
    run_program(*ALONE, PROGRAM, "--out", out)
    found = result(out)
    assert (found["launcher"], found["world_size"], len(found["norms"])) == ("none", 1, 6)
    return found


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: sockets' paths may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="five_", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def expect_as_alone(out: Path, alone: dict[str, Any], launcher: str, world_size: int) -> None:
    found = result(out)
    assert (found["launcher"], found["world_size"]) == (launcher, world_size)
    expect_same(found, alone, ["norms", "state"], **ROUNDING)


@pytest.mark.parametrize("world_size", [2, 4])
def test_under_torchrun(world_size: int, alone: dict[str, Any], tmp_path: Path) -> None:
    command = [*TORCHRUN[:-1], str(world_size)]
    run_program(*command, PROGRAM, "--out", tmp_path / "found.pt")
    expect_as_alone(tmp_path / "found.pt", alone, "torchrun", world_size)


@pytest.mark.skipif(bool(slurm_node.missing()), reason=slurm_node.missing() or "it is there")
def test_under_srun(alone: dict[str, Any], short: Path) -> None:
    with slurm_node.slurm(short / "slurm") as env:
        command = ["srun", "--ntasks", "2", "--overcommit", sys.executable, PROGRAM]
        run_program(*command, "--out", short / "found.pt", env=env)
    expect_as_alone(short / "found.pt", alone, "slurm", 2)


@pytest.mark.parametrize("kind", ["openmpi", "mpich"])
def test_under_mpiexec(kind: str, alone: dict[str, Any], tmp_path: Path) -> None:
    mpiexec = shutil.which("mpiexec", path=f"{sys.prefix}/mpi/{kind}/bin")
    if mpiexec is None:
        pytest.skip(f"needs {sys.prefix}/mpi/{kind}, which make test installs if PyPI has a wheel")
    anybody = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    anybody["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    command = [mpiexec, "-n", "2", sys.executable, PROGRAM]
    run_program(*command, "--out", tmp_path / "found.pt", env=anybody)
    expect_as_alone(tmp_path / "found.pt", alone, kind, 2)


@needs("ray")
@pytest.mark.timeout(600)
def test_in_ray_trains_workers(alone: dict[str, Any], short: Path) -> None:
    out = short / "found.pt"
    run_program(*ALONE, PROGRAM, "--out", out, "--ray", short / "ray", timeout_s=300)
    expect_as_alone(out, alone, "environment", 2)
