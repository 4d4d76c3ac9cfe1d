# SPDX-License-Identifier: MIT
"""Says what pycomm finds on this machine, measures between ranks, and names what is wrong.

    python -m pycomm doctor
    python -m pycomm doctor --world 4 --json
    torchrun --nnodes 2 ... -m pycomm doctor

It starts some ranks on this host. Under a launcher such as torchrun it uses those there are, so
that several hosts are measured; rank 0 prints. docs/commands.md explains the output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from pycomm.doctor import arenas, machine, network, ranks, settings, software
from pycomm.doctor.problems import BROKEN, Problem
from pycomm.doctor.report import text_of
from pycomm.doctor.used import decisions

__all__ = ["add_arguments", "run"]

EXIT_BROKEN = 1
EXIT_USAGE = 2
WORLD_SIZE_MAX = 64  # of ranks started here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments to the parser of a subcommand."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "exit code: 0 fine, 1 something is broken, 2 wrong arguments"
    add = parser.add_argument
    add("--world", type=int, help="ranks to start here, 0 for none (default: 2 to 4, by cores)")
    add("--timeout", type=float, default=60.0, help="seconds without progress (default: 60)")
    add("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Examines, measures and prints; blocks until all ranks it started have ended.

    Returns:
        0, or 1 if something is broken; in a launcher's ranks other than 0 always 0.
    """
    if not args.timeout > 0 or not 0 <= (args.world or 0) <= WORLD_SIZE_MAX:
        text = f"expected --timeout above 0 and --world from 0 to {WORLD_SIZE_MAX}"
        print(f"pycomm doctor: {text}", file=sys.stderr)
        return EXIT_USAGE
    launched = ranks.launched()
    if launched and args.world is not None:
        print("pycomm doctor: --world is the launcher's here; leave it out", file=sys.stderr)
        return EXIT_USAGE
    report, problems = _examine(args, launched)
    if launched and os.environ["RANK"] != "0":
        if report["ranks"] is None:
            for problem in problems:
                print(f"pycomm doctor: rank {os.environ['RANK']}: {problem.what}", file=sys.stderr)
        return 0
    report["problems"] = [problem.facts() for problem in problems]
    print(json.dumps(report, indent=1) if args.json else text_of(report), flush=True)
    return EXIT_BROKEN if any(problem.kind == BROKEN for problem in problems) else 0


def _examine(args: argparse.Namespace, launched: bool) -> tuple[dict[str, Any], list[Problem]]:
    """Everything but the printing; collective in a launcher's ranks."""
    world_size, here = _ranks_here(args.world, launched)
    build, problems = software.describe_build()
    host, found = machine.describe(here)
    problems += found
    net, found = network.describe(build["loads"])
    problems += found
    values, found = settings.describe(build["loads"])
    problems += found
    report: dict[str, Any] = {
        "build": build,
        "machine": host,
        "arena": arenas.describe(build["loads"]),
        "network": net,
        "gpus": software.describe_gpus(build),
        "settings": values,
        "ranks": None,
    }
    usable = build["loads"] and not any(problem.kind == BROKEN for problem in problems)
    name = os.environ.get("PYCOMM_HOST_ID") or host["host"]
    if usable and launched:
        facts = {"host": name, "build": build, "settings": values}
        report["ranks"], problems = ranks.join(facts, problems, args.timeout)
    elif usable and world_size:
        report["ranks"], found = ranks.start(world_size, name, args.timeout)
        problems += found
    report["used"] = decisions(report)
    return report, problems


def _ranks_here(wanted: int | None, launched: bool) -> tuple[int, int]:
    """(Ranks to start, ranks that share this machine)."""
    if launched:
        return 0, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if wanted is None:
        wanted = max(2, min(4, len(os.sched_getaffinity(0))))
    return wanted, wanted
