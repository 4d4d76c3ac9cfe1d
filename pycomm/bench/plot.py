# SPDX-License-Identifier: MIT
"""Draws a sweep: time and bus bandwidth over size, one line for each backend and world size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycomm.bench.rows import Row

MARKERS = "os^Dvx*P"
LINE_STYLES = ("-", "--", ":", "-.")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes one pair of panels for each collective, dtype, op and placement to ``path``.

    Rows without a time (unsupported) or without a size (barrier) are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row.time_us_p50 is not None and row.bytes:
            place = "in place" if row.placement == "in" else "out of place"
            words = [row.collective, row.dtype, row.op, place]
            title = " ".join(word for word in words if word != "none")
            panels.setdefault(title, []).append(row)
    figure, axes = plt.subplots(
        max(1, len(panels)), 2, figsize=(11, 4 * max(1, len(panels))), squeeze=False
    )
    for (title, panel), (time_axis, busbw_axis) in zip(panels.items(), axes, strict=False):
        _lines(time_axis, panel, "time_us_p50")
        _lines(busbw_axis, panel, "busbw_gbps")
        time_axis.set(title=title, xlabel="size (bytes)", ylabel="time p50 (us)")
        busbw_axis.set(title=title, xlabel="size (bytes)", ylabel="busbw (GB/s)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lines(axis: Any, rows: Sequence[Row], field: str) -> None:
    """Adds one line for each backend and world size; colour tells the backend, style the world."""
    backends = list(dict.fromkeys(row.backend for row in rows))
    worlds = list(dict.fromkeys(row.world for row in rows))
    for b, backend in enumerate(backends):
        for w, world in enumerate(worlds):
            points = [
                (row.bytes, getattr(row, field))
                for row in rows
                if row.backend == backend and row.world == world and getattr(row, field)
            ]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    color=f"C{b}",
                    linestyle=LINE_STYLES[w % len(LINE_STYLES)],
                    marker=MARKERS[w % len(MARKERS)],
                    markersize=4,
                    label=f"{backend}, {world} ranks",
                )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.grid(True, which="major", alpha=0.3)
    if axis.lines:
        axis.legend()
