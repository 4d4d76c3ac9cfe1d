# SPDX-License-Identifier: MIT
"""Show a run while it goes and write its results: what rank 0 of ddp_unchanged.py does besides.

A run's `rows` are one dict a step, as Trainer.train_step fills them in. Only the standard library
is needed; tqdm and matplotlib are used where they are installed.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
RECENT_STEPS = 40  # what the progress line's medians are taken over


def timings(rows: list[Row]) -> dict[str, float]:
    """Return medians over the timed rows: step time, p10, p90 and the communication share."""
    probed = [row for row in rows if row["local_backward_s"] is not None]
    probed = [row for row in probed if row["timed"]] or probed
    local_s = statistics.median(row["local_backward_s"] for row in probed)
    timed = [row for row in rows if row["timed"]] or rows
    times = sorted(row["step_s"] for row in timed)
    step_s = statistics.median(times)
    synced_s = statistics.median(row["synced_backward_s"] for row in timed)
    reduce_s = statistics.median(row["loss_reduce_s"] for row in timed)
    communication_s = max(0.0, synced_s - local_s) + reduce_s
    return {
        "steps_timed": len(times),
        "step_median_s": step_s,
        "step_p10_s": times[int(0.1 * (len(times) - 1))],
        "step_p90_s": times[int(0.9 * (len(times) - 1))],
        "communication_s": communication_s,
        "communication_share": communication_s / step_s,
    }


class Progress:
    """Show the run: a bar on a terminal, elsewhere a line every `log_every` steps."""

    def __init__(self, start: int, end: int, log_every: int, tokens_per_step: int) -> None:
        """Start the display at step `start` of `end`."""
        self.end, self.log_every, self.tokens_per_step = end, log_every, tokens_per_step
        self.bar = None
        if sys.stdout.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(initial=start, total=end, file=sys.stdout, dynamic_ncols=True)

    def update(self, rows: list[Row]) -> None:
        """Show the latest step."""
        row, recent = rows[-1], timings(rows[-RECENT_STEPS:])
        tokens_per_s = self.tokens_per_step / recent["step_median_s"]
        share = recent["communication_share"]
        figures = f"loss {row['loss']:.3f}, {tokens_per_s:,.0f} tokens/s, communication {share:.1%}"
        if self.bar is not None:
            self.bar.set_postfix_str(figures, refresh=False)
            self.bar.update()
        elif row["step"] % self.log_every == 0 or row["step"] in (1, self.end):
            print(f"step {row['step']:4d}/{self.end}  {figures}", flush=True)

    def close(self) -> None:
        """Leave the finished bar on the terminal."""
        if self.bar is not None:
            self.bar.close()


def write_results(
    out: Path, facts: dict[str, Any], rows: list[Row], val_losses: list[tuple[int, float]]
) -> None:
    """Write summary.json, curve.csv and curve.png into `out`; print one closing line."""
    measured = timings(rows)
    tokens_per_s = facts["tokens_per_step"] / measured["step_median_s"]
    summary = facts | measured | {"tokens_per_s": tokens_per_s, "val_losses": val_losses}
    summary |= {"losses": [row["loss"] for row in rows]}
    summary |= {"gradient_norms": [row["gradient_norm"] for row in rows]}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    with (out / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(out / "curve.png", facts["backend"], rows, val_losses)
    points = val_losses[:1] + val_losses[1:][-1:]
    print("validation loss", ", ".join(f"{loss:.3f} at step {step}" for step, loss in points))


def plot(path: Path, backend: str, rows: list[Row], val_losses: list[tuple[int, float]]) -> None:
    """Draw training and validation loss over steps as a PNG."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no curve.png")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], label="training")
    axes.plot(*zip(*val_losses, strict=True), "o-", label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per byte)", title=backend)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
