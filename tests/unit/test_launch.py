# SPDX-License-Identifier: MIT
"""Who started this process: what each launcher puts into the environment, and what comes of it."""

from __future__ import annotations

import re

import pytest

from pycomm import UsageError
from pycomm.launch import Launch, detect, first_host

# As torchrun sets them for rank 1 of 2, among others.
TORCHRUN = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
# As srun sets them for task 3 of 4 on two hosts (Slurm 22.05).
SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_JOB_NODELIST": "node[07-09]",
}
# As mpirun of Open MPI 4 and 5 sets them for rank 1 of 2.
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-17@1",
}
# As mpiexec (Hydra) of MPICH and Intel MPI sets them for rank 1 of 2.
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


def test_nobody_means_one_process() -> None:
    assert detect({"PATH": "/bin"}) == Launch("none", 0, 1, 0, "")


def test_torchrun() -> None:
    assert detect(TORCHRUN) == Launch("torchrun", 1, 2, 1, "env://")


def test_anybody_who_sets_torchs_variables() -> None:
    """Ray Train's workers, operators of Kubernetes, mp.spawn."""
    env = {name: value for name, value in TORCHRUN.items() if "ELASTIC" not in name}
    assert detect(env) == Launch("environment", 1, 2, 1, "env://")
    with pytest.raises(UsageError, match="WORLD_SIZE='2' is in the environment and RANK is not"):
        detect({"WORLD_SIZE": "2"})
    del env["MASTER_PORT"]
    with pytest.raises(UsageError, match="WORLD_SIZE=2 are set and MASTER_PORT not"):
        detect(env)
    assert detect({"RANK": "0", "WORLD_SIZE": "1"}).world_size == 1


def test_srun() -> None:
    found = detect(SRUN)
    assert (found.launcher, found.rank, found.world_size, found.local_rank) == ("slurm", 3, 4, 1)
    assert re.fullmatch(r"tcp://node07:\d+", found.init_method)
    assert detect(SRUN | {"SLURM_PROCID": "0"}).init_method == found.init_method
    assert detect(SRUN | {"SLURM_JOB_ID": "18"}).init_method != found.init_method
    assert detect(SRUN | {"SLURM_STEP_RESV_PORTS": "12003-12004"}).init_method.endswith(":12003")
    given = detect(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"})
    assert given.init_method == "tcp://10.0.0.1:7"


def test_the_script_of_sbatch_itself_is_one_process() -> None:
    """It has a task's variables and is not one of srun's."""
    env = {name: value for name, value in SRUN.items() if "STEP" not in name}
    assert detect(env | {"SLURM_PROCID": "0"}) == Launch("none", 0, 1, 0, "")


def test_torchrun_within_a_slurm_job_wins() -> None:
    assert detect(SRUN | TORCHRUN).launcher == "torchrun"


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ("node[07-08]", "node07"),
        ("a1,b[2-3]", "a1"),
        ("rack2n[001,005-9]-ib,login", "rack2n001-ib"),
        ("single", "single"),
    ],
)
def test_first_of_slurms_hosts(names: str, first: str) -> None:
    assert first_host(names) == first


@pytest.mark.parametrize(("env", "name"), [(OPENMPI, "openmpi"), (HYDRA, "mpich")])
def test_mpirun(env: dict[str, str], name: str) -> None:
    """On one host ranks meet at a file, elsewhere they have to be told."""
    found = detect(env)
    assert (found.launcher, found.rank, found.world_size, found.local_rank) == (name, 1, 2, 1)
    assert found.init_method.startswith("file:///")
    local = "OMPI_COMM_WORLD_LOCAL_SIZE" if name == "openmpi" else "MPI_LOCALNRANKS"
    spread = env | {local: "1"}
    with pytest.raises(UsageError, match="on several hosts and does not say where rank 0 is"):
        detect(spread)
    given = detect(spread | {"MASTER_ADDR": "node1", "MASTER_PORT": "7"})
    assert given.init_method == "tcp://node1:7"


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="RANK='one' in the environment, expected a number"):
        detect(TORCHRUN | {"RANK": "one"})
    with pytest.raises(UsageError, match="rank 2 of 2"):
        detect(TORCHRUN | {"RANK": "2"})
