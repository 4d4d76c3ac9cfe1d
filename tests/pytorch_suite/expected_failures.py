# SPDX-License-Identifier: MIT
"""Which shipped tests may fail on pycomm, why, and how many have to pass."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Expected:
    """A failure that is PyTorch's doing.

    Attributes:
        error: Regular expression that the first line of the error matches.
        why: For the reader of the table.
        until: First torch release in which the test passes.
        pretend: The test is run once more with torch.distributed's answer to "which backend is
            this?" changed, and has to pass then: (module whose get_backend it is, what it says).
    """

    error: str
    why: str
    until: tuple[int, int] = (99, 0)
    pretend: tuple[str, str] | None = None


_MONITORED_BARRIER = Expected(
    "ValueError: monitored_barrier is only implemented for GLOO backend",
    "torch < 2.14 refuses `monitored_barrier` to every backend that is not named gloo",
    until=(2, 14),
    pretend=("torch.distributed.distributed_c10d", "gloo"),
)

FAILURES = {
    "test_ddp_logging_data_cpu": Expected(
        "'custom' != 'pycomm'",
        "wants the backend's name in DDP's log, where torch writes `custom` for every backend"
        " that is not its own",
        pretend=("torch.distributed", "custom"),
    ),
    "test_monitored_barrier_failure_order": _MONITORED_BARRIER,
    "test_monitored_barrier_gloo": _MONITORED_BARRIER,
    "test_monitored_barrier_gloo_subgroup": _MONITORED_BARRIER,
    "test_monitored_barrier_wait_all_ranks": _MONITORED_BARRIER,
}

# How many tests passed, by torch release and world size. `make` installs DEFAULT_TORCH. Releases
# that are not here have other tests, so of them only a share is asked for.
DEFAULT_TORCH = (2, 13)
PASSED = {
    (2, 11): {2: 97, 3: 119, 4: 122},
    (2, 13): {2: 97, 3: 119, 4: 122},
    (2, 15): {2: 99, 3: 123, 4: 126},
}
SHARE_ELSEWHERE = 0.9


def release(torch_version: str) -> tuple[int, int]:
    """(2, 13) of "2.13.0+cpu"."""
    major, minor = re.findall(r"\d+", torch_version)[:2]
    return int(major), int(minor)


def expected(test: str, backend: str, torch_version: str) -> Expected | None:
    """The failure that this test may have, or None if it has to pass."""
    failure = FAILURES.get(test) if backend == "pycomm" else None
    return failure if failure and release(torch_version) < failure.until else None


def floor(world_size: int, torch_version: str) -> int:
    """How many tests have to pass."""
    known = PASSED.get(release(torch_version))
    return known[world_size] if known else int(SHARE_ELSEWHERE * PASSED[DEFAULT_TORCH][world_size])
