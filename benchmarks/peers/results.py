# SPDX-License-Identifier: MIT
"""The JSON file of results: cells, each with the commit and the command that it is from.

A run adds its cells to a file that exists and takes the place of older ones of the same cell, so a
record can be made in several sittings.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.peers.cells import Cell
from benchmarks.peers.contenders import ROOT

FORMAT = 1


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def describe_run() -> dict[str, Any]:
    """What a reader must know to repeat this run."""
    return {
        "commit": _commit(),
        "command": " ".join(["python -m benchmarks.peers", *sys.argv[1:]]),
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {},
    }


def _text(data: dict[str, Any]) -> str:
    """JSON with a line for each contender in each cell: short, and differences can be read."""
    cells = []
    for cell in data["cells"]:
        head = ", ".join(
            f"{json.dumps(key)}: {json.dumps(value)}"
            for key, value in cell.items()
            if key != "contenders"
        )
        lines = ",\n".join(
            f"   {json.dumps(name)}: {json.dumps(one)}" for name, one in cell["contenders"].items()
        )
        cells.append(f'  {{{head}, "contenders": {{\n{lines}}}}}')
    runs = ",\n".join(f"  {json.dumps(run)}" for run in data["runs"])
    body = ",\n".join(cells)
    number = data["format"]
    return f'{{"format": {number},\n "runs": [\n{runs}],\n "cells": [\n{body}]}}\n'


class Results:
    """The file; save() after each cell, so an interrupted run keeps what it has."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.data: dict[str, Any] = {"format": FORMAT, "runs": [], "cells": []}
        if path is not None and path.exists():
            self.data = json.loads(path.read_text())
            if self.data.get("format") != FORMAT:
                raise ValueError(f"{path} has another format than {FORMAT}; name another file")
        self.run = describe_run()
        self.data["runs"].append(self.run)

    def add(self, cell: Cell, outcome: dict[str, dict[str, Any]]) -> None:
        """Keeps the outcome of a cell instead of any older one that shares a contender with it."""
        key = asdict(cell)

        def replaced(one: dict[str, Any]) -> bool:
            same = {name: one[name] for name in key} == key
            return same and bool(one["contenders"].keys() & outcome.keys())

        self.data["cells"] = [one for one in self.data["cells"] if not replaced(one)]
        number = len(self.data["runs"]) - 1
        self.data["cells"].append({**key, "run": number, "contenders": outcome})

    def save(self) -> None:
        """Writes the file, if there is one; runs of which no cell is left go."""
        if self.path is None:
            return
        used = sorted({one["run"] for one in self.data["cells"]})
        number_of = {old: new for new, old in enumerate(used)}
        data = {
            "format": FORMAT,
            "runs": [self.data["runs"][number] for number in used],
            "cells": [
                {**one, "run": number_of[one["run"]]}
                for one in sorted(
                    self.data["cells"],
                    key=lambda one: (one["world"], one["collective"], one["dtype"], one["bytes"]),
                )
            ],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(_text(data))
        part.replace(self.path)
