# SPDX-License-Identifier: MIT
"""Results as tables, in text or Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.cells import size_text

FLOOR = "ideal"


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


def ratio(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    """How many times ours fits into theirs: the median over turns, which were taken in pairs."""
    pairs = zip(theirs["rounds_us"], ours["rounds_us"], strict=False)
    return statistics.median(their_us / our_us for their_us, our_us in pairs)


def best_peer(contenders: dict[str, Any], names: Sequence[str]) -> str:
    """The fastest of the named whose results were right; "" if there is none."""
    times = {
        name: contenders[name]["p50_us"]
        for name in names
        if "p50_us" in contenders.get(name, {}) and not contenders[name].get("wrong")
    }
    return min(times, key=lambda name: times[name]) if times else ""


@dataclass(frozen=True)
class Group:
    """Contenders that are compared with one another: like with like.

    Attributes:
        title: What they have in common.
        names: All, in the order of the columns.
        ours: Those that are pycomm.
        floor: The name of the floor, or "".
    """

    title: str
    names: tuple[str, ...]
    ours: tuple[str, ...]
    floor: str

    @property
    def peers(self) -> tuple[str, ...]:
        """The others."""
        return tuple(name for name in self.names if name not in (*self.ours, self.floor))


def groups_of(cells: list[dict[str, Any]]) -> list[Group]:
    """What calls from C++, from NumPy and through torch.distributed, as far as it was measured."""
    names = list(dict.fromkeys(name for cell in cells for name in cell["contenders"]))
    found = []
    for title, prefix in [("C++", ""), ("NumPy", "numpy_"), ("torch.distributed", "torch_")]:
        mine = tuple(
            name
            for name in names
            if (name.startswith(prefix) if prefix else not name.startswith(("numpy_", "torch_")))
        )
        ours = tuple(name for name in mine if name.startswith(prefix + "pycomm"))
        if mine:
            found.append(Group(title, mine, ours, FLOOR if FLOOR in mine else ""))
    return found


def label_of(cell: dict[str, Any]) -> str:
    """all_reduce 16 KiB x2: the number of ranks last, the dtype if it is not float32."""
    size = "" if cell["collective"] == "barrier" else f" {size_text(cell['bytes'])}"
    dtype = "" if cell["dtype"] == "float32" else f" {cell['dtype']}"
    return f"{cell['collective']}{size}{dtype} x{cell['world']}"


def rows_of(cells: list[dict[str, Any]], group: Group) -> list[list[str]]:
    """A header and a row for each cell; last, for each of ours: best peer / it, floor / it."""
    rows = [["us at the median", *group.names]]
    for ours in group.ours:
        rows[0] += [f"best peer / {ours}"] + [f"{group.floor} / {ours}"] * bool(group.floor)
    for cell in cells:
        found = cell["contenders"]
        if not any("p50_us" in found.get(name, {}) for name in group.names):
            continue
        row = [label_of(cell), *(_entry(found.get(name)) for name in group.names)]
        best = best_peer(found, group.peers)
        for ours in group.ours:
            mine = found.get(ours, {})
            known = "p50_us" in mine
            row.append(f"{ratio(found[best], mine):.2f} ({best})" if known and best else "")
            if group.floor:
                floor = found.get(group.floor, {})
                row.append(f"{ratio(floor, mine):.2f}" if known and "p50_us" in floor else "")
        rows.append(row)
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


def report(cells: list[dict[str, Any]], markdown: bool = False) -> str:
    """All tables, and who was absent where and why."""
    parts = []
    for group in groups_of(cells):
        rows = rows_of(cells, group)
        parts.append(f"{group.title}\n\n{(as_markdown if markdown else as_text)(rows)}")
    absent: dict[str, list[str]] = {}
    for cell in cells:
        for name, one in cell["contenders"].items():
            if "absent" in one:
                reason = one["absent"].splitlines()[0]
                absent.setdefault(f"{name}: {reason}", []).append(label_of(cell))
    for reason, where in absent.items():
        parts.append(f"- {reason} ({where[0]}{' and more' if len(where) > 1 else ''})")
    return "\n\n".join(parts)


def sources(cells: list[dict[str, Any]], runs: list[dict[str, Any]]) -> str:
    """Which commit and command the cells are from, a line for each run."""
    lines = []
    for number, run in enumerate(runs):
        count = sum(cell["run"] == number for cell in cells)
        if count:
            lines.append(f"- {count} cells of {run['commit']}, {run['at']}: `{run['command']}`")
    return "\n".join(lines)
