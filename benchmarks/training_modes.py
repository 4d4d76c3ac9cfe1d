# SPDX-License-Identifier: MIT
"""Ways of joining replicas on the example's GPT: what each learns by step, by second and by byte.

    python benchmarks/training_modes.py --json modes.json --plot modes.png
    python benchmarks/training_modes.py --json modes.json --modes diloco       # this one anew
    python benchmarks/training_modes.py --slow 10 --seconds 5 --json modes.json

Two workers, and a parameter server where the mode has one; weights, text and order are the same in
all runs. With --slow the last worker takes that many times as long for each gradient, and gradients
per second are counted; nothing is learnt. Bytes are those that one worker sends. Exit code: 0; 1 if
diloco sends more than 1/40 of the bytes of sync or ends more than 2 % behind it; 3 a rank failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from training_modes_ranks import Job, Mode, Row, rank_main

from pycomm.bench.machine import describe
from pycomm.bench.ranks import RankError, run_ranks

EXIT_LOSSES, EXIT_RANK = 1, 3
BYTES_RATIO, LOSS_RATIO = 1 / 40, 1.02
STALENESS = 2
# Sixteen rounds are too few for momentum to pay: with the default (0.7, 0.9) diloco is far behind.
OUTER = (("outer_lr", 1.3), ("outer_momentum", 0.0))
SSP = (("mode", "ssp"), ("staleness", STALENESS))
MODES = (
    Mode("sync", "sync"),
    Mode("local", "local", every=10),
    Mode("diloco", "diloco", every=50, outer=OUTER),
    Mode("ps-sync", "ps"),
    Mode("ps-async", "ps", server=(("mode", "async"),), lr=0.5),
    Mode("ps-ssp", "ps", server=SSP, lr=0.5),
    Mode("sync, weighted", "sync", weighted=True),  # with --slow only
)


def run(mode: Mode, job: Job) -> Row:
    """Trains in one mode; one row of what the workers have told."""
    told = list(run_ranks(job.workers + (mode.kind == "ps"), rank_main, (mode, job), timeout_s=300))
    workers = sorted((one for one in told if one["rank"] >= 0), key=lambda one: one["rank"])
    server = next((one["server"] for one in told if one["rank"] < 0), None)
    first = workers[0]
    row = {
        "name": mode.name,
        "every": mode.every,
        "lr": mode.lr,
        "outer": dict(mode.outer),
        "seconds": max(one["seconds"] for one in workers),
        "steps": [one["steps"] for one in workers],
        "samples": sum(one["samples"] for one in workers),
        "bytes_sent": first["bytes_sent"],
        "parameters": first["parameters"],
        "server": server,
        "machine": describe(),
    }
    if job.seconds:
        return row
    points = first["points"]
    return {**row, "losses": first["losses"], "points": points, "val_loss": points[-1]["loss"]}


def verdict(rows: dict[str, Row]) -> list[str]:
    """What diloco misses, beside sync."""
    if "sync" not in rows or "diloco" not in rows:
        return []
    sync, diloco, wrong = rows["sync"], rows["diloco"], []
    if diloco["bytes_sent"] > BYTES_RATIO * sync["bytes_sent"]:
        wrong.append(f"diloco sent {diloco['bytes_sent']} bytes, sync {sync['bytes_sent']}")
    if diloco["val_loss"] > LOSS_RATIO * sync["val_loss"]:
        wrong.append(f"diloco ended at {diloco['val_loss']:.4f}, sync at {sync['val_loss']:.4f}")
    return wrong


def draw(rows: Sequence[Row], slow: Sequence[Row], path: Path) -> None:
    """Validation loss by step, by second and by byte; steps a second with a slow worker."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4 if slow else 3, figsize=(20 if slow else 16, 4.5))
    for number, row in enumerate(rows):
        style = {"color": f"C{number}", "marker": ".", "linewidth": 1.3}
        for axis, key in zip(axes, ("step", "seconds", "bytes"), strict=False):
            places = [point[key] for point in row["points"]]
            losses = [point["loss"] for point in row["points"]]
            axis.plot(places, losses, label=f"{row['name']}: {row['val_loss']:.3f}", **style)
    axes[0].set(xlabel="step", ylabel="validation loss (nats per byte)")
    axes[1].set(xlabel="seconds of training")
    axes[2].set(xlabel="bytes sent by one worker", xscale="log")
    for axis in axes[:3]:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    if slow:
        names = [row["name"] for row in slow]
        axes[3].barh(names, [row["samples_per_s"] for row in slow], color="C7")
        axes[3].invert_yaxis()
        axes[3].set(xlabel=f"samples a second, one worker of two {slow[0]['slow']:g} times slower")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def line(row: Row) -> str:
    """What is printed of a run."""
    if "val_loss" not in row:
        return (
            f"{row['name']:>16}  {row['samples_per_s']:8.1f} samples/s, steps of the workers "
            f"{row['steps']}"
        )
    return (
        f"{row['name']:>16}  validation loss {row['val_loss']:.4f}, {row['seconds']:.1f} s, "
        f"{row['bytes_sent'] / 1e6:.2f} MB sent by a worker"
    )


def main() -> int:
    """Trains and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--modes", help="names, separated by semicolons; default: all")
    add("--steps", type=int, default=Job.steps)
    add("--seconds", type=float, default=5.0, help="of each run with --slow")
    add("--slow", type=float, default=0.0, help="how many times slower the last worker is")
    add("--json", type=Path)
    add("--plot", type=Path)
    given = parser.parse_args()
    job = Job(steps=given.steps)
    wanted = given.modes.split(";") if given.modes is not None else None
    stored: Row = {"job": asdict(job), "rows": {}, "slow": {}}
    if given.json and given.json.exists():
        stored = json.loads(given.json.read_text())
        if stored["job"] != asdict(job):
            raise SystemExit(f"{given.json} holds another job; remove it or name another file")
    rows = stored["slow" if given.slow else "rows"]
    for mode in MODES:
        slow_only = mode.weighted
        trained_only = mode.kind in ("local", "diloco")  # which go as fast as sync, or as alone
        if wanted is not None and mode.name not in wanted:
            continue
        if trained_only if given.slow else slow_only:
            continue
        this = replace(job, slow=given.slow, seconds=given.seconds) if given.slow else job
        try:
            row = run(mode, this)
        except RankError as error:
            print(f"training_modes: {error}", file=sys.stderr)
            return EXIT_RANK
        if given.slow:
            row |= {"slow": given.slow, "samples_per_s": row["samples"] / row["seconds"]}
        rows[mode.name] = row
        print(line(row), flush=True)
        if given.json:
            stored["command"] = " ".join(sys.argv)
            given.json.write_text(json.dumps(stored) + "\n")
    in_order = [mode.name for mode in MODES]
    if given.plot:
        both = ([stored[key][n] for n in in_order if n in stored[key]] for key in ("rows", "slow"))
        draw(*both, given.plot)
    wrong = verdict(stored["rows"])
    print("\n".join(wrong) or "all as it should be")
    return EXIT_LOSSES if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
