# SPDX-License-Identifier: MIT
"""How cost grows with ranks, bytes and groups, and what waiting costs; against other backends.

    python benchmarks/growth.py --json growth.json --plot growth.png
    python benchmarks/growth.py --what groups --few 4 --groups 1,8,64

    calls    all_reduce of 8 B to 64 MiB on 1 to 16 ranks: wall time, and CPU time summed over
             ranks, which is what matters where ranks share cores
    groups   1 to 64 groups over the same ranks: set-up, memory, descriptors and threads of a rank
             for each group, and an all_reduce of 8 bytes in one group and going round all of them
    idle     CPU of a rank that waits for another, and of idle ranks, in shares of a core

Ranks are processes of this host and share its cores. Backends take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from growth_ranks import calls_main, groups_main, idle_main
from turns import Contender, contender_of, take_turns

from pycomm.bench.machine import describe
from pycomm.bench.ranks import RankError

EXIT_RANK = 3
PRELOAD = ("torch", "torch.distributed", "growth_ranks")
ROUNDS = 5
# Beyond this, copies of all ranks' tensors only measure the memory bus.
BYTES_OF_ALL_RANKS_MAX = 256 << 20
Row = dict[str, Any]


def sizes_up_to(largest: int) -> list[int]:
    """8 B, 64 B, ... in steps of 8, and the largest."""
    sizes = []
    size = 8
    while size < largest:
        sizes.append(size)
        size *= 8
    return [*sizes, largest]


def measure_calls(
    contenders: Sequence[Contender], world: int, largest: int, rounds: int
) -> list[Row]:
    """A row for each backend and size: medians over rounds, in microseconds."""
    sizes = sizes_up_to(min(largest, BYTES_OF_ALL_RANKS_MAX // world))
    told = take_turns(contenders, world, calls_main, (sizes, rounds), preload=PRELOAD)
    rows = []
    for contender in contenders:
        mine = [one for one in told if one["contender"] == contender.name]
        of_round: dict[int, list[Row]] = {}
        for one in mine:
            of_round.setdefault(one["round"], []).append(one["cells"])
        for size in sizes:
            walls = [max(cells[size][0] for cells in ranks) for ranks in of_round.values()]
            cpus = [sum(cells[size][1] for cells in ranks) for ranks in of_round.values()]
            rows.append(
                {
                    "contender": contender.name,
                    "world": world,
                    "bytes": size,
                    "wall_us": 1e6 * statistics.median(walls),
                    "cpu_us": 1e6 * statistics.median(cpus),
                }
            )
    return rows


def measure_groups(contenders: Sequence[Contender], world: int, stages: list[int]) -> list[Row]:
    """A row for each backend and number of groups: means over ranks; set-up: the slowest rank's."""
    told = take_turns(contenders, world, groups_main, (stages,), preload=PRELOAD)
    rows = []
    for contender in contenders:
        for stage in stages:
            mine = [o for o in told if (o["contender"], o["groups"]) == (contender.name, stage)]
            names = [name for name in mine[0] if name not in ("contender", "rank", "groups")]
            row = {name: statistics.fmean(one[name] for one in mine) for name in names}
            row["setup_ms"] = max(one["setup_ms"] for one in mine)
            rows.append({"contender": contender.name, "world": world, "groups": stage, **row})
    return rows


def measure_idle(
    contenders: Sequence[Contender], world: int, seconds: float, more: int
) -> list[Row]:
    """A row for each backend: the largest share of a core that any rank used."""
    told = take_turns(contenders, world, idle_main, (seconds, more), preload=PRELOAD)
    rows = []
    for contender in contenders:
        row: Row = {"contender": contender.name, "world": world, "groups": more + 1}
        for kind in ("waits", "idle_one", "idle_many"):
            found = [o[kind] for o in told if o["contender"] == contender.name and kind in o]
            row[kind] = max(found)
        rows.append(row)
    return rows


def print_rows(rows: Sequence[Row]) -> None:
    """Prints columns that all rows have."""
    if not rows:
        return
    print("".join(f"{name:>18}" for name in rows[0]))
    for row in rows:
        texts = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        print("".join(f"{text:>18}" for text in texts), flush=True)


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--what", default="calls,groups,idle", help="what to measure")
    add("--backend", default="pycomm,gloo", help="backends, in turns")
    add("--world", default="1,2,4,8,16", help="ranks for calls; groups and idle use --few")
    add("--few", type=int, default=4, help="ranks for groups and idle")
    add("--max", type=int, default=64, help="largest message in MiB")
    add("--rounds", type=int, default=ROUNDS, help="turns of each backend in calls")
    add("--groups", default="1,4,16,64", help="numbers of groups")
    add("--seconds", type=float, default=5.0, help="how long to wait and to be idle")
    add("--json", type=Path, help="file for the rows and the machine")
    add("--plot", type=Path, help="file for the pictures")
    return parser.parse_args()


def main() -> int:
    """Measures and prints; returns the exit code."""
    given = arguments()
    contenders = [contender_of(name) for name in given.backend.split(",")]
    results: dict[str, list[Row]] = {"calls": [], "groups": [], "idle": []}
    try:
        if "calls" in given.what:
            for world in map(int, given.world.split(",")):
                rows = measure_calls(contenders, world, given.max << 20, given.rounds)
                print_rows(rows)
                results["calls"] += rows
        if "groups" in given.what:
            stages = [int(number) for number in given.groups.split(",")]
            results["groups"] = measure_groups(contenders, given.few, stages)
            print_rows(results["groups"])
        if "idle" in given.what:
            results["idle"] = measure_idle(contenders, given.few, given.seconds, more=15)
            print_rows(results["idle"])
    except RankError as error:
        print(f"growth: {error}", file=sys.stderr)
        return EXIT_RANK
    if given.json:
        given.json.write_text(json.dumps({"machine": describe(), **results}, indent=1) + "\n")
    if given.plot:
        from growth_plot import draw

        draw(results, given.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
