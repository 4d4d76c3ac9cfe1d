# SPDX-License-Identifier: MIT
"""Results as pictures: for each collective and number of ranks, time against the floor by size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.cells import size_text

COLUMNS = 2


def _panels(cells: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    panels: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["dtype"] == "float32" and cell["bytes"]:
            panels.setdefault((cell["collective"], cell["world"]), []).append(cell)
    return {key: found for key, found in sorted(panels.items()) if len(found) > 1}


def _style(name: str) -> dict[str, Any]:
    if name == "ideal":
        return {"color": "0.6", "linestyle": "--"}
    if name.startswith("pycomm"):
        color = "tab:red" if name == "pycomm" else "tab:orange"
        return {"color": color, "linewidth": 2.2, "zorder": 5}
    return {"linewidth": 1.1}


def plot(cells: list[dict[str, Any]], names: list[str], path: Path) -> None:
    """Writes PNG or SVG, by the path's ending: p50 in us over bytes, both logarithmic.

    Raises:
        ValueError: There is nothing to draw: no collective was measured at two sizes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = _panels(cells)
    if not panels:
        raise ValueError("nothing to draw: no collective was measured at two sizes in float32")
    rows = -(-len(panels) // COLUMNS)
    size = (5.2 * min(COLUMNS, len(panels)), 3.4 * rows)
    figure, axes = plt.subplots(rows, min(COLUMNS, len(panels)), figsize=size, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, ((collective, world), found) in zip(axes.flat, panels.items(), strict=False):
        found = sorted(found, key=lambda cell: cell["bytes"])
        for name in names:
            points = [
                (cell["bytes"], cell["contenders"][name]["p50_us"])
                for cell in found
                if "p50_us" in cell["contenders"].get(name, {})
            ]
            if points:
                axis.plot(*zip(*points, strict=True), marker=".", label=name, **_style(name))
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        ticks = [cell["bytes"] for cell in found]
        axis.set_xticks(ticks, [size_text(tick).replace("iB", "") for tick in ticks], fontsize=7)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.set_title(f"{collective}, {world} ranks", fontsize=10)
        axis.set_ylabel("p50, us", fontsize=8)
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
