# SPDX-License-Identifier: MIT
"""What a rank of growth.py does: calls timed in CPU seconds, many groups, idle seconds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from turns import Contender, Seat

from pycomm.bench.ranks import Context

TIMEOUT = timedelta(seconds=120)
SAMPLE_S = 0.03  # about so long a sample lasts
CALLS_MAX = 1000
KIB = 1024


def join(seat: Seat) -> None:
    """Makes the contender's default group. Collective."""
    torch.set_num_threads(1)
    dist.init_process_group(
        seat.contender.backend,
        store=seat.store(),
        rank=seat.rank,
        world_size=seat.world,
        timeout=TIMEOUT,
    )


def agreed(seat: Seat, key: str, value: int) -> int:
    """Rank 0's value on all ranks of the contender, without its group."""
    store = dist.PrefixStore("agreed", seat.store())
    if seat.rank == 0:
        store.set(key, str(value))
    return int(store.get(key))


def together(seat: Seat, key: str) -> None:
    """All ranks of the contender leave at about the same time, without its group."""
    store = dist.PrefixStore("together", seat.store())
    if store.add(key, 1) == seat.world:
        store.set(f"{key} all", "")
    store.wait([f"{key} all"], TIMEOUT)


def spread_over_cores(seconds: float = 0.05) -> None:
    """Computes until the kernel has shared the ranks out among the cores.

    Ranks that one message has woken may all be on one core, and stay there while they only wait
    for each other.
    """
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def calls_main(
    context: Context, contenders: Sequence[Contender], world: int, sizes: list[int], rounds: int
) -> None:
    """all_reduces of each size; emits seconds of wall and of CPU for one call."""
    seat = Seat(context, contenders, world)
    tensors = {size: torch.zeros(max(1, size // 4)) for size in sizes}
    counts: dict[int, int] = {}
    for number in seat.turns(rounds + 1):
        if number == 0:
            join(seat)
            for size, tensor in tensors.items():
                dist.all_reduce(tensor)
                begin = time.perf_counter()
                dist.all_reduce(tensor)
                calls = int(SAMPLE_S / (time.perf_counter() - begin))
                counts[size] = agreed(seat, f"calls {size}", min(max(1, calls), CALLS_MAX))
            continue
        cells = {}
        together(seat, f"round {number}")
        spread_over_cores()
        for size, tensor in tensors.items():
            dist.barrier()
            cpu, begin = time.process_time(), time.perf_counter()
            for _ in range(counts[size]):
                dist.all_reduce(tensor)
            wall = time.perf_counter() - begin
            cells[size] = (wall / counts[size], (time.process_time() - cpu) / counts[size])
        seat.emit({"round": number, "cells": cells})
    dist.destroy_process_group()


def memory_kib() -> dict[str, int]:
    """This process's share of the memory it maps, and its address space."""
    found = {}
    wanted = {"Pss:": "pss_kib", "VmSize:": "address_space_kib"}
    for file in ("smaps_rollup", "status"):
        for line in Path("/proc/self", file).read_text().splitlines():
            name, *rest = line.split()
            if name in wanted:
                found[wanted[name]] = int(rest[0])
    return found


def held() -> dict[str, int]:
    """Memory, descriptors and threads of this process."""
    fds, threads = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
    return {**memory_kib(), "fds": fds, "threads": threads}


def use(group: dist.ProcessGroup) -> None:
    """What any program does with a group: small and large, synchronous and not."""
    dist.all_reduce(torch.ones(2), group=group)
    large = torch.ones(1 << 18)
    dist.all_reduce(large, group=group)
    work = dist.all_reduce(large, group=group, async_op=True)
    work.wait()


def seconds_per_call(groups: Sequence[dist.ProcessGroup], calls: int) -> float:
    """Median seconds of an all_reduce of 8 bytes, going round the groups."""
    tensor = torch.zeros(2)
    times = []
    for number in range(calls):
        begin = time.perf_counter()
        dist.all_reduce(tensor, group=groups[number % len(groups)])
        times.append(time.perf_counter() - begin)
    return sorted(times)[calls // 2]


def groups_main(
    context: Context, contenders: Sequence[Contender], world: int, stages: list[int]
) -> None:
    """Makes groups over the same ranks until there are as many as each stage says."""
    seat = Seat(context, contenders, world)
    groups: list[Any] = []
    first: dict[str, int] = {}
    for number in seat.turns(len(stages) + 1):
        if number == 0:
            join(seat)
            use(dist.group.WORLD)
            # The code that this stands for is loaded by now.
            dist.destroy_process_group(dist.new_group(backend=seat.contender.backend))
            first = held()
            continue
        together(seat, f"stage {number}")
        more = stages[number - 1] - len(groups)
        begin = time.perf_counter()
        groups += [dist.new_group(backend=seat.contender.backend) for _ in range(more)]
        made = (time.perf_counter() - begin) / more
        for group in groups[-more:]:
            use(group)
        together(seat, f"used {number}")
        now = held()
        together(seat, f"counted {number}")
        spread_over_cores()
        many = seconds_per_call(groups, 20 * len(groups))
        one = seconds_per_call(groups[:1], 500)
        seat.emit(
            {
                "groups": len(groups),
                "setup_ms": 1e3 * made,
                "one_us": 1e6 * one,
                "many_us": 1e6 * many,
                **{name: (now[name] - first[name]) / len(groups) for name in now},
            }
        )
    dist.destroy_process_group()


def share_of_core(wait: Callable[[], None]) -> float:
    """CPU seconds of this process for each second that `wait` takes."""
    cpu, begin = time.process_time(), time.perf_counter()
    wait()
    return (time.process_time() - cpu) / (time.perf_counter() - begin)


def idle_main(
    context: Context, contenders: Sequence[Contender], world: int, seconds: float, more: int
) -> None:
    """Rank 0 comes late to a collective; then nobody calls anything, with 1 and `more` groups."""
    seat = Seat(context, contenders, world)
    tensor = torch.zeros(2)
    for number in seat.turns(4):
        if number == 0:
            join(seat)
            use(dist.group.WORLD)
            continue
        if number == 3:
            for _ in range(more):
                use(dist.new_group(backend=seat.contender.backend))
        together(seat, f"idle {number}")
        if number == 1:
            if seat.rank == 0:
                time.sleep(seconds)
                dist.all_reduce(tensor)
                continue
            seat.emit({"waits": share_of_core(lambda: dist.all_reduce(tensor))})
        else:
            kind = "idle_one" if number == 2 else "idle_many"
            seat.emit({kind: share_of_core(lambda: time.sleep(seconds))})
    dist.destroy_process_group()
