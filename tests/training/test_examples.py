# SPDX-License-Identifier: MIT
"""Examples that need no training layout, as a user runs them: parameter servers, and arrays."""

from __future__ import annotations

import sys

import pytest
from test_train_gpt import EXAMPLES, TORCHRUN, run


def test_the_parameter_server_example_goes_on_without_a_worker_that_was_killed() -> None:
    program = EXAMPLES / "parameter_server.py"
    text = run(sys.executable, program, "--kill", "--steps", "20")
    assert "worker 1 is killed at step 10" in text
    assert "step 20: loss" in text
    assert "server 0: 30 updates, 1 workers died" in text


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_array_example_needs_no_launcher_and_takes_any(world_size: int) -> None:
    command = [sys.executable] if world_size == 1 else [*TORCHRUN, "2"]
    text = run(*command, EXAMPLES / "array_sums.py")
    assert f"{world_size * 100_000} numbers from" in text
