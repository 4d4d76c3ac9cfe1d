# SPDX-License-Identifier: MIT
"""What one small all_reduce costs on its way from Python to the cache line, floor by floor.

    python benchmarks/call_cost.py --bytes 8 --json out.json

Two ranks, each on a core of its own, go through the rows below in each round, so that all rows see
the same machine. A row is the median over the rounds of the mean of a round's calls, of the slower
rank. What a row adds is its difference to the one it stands on:

    python          calling an empty Python function
    dispatch        dist.all_reduce on torch's fake backend, which does nothing, without the wait()
                    on its handle: Python's checks, pybind11 and the dispatcher
    one rank        dist.all_reduce on pycomm in a group of one rank: + our checks and the engine
    two ranks       the same on two ranks: + the wire
    gloo            dist.all_reduce on Gloo, two ranks
    array, one      pycomm.Communicator.all_reduce on a NumPy array, one rank
    array, two      the same on two ranks
    ..., async      the same with async_op=True and wait() at once
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing._internal.distributed import fake_pg  # noqa: F401

import pycomm
from pycomm.bench.machine import describe

TIMEOUT = timedelta(seconds=60)


def empty(tensor: Any) -> None:
    """What a call costs before it does anything."""


def rows_of(rank: int, count: int, store: dist.Store) -> dict[str, Callable[[], Any]]:
    """Every row as one call."""
    dist.init_process_group("pycomm", store=store, rank=rank, world_size=2, timeout=TIMEOUT)
    world = dist.group.WORLD
    alone = [dist.new_group([one], backend="pycomm") for one in range(2)][rank]
    gloo = dist.new_group([0, 1], backend="gloo")
    fake = dist.new_group([0, 1], backend="fake")
    tensor, array = torch.zeros(count), np.zeros(count, np.float32)
    pair = pycomm.Communicator(rank, 2, dist.PrefixStore("pair", store))
    single = pycomm.Communicator(0, 1)
    done = dist.all_reduce(tensor, group=fake, async_op=True)

    def waits(group: Any) -> Callable[[], Any]:
        return lambda: dist.all_reduce(tensor, group=group, async_op=True).wait()

    return {
        "python": lambda: empty(tensor),
        "fake": lambda: dist.all_reduce(tensor, group=fake),
        "fake's wait": lambda: done.wait(),
        "one rank": lambda: dist.all_reduce(tensor, group=alone),
        "two ranks": lambda: dist.all_reduce(tensor, group=world),
        "gloo": lambda: dist.all_reduce(tensor, group=gloo),
        "array, one": lambda: single.all_reduce(array),
        "array, two": lambda: pair.all_reduce(array),
        "fake, async": waits(fake),
        "one rank, async": waits(alone),
        "two ranks, async": waits(world),
        "gloo, async": waits(gloo),
        "array, one, async": lambda: single.all_reduce(array, async_op=True).wait(),
        "array, two, async": lambda: pair.all_reduce(array, async_op=True).wait(),
    }


def rank_main(rank: int, options: argparse.Namespace, port: int, results: Any) -> None:
    """One rank: warms up, then measures all rows in turns."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    rows = rows_of(rank, options.bytes // 4, store)
    samples: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(options.rounds + 1):
        for name, call in rows.items():
            calls = max(1, options.calls // 20) if "gloo" in name else options.calls
            dist.barrier()
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            if turn:  # the first is for warming up
                samples[name].append((time.perf_counter() - begin) / calls * 1e6)
    dist.barrier()
    results.put({name: statistics.median(each) for name, each in samples.items()})
    store.wait(["told"], TIMEOUT)
    dist.destroy_process_group()


def account(us: dict[str, float]) -> list[tuple[str, float, float]]:
    """(row, time, what it adds to the row that it stands on) in microseconds."""
    us = dict(us)
    us["dispatch"] = us.pop("fake") - us["fake's wait"]
    stands_on = {
        "python": None,
        "dispatch": "python",
        "one rank": "dispatch",
        "two ranks": "one rank",
        "gloo": "dispatch",
        "array, one": None,
        "array, two": "array, one",
        "fake, async": "dispatch",
        "one rank, async": "fake, async",
        "two ranks, async": "one rank, async",
        "gloo, async": "fake, async",
        "array, one, async": "array, one",
        "array, two, async": "array, one, async",
    }
    return [
        (name, us[name], us[name] - (us[below] if below else 0.0))
        for name, below in stands_on.items()
    ]


def main() -> None:
    """Measures, prints the account and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bytes", type=int, default=8, help="of the array, a multiple of 4")
    parser.add_argument("--calls", type=int, default=1000, help="calls in a round")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", help="where the samples go")
    options = parser.parse_args()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results = mp.get_context("spawn").SimpleQueue()
    ranks = mp.spawn(rank_main, (options, store.port, results), nprocs=2, join=False)
    told = []
    while len(told) < 2:
        if results.empty():
            ranks.join(timeout=0.1)  # raises what a rank raised
        else:
            told.append(results.get())
    store.set("told", "1")
    ranks.join()
    us = {name: max(one[name] for one in told) for name in told[0]}
    print(f"all_reduce of {options.bytes} B, 2 ranks, median of {options.rounds} rounds")
    print(f"{'row':20} {'us':>9} {'adds us':>9}")
    for name, total, added in account(us):
        print(f"{name:20} {total:9.2f} {added:9.2f}")
    print(f"gloo / pycomm: {us['gloo'] / us['two ranks']:.1f}")
    if options.json:
        record = {"command": vars(options), "machine": describe(), "us": us}
        with open(options.json, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
