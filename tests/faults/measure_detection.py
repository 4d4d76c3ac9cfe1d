# SPDX-License-Identifier: MIT
"""Measures how soon survivors raise after kill -9 of a rank in mid all_reduce.

    python tests/faults/measure_detection.py --kills 20

The victim stops itself right before it sends a frame, which proves that it is inside the operation;
then it is killed and the clock runs until each survivor has its exception.
Prints one line a case: percentiles over all survivors of all kills, in milliseconds.
"""

import argparse
import os
import random
import signal

from fault_ranks import Ranks
from test_kill import ALGORITHMS, LARGE, WORLD


def measure(options: dict, kills: int, draw: random.Random, world_size: int) -> list[float]:
    """Milliseconds from the kill to each survivor's exception."""
    delays = []
    for _ in range(kills):
        victim, frame = draw.randrange(world_size), draw.randrange(8)
        fault = {"kind": "signal", "frame": frame, "signal": signal.SIGSTOP}
        with Ranks(
            world_size,
            "all_reduce",
            options=options,
            count=LARGE,
            async_op=draw.random() < 0.5,
            per_rank={victim: {"args": {"fault": fault}}},
        ) as ranks:
            ranks.wait_stopped(victim)
            killed_at = ranks.kill(victim)
            for raised in ranks.wait_all("raised", but=(victim,)).values():
                assert raised["ranks"] == [victim], raised
                delays.append((raised["at"] - killed_at) * 1000)
    return sorted(delays)


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20, help="per case")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--world-size", type=int, default=WORLD)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    print(
        f"seed {args.seed}, {args.kills} kills a case, {args.world_size} ranks, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'transport':<10}{'algorithm':<20}{'p50 ms':>8}{'p99 ms':>8}{'worst':>8}")
    everything = []
    for transport in ("shm", "tcp"):
        for algorithm in ALGORITHMS:
            options = {"transport": transport, "algorithm": algorithm}
            delays = measure(options, args.kills, draw, args.world_size)
            everything += delays
            p50, p99 = percentile(delays, 0.5), percentile(delays, 0.99)
            print(f"{transport:<10}{algorithm:<20}{p50:>8.1f}{p99:>8.1f}{delays[-1]:>8.1f}")
    everything.sort()
    p50, p99 = percentile(everything, 0.5), percentile(everything, 0.99)
    print(f"{'all':<30}{p50:>8.1f}{p99:>8.1f}{everything[-1]:>8.1f}")


if __name__ == "__main__":
    main()
