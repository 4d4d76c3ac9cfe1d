# SPDX-License-Identifier: MIT
"""Measures a whole training step on several backends, and what communication adds to it.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --parallelism fsdp2 --json fsdp2.json
    python benchmarks/training_step.py --contenders alone=,gloo,pycomm,ring=pycomm,PYCOMM_ALGO=ring

Two ranks, one thread of computation each, train a GPT of 29.7 million parameters. Contenders take
turns in processes of their own. The first one is the step without communication; what a step takes
longer than that is exposed communication. Exit code: 0; 1 if losses disagree; 3 a rank failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from training_step_ranks import Job, rank_main
from turns import Contender, contender_of, take_turns

from pycomm.bench.machine import describe
from pycomm.bench.ranks import RankError

TOLERANCE = 1e-3  # of losses; see examples/compare_runs.py
EXIT_LOSSES, EXIT_RANK = 1, 3
# Whether glibc returns the memory of the last step's gradients to the system, so that the next step
# touches it page by page for the first time, depends on what else was allocated when.
NEVER = 1 << 40
KEEP_PAGES = {
    "GLIBC_TUNABLES": f"glibc.malloc.trim_threshold={NEVER}:glibc.malloc.mmap_threshold={NEVER}"
}
Row = dict[str, Any]


def default_contenders(parallelism: str) -> str:
    """The names used without --contenders; the floor comes first."""
    floor = "alone= fake" if parallelism == "ddp" else "fake"
    return f"{floor} gloo pycomm arena=pycomm,PYCOMM_ARENA=1"


def rows_of(told: Sequence[Row], contenders: Sequence[Contender], world: int) -> list[Row]:
    """A row for each contender: medians over turns; a step lasts until its slowest rank is done."""
    rows: list[Row] = []
    for contender in contenders:
        mine = [one for one in told if one["contender"] == contender.name]
        turns = [one for one in mine if "step_ms" in one]
        rounds = sorted({one["round"] for one in turns})
        steps: list[float] = []
        for number in rounds:
            of_ranks = [one["step_ms"] for one in turns if one["round"] == number]
            steps += [max(times) for times in zip(*of_ranks, strict=True)]
        in_order = steps
        steps = sorted(steps)
        last = [one for one in mine if "losses" in one]
        row = {
            "contender": contender.name,
            "backend": contender.backend,
            "environment": dict(contender.environment),
            "steps": len(steps),
            "step_ms_p50": statistics.median(steps),
            "step_ms_p10": steps[len(steps) // 10],
            "step_ms_p90": steps[len(steps) * 9 // 10],
            "step_ms": [round(one, 2) for one in steps],
            "step_ms_in_order": [round(one, 2) for one in in_order],
            "faults": statistics.median(one["faults"] for one in turns),
            "switches": statistics.median(one["switches"] for one in turns),
            "cpu_ms": by_thread(turns, "cpu_ms"),
            "ready_ms": by_thread(turns, "ready_ms"),
            "parameters": last[0]["parameters"],
            "peak_mib": max(one["peak_mib"] for one in last),
            "losses": [
                statistics.fmean(of_ranks)
                for of_ranks in zip(*(one["losses"] for one in last), strict=True)
            ],
        }
        row["cpu_added_ms"] = sum(row["cpu_ms"].values()) - sum(
            (rows[0] if rows else row)["cpu_ms"].values()
        )
        row["exposed_ms"] = row["step_ms_p50"] - (rows[0] if rows else row)["step_ms_p50"]
        rows.append(row)
    reference = next((row for row in rows if row["backend"] == "gloo"), None)
    for row in rows:
        row["of_gloo"] = row["exposed_ms"] / reference["exposed_ms"] if reference else None
    return rows


def by_thread(turns: Sequence[Row], what: str) -> dict[str, float]:
    """Medians over turns and ranks, in ms a step, of threads that do anything."""
    names = dict.fromkeys(name for one in turns for name in one[what])
    medians = {n: statistics.median(one[what].get(n, 0.0) for one in turns) for n in names}
    return {name: value for name, value in medians.items() if value > 0.005 or name == "main"}


def disagreement(rows: Sequence[Row]) -> str:
    """Says whose losses differ from the first real contender's by more than rounding, or ""."""
    real = [row for row in rows if row["backend"] not in ("", "fake")]
    for row in real[1:]:
        pairs = zip(row["losses"], real[0]["losses"], strict=True)
        worst = max(abs(a - b) / abs(b) for a, b in pairs)
        if not worst <= TOLERANCE:
            return f"losses of {row['contender']} and {real[0]['contender']} differ by {worst:.2g}"
    return ""


def table(rows: Sequence[Row]) -> list[str]:
    """Lines for people."""
    head = (
        f"{'':>10} {'step ms':>8} {'p10':>7} {'p90':>7} {'exposed':>8} {'of Gloo':>8} {'CPU +':>6}"
    )
    lines = [f"{head} {'faults':>7} {'switches':>8}  CPU ms a step and rank by thread (+ ready)"]
    for row in rows:
        threads = ", ".join(
            f"{name} {value:.1f} (+{row['ready_ms'].get(name, 0):.1f})"
            for name, value in row["cpu_ms"].items()
        )
        ratio = f"{row['of_gloo']:.2f}" if row["of_gloo"] is not None else "-"
        lines.append(
            f"{row['contender']:>10} {row['step_ms_p50']:>8.1f} {row['step_ms_p10']:>7.1f}"
            f" {row['step_ms_p90']:>7.1f} {row['exposed_ms']:>8.1f} {ratio:>8}"
            f" {row['cpu_added_ms']:>6.1f}"
            f" {row['faults']:>7.0f} {row['switches']:>8.0f}  {threads}"
        )
    return lines


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parallelism", choices=("ddp", "fsdp2", "tp"), default="ddp")
    add("--contenders", help="NAME or NAME=BACKEND[,VARIABLE=VALUE]..., separated by spaces")
    add("--world", type=int, default=2)
    add("--batch", type=int, default=Job.batch, help="sequences of 64 bytes on a rank")
    add("--rounds", type=int, default=Job.rounds)
    add("--steps", type=int, default=Job.steps, help="timed steps in a turn")
    add("--bucket-view", action="store_true", help="DDP's gradient_as_bucket_view")
    add("--bucket-mb", type=float, default=Job.bucket_mb, help="DDP's bucket_cap_mb")
    add("--no-pin", action="store_true", help="let the kernel place the ranks")
    add("--keep-pages", action="store_true", help="malloc gives no memory back to the system")
    add("--start-when", type=Path, metavar="FILE", help="begin timing when this file exists")
    add("--json", type=Path, help="file for the rows and the machine")
    return parser.parse_args()


def main() -> int:
    """Measures and prints; returns the exit code."""
    given = arguments()
    texts = (given.contenders or default_contenders(given.parallelism)).split()
    contenders = [contender_of(text) for text in texts]
    if given.keep_pages:
        contenders = [
            replace(one, environment={**one.environment, **KEEP_PAGES}) for one in contenders
        ]
    job = Job(
        given.parallelism,
        given.batch,
        given.rounds,
        given.steps,
        given.bucket_view,
        given.bucket_mb,
        given.start_when,
    )
    try:
        told = take_turns(contenders, given.world, rank_main, (job,), pin=not given.no_pin)
    except RankError as error:
        print(f"training_step: {error}", file=sys.stderr)
        return EXIT_RANK
    rows = rows_of(told, contenders, given.world)
    print(f"# {given.parallelism}, {given.world} ranks, {rows[0]['parameters']:,} parameters")
    print("\n".join(table(rows)))
    if given.json:
        told_job = {name: value for name, value in vars(job).items() if name != "start_when"}
        stored = {"machine": describe(), "job": told_job, "world": given.world, "rows": rows}
        given.json.write_text(json.dumps(stored, indent=1) + "\n")
    wrong = disagreement(rows)
    print(wrong or "losses agree")
    return EXIT_LOSSES if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
