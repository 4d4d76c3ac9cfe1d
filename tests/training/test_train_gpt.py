# SPDX-License-Identifier: MIT
"""The examples of the five lines, as a user runs them: alone, then on, in another layout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TORCHRUN += ["--local-addr", "localhost", "--nproc-per-node"]
SMALL = ["--layers", "2", "--heads", "2", "--width", "16", "--block-size", "16", "--rows", "8"]
SMALL += ["--log-every", "2", "--val-every", "4", "--val-rows", "8", "--sample", "8"]


def run(*command: str | Path) -> str:
    """What a program writes; it has to end well."""
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def figures(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_train_gpt_goes_on_in_another_layout_as_if_nothing_had_happened(tmp_path: Path) -> None:
    program = EXAMPLES / "train_gpt.py"
    # Within its warm-up the learning rate does not depend on how many steps there will be.
    more = [*SMALL, "--steps", "8", "--warmup", "20", "--clip", "1.0"]
    run(sys.executable, program, *more, "--out", tmp_path / "straight", "--plot")
    out = tmp_path / "parts"
    run(sys.executable, program, *more, "--out", out, "--steps", "4")
    end = run(*TORCHRUN, "2", program, *more, "--out", out, "--tp", "2")
    assert "step 8 of 8" in end
    straight, parts = figures(tmp_path / "straight"), figures(out)
    assert [row["step"] for row in parts] == [row["step"] for row in straight]
    for one, other in zip(parts, straight, strict=True):
        for name in ("loss", "val_loss"):
            assert one.get(name, 0.0) == pytest.approx(other.get(name, 0.0), rel=1e-3)
    states = [torch.load(folder / "model.pt") for folder in (tmp_path / "straight", out)]
    assert states[0].keys() == states[1].keys()


def test_the_five_lines_take_the_same_steps_alone_and_in_a_pipeline(tmp_path: Path) -> None:
    program = EXAMPLES / "five_lines.py"
    alone = run(sys.executable, program, tmp_path / "alone")
    spread = run(*TORCHRUN, "2", program, tmp_path / "spread", "--pp", "2")
    losses = [re.findall(r"steps, loss of the last rows ([\d.]+)", t) for t in (alone, spread)]
    assert len(losses[0]) == 2
    assert [float(one) for one in losses[1]] == pytest.approx(
        [float(one) for one in losses[0]], abs=2e-3
    )
