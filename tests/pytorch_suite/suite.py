# SPDX-License-Identifier: MIT
"""Runs the tests that PyTorch ships for its own backends on another one.

    python tests/pytorch_suite/suite.py --world 2,3,4
    python tests/pytorch_suite/suite.py --world 3 -k all_to_all --backend gloo --errors
    python tests/pytorch_suite/suite.py --backend pycomm,gloo --table docs/pytorch_suite.md

The tests are those of torch.testing._internal.distributed.distributed_test, unchanged. Each runs in
rank processes that are kept for the next; after a failure they are replaced.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import rank_process
import torch
from expected_failures import expected
from shipped_module import GATES

sys.path.append(str(Path(__file__).parents[1]))
from ranks import RankError, run_ranks  # noqa: E402

TEST_TIMEOUT_S = 90.0
# Tests over ranks 1 and 2 are for eight ranks or for MPI, says the module; three are enough.
MIN_WORLD_SIZE_OF_GROUPS = 3


@dataclass
class Result:
    """How one test went at one world size.

    Attributes:
        test: Its name.
        outcome: "passed", "failed" or "skipped".
        reason: Why it was skipped; or the first line of the error.
        expected: It failed, as expected_failures.py says it does.
        under_another_name: Its outcome when it ran once more, with torch saying another name for
            the backend; "" if it did not.
        seconds: What it took.
        groups: Process groups that rank 0 made, by the name of their backend.
        errors: What every rank said if it failed and may not.
    """

    test: str
    outcome: str
    reason: str = ""
    expected: bool = False
    under_another_name: str = ""
    seconds: float = 0.0
    groups: dict[str, int] = field(default_factory=dict)
    errors: str = ""


@dataclass
class Run:
    """All tests at one world size."""

    backend: str
    world_size: int
    torch_version: str
    seconds: float
    results: list[Result]

    def counts(self) -> dict[str, int]:
        """How many passed, failed and were skipped."""
        counts = Counter(result.outcome for result in self.results)
        return {outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")}

    def groups(self) -> dict[str, int]:
        """How many process groups the tests made, by the name of their backend."""
        return dict(sum((Counter(result.groups) for result in self.results), Counter()))

    def problems(self) -> list[str]:
        """What went otherwise than expected_failures.py says."""
        wrong = []
        for result in self.results:
            failure = expected(result.test, self.backend, self.torch_version)
            if result.outcome == "failed" and not result.expected:
                wrong.append(f"{result.test} failed: {result.reason}\n{result.errors}")
            if failure and result.outcome == "passed":
                wrong.append(f"{result.test} passed, and is expected to fail")
            if result.under_another_name not in ("", "passed"):
                wrong.append(
                    f"{result.test} failed under another name too: {result.under_another_name}"
                )
        return wrong

    def summary(self) -> str:
        """One line."""
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.counts().items())
        groups = ", ".join(f"{count} on {name}" for name, count in self.groups().items())
        return (
            f"{self.backend}, {self.world_size} ranks, torch {self.torch_version}: {counts}"
            f" in {self.seconds:.0f} s; groups made: {groups}"
        )


def run_suite(backend: str, world_size: int, pattern: str = "", verbose: bool = False) -> Run:
    """Runs all tests in whose name `pattern` is found, on world_size processes."""
    start = time.monotonic()
    env = environment(backend, world_size, "")
    (closed,) = run_ranks(
        rank_process.closed_tests, 1, backend, world_size, env=env, init=False, timeout_s=120
    )
    results = []
    for test in sorted(closed[GATES[0]]):
        if not re.search(pattern, test):
            continue
        gate = next((gate for gate in GATES if not closed[gate][test]), None)
        if gate is None:
            reason = closed[GATES[0]][test].replace(f"backend {GATES[0]}", f"backend {backend}")
            result = Result(test, "skipped", reason)
        else:
            result = _run_one(backend, world_size, gate, test)
        results.append(result)
        if verbose:
            print(f"{result.outcome:8}{result.seconds:6.2f} s  {test}  {result.reason}", flush=True)
    seconds = time.monotonic() - start
    return Run(backend, world_size, torch.__version__, seconds, results)


def _run_one(backend: str, world_size: int, gate: str, test: str) -> Result:
    start = time.monotonic()
    failure = expected(test, backend, torch.__version__)
    result = _attempt(backend, world_size, gate, test, failure.error if failure else "")
    if failure and failure.pretend and result.expected:
        again = _attempt(backend, world_size, gate, test, pretend=failure.pretend)
        result.under_another_name = again.errors or again.outcome
    result.seconds = time.monotonic() - start
    return result


def _attempt(
    backend: str,
    world_size: int,
    gate: str,
    test: str,
    may_fail: str = "",
    pretend: tuple[str, str] | None = None,
) -> Result:
    with tempfile.TemporaryDirectory(prefix="pycomm_suite_") as scratch:
        for folder in ("barrier", "test_dir", "init_dir"):
            (Path(scratch) / folder).mkdir()
        job = rank_process.Job(test, gate, backend, scratch, may_fail, pretend)
        env = environment(backend, world_size, scratch)
        try:
            accounts = run_ranks(
                rank_process.run_test,
                world_size,
                job,
                env=env,
                init=False,
                timeout_s=TEST_TIMEOUT_S,
            )
            skips = {account.skipped for account in accounts}
            if len(skips) > 1:
                raise RankError(f"Failed: the ranks disagree whether it is skipped: {skips}")
        except RankError as error:
            return Result(test, "failed", _first_error(str(error)), errors=str(error))
    result = Result(test, "passed", groups=accounts[0].groups)
    failed = [account.failed for account in accounts if account.failed]
    if failed:
        result.outcome, result.reason, result.expected = "failed", failed[0], True
    elif accounts[0].skipped:
        result.outcome, result.reason = "skipped", accounts[0].skipped
    return result


def environment(backend: str, world_size: int, scratch: str) -> dict[str, str]:
    """What the tests read from the environment while they run."""
    return {
        "BACKEND": "mpi" if world_size >= MIN_WORLD_SIZE_OF_GROUPS else backend,
        "WORLD_SIZE": str(world_size),
        "TEMP_DIR": scratch,
        "MASTER_ADDR": "127.0.0.1",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCH_DISTRIBUTED_DEBUG": "OFF",
    }


def _first_error(text: str) -> str:
    """The line that says how the first rank failed."""
    match = re.search(r"^(?:rank_process\.)?Failed: (.*)$", text, re.MULTILINE)
    return match[1] if match else text.split("\n")[0]


def main() -> int:
    """The command line; returns 1 if a test failed that may not, or passed that is said to fail."""
    parser = argparse.ArgumentParser(description="PyTorch's shipped tests on a backend.")
    parser.add_argument("--backend", default="pycomm", help="names, comma separated; pycomm")
    parser.add_argument("--world", default="2,3,4", help="numbers of ranks; 2,3,4")
    parser.add_argument("-k", default="", metavar="PATTERN", help="tests whose name matches")
    parser.add_argument("--errors", action="store_true", help="print what every rank said")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write them as Markdown")
    options = parser.parse_args()
    runs = [
        run_suite(backend, int(world_size), options.k, verbose=True)
        for backend in options.backend.split(",")
        for world_size in options.world.split(",")
    ]
    wrong = [problem for run in runs for problem in run.problems()]
    for run in runs:
        print(run.summary())
    for problem in wrong:
        print(problem if options.errors else problem.split("\n")[0])
    if options.json:
        rows = [dataclasses.asdict(run) for run in runs]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.table:
        from suite_table import markdown

        options.table.write_text(markdown(runs))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
