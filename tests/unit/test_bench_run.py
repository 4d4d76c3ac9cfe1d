# SPDX-License-Identifier: MIT
"""The bench from end to end over Gloo, and in one process with a collective that goes wrong."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

import pycomm.bench
from pycomm.bench import add_arguments
from pycomm.bench.calls import Arena
from pycomm.bench.cells import SPECS, cells_of
from pycomm.bench.measure import Bench, Effort
from pycomm.bench.rows import Row

ROOT = Path(__file__).parents[2]


@pytest.fixture
def alone() -> Iterator[Bench]:
    """A bench over Gloo in a world of one rank, in this process."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    groups: Any = {"gloo": dist.new_group(backend="gloo")}
    effort = Effort(seconds=0.01, iterations=3, check_only=False, refusal_s=10)
    yield Bench(groups, Arena(4096), effort, async_op=False)
    dist.destroy_process_group()


def one_row(bench: Bench, collective: str, dtype: str = "float32") -> Row:
    """Measures one small cell."""
    cell = next(cells_of(collective, 1, [4096], [dtype], ["sum"], ["out"], 0))
    (row,) = bench.run_cell(cell)
    return row


def test_a_right_collective_has_no_wrong_elements(alone: Bench) -> None:
    row = one_row(alone, "all_reduce")
    assert row.wrong == 0 and row.samples == 3 and row.time_us_p50 is not None


def test_an_injected_error_is_counted(alone: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = dist.all_reduce

    def flawed(tensor: torch.Tensor, *rest: Any) -> Any:
        done = real(tensor, *rest)
        if tensor.dtype is torch.float32:  # leave the bench's own agreement alone
            tensor[13] += 1
        return done

    monkeypatch.setattr(dist, "all_reduce", flawed)
    row = one_row(alone, "all_reduce")
    assert row.wrong == 2, "one element in the first check and one in the last"


def test_a_refused_dtype_is_unsupported_with_a_reason(alone: Bench) -> None:
    row = one_row(alone, "all_reduce", "int16")
    assert row.reason is not None and "Invalid scalar type" in row.reason
    assert row.wrong is None and row.time_us_p50 is None


def test_too_few_ranks_is_unsupported(alone: Bench) -> None:
    assert one_row(alone, "send_recv").reason == "send_recv needs at least 2 ranks"


def test_wrong_elements_make_the_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("all_reduce", 8, 2, "float32", "sum", -1, "in", 2, "gloo", wrong=1)
    monkeypatch.setattr(pycomm.bench, "measure", lambda sweep, world: iter([[row]]))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert pycomm.bench.run(parser.parse_args(["all_reduce", "--backend", "gloo"])) == 1


@pytest.mark.timeout(180)
def test_every_collective_runs_over_gloo_and_writes_its_files(tmp_path: Path) -> None:
    results, picture = tmp_path / "out.json", tmp_path / "out.png"
    words = "all --backend gloo,gloo --world 2 --min 8 --max 4K --factor 512 --iterations 2 --async"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pycomm.bench",
            *words.split(),
            "--json",
            results,
            "--plot",
            picture,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# 2 ranks: gloo slower than gloo.2 in" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    stored = json.loads(results.read_text())
    assert {"cpu", "cores", "kernel", "torch", "command", "commit"} <= set(stored["machine"])
    assert {row["collective"] for row in stored["rows"]} == set(SPECS)
    assert all(row["wrong"] == 0 and row["samples"] == 2 for row in stored["rows"])
    report = subprocess.run(
        [sys.executable, "benchmarks/report.py", str(results)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert report.returncode == 0, report.stderr
    assert "### all_reduce, float32 sum, in place, 2 ranks" in report.stdout
    assert "| 8 B |" in report.stdout
