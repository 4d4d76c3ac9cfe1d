# SPDX-License-Identifier: MIT
"""Pictures of growth.py's results: CPU and wall time over bytes, memory and set-up over groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARKERS = "os^Dvx*P"
Row = dict[str, Any]


def draw(results: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Writes four panels to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8))
    calls, groups = results["calls"], results["groups"]
    _calls(axes[0][0], calls, "cpu_us", "all_reduce: CPU of all ranks (us)")
    _calls(axes[0][1], calls, "wall_us", "all_reduce: wall time (us)")
    _groups(axes[1][0], groups, "pss_kib", "memory of a rank for each group (KiB)")
    _groups(axes[1][1], groups, "setup_ms", "set-up of a group (ms)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _calls(axis: Any, rows: Sequence[Row], field: str, label: str) -> None:
    """One line for each backend (style) and number of ranks (colour)."""
    for c, contender in enumerate(dict.fromkeys(row["contender"] for row in rows)):
        for w, world in enumerate(dict.fromkeys(row["world"] for row in rows)):
            mine = [r for r in rows if (r["contender"], r["world"]) == (contender, world)]
            axis.plot(
                [row["bytes"] for row in mine],
                [row[field] for row in mine],
                color=f"C{w}",
                marker=MARKERS[c],
                markersize=4,
                linestyle=("-", "--", ":", "-.")[c % 4],
                label=f"{contender}, {world} ranks",
            )
    _finish(axis, "bytes", label)


def _groups(axis: Any, rows: Sequence[Row], field: str, label: str) -> None:
    """One line for each backend."""
    for c, contender in enumerate(dict.fromkeys(row["contender"] for row in rows)):
        mine = [row for row in rows if row["contender"] == contender]
        points = [row["groups"] for row in mine], [row[field] for row in mine]
        axis.plot(*points, color=f"C{c}", marker=MARKERS[c], label=contender)
    _finish(axis, "groups over the same ranks", label)


def _finish(axis: Any, x_label: str, y_label: str) -> None:
    """Scales, labels, legend."""
    axis.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
    axis.grid(visible=True, alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=7)
