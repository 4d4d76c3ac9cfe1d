# SPDX-License-Identifier: MIT
"""PyTorch's own tests of a backend pass on pycomm, but for those that want another name."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import rank_process
import ranks
import shipped_module
import suite
import torch.distributed as dist
from expected_failures import DEFAULT_TORCH, floor, release
from ranks import run_ranks

PAGE = Path(__file__).parents[2] / "docs" / "pytorch_suite.md"


@pytest.fixture(autouse=True, scope="module")
def own_processes():
    yield
    ranks._pool.close()  # importing torch.testing changes a process for good


@pytest.mark.timeout(900)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_tests_that_pytorch_ships_pass(world_size):
    run = suite.run_suite("pycomm", world_size)
    print(run.summary())
    wrong = run.problems()
    assert not wrong, "\n\n".join(wrong)
    assert run.counts()["passed"] >= floor(world_size, run.torch_version), run.summary()
    assert set(run.groups()) == {"pycomm"}
    if release(run.torch_version) == DEFAULT_TORCH:
        row = ["pycomm", world_size, *run.counts().values()]
        assert f"| {' | '.join(map(str, row))} |" in PAGE.read_text(), (
            "docs/pytorch_suite.md is old"
        )


@pytest.mark.timeout(300)
def test_the_runner_reports_a_failure():
    # Gloo's all_to_all wants blocks of one size
    run = suite.run_suite("gloo", 2, "^test_all_to_all(_single_unequal_split)?$")
    outcomes = {result.test: result.outcome for result in run.results}
    assert outcomes == {
        "test_all_to_all": "failed",
        "test_all_to_all_single_unequal_split": "passed",
    }
    (problem,) = run.problems()
    assert "invalid tensor size" in problem
    assert run.groups() == {"gloo": 1}


def counted(me):
    groups = {}
    with rank_process.counting_groups(groups):
        dist.new_group()
        dist.new_group(backend="gloo")
        dist.new_group([0])
    return groups


def test_the_runner_sees_a_group_of_another_backend():
    assert run_ranks(counted, 2) == [{"pycomm": 2, "gloo": 1}, {"pycomm": 1, "gloo": 1}]


def without_events(me, backend, scratch):
    job = rank_process.Job("test_send_recv_autograd_profiler", "gloo", backend, scratch, "equal")
    module = shipped_module.load(job.gate, job.backend, me.world_size)
    with mock.patch.object(module, "get_profiling_event", lambda *_args, **_kwargs: []):
        return rank_process.run_test(me, job).failed


def test_the_profilers_events_are_looked_at(tmp_path):
    env = suite.environment("pycomm", 2, str(tmp_path))
    failed = run_ranks(without_events, 2, "pycomm", str(tmp_path), env=env, init=False)
    assert failed == ["AssertionError: Scalars are not equal!"] * 2
