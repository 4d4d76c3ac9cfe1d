# SPDX-License-Identifier: MIT
"""Turns stored results of ``python -m pycomm bench --json`` into Markdown tables.

    python benchmarks/report.py benchmarks/results/all_reduce.json > all_reduce.md

One table for each collective, dtype, op, placement and world size, with the backends side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def size_text(size: int) -> str:
    """Returns bytes with the largest binary unit that divides them."""
    for unit, name in UNITS:
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def title_of(row: Row) -> str:
    """Returns the heading of the table that a row belongs to."""
    if not row["bytes"]:
        return f"{row['collective']}, {row['world']} ranks"
    kind = row["dtype"] if row["op"] == "none" else f"{row['dtype']} {row['op']}"
    place = "in place" if row["placement"] == "in" else "out of place"
    return f"{row['collective']}, {kind}, {place}, {row['world']} ranks"


def tables(rows: Sequence[Row]) -> list[str]:
    """Returns the lines of all tables; the ratio is time of the last backend over each other's."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(title_of(row), []).append(row)
    lines: list[str] = []
    for title, group in groups.items():
        backends = list(dict.fromkeys(row["backend"] for row in group))
        reference = backends[-1]
        heads = ["size"]
        for backend in backends:
            heads += [f"{backend} p50 us", "p99 us", "busbw GB/s"]
        heads += [f"{reference} / {backend}" for backend in backends[:-1]]
        heads += ["wrong"]
        lines += ["", f"### {title}", "", _line(heads), _line(["---:"] * len(heads))]
        for size in dict.fromkeys(row["bytes"] for row in group):
            cells = {row["backend"]: row for row in group if row["bytes"] == size}
            lines.append(_line(_fields(size, cells, backends)))
    return lines


def _fields(size: int, cells: dict[str, Row], backends: Sequence[str]) -> list[str]:
    """Returns the fields of one line: one size, all backends."""
    fields = [size_text(size)]
    for backend in backends:
        row = cells.get(backend, {})
        if row.get("reason"):
            fields += ["unsupported", "", ""]
        else:
            fields += [
                _number(row.get(key)) for key in ("time_us_p50", "time_us_p99", "busbw_gbps")
            ]
    reference = cells.get(backends[-1], {}).get("time_us_p50")
    for backend in backends[:-1]:
        time_us = cells.get(backend, {}).get("time_us_p50")
        fields.append(f"{reference / time_us:.2f}" if reference and time_us else "-")
    return [*fields, str(sum(row["wrong"] or 0 for row in cells.values()))]


def _number(value: float | None) -> str:
    """Formats with three significant digits or more, and no exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _line(fields: Sequence[str]) -> str:
    """Joins the fields of a Markdown table line."""
    return f"| {' | '.join(fields)} |"


def main(words: Sequence[str]) -> int:
    """Prints the report of the given files; returns the exit code."""
    parser = argparse.ArgumentParser(description="Markdown tables from stored bench results.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    for path in parser.parse_args(words).files:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            machine, lines = stored["machine"], tables(stored["rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(
                f"report: {path}: {type(error).__name__}: {error}; "
                "expected a file that `python -m pycomm bench --json` wrote",
                file=sys.stderr,
            )
            return 2
        print(f"## {path.stem}\n")
        print(f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, ", end="")
        print(f"torch {machine['torch']}, commit {machine['commit']}, {machine['started']}:\n")
        print(f"    {machine['command']}")
        print("\n".join(lines), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
