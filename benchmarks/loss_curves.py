# SPDX-License-Identifier: MIT
"""Trains the example's GPT with gradients in each format, and compares what it has learnt.

    python benchmarks/loss_curves.py --json curves.json --plot curves.png
    python benchmarks/loss_curves.py --json curves.json --formats "int8,int4 without"   # these anew

Two ranks, DDP on pycomm. The first four runs set nothing but PYCOMM_WIRE, the others use the hooks
of pycomm.compression. Weights, text and order are the same in all runs. Not a timing. Exit code:
0; 1 if a wire format's final validation loss is more than 1 % away from fp32's, if ranks ended with
different parameters, or if a format had no effect; 3 a rank failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# In front: a report.py is in either folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from pycomm.bench.machine import describe
from pycomm.bench.ranks import Context, RankError, run_ranks

TOLERANCE = 0.01  # of the final validation loss, relative to fp32's
SMOOTHED = 25  # steps averaged in the plot: losses of single batches jump
EXIT_LOSSES, EXIT_RANK = 1, 3
Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """One run: what PYCOMM_WIRE says, or the hook that replaces DDP's all-reduce."""

    name: str
    wire: str = "fp32"
    hook: str = ""  # wire format of the hook; "": no hook
    feedback: bool = False


FORMATS = (
    Format("fp32"),
    Format("bf16", wire="bf16"),
    Format("fp16s", wire="fp16s"),
    Format("int8", wire="int8"),
    Format("int8 with error feedback", hook="int8", feedback=True),
    Format("int4 with error feedback", hook="int4", feedback=True),
    Format("int4 without", hook="int4"),
)


@dataclass(frozen=True)
class Job:
    """The model and its training; the names are those of examples/ddp_unchanged.py."""

    steps: int = 500
    batch_size: int = 16
    block_size: int = 64
    layers: int = 2
    heads: int = 4
    width: int = 96
    dropout: float = 0.0
    lr: float = 1.5e-3
    warmup: int = 30
    clip: float = 1.0
    seed: int = 1
    val_every: int = 50
    val_sequences: int = 192
    data: str = "manual"
    data_bytes: int = 2_000_000


def rank_main(context: Context, form: Format, job: Job, world: int) -> None:
    """Trains one format on one rank and emits its curve."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", context.store_port, is_master=False)
    dist.init_process_group(
        "pycomm",
        store=store,
        rank=context.rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    try:
        context.emit({"rank": context.rank, **curve_of(context, form, job)})
    finally:
        dist.destroy_process_group()


def curve_of(context: Context, form: Format, job: Job) -> Row:
    """Losses by step, validation losses, and what the run ended with. Collective."""
    import torch
    import torch.distributed as dist
    from ddp_unchanged import learning_rate, make_optimizer
    from gpt import Gpt, Windows, load_text
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    text = load_text(job.data, job.data_bytes)
    split = len(text) * 9 // 10
    train_text, val_text = (
        Windows(part, job.block_size, job.seed) for part in (text[:split], text[split:])
    )
    torch.manual_seed(job.seed)
    model = Gpt(job.block_size, job.layers, job.heads, job.width, job.dropout)
    parallel = DistributedDataParallel(model)
    optimizer = make_optimizer(model, job.lr)
    attach(form, parallel, optimizer)
    share = job.batch_size // dist.get_world_size()
    losses, val_losses, begin = [], [], time.monotonic()
    for step in range(job.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, SimpleNamespace(**asdict(job)))
        first = step * job.batch_size + dist.get_rank() * share
        optimizer.zero_grad()
        loss = loss_of(parallel, train_text.batch(first, share))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), job.clip)
        optimizer.step()
        losses.append(mean_over_ranks(loss.item()))
        if (step + 1) % job.val_every == 0 or step + 1 == job.steps:
            val_losses.append((step + 1, validation_loss(model, val_text, job)))
            context.step(f"{form.name}, step {step + 1}")
    sums = hashlib.sha256()
    for parameter in model.parameters():
        sums.update(parameter.detach().numpy().tobytes())
    return {
        "losses": losses,
        "val_losses": val_losses,
        "digest": sums.hexdigest()[:16],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": time.monotonic() - begin,
    }


def attach(form: Format, model: Any, optimizer: Any) -> None:
    """Registers the format's hook, if it has one."""
    from pycomm import compression

    if not form.hook:
        return
    if form.feedback:
        state = compression.ErrorFeedback(form.hook, model, optimizer)
    else:
        state = compression.Encoded(form.hook, model)
    model.register_comm_hook(state, compression.hook)


def loss_of(model: Any, samples: Any) -> Any:
    """The mean loss in nats per byte of samples (count, block_size + 1)."""
    from torch.nn import functional

    return functional.cross_entropy(model(samples[:, :-1]).flatten(0, 1), samples[:, 1:].flatten())


def mean_over_ranks(value: float) -> float:
    """The same number on all ranks. Collective; too small for a wire format to apply."""
    import torch
    import torch.distributed as dist

    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def validation_loss(model: Any, text: Any, job: Job) -> float:
    """The mean loss over the same sequences of text that was not trained on. Local."""
    import torch

    with torch.no_grad():
        count = min(job.val_sequences, text.per_epoch)
        parts = [loss_of(model, text.batch(first, 32)).item() for first in range(0, count, 32)]
    return sum(parts) / len(parts)


def verdict(rows: Sequence[Row], world: int) -> list[str]:
    """What is wrong with the runs, if anything."""
    wrong = []
    for row in rows:
        if len(set(row["digests"])) != 1 or len(row["digests"]) != world:
            wrong.append(f"{row['name']}: ranks ended with different parameters")
    digests = [row["digests"][0] for row in rows]
    if len(set(digests)) != len(digests):
        wrong.append("two formats ended with the same parameters: one had no effect")
    for row in rows:
        if row["wire"] != "fp32" and not abs(row["of_fp32"] - 1) <= TOLERANCE:
            wrong.append(f"{row['name']}: validation loss {row['of_fp32']:.4f} times fp32's")
    return wrong


def row_of(told: Sequence[Row], form: Format) -> Row:
    """What one format's ranks have told, as one row."""
    (first,) = (one for one in told if one["rank"] == 0)
    row = {**asdict(form), **{k: v for k, v in first.items() if k not in ("rank", "digest")}}
    row["digests"] = [one["digest"] for one in told]
    row["losses"] = [round(loss, 4) for loss in first["losses"]]
    row["val_loss"] = first["val_losses"][-1][1]
    return row


def stored_rows(path: Path | None, job: Job, world: int) -> dict[str, Row]:
    """Rows of an earlier run of the same job, by format."""
    if path is None or not path.exists():
        return {}
    stored = json.loads(path.read_text())
    if (stored["job"], stored["world"]) != (asdict(job), world):
        raise SystemExit(f"{path} holds another job; remove it or name another file")
    return {row["name"]: row for row in stored["rows"]}


def in_order(rows: dict[str, Row]) -> list[Row]:
    """All rows as FORMATS has them, each with its loss relative to fp32's."""
    ordered = [rows[form.name] for form in FORMATS if form.name in rows]
    for row in ordered:
        row["of_fp32"] = row["val_loss"] / ordered[0]["val_loss"]
    return ordered


def draw(rows: Sequence[Row], path: Path) -> None:
    """Training loss on the left, validation loss on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5))
    for c, row in enumerate(rows):
        style = {"color": f"C{c}", "linestyle": ("-", "--", ":", "-.")[c % 4], "linewidth": 1.3}
        losses = row["losses"]
        smooth = [
            sum(losses[max(0, i - SMOOTHED) : i + 1]) / len(losses[max(0, i - SMOOTHED) : i + 1])
            for i in range(len(losses))
        ]
        left.plot(range(1, len(losses) + 1), smooth, label=row["name"], **style)
        label = f"{row['name']}: {row['val_loss']:.4f}"
        right.plot(*zip(*row["val_losses"], strict=True), label=label, **style)
    left.set(xlabel="step", ylabel=f"training loss, mean of {SMOOTHED} steps (nats per byte)")
    right.set(xlabel="step", ylabel="validation loss (nats per byte)")
    for axis in (left, right):
        axis.set_ylim(top=3.5)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Trains and prints; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--world", type=int, default=2)
    add("--steps", type=int, default=Job.steps)
    add("--seed", type=int, default=Job.seed)
    add("--formats", help="names, separated by commas; fp32 comes first")
    add("--json", type=Path)
    add("--plot", type=Path)
    given = parser.parse_args()
    job = Job(steps=given.steps, seed=given.seed)
    names = given.formats.split(",") if given.formats else [form.name for form in FORMATS]
    formats = [form for form in FORMATS if form.name in names]
    rows = stored_rows(given.json, job, given.world)
    if "fp32" not in rows and formats[0].name != "fp32":
        raise SystemExit("fp32 is what the others are compared with: name it first")
    for form in formats:
        machine, environment = describe(), {"PYCOMM_WIRE": form.wire}
        try:
            told = run_ranks(
                given.world,
                rank_main,
                (form, job, given.world),
                timeout_s=300,
                environments=[environment] * given.world,
            )
            row = row_of(list(told), form)
        except RankError as error:
            print(f"loss_curves: {error}", file=sys.stderr)
            return EXIT_RANK
        rows[form.name] = {**row, "machine": machine}
        ordered = in_order(rows)
        if given.json:
            stored = {"world": given.world, "job": asdict(job), "rows": ordered}
            given.json.write_text(json.dumps(stored) + "\n")
        print(
            f"{form.name:>26}  validation loss {row['val_loss']:.4f}, "
            f"{rows[form.name]['of_fp32']:.4f} of fp32's  ({row['seconds']:.0f} s)",
            flush=True,
        )
    if given.plot:
        draw(ordered, given.plot)
    wrong = verdict(ordered, given.world)
    print("\n".join(wrong) or "all as they should be")
    return EXIT_LOSSES if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
