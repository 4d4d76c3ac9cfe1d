# SPDX-License-Identifier: MIT
"""Makes a group and measures between each pair of its ranks; collective, runs on every rank.

Messages are timed, not collectives: a round trip of 8 bytes halved, and 16 MiB answered by one
byte. Pairs take turns while the others wait in a barrier, so nobody competes but the waiting.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import DebugLevel, set_debug_level

from pycomm.doctor.devices import measure_devices

SMALL_BYTES = 8
LARGE_BYTES = 16 << 20
PILOT_BYTES = 1 << 20
# A pair's time for each of the two measurements; slow links get fewer repetitions, not more time.
LATENCY_S, LATENCY_PILOTS, LATENCY_TIMES = 0.2, 5, 400
BANDWIDTH_S, BANDWIDTH_TIMES = 0.5, 5
# With more pairs than this (9 ranks) only neighbours are measured, and rank 0 with every host.
PAIRS_MAX = 36
# Predicting makes the plans of all ranks, whose steps grow with the square of their number.
PREDICT_RANKS_MAX = 16
TAG = 7

COLLECTIVES = (
    "all_reduce",
    "broadcast",
    "reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "gather",
    "scatter",
)
SIZES = tuple(1 << power for power in range(3, 31))


def measure_group(
    facts: Any, timeout_s: float, step: Callable[[str], None], **place: Any
) -> tuple[dict[str, Any], list[Any]]:
    """Joins a pycomm group, measures, leaves it; returns the findings and all ranks' `facts`.

    Args:
        facts: What this rank contributes, anything that can be pickled; "host" in it is its host.
        timeout_s: The group's timeout, for set-up and for each operation.
        step: Told what is about to happen.
        place: rank, world_size and store for init_process_group; nothing under torchrun.

    Raises:
        UsageError, CommError, ValueError: the group could not be made, or failed.
    """
    set_debug_level(DebugLevel.OFF)  # its wrapper hides the backend
    step("set-up")
    begun = time.perf_counter()
    dist.init_process_group("pycomm", timeout=timedelta(seconds=timeout_s), **place)
    setup_ms = (time.perf_counter() - begun) * 1e3
    try:
        return _measured(facts, setup_ms, step)
    finally:
        dist.destroy_process_group()


def _measured(
    facts: Any, setup_ms: float, step: Callable[[str], None]
) -> tuple[dict[str, Any], list[Any]]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    assert dist.group.WORLD is not None
    backend: Any = dist.group.WORLD._get_backend(torch.device("cpu"))
    peers = [None if one == rank else backend.transport_to(one) for one in range(world_size)]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, (facts, peers))
    hosts = [one["host"] for one, _ in gathered]
    chosen = pairs_to_measure(hosts)
    mine: list[tuple[int, int, float, float]] = []
    for first, second in chosen:
        step(f"measuring ranks {first} and {second}")
        dist.barrier()
        if rank in (first, second):
            result = measure_pair(backend, rank == first, first + second - rank)
            if rank == first:
                mine.append((first, second, *result))
    measured: list[Any] = [None] * world_size
    dist.all_gather_object(measured, mine)
    latency, bandwidth = _matrix(world_size), _matrix(world_size)
    for first, second, seconds, bytes_per_s in (one for part in measured for one in part):
        latency[first][second] = latency[second][first] = round(seconds * 1e6, 2)
        bandwidth[first][second] = bandwidth[second][first] = round(bytes_per_s / 1e9, 3)
    findings = {
        "world_size": world_size,
        "hosts": hosts,
        "setup_ms": round(setup_ms, 1),
        "transports": [transports for _, transports in gathered],
        "pairs": world_size * (world_size - 1) // 2,
        "pairs_measured": len(chosen),
        "latency_bytes": SMALL_BYTES,
        "latency_us": latency,
        "bandwidth_bytes": LARGE_BYTES,
        "bandwidth_gbps": bandwidth,
        "figures": backend.figures(),
        "algorithms": {name: algorithm_ranges(backend, name) for name in COLLECTIVES},
    }
    step("measuring devices")
    findings["devices"] = measure_devices()  # last: what fails there fails the group
    return findings, [one for one, _ in gathered]


def pairs_to_measure(hosts: list[str]) -> list[tuple[int, int]]:
    """Returns the pairs of ranks, lower first: all, or in large groups a choice.

    Args:
        hosts: The host of each rank.
    """
    ranks = range(len(hosts))
    every = [(first, second) for first in ranks for second in ranks if first < second]
    if len(every) <= PAIRS_MAX:
        return every
    neighbours = [(rank, rank + 1) for rank in ranks[:-1]]
    one_for_each_host = [(0, hosts.index(host)) for host in dict.fromkeys(hosts)]
    return list(dict.fromkeys([*neighbours, *one_for_each_host[1:]]))


def algorithm_ranges(backend: Any, collective: str) -> list[dict[str, Any]]:
    """Returns the algorithms by size: [{"from_bytes": 8, "algorithm": "direct", ...}, ...].

    Each with "predicted_us" at that size by the group's figures, a core for each rank; None in
    large groups.

    Args:
        backend: The C++ backend of a group.
        collective: Such as "all_reduce"; sizes are of the tensor, or of one rank's block.
    """
    ranges: list[dict[str, Any]] = []
    predict = backend.size() <= PREDICT_RANKS_MAX
    for size in SIZES:
        name = backend.algorithm_for(collective, size)
        if not ranges or ranges[-1]["algorithm"] != name:
            expected = backend.predicted_us(collective, size) if predict else None
            ranges.append({"from_bytes": size, "algorithm": name, "predicted_us": expected})
    return ranges


def _matrix(world_size: int) -> list[list[float | None]]:
    return [[None] * world_size for _ in range(world_size)]


# ---- one pair


def measure_pair(backend: Any, leads: bool, peer: int) -> tuple[float, float]:
    """Returns (seconds one way for 8 bytes, bytes per second); both ranks of a pair call it.

    Args:
        backend: The C++ backend of the group.
        leads: True on one of the two; that one's result counts, the other's is (0, 0).
        peer: The other rank.
    """
    pair = _Pair(backend, leads, peer)
    small = torch.zeros(SMALL_BYTES, dtype=torch.uint8)
    pilot = statistics.median(pair.round_trips(small, small, LATENCY_PILOTS))
    times = pair.agree(LATENCY_S / pilot if leads else 0, LATENCY_PILOTS, LATENCY_TIMES)
    one_way = statistics.median(pair.round_trips(small, small, times)) / 2
    large = torch.zeros(LARGE_BYTES, dtype=torch.uint8)  # also touches the memory
    # The first fills caches and, between hosts, TCP's window.
    pilot = pair.round_trips(large[:PILOT_BYTES], small[:1], 2)[-1]
    slow = pair.agree(pilot * LARGE_BYTES / PILOT_BYTES > 2 * BANDWIDTH_S, 0, 1)
    body = large[:PILOT_BYTES] if slow else large
    times = pair.agree(
        BANDWIDTH_S / (pilot * len(body) / PILOT_BYTES) if leads else 0, 2, BANDWIDTH_TIMES
    )
    seconds = statistics.median(pair.round_trips(body, small[:1], times))
    return (one_way, len(body) / seconds) if leads else (0.0, 0.0)


class _Pair:
    """Two ranks that answer each other."""

    def __init__(self, backend: Any, leads: bool, peer: int) -> None:
        self._backend, self._leads, self._peer = backend, leads, peer

    def round_trips(self, there: torch.Tensor, back: torch.Tensor, times: int) -> list[float]:
        """Seconds of each of `times` round trips."""
        seconds = []
        for _ in range(times):
            begun = time.perf_counter()
            if self._leads:
                self._send(there)
                self._recv(back)
            else:
                self._recv(there)
                self._send(back)
            seconds.append(time.perf_counter() - begun)
        return seconds

    def agree(self, wanted: float, low: int, high: int) -> int:
        """The leading rank's wish, held between low and high, on both."""
        told = torch.tensor([max(low, min(high, int(wanted)))])
        if self._leads:
            self._send(told)
        else:
            self._recv(told)
        return int(told.item())

    def _send(self, tensor: torch.Tensor) -> None:
        self._backend.send([tensor], self._peer, TAG).wait()

    def _recv(self, tensor: torch.Tensor) -> None:
        self._backend.recv([tensor], self._peer, TAG).wait()
