# SPDX-License-Identifier: MIT
"""What people watch while a model trains: figures, averaged over ranks, and where they go.

Rank 0 shows a bar or lines, writes metrics.jsonl and, where tensorboard is installed, its events;
at the end it draws curves.png where matplotlib is. Between the steps that are shown nothing is
sent.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pycomm.train.clocks import GroupTimes, covered, split
from pycomm.train.plots import draw
from pycomm.train.trace import Trace

_FLOPS_SIZE, _FLOPS_S = 384, 0.05


@dataclass(frozen=True)
class Figures:
    """Which figures are wanted.

    Attributes:
        folder: For metrics.jsonl, tensorboard's events, curves.png and trace.json.gz; None: nothing
            is written.
        every: Steps between figures, which are means over these steps and over ranks.
        tokens: Of one step over all ranks. 0: the rows of the first loader.
        flops: Floating point operations of one step over all ranks. None: 6 for each parameter and
            token, as forward and backward of a language model take.
        steps: Of the whole run, for the bar.
        plot: Draw curves.png when the run is finished.
        trace: The first and last step to be traced, all ranks in one file.
        quiet: Show nothing.
    """

    folder: Path | None = None
    every: int = 10
    tokens: int = 0
    flops: float | None = None
    steps: int | None = None
    plot: bool = False
    trace: tuple[int, int] | None = None
    quiet: bool = False

    def filled(self, rows: int, parameters: int) -> Figures:
        """Returns this with tokens and flops known; local."""
        tokens = self.tokens or rows
        flops = 6.0 * tokens * parameters if self.flops is None else self.flops
        return replace(self, tokens=tokens, flops=flops)


class Watch:
    """Looks at every `every`th step; ctx.watch makes it, ctx.step feeds it.

    Args:
        figures: Which are wanted.
        groups: The layout's groups: that of all ranks first.
        first: Steps that were done before.
        apart: Ranks are not at the same step, so figures are rank 0's and nothing is sent for them.

    Attributes:
        rows: The figures so far, on rank 0.
    """

    def __init__(
        self, figures: Figures, groups: list[dist.ProcessGroup], first: int, apart: bool
    ) -> None:
        self._folder, self._every, self._tokens = figures.folder, figures.every, figures.tokens
        self._group, self._apart = groups[0], apart
        self._times = GroupTimes(groups)
        self._leads = self._group.rank() == 0
        self._flops = figures.flops or 0.0
        self._peak = _peak_flops(self._group) if self._flops else 0.0
        self.rows: list[dict[str, Any]] = []
        self._plot, self._trace_steps = figures.plot, figures.trace
        self._trace: Trace | None = None
        self._show = _Display(figures.steps, first) if self._leads and not figures.quiet else None
        self._board = _board(figures.folder) if self._leads and figures.folder is not None else None
        if self._leads and figures.folder is not None:
            figures.folder.mkdir(parents=True, exist_ok=True)
        self._begun = time.perf_counter()
        self._losses: list[Tensor] = []
        self._last_steps = first
        self._mark()
        if self._trace_steps is not None and self._trace_steps[0] <= first + 1:
            self._start_trace()

    def _mark(self) -> None:
        self._since, self._since_busy = time.perf_counter(), time.thread_time()
        self._last_wall = self._last_busy = 0.0

    def loss(self, loss: Tensor) -> None:
        """Takes the loss of one micro-step; local."""
        self._losses.append(loss.detach())

    def step(self, steps: int, extra: dict[str, float]) -> None:
        """Takes the end of a step; collective where it is one that is shown.

        Args:
            steps: How many have been done, the same on all ranks.
            extra: More figures of this rank; they are averaged.
        """
        if self._trace_steps is not None:
            if self._trace is not None and steps >= self._trace_steps[1]:
                self._trace.finish()
                self._trace, self._trace_steps = None, None
            elif self._trace is None and steps == self._trace_steps[0] - 1:
                self._start_trace()
        if steps % self._every:
            return
        now, busy = time.perf_counter(), time.thread_time()
        count = steps - self._last_steps
        wall_s = now - self._since
        communication_s = covered(self._times.since(self._since))
        parts = split(wall_s, busy - self._since_busy, communication_s)
        figures = {name: value / count for name, value in parts.items()}
        figures["step_s"] = wall_s / count
        figures["loss"] = torch.stack(self._losses).double().mean().item()
        figures |= extra
        means = torch.tensor(list(figures.values()), dtype=torch.float64)
        if self._group.size() > 1 and not self._apart:
            dist.all_reduce(means, group=self._group)
            means /= self._group.size()
        if self._leads:
            row: dict[str, Any] = {"step": steps, "time_s": now - self._begun}
            row |= dict(zip(figures, means.tolist(), strict=True))
            row["tokens_per_s"] = self._tokens / row["step_s"]
            if self._peak:
                row["flops_share"] = self._flops / row["step_s"] / self._peak
            self._keep(row)
        self._losses.clear()
        self._last_steps = steps
        self._mark()

    def _start_trace(self) -> None:
        assert self._trace_steps is not None
        path = (self._folder or Path()) / "trace.json.gz"
        self._trace = Trace(path, self._group)
        self._trace.start()

    def note(self, figures: dict[str, float], steps: int) -> None:
        """Keeps figures that are the same on all ranks, such as of an evaluation; local.

        The time since the last step was that of the evaluation, and is no step's.
        """
        if not self._losses:
            self._mark()
        if self._leads:
            self._keep({"step": steps, "time_s": time.perf_counter() - self._begun, **figures})

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self._folder is not None:
            with (self._folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, row["step"])
        if self._show is not None:
            self._show.row(row)

    def close(self) -> None:
        """Writes what is left, curves.png among it; collective where a trace is under way."""
        if self._trace is not None:
            self._trace.finish()
            self._trace = None
        if self._show is not None:
            self._show.close()
        if self._board is not None:
            self._board.close()
        if self._plot and self._leads and self._folder is not None and self.rows:
            draw(self.rows, self._folder / "curves.png")


class _Display:
    """A bar on a terminal with tqdm, elsewhere a line for each row."""

    def __init__(self, steps: int | None, first: int) -> None:
        self._bar: Any = None
        self._steps = steps
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=steps, initial=first, unit="step")

    def row(self, row: dict[str, Any]) -> None:
        """Shows a row; local."""
        text = described(row)
        if self._bar is not None:
            self._bar.n = row["step"]
            self._bar.set_postfix_str(text)
        else:
            of = f" of {self._steps}" if self._steps else ""
            print(f"step {row['step']}{of}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the bar as it is; local."""
        if self._bar is not None:
            self._bar.close()


def described(row: dict[str, Any]) -> str:
    """Returns a row as people read it; local."""
    parts = [f"{name} {row[name]:.4f}" for name in ("loss", "val_loss") if name in row]
    if "accuracy" in row:
        parts.append(f"accuracy {row['accuracy']:.1%}")
    if "perplexity" in row:
        parts.append(f"perplexity {row['perplexity']:.2f}")
    if "tokens_per_s" in row:
        parts.append(f"{row['tokens_per_s']:,.0f} tokens/s")
    if "flops_share" in row:
        parts.append(f"{row['flops_share']:.0%} of matmul FLOP/s")
    if "exposed_s" in row:
        parts.append(f"{row['exposed_s'] / row['step_s']:.0%} exposed")
    if "staleness" in row:
        parts.append(f"staleness {row['staleness']:.1f}")
    return ", ".join(parts)


def _peak_flops(group: dist.ProcessGroup) -> float:
    """What all ranks together reach in products of matrices, at the same time; collective."""
    a = torch.ones(_FLOPS_SIZE, _FLOPS_SIZE)
    a @ a
    if group.size() > 1:
        dist.barrier(group=group)
    begin, products = time.perf_counter(), 0
    while time.perf_counter() - begin < _FLOPS_S:
        a @ a
        products += 1
    rate = torch.tensor(2.0 * _FLOPS_SIZE**3 * products / (time.perf_counter() - begin))
    if group.size() > 1:
        dist.all_reduce(rate, group=group)
    return rate.item()


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
