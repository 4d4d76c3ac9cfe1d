# SPDX-License-Identifier: MIT
"""Measures collectives side by side: time, algbw, busbw and wrong elements.

    python -m pycomm bench all_reduce --backend pycomm,gloo --world 2,4 --min 8 --max 256M

`add_arguments` and `run` mount it in a larger command line. torch is imported when a run starts,
not before. How to read the numbers: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pycomm.bench.command import UsageError, add_arguments, check_backends, sweep_of
from pycomm.bench.ranks import RankError
from pycomm.bench.rows import Row
from pycomm.bench.sweep import Sweep, measure
from pycomm.bench.table import header, line, summary

__all__ = ["add_arguments", "run"]

EXIT_WRONG = 1
EXIT_USAGE = 2
EXIT_RANK = 3


def run(args: argparse.Namespace) -> int:
    """Runs the sweep that the arguments describe and prints its table; returns the exit code.

    Blocks until all ranks have ended. Results so far are written even when a rank fails.
    """
    try:
        sweep = sweep_of(args)
        _check_files(args.json, args.plot)
        check_backends(sweep.backends)
    except UsageError as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_USAGE
    from pycomm.bench.machine import describe

    machine = describe()
    print(f"# {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}")
    print(f"# torch {machine['torch']}, commit {machine['commit']}: {machine['command']}")
    print("# times in microseconds; algbw and busbw in GB/s (1e9) at the p50", end="")
    print(f"; ratio: time of {sweep.backends[-1]} / time" if len(sweep.backends) > 1 else "")
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > cores / 2:
        print(f"# load average {load:.1f} on {cores} cores: other programs compete, expect noise")
    rows: list[Row] = []
    code = 0
    try:
        _sweep_and_print(sweep, rows)
    except RankError as error:
        print(f"bench: {error}", file=sys.stderr)
        code = EXIT_RANK
    for text in summary(rows, sweep.backends):
        print(text)
    _write(rows, machine, args.json, args.plot)
    return code or (EXIT_WRONG if any(row.wrong for row in rows) else 0)


def _sweep_and_print(sweep: Sweep, rows: list[Row]) -> None:
    """Measures all worlds, printing and collecting rows as they come."""
    with_ratio = len(sweep.backends) > 1 and not sweep.check_only
    for world in sweep.worlds:
        print(header(with_ratio), flush=True)
        for cell_rows in measure(sweep, world):
            for row in cell_rows:
                print(line(row, with_ratio), flush=True)
            rows.extend(cell_rows)


def _check_files(json_path: Path | None, plot_path: Path | None) -> None:
    """Finds out before the run whether its results can be written.

    Raises:
        UsageError: a folder is missing, or there is nothing to plot with.
    """
    for option, path in (("--json", json_path), ("--plot", plot_path)):
        if path is not None and not path.parent.is_dir():
            raise UsageError(
                f"{option}: got {str(path)!r}, expected an existing folder; create {path.parent}"
            )
    if plot_path is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            "--plot: matplotlib is not installed; pip install matplotlib, or use --json"
        )


def _write(
    rows: Sequence[Row], machine: dict[str, object], json_path: Path | None, plot_path: Path | None
) -> None:
    """Writes the files that were asked for."""
    if json_path is not None:
        result = {"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}
        json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if plot_path is not None:
        from pycomm.bench.plot import draw

        draw(rows, plot_path)
