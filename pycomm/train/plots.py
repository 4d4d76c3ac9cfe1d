# SPDX-License-Identifier: MIT
"""Draws what a run has written: loss against steps and time, and what a step's time went into.

python -m pycomm.train.plots out/metrics.jsonl other/metrics.jsonl --out both.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PARTS = ("compute_s", "exposed_s", "idle_s")


def draw(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any], path: Path) -> bool:
    """Draws one run, or several by name, into a PNG; local.

    Args:
        rows: Of a Watch, or of several by name.
        path: The file.

    Returns:
        Whether matplotlib is there.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs: Mapping[str, Any] = rows if isinstance(rows, Mapping) else {"": rows}
    figure, (by_step, by_time, times) = pyplot.subplots(1, 3, figsize=(15, 4))
    for name, own in runs.items():
        for key, style in (("loss", "-"), ("val_loss", "o--")):
            points = [row for row in own if key in row]
            label = f"{name} {key}".strip()
            if points:
                values = [row[key] for row in points]
                by_step.plot([row["step"] for row in points], values, style, label=label, ms=3)
                by_time.plot([row["time_s"] for row in points], values, style, label=label, ms=3)
    for axes, text in ((by_step, "step"), (by_time, "seconds")):
        axes.set_xlabel(text)
        axes.set_ylabel("loss")
        axes.legend()
    for place, own in enumerate(runs.values()):
        bottom = 0.0
        split = [row for row in own if "compute_s" in row]
        for part, colour in zip(_PARTS, ("tab:blue", "tab:red", "tab:gray"), strict=True):
            mean = 1e3 * sum(row[part] for row in split) / max(1, len(split))
            times.bar(
                place, mean, bottom=bottom, color=colour, label=part[:-2] if not place else None
            )
            bottom += mean
        hidden = sum(row["communication_s"] - row["exposed_s"] for row in split)
        hidden = max(0.0, 1e3 * hidden / max(1, len(split)))
        behind = "communication behind compute" if not place else None
        times.bar(place + 0.45, hidden, width=0.1, color="tab:orange", label=behind)
    times.set_xticks(range(len(runs)), list(runs))
    times.set_ylabel("ms of a step, mean over ranks")
    times.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Draws the runs of some metrics.jsonl; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pycomm.train.plots", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="metrics.jsonl of runs")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    args = parser.parse_args(arguments)
    runs = {
        str(file.parent): [json.loads(line) for line in file.read_text().splitlines()]
        for file in args.files
    }
    if not draw(runs, args.out):
        print("matplotlib is not installed")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
