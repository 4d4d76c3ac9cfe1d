# SPDX-License-Identifier: MIT
"""Measures pycomm.DataParallel against torch's DDP: step, CPU time and memory of a training step.

    python benchmarks/data_parallel.py
    python benchmarks/data_parallel.py --batch 4 --json data_parallel.json

The model and the turns are those of training_step.py, data-parallel on 2 ranks. DDP comes with and
without gradient_as_bucket_view, on Gloo and on pycomm, the latter with and without PYCOMM_ARENA.
Exit code: 0; 1 if losses disagree; 3 a rank failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from training_step import EXIT_LOSSES, EXIT_RANK, KEEP_PAGES, Row, disagreement, rows_of
from training_step_ranks import Job, rank_main
from turns import contender_of, take_turns

from pycomm.bench.machine import describe
from pycomm.bench.ranks import RankError

VIEW, OURS = "PYCOMM_BENCH_WRAPPER=ddp_view", "PYCOMM_BENCH_WRAPPER=pycomm"
CONTENDERS = (
    "alone=",
    "gloo_ddp=gloo",
    f"gloo_ddp_view=gloo,{VIEW}",
    "ddp=pycomm",
    f"ddp_view=pycomm,{VIEW}",
    f"ddp_view_arena=pycomm,{VIEW},PYCOMM_ARENA=1",
    f"data_parallel=pycomm,{OURS}",
    f"data_parallel_no_arena=pycomm,{OURS},PYCOMM_ARENA_BYTES=0",
)


def ratios(rows: Sequence[Row], rounds: int) -> None:
    """Adds to each row how many times as long as DataParallel it takes, the median over rounds."""
    ours = next(row for row in rows if row["contender"] == "data_parallel")

    def of_rounds(row: Row) -> list[float]:
        each = len(row["step_ms"]) // rounds
        return [
            statistics.median(row["step_ms_in_order"][i * each :][:each]) for i in range(rounds)
        ]

    for row in rows:
        pairs = zip(of_rounds(row), of_rounds(ours), strict=True)
        row["of_data_parallel"] = statistics.median(a / b for a, b in pairs)


def table(rows: Sequence[Row]) -> list[str]:
    """Lines for people."""
    lines = [
        f"{'':>22} {'step ms':>8} {'p10':>7} {'p90':>7} {'exposed':>8} {'of ours':>8} {'CPU +':>6}"
        f" {'peak MiB':>8} {'faults':>7} {'switches':>8}"
    ]
    for row in rows:
        lines.append(
            f"{row['contender']:>22} {row['step_ms_p50']:>8.1f} {row['step_ms_p10']:>7.1f}"
            f" {row['step_ms_p90']:>7.1f} {row['exposed_ms']:>8.1f} {row['of_data_parallel']:>8.3f}"
            f" {row['cpu_added_ms']:>6.1f} {row['peak_mib']:>8.0f} {row['faults']:>7.0f}"
            f" {row['switches']:>8.0f}"
        )
    return lines


def main() -> int:
    """Measures and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--world", type=int, default=2)
    add("--batch", type=int, default=Job.batch, help="sequences of 64 bytes on a rank")
    add("--rounds", type=int, default=7)
    add("--steps", type=int, default=3, help="timed steps in a turn")
    add("--contenders", nargs="*", default=CONTENDERS)
    add("--keep-pages", action="store_true", help="malloc gives no memory back to the system")
    add("--start-when", type=Path, metavar="FILE", help="begin timing when this file exists")
    add("--json", type=Path, help="file for the rows and the machine")
    given = parser.parse_args()
    contenders = [contender_of(text) for text in given.contenders]
    if given.keep_pages:
        contenders = [
            replace(one, environment={**one.environment, **KEEP_PAGES}) for one in contenders
        ]
    job = Job("ddp", given.batch, given.rounds, given.steps, start_when=given.start_when)
    try:
        told = take_turns(contenders, given.world, rank_main, (job,), pin=True)
    except RankError as error:
        print(f"data_parallel: {error}", file=sys.stderr)
        return EXIT_RANK
    rows = rows_of(told, contenders, given.world)
    ratios(rows, given.rounds)
    print(f"# {given.world} ranks, {rows[0]['parameters']:,} parameters, batch {given.batch}")
    print("\n".join(table(rows)))
    if given.json:
        options = {name: value for name, value in vars(given).items() if name != "start_when"}
        stored = {"machine": describe(), "options": options, "rows": rows}
        given.json.write_text(json.dumps(stored, indent=1, default=str) + "\n")
    wrong = disagreement(rows)
    print(wrong or "losses agree")
    return EXIT_LOSSES if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
