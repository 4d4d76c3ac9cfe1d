# SPDX-License-Identifier: MIT
"""What people watch: figures of steps, JSON lines, a plot, and one trace of all ranks."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from layout_runs import ROWS, model_of, optimizer_of, rows_of
from ranks import Rank, run_ranks
from transformer import token_loss

import pycomm
from pycomm.train.clocks import ahead_of_rank_0, covered, split
from pycomm.train.plots import main as draw
from pycomm.train.trace import merged
from pycomm.train.watch import described

STEPS, EVERY = 6, 2


def watched(me: Rank, folder: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
    ctx = pycomm.init(pycomm.Layout(**fields), seed=7)
    model = model_of(torch.float32)
    model, _ = ctx.wrap(model, optimizer_of(model), loss=token_loss)
    loader = ctx.shard(rows_of(), ROWS)
    watch = ctx.watch(folder, every=EVERY, plot=True, trace=(3, 4), quiet=True)
    for inputs, targets in loader:
        ctx.step(model(inputs, targets))
        if ctx.steps == STEPS:
            break
    watch.note({"val_loss": 1.5}, ctx.steps)
    ctx.finish()
    return watch.rows


@pytest.mark.parametrize("fields", [{"dp": 2, "clip": 1.0}, {"pp": 2}], ids=str)
def test_figures_of_a_run(fields: dict[str, Any], tmp_path: Path) -> None:
    rows, none = run_ranks(watched, 2, str(tmp_path), fields)
    assert none == []
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == rows
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [2, 4, 6]
    assert rows[-1]["val_loss"] == 1.5
    for row in steps:
        parts = row["compute_s"] + row["exposed_s"] + row["idle_s"]
        assert parts == pytest.approx(row["step_s"])
        assert row["communication_s"] > 0 and row["tokens_per_s"] > 0 and row["flops_share"] > 0
        assert ("norm" in row) == ("clip" in fields)
        assert "tokens/s" in described(row)
    trace = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))
    events = trace["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}
    for rank in (0, 1):
        names = {event.get("name", "") for event in events if event["pid"] == rank}
        assert any(name.startswith("pycomm:") for name in names), names
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "curves.png").stat().st_size > 1000
        both = [str(tmp_path / "metrics.jsonl")] * 2
        assert draw([*both, "--out", str(tmp_path / "both.png")]) == 0


def clocks(me: Rank) -> float:
    return ahead_of_rank_0(torch.distributed.group.WORLD)


def test_clocks_of_one_host_agree() -> None:
    """To the round trip of a message, on a machine where a rank may not run for a while."""
    found = run_ranks(clocks, 3)
    assert found[0] == 0 and all(abs(one) < 1.0 for one in found)


def test_a_merged_trace_is_on_one_clock() -> None:
    event = {"ph": "X", "name": "op", "pid": 77, "tid": 1, "ts": 5.0, "dur": 1.0}
    flow = {"ph": "s", "id": 3, "pid": 78, "tid": 1, "ts": 6.0, "name": "arrow"}
    trace = merged([(1000.0, [event]), (900.0, [event, flow])])["traceEvents"]
    assert [(e["pid"], e["ts"]) for e in trace if e.get("name") == "op"] == [(0, 105.0), (1, 5.0)]
    assert [e["id"] for e in trace if e.get("name") == "arrow"] == ["1.3"]


def test_a_step_splits_into_compute_exposed_and_idle() -> None:
    assert covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)]) == 4.0
    assert covered([]) == 0.0
    parts = split(wall_s=10.0, busy_s=6.0, communication_s=3.0)
    assert (parts["compute_s"], parts["exposed_s"], parts["idle_s"]) == (6.0, 3.0, 1.0)
    hidden = split(wall_s=10.0, busy_s=9.5, communication_s=3.0)
    assert hidden["exposed_s"] == 0.5 and hidden["idle_s"] == 0.0
