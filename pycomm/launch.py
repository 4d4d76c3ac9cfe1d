# SPDX-License-Identifier: MIT
"""Finds out from the environment who started this process, and where its ranks meet.

The order is: torchrun and whoever else sets RANK and WORLD_SIZE (Ray Train's workers, Kubernetes
operators, mp.spawn), Slurm's srun, mpirun of Open MPI, mpiexec of MPICH and Intel MPI, nobody.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pycomm.errors import UsageError

# Slurm and MPI name no port. Below the range that systems give out (32768 and up on Linux).
_PORT_LOW, _PORTS = 15000, 10000


@dataclass(frozen=True)
class Launch:
    """Who started this process, and as what.

    Attributes:
        launcher: "torchrun", "environment", "slurm", "openmpi", "mpich" or "none".
        rank: This rank.
        world_size: How many there are.
        local_rank: This rank among those of its host.
        init_method: Where the ranks meet, as init_process_group takes it; "" for one rank.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    init_method: str


def detect(environment: Mapping[str, str] | None = None) -> Launch:
    """Returns how this process was started; local.

    Raises:
        UsageError: a launcher's variables contradict each other or do not say where ranks meet.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        return _by_torch(env)
    # sbatch runs its script once with variables of rank 0; only srun's steps have a step id.
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        return _by_slurm(env)
    if "OMPI_COMM_WORLD_SIZE" in env:
        job = env.get("PMIX_NAMESPACE") or env.get("OMPI_MCA_ess_base_jobid", "")
        return _by_mpi(env, "openmpi", "OMPI_COMM_WORLD_{}", "OMPI_COMM_WORLD_LOCAL_{}", job)
    if "PMI_SIZE" in env or "PMI_RANK" in env:
        return _by_mpi(env, "mpich", "PMI_{}", "MPI_LOCAL{}", env.get("PMI_JOBID", ""))
    if "RANK" in env or "WORLD_SIZE" in env:
        there, missing = ("RANK", "WORLD_SIZE") if "RANK" in env else ("WORLD_SIZE", "RANK")
        raise UsageError(
            f"{there}={env[there]!r} is in the environment and {missing} is not: set both, which a "
            "launcher does, or neither"
        )
    return Launch("none", 0, 1, 0, "")


def _by_torch(env: Mapping[str, str]) -> Launch:
    rank, world_size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "environment"
    local_rank = _number(env, "LOCAL_RANK", rank)
    return _checked(Launch(launcher, rank, world_size, local_rank, "env://"), env)


def _by_slurm(env: Mapping[str, str]) -> Launch:
    rank = _number(env, "SLURM_PROCID")
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    world_size = _number(env, tasks)
    local_rank = _number(env, "SLURM_LOCALID", rank)
    host = env.get("MASTER_ADDR")
    if not host:
        names = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST", "")
        host = first_host(names or env.get("SLURM_JOB_NODELIST", ""))
    reserved = re.match(r"\d+", env.get("SLURM_STEP_RESV_PORTS", ""))
    job = f"{env.get('SLURM_JOB_ID', '')}.{env['SLURM_STEP_ID']}"
    port = env.get("MASTER_PORT") or (reserved[0] if reserved else str(_port_of(job)))
    return _checked(Launch("slurm", rank, world_size, local_rank, f"tcp://{host}:{port}"), env)


def _by_mpi(env: Mapping[str, str], launcher: str, whole: str, local: str, job: str) -> Launch:
    rank, world_size = _number(env, whole.format("RANK")), _number(env, whole.format("SIZE"))
    names = ("RANK", "SIZE") if launcher == "openmpi" else ("RANKID", "NRANKS")
    local_rank, local_size = (_number(env, local.format(name), -1) for name in names)
    if env.get("MASTER_ADDR") and env.get("MASTER_PORT"):
        method = f"tcp://{env['MASTER_ADDR']}:{env['MASTER_PORT']}"
    elif local_size == world_size:
        method = _file_of(job)
    else:
        raise UsageError(
            f"{launcher} started {world_size} ranks on several hosts and does not say where rank 0 "
            "is; give all ranks MASTER_ADDR (rank 0's host) and MASTER_PORT (a free port there), "
            "with -x NAME=VALUE of Open MPI or -genv NAME VALUE of MPICH"
        )
    return _checked(Launch(launcher, rank, world_size, max(0, local_rank), method), env)


def _checked(found: Launch, env: Mapping[str, str]) -> Launch:
    if not 0 <= found.rank < found.world_size:
        raise UsageError(
            f"{found.launcher}: the environment says rank {found.rank} of {found.world_size}; "
            "expected a rank below the number of ranks"
        )
    if found.world_size == 1:
        return Launch(found.launcher, 0, 1, found.local_rank, "")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env]
    if found.init_method == "env://" and missing:
        raise UsageError(
            f"RANK and WORLD_SIZE={found.world_size} are set and {' and '.join(missing)} not; "
            "start the program with torchrun, or set where the ranks meet"
        )
    return found


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name, "")
    if text.isdecimal():
        return int(text)
    if default is not None and not text:
        return default
    raise UsageError(f"{name}={text!r} in the environment, expected a number")


def first_host(names: str) -> str:
    """Returns the first host of a list as Slurm writes it, "node[007-012,20],login"; local."""
    match = re.match(r"([^,\[\]]+)(?:\[(\d+)[^\]]*\]([^,\[\]]*))?", names)
    if match is None:
        raise UsageError(f"Slurm's list of hosts is {names!r}; set MASTER_ADDR to rank 0's host")
    return match[1] + (match[2] or "") + (match[3] or "")


def _port_of(job: str) -> int:
    """A port that all ranks of a job agree on without asking; another one for each job."""
    return _PORT_LOW + int.from_bytes(hashlib.sha256(job.encode()).digest()[:4], "big") % _PORTS


def _file_of(job: str) -> str:
    """A file for ranks of one host: they have one parent, which starts one such job."""
    parent = os.getppid()
    try:  # pids come round again; together with the time of its start one does not
        start = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        start = ""
    key = hashlib.sha256(f"{job} {parent} {start}".encode()).hexdigest()[:16]
    return f"file://{tempfile.gettempdir()}/pycomm_{os.getuid()}_{key}"
