# SPDX-License-Identifier: MIT
"""Compare runs of ddp_unchanged.py side by side; the first one named is the reference.

    python examples/compare_runs.py demo_out/short_gloo demo_out/short_pycomm

Losses are compared over the steps that all runs have. Backends may add the same float32 numbers in
another order, which changes the last bit (6e-8); training then amplifies it. "Equal to rounding"
allows relative differences of 1e-3. Over the demo's 30 steps, orders of addition as different as
those of 1 and 2 processes stay a hundred times below that. Gradients that are not reduced exceed
it within a few steps. A sum in place of the mean may not move the loss at all, since AdamW and
clipping undo a scale; that is why gradient norms, taken before clipping, are compared too.

Times are only worth comparing where the runs took turns on the same machine. A speed whose median
lies between the 10th and 90th percentile of the other run, or the reverse, is called noise. The
exit status is 1 where losses or gradient norms differ by more than rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

TOLERANCE = 1e-3

Summary = dict[str, Any]


def load_summary(path: Path) -> Summary:
    """Read summary.json, given itself or its folder."""
    file = path / "summary.json" if path.is_dir() else path
    return json.loads(file.read_text())


def largest_difference(values: list[float], reference: list[float]) -> float:
    """Return max |a - b| / |b| over the common steps; infinite where either is not finite."""
    pairs = list(zip(values, reference, strict=False))
    differences = (abs(a - b) / abs(b) if math.isfinite(a - b) else math.inf for a, b in pairs)
    return max(differences, default=math.inf)


def is_equal(summary: Summary, reference: Summary) -> bool:
    """Say whether losses and gradient norms differ by no more than rounding."""
    names = ("losses", "gradient_norms")
    return all(largest_difference(summary[n], reference[n]) <= TOLERANCE for n in names)


def is_noise(summary: Summary, reference: Summary) -> bool:
    """Say whether one run's median step time lies within the other's usual spread."""
    pairs = ((summary, reference), (reference, summary))
    return any(a["step_p10_s"] <= b["step_median_s"] <= a["step_p90_s"] for a, b in pairs)


def table(summaries: list[Summary]) -> list[list[str]]:
    """Return rows of cells: a name, then one cell a run."""
    first = summaries[0]
    common = min(len(s["losses"]) for s in summaries)

    def row(name: str, form: str, values: list[float]) -> list[str]:
        return [name, *(form.format(value) for value in values)]

    def against_first(name: str, key: str) -> list[str]:
        others = (largest_difference(s[key][:common], first[key]) for s in summaries[1:])
        return [name, "reference", *(f"{other:.1e}" for other in others)]

    verdicts = ("yes" if is_equal(s, first) else "NO" for s in summaries[1:])
    noise = ("yes" if is_noise(s, first) else "no" for s in summaries[1:])
    step_s = first["step_median_s"]
    return [
        ["", *(s["backend"] for s in summaries)],
        row("processes", "{}", [s["world_size"] for s in summaries]),
        row("loss at step 1", "{:.6f}", [s["losses"][0] for s in summaries]),
        row(f"loss at step {common}", "{:.6f}", [s["losses"][common - 1] for s in summaries]),
        against_first("largest relative difference, loss", "losses"),
        against_first("largest relative difference, gradient norm", "gradient_norms"),
        [f"equal to rounding ({TOLERANCE:g})", "reference", *verdicts],
        row("steps timed", "{}", [s["steps_timed"] for s in summaries]),
        row("median step time (ms)", "{:.1f}", [1e3 * s["step_median_s"] for s in summaries]),
        row("10th percentile (ms)", "{:.1f}", [1e3 * s["step_p10_s"] for s in summaries]),
        row("90th percentile (ms)", "{:.1f}", [1e3 * s["step_p90_s"] for s in summaries]),
        row("speed against the first", "{:.3f}", [step_s / s["step_median_s"] for s in summaries]),
        ["speed difference is noise", "reference", *noise],
        row("communication a step (ms)", "{:.1f}", [1e3 * s["communication_s"] for s in summaries]),
        row("share of the step", "{:.1%}", [s["communication_share"] for s in summaries]),
        row("tokens/s", "{:,.0f}", [s["tokens_per_s"] for s in summaries]),
    ]


def print_table(rows: list[list[str]]) -> None:
    """Print rows with the names left and the numbers right aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join([name.ljust(widths[0]), *numbers]))


def main() -> int:
    """Print the comparison; return 1 where a run differs from the first by more than rounding."""
    parser = argparse.ArgumentParser(description="Compare runs of ddp_unchanged.py.")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, or summary.json files")
    summaries = [load_summary(path) for path in parser.parse_args().runs]
    print_table(table(summaries))
    first = summaries[0]
    for summary in summaries[1:]:
        recipe = summary["recipe"].items()
        changed = sorted(k for k, v in recipe if first["recipe"].get(k) != v)
        if changed:
            print(f"Note: {summary['backend']} ran with other values of {', '.join(changed)}.")
    return 0 if all(is_equal(summary, first) for summary in summaries[1:]) else 1


if __name__ == "__main__":
    sys.exit(main())
