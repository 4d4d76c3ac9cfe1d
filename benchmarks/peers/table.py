# SPDX-License-Identifier: MIT
"""Results as tables, in text or Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.cells import size_text


def time_text(us: float) -> str:
    """Three digits: 0.412, 12.8, 1,205 us or 23.4 ms."""
    if us < 10:
        return f"{us:.2f}"
    if us < 100:
        return f"{us:.1f}"
    return f"{us:,.0f}"


def _entry(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "p50_us" not in found:
        return "-"
    return time_text(found["p50_us"]) + ("!" if found.get("wrong") else "")


def best_peer(contenders: dict[str, Any], ours: set[str]) -> tuple[str, float] | None:
    """Name and time of the fastest that is neither ours nor the floor."""
    times = {
        name: one["p50_us"]
        for name, one in contenders.items()
        if "p50_us" in one and name not in ours and not one.get("wrong")
    }
    if not times:
        return None
    name = min(times, key=lambda name: times[name])
    return name, times[name]


def is_ours(name: str) -> bool:
    """The library, the floor, and what is only timed beside them."""
    return name.startswith(("pycomm", "ideal", "proto"))


def rows_of(cells: list[dict[str, Any]]) -> list[list[str]]:
    """A header and a row for each cell; the last column is best peer / pycomm."""
    names: list[str] = []
    for cell in cells:
        names += [name for name in cell["contenders"] if name not in names]
    rows = [["cell", *names, "best peer / pycomm"]]
    for cell in cells:
        found = cell["contenders"]
        label = cell["collective"]
        if label != "barrier":
            label += f" {size_text(cell['bytes'])}"
            if cell["dtype"] != "float32":
                label += f" {cell['dtype']}"
        ours = {name for name in found if is_ours(name)}
        best = best_peer(found, ours)
        mine = found.get("pycomm", {}).get("p50_us")
        ratio = f"{best[1] / mine:.2f} ({best[0]})" if best and mine else ""
        label += f" x{cell['world']}"
        rows.append([label, *(_entry(found.get(name)) for name in names), ratio])
    return rows


def as_text(rows: list[list[str]]) -> str:
    """Columns, right-aligned but the first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        rest = [entry.rjust(width) for entry, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def as_markdown(rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
