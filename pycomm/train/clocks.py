# SPDX-License-Identifier: MIT
"""Time as the training thread spends it, as groups record it, as other ranks' clocks show it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist

_ROUNDS = 8  # of question and answer between two clocks; the quickest one counts

Interval = tuple[float, float]


class GroupTimes:
    """When collectives and messages of some groups ran, in seconds of time.perf_counter.

    The groups' flight recorders know it, each by a clock of its own; making this runs one small
    collective in each group to see how the clocks stand. Collective.

    Args:
        groups: Of the backend pycomm; each recorder holds the last 1024 operations.
    """

    def __init__(self, groups: Iterable[dist.ProcessGroup]) -> None:
        self._clocks: list[tuple[Any, float]] = []
        token = torch.zeros(1)
        for group in groups:
            backend = group._get_backend(torch.device("cpu"))
            if group.size() == 1 or not hasattr(backend, "flight_json"):
                continue
            begin = time.perf_counter()
            dist.all_reduce(token, group=group)
            entries = json.loads(backend.flight_json())["entries"]
            self._clocks.append((backend, begin - entries[-1]["submitted_us"] / 1e6))

    def since(self, begin: float) -> list[Interval]:
        """Returns when operations ran from a time on; local."""
        found = []
        for backend, origin in self._clocks:
            for entry in json.loads(backend.flight_json())["entries"]:
                start, end = (origin + entry[f"{n}_us"] / 1e6 for n in ("started", "finished"))
                if entry["finished_us"] >= 0 and end > begin:
                    found.append((max(start, begin), end))
        return found


def covered(intervals: Sequence[Interval]) -> float:
    """Returns the seconds in which at least one interval is under way; local."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def split(wall_s: float, busy_s: float, communication_s: float) -> dict[str, float]:
    """Splits a step into what the training thread did; local.

    Args:
        wall_s: How long it took.
        busy_s: Seconds the training thread was on a core: that is computing, and the microseconds
            in which a wait begins.
        communication_s: Seconds in which an operation was under way, behind compute or not.

    Returns:
        Seconds of compute, communication, exposed (waiting while an operation was under way) and
        idle (waiting for something else: data, a core).
    """
    compute = min(busy_s, wall_s)
    exposed = min(wall_s - compute, communication_s)
    return {
        "compute_s": compute,
        "communication_s": communication_s,
        "exposed_s": exposed,
        "idle_s": wall_s - compute - exposed,
    }


def ahead_of_rank_0(group: dist.ProcessGroup) -> float:
    """Returns how far this rank's time.time() is ahead of rank 0's, in seconds; collective.

    Each rank asks rank 0 for the time, and takes the answer for that of the middle of the quickest
    round trip (Cristian: Probabilistic clock synchronization, 1989).
    """
    rank, ahead = group.rank(), 0.0
    answer = torch.zeros((), dtype=torch.float64)
    for other in range(1, group.size()):
        quickest = float("inf")
        for _ in range(_ROUNDS):
            if rank == 0:
                dist.recv(answer, group=group, group_src=other)
                answer.fill_(time.time())
                dist.send(answer, group=group, group_dst=other)
            elif rank == other:
                begin = time.time()
                dist.send(answer, group=group, group_dst=0)
                dist.recv(answer, group=group, group_src=0)
                took = time.time() - begin
                if took < quickest:
                    quickest, ahead = took, begin + took / 2 - answer.item()
    return ahead
