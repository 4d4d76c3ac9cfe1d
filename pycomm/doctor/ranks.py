# SPDX-License-Identifier: MIT
"""The ranks that are measured: started here, or those of a running torchrun."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pycomm.bench.ranks import Context, RankError, run_ranks
from pycomm.doctor.problems import Problem, broken

# Fields that may differ between ranks; so may variables without a field.
OWN = ("socket_interface", "flight_dir", "port_range", "host_id")


def start(
    world_size: int, host: str, timeout_s: float
) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Starts world_size ranks on this host, measures between them, and ends them.

    Args:
        world_size: Number of ranks, 1 or more.
        host: This host's name.
        timeout_s: Seconds without progress after which the ranks are ended.
    """
    try:
        (findings,) = run_ranks(world_size, _rank_main, (host, timeout_s), timeout_s=timeout_s)
    except RankError as error:
        return None, [_no_group(str(error))]
    return {**findings, "started_by": "doctor"}, []


def _rank_main(context: Context, host: str, timeout_s: float) -> None:
    from torch._C._distributed_c10d import TCPStore

    from pycomm.doctor.links import measure_group

    context.step("the store")
    store = TCPStore("127.0.0.1", context.store_port, is_master=False)
    findings, _ = measure_group(
        {"host": host},
        timeout_s,
        context.step,
        store=store,
        rank=context.rank,
        world_size=context.world,
    )
    if context.rank == 0:
        context.emit(findings)


def launched() -> bool:
    """Returns whether this process is one rank of a launcher such as torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join(
    facts: dict[str, Any], problems: list[Problem], timeout_s: float
) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Measures between the ranks of the launcher that started this one; collective.

    Args:
        facts: This rank's "host", "build" and "settings".
        problems: What this rank found; rank 0 gets those of all.
        timeout_s: Seconds after which this process gives up, with exit code 1.

    Returns:
        Findings and everybody's problems; (None, this rank's problems) if there is no group.
    """
    from pycomm.doctor.links import measure_group

    mine = {**facts, "problems": problems}
    try:
        with _ends_after(2 * timeout_s):
            findings, everyone = measure_group(mine, timeout_s, lambda step: None)
    except Exception as error:
        return None, [*problems, _no_group(f"{type(error).__name__}: {error}")]
    return {**findings, "started_by": "launcher"}, [*_merged(everyone), *_differences(everyone)]


def _no_group(text: str) -> Problem:
    remedy = "mend what the text names; PYCOMM_LOG=info says more of the set-up"
    return broken(f"no group: {text}", remedy)


@contextmanager
def _ends_after(seconds: float) -> Iterator[None]:
    """Ends this process if the body takes longer, wherever it is stuck."""

    def end() -> None:
        os.write(2, f"pycomm doctor: gave up after {seconds:g} s\n".encode())
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _merged(everyone: list[dict[str, Any]]) -> list[Problem]:
    """Every rank's problems, those that several share once, with the host where it says more."""
    seen: dict[Problem, list[str]] = {}
    for one in everyone:
        for problem in one["problems"]:
            seen.setdefault(problem, []).append(one["host"])
    hosts = {one["host"] for one in everyone}
    found = []
    for problem, there in seen.items():
        where = "" if hosts == set(there) else f"{', '.join(dict.fromkeys(there))}: "
        found.append(Problem(problem.kind, where + problem.what, problem.remedy))
    return found


def _differences(everyone: list[dict[str, Any]]) -> list[Problem]:
    """Versions and settings that must be the same on all ranks and are not."""
    found = []
    for name in ("torch", "pycomm"):
        found += _compare(name, [one["build"][name] for one in everyone])
    for index, entry in enumerate(everyone[0]["settings"]):
        if entry["field"] is not None and entry["field"] not in OWN:
            values = [one["settings"][index]["value"] for one in everyone]
            found += _compare(entry["variable"], values)
    return found


def _compare(name: str, values: list[Any]) -> list[Problem]:
    for rank, value in enumerate(values):
        if value != values[0]:
            remedy = "give all ranks the same"
            return [broken(f"{name} is {values[0]} on rank 0 and {value} on rank {rank}", remedy)]
    return []
