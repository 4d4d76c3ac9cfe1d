# SPDX-License-Identifier: MIT
"""Processor, cores, memory and the limits that a group can run into; local, Linux only."""

from __future__ import annotations

import math
import os
import platform
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycomm.doctor.problems import Problem, advice, broken

# What reductions and conversions are compiled for, and neighbours that explain a surprise.
FEATURES = ("f16c", "avx2", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16", "amx_bf16")
CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
# Control socket, doorbell, segment and pidfd of a peer, with room for its TCP connections.
FILES_PER_PEER = 16
FILES_OF_A_PROGRAM = 256


def describe(world_size: int) -> tuple[dict[str, Any], list[Problem]]:
    """Returns the machine's facts.

    Args:
        world_size: Ranks that will share this machine; advice depends on it.
    """
    soft_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft_locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    quota = _core_quota()
    affinity = len(os.sched_getaffinity(0))
    total, available = _memory()
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "kernel": platform.release(),
        "processor": _processor(),
        "features": _features(),
        "cores": {"online": os.cpu_count(), "affinity": affinity, "cgroup_quota": quota},
        "usable_cores": usable_cores(affinity, quota),
        "memory_bytes": {"total": total, "available": available, "cgroup_limit": _memory_limit()},
        "limits": {
            "open_files": _limit(soft_files),
            "locked_memory_bytes": _limit(soft_locked),
            "dev_shm_bytes": _free("/dev/shm"),
        },
        "memfd": _memfd(),
        "pidfd": _pidfd(),
        "load_average": round(os.getloadavg()[0], 1),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
    return facts, _problems(facts, world_size)


def usable_cores(affinity: int, quota: float | None) -> int:
    """Returns the whole cores that the affinity mask and the cgroup leave, 1 at least."""
    return max(1, affinity if quota is None else min(affinity, math.floor(quota)))


def _problems(facts: dict[str, Any], world_size: int) -> list[Problem]:
    cores, found = facts["usable_cores"], []
    if not facts["memfd"]:
        found.append(
            broken(
                "memfd_create is not permitted, so ranks of this host cannot share memory",
                "allow it in the container's seccomp profile, or set PYCOMM_TRANSPORT=tcp",
            )
        )
    if not facts["pidfd"]:
        found.append(
            advice(
                "pidfd_open is not available: the death of a rank shows by its connection only",
                "use Linux 5.3 or later, and allow pidfd_open in the seccomp profile",
            )
        )
    if world_size > cores:
        found.append(
            advice(
                f"{world_size} ranks share {cores} usable core{'s' if cores > 1 else ''}: "
                "waiting ranks give way instead of spinning, which costs microseconds a step",
                "use no more ranks than cores, or widen the affinity mask or the cgroup's quota",
            )
        )
    threads = facts["omp_num_threads"]
    share = max(1, cores // max(1, world_size))
    if threads and threads.isdigit() and int(threads) > share:
        found.append(
            advice(
                f"OMP_NUM_THREADS={threads}, but {cores} cores for {world_size} ranks are {share} "
                "for each: threads of torch will hold up waiting ranks",
                f"set OMP_NUM_THREADS={share}",
            )
        )
    files, wanted = facts["limits"]["open_files"], FILES_OF_A_PROGRAM + FILES_PER_PEER * world_size
    if files is not None and files < wanted:
        found.append(
            advice(
                f"{files} open files are allowed; a group of {world_size} may need {wanted}",
                f"raise the limit: ulimit -n {wanted}",
            )
        )
    if facts["load_average"] > facts["cores"]["affinity"]:
        found.append(
            advice(
                f"the load average is {facts['load_average']} on {facts['cores']['affinity']} "
                "cores: what is measured here is too slow",
                "ask again when the machine is idle",
            )
        )
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _features() -> list[str]:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("flags", "Features")):
            there = set(line.partition(":")[2].split())
            return [name for name in FEATURES if name in there]
    return []


def _memory() -> tuple[int | None, int | None]:
    """Bytes in all, and bytes that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kib = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines)}
    total, available = kib.get("MemTotal"), kib.get("MemAvailable")
    return (
        int(total) * 1024 if total else None,
        int(available) * 1024 if available else None,
    )


def _limit(value: int) -> int | None:
    return None if value == resource.RLIM_INFINITY else value


def _free(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _memfd() -> bool:
    """Whether an anonymous segment, which shm lives in, can be made."""
    try:
        os.close(os.memfd_create("pycomm_doctor"))
    except OSError:
        return False
    return True


def _pidfd() -> bool:
    """Whether the end of a process can be waited for, by which ranks see a death at once."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return False
    return True


# ---- cgroups: a limit may stand in the process's group or in any above it


def _core_quota() -> float | None:
    """Cores that the cgroup lets this process use at once; None: no limit."""
    quotas = []
    for path in _cgroup_files("", "cpu.max"):
        amount, _, period = path.read_text().strip().partition(" ")
        if amount != "max":
            quotas.append(int(amount) / int(period))
    for path in _cgroup_files("cpu", "cpu.cfs_quota_us"):
        amount = path.read_text().strip()
        if int(amount) > 0:
            quotas.append(int(amount) / int(path.with_name("cpu.cfs_period_us").read_text()))
    return min(quotas, default=None)


def _memory_limit() -> int | None:
    """Bytes that the cgroup grants; None: no limit."""
    paths = [
        *_cgroup_files("", "memory.max"),
        *_cgroup_files("memory", "memory.limit_in_bytes"),
    ]
    limits = [path.read_text().strip() for path in paths]
    # Version 1 spells "no limit" as a number near 2^63.
    return min((int(one) for one in limits if one.isdigit() and int(one) < 1 << 60), default=None)


def _cgroup_files(controller: str, name: str) -> Iterator[Path]:
    """Existing files `name` from this process's cgroup up to the root, of version 2 if no name."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, folder = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        for base in (
            (CGROUP / controller, CGROUP / "unified")
            if controller == ""
            else (CGROUP / controller,)
        ):
            at = base / folder.lstrip("/")
            while at == base or base in at.parents:
                # Inside a container the folder may be that of the host and not exist here.
                if (at / name).is_file() and os.access(at / name, os.R_OK):
                    yield at / name
                at = at.parent
