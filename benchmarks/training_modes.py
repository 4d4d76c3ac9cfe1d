# SPDX-License-Identifier: MIT
"""Ways of joining replicas on the example's GPT: what each learns by step, by second and by byte.

    python benchmarks/training_modes.py --seeds 1,2,3 --json modes.json --plot modes.png
    python benchmarks/training_modes.py --modes diloco --seeds 4 --json modes.json   # one run more
    python benchmarks/training_modes.py --seeds "" --json modes.json --plot modes.png  # only draws

Two workers, and a parameter server where the mode has one; of one seed, weights, text and order are
the same in all modes. Bytes are those that one worker sends. Runs that are in the file already stay
as they are. Losses do not depend on what else the machine does, seconds do. Exit code: 0; 1 if
diloco sends more than 1/40 of the bytes of sync or its mean over seeds ends more than 2 % behind; 3
a rank failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
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
SSP = (("mode", "ssp"), ("staleness", 2))
# Forty rounds are few for a momentum of 0.9, which remembers ten of them.
OUTER = (("outer_lr", 1.0), ("outer_momentum", 0.5))
MODES = (
    Mode("sync", "sync"),
    Mode("local", "local", every=10),
    Mode("diloco", "diloco", every=50, outer=OUTER),
    Mode("diloco-default", "diloco", every=50),
    Mode("ps-sync", "ps"),
    Mode("ps-async", "ps", server=(("mode", "async"),), lr=0.5),
    Mode("ps-ssp", "ps", server=SSP, lr=0.5),
)


def run(mode: Mode, job: Job) -> Row:
    """Trains in one mode; what the workers have told."""
    told = list(run_ranks(job.workers + (mode.kind == "ps"), rank_main, (mode, job), timeout_s=300))
    (first,) = (one for one in told if one["rank"] == 0)
    server = next((one["server"] for one in told if one["rank"] < 0), None)
    points = first["points"]
    return {**first, "server": server, "val_loss": points[-1]["loss"]}


class Record:
    """Runs by mode and seed; a JSON file."""

    def __init__(self, path: Path | None, job: Job) -> None:
        """Goes on with a file that is there.

        Raises:
            SystemExit: it is of another job.
        """
        self.path = path
        kept = {key: value for key, value in asdict(job).items() if key != "seed"}
        self.stored: Row = {"job": kept, "runs": {}, "machine": {}}
        if path is not None and path.exists():
            self.stored = json.loads(path.read_text())
            if self.stored["job"] != kept:
                raise SystemExit(f"{path} holds another job; remove it or name another file")
        self.runs: dict[str, dict[str, Row]] = self.stored["runs"]

    def save(self) -> None:
        """Writes all of it."""
        self.stored["command"] = " ".join(sys.argv)
        self.stored["machine"] = describe()
        if self.path is not None:
            self.path.write_text(json.dumps(self.stored) + "\n")

    def losses(self, mode: str) -> dict[str, float]:
        """Last validation loss by seed."""
        return {seed: row["val_loss"] for seed, row in self.runs.get(mode, {}).items()}

    def ratios(self, mode: str) -> list[float]:
        """Loss by that of sync with the same seed."""
        sync = self.losses("sync")
        return [loss / sync[seed] for seed, loss in self.losses(mode).items() if seed in sync]

    def seconds(self, mode: str) -> float:
        """Of the quickest run."""
        return min(row["points"][-1]["seconds"] for row in self.runs[mode].values())

    def line(self, mode: str) -> str:
        """What is printed of a mode."""
        losses, ratios = list(self.losses(mode).values()), self.ratios(mode)
        if not losses:
            return f"{mode:>14}  no run"
        sent = next(iter(self.runs[mode].values()))["bytes_sent"] / 1e6
        text = (
            f"{mode:>14}  loss {statistics.mean(losses):.4f}, {len(losses)} seeds {spread(losses)}"
        )
        if ratios:
            text += f"; of sync {statistics.mean(ratios):.4f} {spread(ratios)}"
        return f"{text}; {sent:.2f} MB sent by a worker; {self.seconds(mode):.1f} s"

    def verdict(self) -> list[str]:
        """What diloco misses, beside sync."""
        ratios, wrong = self.ratios("diloco"), []
        if not ratios:
            return []
        sent = {m: next(iter(self.runs[m].values()))["bytes_sent"] for m in ("sync", "diloco")}
        if sent["diloco"] > BYTES_RATIO * sent["sync"]:
            wrong.append(f"diloco sent {sent['diloco']} bytes, sync {sent['sync']}")
        if statistics.mean(ratios) > LOSS_RATIO:
            wrong.append(f"diloco ended at {statistics.mean(ratios):.4f} of sync's loss")
        return wrong


def spread(values: Sequence[float]) -> str:
    """The smallest and the largest."""
    return f"({min(values):.4f} to {max(values):.4f})"


def draw(record: Record, path: Path) -> None:
    """Validation loss, mean over seeds, by step, by second and by byte."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 4.8))
    for number, mode in enumerate(mode.name for mode in MODES if mode.name in record.runs):
        rows = list(record.runs[mode].values())
        curves = [[point["loss"] for point in row["points"]] for row in rows]
        means = [statistics.mean(losses) for losses in zip(*curves, strict=True)]
        low, high = ([f(one) for one in zip(*curves, strict=True)] for f in (min, max))
        for axis, key in zip(axes, ("step", "seconds", "bytes"), strict=True):
            places = zip(*([point[key] for point in row["points"]] for row in rows), strict=True)
            xs = [min(place) for place in places]  # seconds of the quickest run
            axis.plot(xs, means, color=f"C{number}", lw=1.3, label=f"{mode}: {means[-1]:.3f}")
            axis.fill_between(xs, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
    axes[0].set(xlabel="step", ylabel="validation loss (nats per byte), mean and range over seeds")
    axes[1].set(xlabel="seconds of training")
    axes[2].set(xlabel="bytes sent by one worker", xscale="log")
    for axis in axes:
        axis.set_ylim(top=2.8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Trains and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--modes", help="names, separated by commas; default: all")
    add("--seeds", default="1", help="separated by commas; runs that are in the file stay")
    add("--steps", type=int, default=Job.steps)
    add("--json", type=Path)
    add("--plot", type=Path)
    given = parser.parse_args()
    job = Job(steps=given.steps)
    record = Record(given.json, job)
    wanted = given.modes.split(",") if given.modes is not None else [mode.name for mode in MODES]
    seeds = [int(seed) for seed in given.seeds.split(",") if seed]
    try:
        for mode in (mode for mode in MODES if mode.name in wanted):
            runs = record.runs.setdefault(mode.name, {}) if seeds else {}
            for seed in seeds:
                if str(seed) not in runs:
                    runs[str(seed)] = run(mode, replace(job, seed=seed))
                    record.save()
            print(record.line(mode.name), flush=True)
    except RankError as error:
        print(f"training_modes: {error}", file=sys.stderr)
        return EXIT_RANK
    if given.plot:
        draw(record, given.plot)
    wrong = record.verdict()
    print("\n".join(wrong) or "all as it should be")
    return EXIT_LOSSES if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
