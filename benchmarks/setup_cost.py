# SPDX-License-Identifier: MIT
"""What a process group costs before the first byte is sent, on one host, against other backends.

    python benchmarks/setup_cost.py --world 2,4,8,16,32,64 --json out.json

Ranks are forked from this process, so that importing torch is not part of it. For each world size
the backends take turns, and each row is the median over the rounds of:

    set-up ms     from the first rank's init_process_group() to the last rank's return
    first ms      the first all_reduce, of 8 bytes: what was put off until then
    KiB           memory of the group per rank: growth of the proportional set size (shared pages
                  divided among those who map them), after all_reduces of 8 bytes and 1 MiB
    fds, threads  descriptors and threads of the group per rank
    close ms      destroy_process_group(), from the first rank's call to the last one's return
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pycomm.bench.machine import describe

PR_SET_PDEATHSIG = 1
TIMEOUT = timedelta(seconds=120)
COLUMNS = ("setup_ms", "first_ms", "kib", "fds", "threads", "close_ms")


def pss_kib() -> int:
    """This process's share of the memory it maps."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/smaps_rollup has no line Pss")


def counts() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def meet(store: dist.Store, name: str, world: int) -> None:
    """All ranks leave at about the same time."""
    store.add(name, 1)
    while store.add(name, 0) < world:
        time.sleep(0.001)


def measure(backend: str, store: dist.Store, tag: str, rank: int, world: int) -> dict[str, Any]:
    """One group's life on one rank; moments are seconds of the host's monotonic clock."""
    mine = dist.PrefixStore(tag, store)
    memory, (fds, threads) = pss_kib(), counts()
    meet(mine, "begin", world)
    begun = time.monotonic()
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", mine), rank=rank, world_size=world, timeout=TIMEOUT
    )
    made = time.monotonic()
    meet(mine, "made", world)
    first_begun = time.monotonic()
    dist.all_reduce(torch.ones(2))
    first = time.monotonic()
    large = torch.ones(1 << 18)
    dist.all_reduce(large)
    assert large[0] == world
    meet(mine, "used", world)
    grown, (more_fds, more_threads) = pss_kib(), counts()
    meet(mine, "counted", world)
    closing = time.monotonic()
    dist.destroy_process_group()
    return {
        "begun": begun,
        "made": made,
        "first_begun": first_begun,
        "first": first,
        "kib": grown - memory,
        "fds": more_fds - fds,
        "threads": more_threads - threads,
        "closing": closing,
        "closed": time.monotonic(),
    }


def die_with_parent() -> None:
    """So that nothing is left when the benchmark is interrupted."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def store_main(connection: Connection) -> None:
    """Holds the store. Not in the parent: its thread may hold a lock while a rank is forked."""
    die_with_parent()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    connection.send(store.port)
    signal.pause()


def rank_main(
    connection: Connection, port: int, rank: int, world: int, backends: list[str], rounds: int
) -> None:
    """A rank: every backend once a round, the first round thrown away (it loads code)."""
    die_with_parent()
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT)
    results = []
    for number in range(rounds + 1):
        for backend in backends:
            lived = measure(backend, store, f"{world}/{number}/{backend}/", rank, world)
            if number:
                results.append((backend, lived))
    connection.send(results)


def summary(lives: list[dict[str, Any]]) -> dict[str, float]:
    """Of the ranks of one group: spans over all of them, means of what each has."""

    def span(begin: str, end: str) -> float:
        return 1e3 * (max(one[end] for one in lives) - min(one[begin] for one in lives))

    def mean(what: str) -> float:
        return statistics.fmean(one[what] for one in lives)

    return {
        "setup_ms": span("begun", "made"),
        "first_ms": span("first_begun", "first"),
        "kib": mean("kib"),
        "fds": mean("fds"),
        "threads": mean("threads"),
        "close_ms": span("closing", "closed"),
    }


def run(world: int, backends: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Medians by backend for one world size."""
    fork = multiprocessing.get_context("fork")
    started = []

    def start(entry: Callable[..., None], *arguments: Any) -> Connection:
        here, there = fork.Pipe(duplex=False)
        process = fork.Process(target=entry, args=(there, *arguments), daemon=True)
        process.start()
        there.close()
        started.append(process)
        return here

    try:
        port = start(store_main).recv()
        ends = [start(rank_main, port, r, world, backends, rounds) for r in range(world)]
        told = []
        for rank, end in enumerate(ends):
            try:
                told.append(end.recv())
            except EOFError:
                raise SystemExit(f"rank {rank} of {world} ended early") from None
    finally:
        for process in started:
            process.kill()
            process.join()
    groups = [
        (of_ranks[0][0], summary([life for _, life in of_ranks]))
        for of_ranks in zip(*told, strict=True)
    ]
    return {
        backend: {
            column: statistics.median(one[column] for name, one in groups if name == backend)
            for column in COLUMNS
        }
        for backend in backends
    }


def main() -> None:
    """Prints a row for each world size and backend; --json keeps them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", default="2,4,8,16,32,64", help="world sizes")
    parser.add_argument("--backend", default="pycomm,gloo", help="backends, in turns")
    parser.add_argument("--rounds", type=int, default=5, help="groups made for each")
    parser.add_argument("--json", type=Path, help="file for the rows and the machine")
    given = parser.parse_args()
    backends = given.backend.split(",")
    rows = []
    print(f"{'ranks':>5} {'backend':>8}" + "".join(f"{column:>10}" for column in COLUMNS))
    for world in map(int, given.world.split(",")):
        for backend, row in run(world, backends, given.rounds).items():
            rows.append({"world": world, "backend": backend, **row})
            print(f"{world:>5} {backend:>8}" + "".join(f"{row[c]:>10.1f}" for c in COLUMNS))
    if given.json:
        given.json.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
