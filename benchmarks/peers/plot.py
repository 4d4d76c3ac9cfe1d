# SPDX-License-Identifier: MIT
"""Results as pictures: for each collective and number of ranks, times the floor by size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.cells import size_text

COLUMNS = 3
PEER_COLORS = ("tab:blue", "tab:cyan", "tab:green", "tab:purple", "tab:brown", "tab:olive")


def _panels(cells: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    panels: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["dtype"] == "float32" and cell["bytes"]:
            panels.setdefault((cell["collective"], cell["world"]), []).append(cell)
    return {key: found for key, found in sorted(panels.items()) if len(found) > 1}


def _style(name: str, peers: list[str]) -> dict[str, Any]:
    if name == "pycomm" or name.startswith("pycomm_"):
        color = "tab:red" if name == "pycomm" else "tab:orange"
        return {"color": color, "linewidth": 2.2, "zorder": 5}
    color = PEER_COLORS[peers.index(name) % len(PEER_COLORS)]
    return {"color": color, "linewidth": 1.1}


def _times_the_floor(cell: dict[str, Any], name: str, floor: str) -> float | None:
    found = cell["contenders"]
    if "p50_us" not in found.get(name, {}) or "p50_us" not in found.get(floor, {}):
        return None
    return float(found[name]["p50_us"] / found[floor]["p50_us"])


def plot(cells: list[dict[str, Any]], names: list[str], floor: str, path: Path) -> None:
    """Writes PNG or SVG, by the path's ending: p50 / the floor's p50 over bytes, both logarithmic.

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
    size = (4.2 * min(COLUMNS, len(panels)), 2.8 * rows)
    figure, axes = plt.subplots(rows, min(COLUMNS, len(panels)), figsize=size, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, ((collective, world), found) in zip(axes.flat, panels.items(), strict=False):
        found = sorted(found, key=lambda cell: cell["bytes"])
        axis.axhline(1, color="0.4", linestyle="--", linewidth=1)
        others = [name for name in names if name != floor]
        for name in others:
            points = [(cell["bytes"], _times_the_floor(cell, name, floor)) for cell in found]
            points = [point for point in points if point[1] is not None]
            if points:
                style = _style(name, others)
                axis.plot(*zip(*points, strict=True), marker=".", label=name, **style)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        ticks = [cell["bytes"] for cell in found]
        axis.set_xticks(ticks, [size_text(tick).replace("iB", "") for tick in ticks], fontsize=7)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.set_title(f"{collective}, {world} ranks", fontsize=10)
        axis.set_ylabel("times the floor", fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=85)
    plt.close(figure)
