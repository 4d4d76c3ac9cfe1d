# SPDX-License-Identifier: MIT
"""The main example: an ordinary DDP script that resumes exactly and whose losses are right.

PYCOMM_TEST_BACKEND names another backend to run the same tests on, for example gloo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BACKENDS = [os.environ.get("PYCOMM_TEST_BACKEND", "pycomm")]
TIMEOUT_S = 180
STEPS = 8
TINY = (
    f"--steps {STEPS} --warmup 2 --val-every 4 --checkpoint-every 3 --batch-size 12 "
    "--block-size 32 --layers 2 --heads 2 --width 32 --data-bytes 100000 --sample-bytes 20"
).split()


def run_script(
    backend: str, out: Path, world_size: int, *options: str, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run the example: under torchrun, or plainly where `world_size` is 1."""
    launcher: list[str] = []
    if world_size > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
        launcher += ["--nproc-per-node", str(world_size)]
    script = [str(EXAMPLES / "ddp_unchanged.py"), "--backend", backend, "--out", str(out)]
    result = subprocess.run(
        [sys.executable, *launcher, *script, *TINY, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (result.returncode != 0) == (status != 0), result.stdout
    return result


def summary(out: Path) -> dict:
    """Read the summary that a run left in `out`."""
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size, accumulate", [(2, 2), (2, 1), (3, 2)])
def test_resumed_run_has_bitwise_the_same_losses(backend, world_size, accumulate, tmp_path):
    """With dropout, so that each rank's generator has to come back as well."""
    options = ["--dropout", "0.2", "--accumulate", str(accumulate)]
    run_script(backend, tmp_path / "whole", world_size, *options)
    run_script(backend, tmp_path / "parts", world_size, *options, "--stop-after", "5")
    assert len(summary(tmp_path / "parts")["losses"]) == 5
    run_script(backend, tmp_path / "parts", world_size, *options, "--resume")
    whole, parts = summary(tmp_path / "whole"), summary(tmp_path / "parts")
    assert len(whole["losses"]) == STEPS
    for name in ("losses", "gradient_norms", "val_losses"):
        assert parts[name] == whole[name], name


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_do_not_depend_on_the_number_of_processes(backend, tmp_path):
    """One process sees the same global batches as two, so only rounding may differ."""
    run_script(backend, tmp_path / "one", 1)
    run_script(backend, tmp_path / "two", 2)
    one, two = summary(tmp_path / "one"), summary(tmp_path / "two")
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["gradient_norms"] == pytest.approx(one["gradient_norms"], rel=1e-4)
    assert [loss for _, loss in two["val_losses"]] == pytest.approx(
        [loss for _, loss in one["val_losses"]], rel=1e-5
    )
    assert two["losses"][-1] < two["losses"][0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_run_leaves_curve_summary_checkpoint_and_text(backend, tmp_path):
    """Everything that the README promises is in the folder, and nothing half written."""
    pytest.importorskip("matplotlib")
    printed = run_script(backend, tmp_path, 2, "--data", "stdlib").stdout
    assert f"step    {STEPS}/{STEPS}  loss" in printed
    names = ["checkpoint.pt", "curve.csv", "curve.png", "sample.txt", "summary.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == STEPS + 1
    assert len((tmp_path / "sample.txt").read_text()) > 0
    result = summary(tmp_path)
    assert result["backend"] == backend
    assert 0 < result["step_median_s"] <= result["step_p90_s"]
    assert 0 <= result["communication_share"] < 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_resume_refuses_another_recipe(backend, tmp_path):
    """A changed schedule would silently be another run."""
    run_script(backend, tmp_path, 1, "--stop-after", "1")
    result = run_script(backend, tmp_path, 1, "--resume", "--lr", "0.5", status=1)
    assert "other values of ['lr']" in result.stdout


def test_comparison_tells_rounding_from_a_wrong_reduction(tmp_path):
    """Exit status 1 where losses or only the gradient norms are off."""
    base = {"backend": "a", "world_size": 2, "recipe": {}, "steps_timed": 2, "tokens_per_s": 1.0}
    base |= {"step_median_s": 1.0, "step_p10_s": 1.0, "step_p90_s": 1.0, "communication_s": 0.1}
    base |= {"communication_share": 0.1, "losses": [2.0, 1.0], "gradient_norms": [1.0, 1.0]}
    cases = {"same": {"losses": [2.0, 1.000001, 0.5]}, "loss": {"losses": [2.0, 1.1]}}
    cases |= {"norm": {"gradient_norms": [2.0, 2.0]}, "nan": {"losses": [2.0, float("nan")]}}
    (tmp_path / "base.json").write_text(json.dumps(base))
    statuses = {}
    for name, change in cases.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(base | change))
        command = [sys.executable, str(EXAMPLES / "compare_runs.py")]
        command += [str(tmp_path / "base.json"), str(tmp_path / f"{name}.json")]
        statuses[name] = subprocess.run(command, capture_output=True).returncode
    assert statuses == {"same": 0, "loss": 1, "norm": 1, "nan": 1}
