# SPDX-License-Identifier: MIT
"""Makes docs/pytorch_suite.md out of runs of the shipped suite."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from expected_failures import FAILURES, PASSED

if TYPE_CHECKING:
    from suite import Result, Run

    Rows = dict[str, dict[tuple[str, int], Result]]

# What a reason for a skip amounts to; the first pattern that is found counts.
SKIPS = (
    (r"Need at least \d CUDA|CUDA is not available", "needs GPUs: two, or one for each rank"),
    (r"nccl", "is for NCCL alone"),
    (r"world ?size", "needs another number of ranks"),
    (r"github\.com|flak|failing", "switched off in PyTorch, for every backend"),
    (r"torchvision", "needs torchvision"),
)
INTRODUCTION = """# PyTorch's own backend tests

PyTorch ships the tests of its backends as `torch.testing._internal.distributed.distributed_test`.
They run unchanged on pycomm, profiler events included, in `make test` and with

    python tests/pytorch_suite/suite.py

This page is written by

    python tests/pytorch_suite/suite.py --backend pycomm,gloo --table docs/pytorch_suite.md

The module decides by the backend's name which tests there are. The runner opens those for Gloo and
those for MPI (all_to_all of CPU tensors; groups of ranks 1 and 2 in a world of fewer than eight),
also in the columns for Gloo. The name is a gate only: groups are made by the real name, and each
group that a test makes is asked for its backend.

`tests/pytorch_suite/expected_failures.py` lists what may fail, with the error. Any other
failure fails `make test`; so does a listed test that passes, or fewer passed tests than are asked
for there.
"""


def markdown(runs: list[Run]) -> str:
    """The page; runs of one backend or two, the first being the subject."""
    backends = list(dict.fromkeys(run.backend for run in runs))
    sizes = sorted({run.world_size for run in runs})
    rows: Rows = defaultdict(dict)
    for run in runs:
        for result in run.results:
            rows[result.test][run.backend, run.world_size] = result
    parts = [
        INTRODUCTION,
        _counts(runs),
        _failures(rows, backends[0], sizes),
        *(_differences(rows, backends[0], other, sizes) for other in backends[1:]),
        _skips(rows, backends[0], sizes),
        _tests(rows, backends, sizes),
    ]
    return "\n".join(parts)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(head), ["---"] * len(list(head)), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _counts(runs: list[Run]) -> str:
    rows = [
        [run.backend, str(run.world_size), *map(str, run.counts().values())]
        + [", ".join(f"{count} on {name}" for name, count in run.groups().items())]
        for run in runs
    ]
    head = ["backend", "ranks", "passed", "failed", "skipped", "groups made on rank 0"]
    text = f"## Counts, torch {runs[0].torch_version}\n\n{_table(head, rows)}"
    sizes = sorted({size for passed in PASSED.values() for size in passed})
    releases = [
        [f"{major}.{minor}", *(str(passed[size]) for size in sizes)]
        for (major, minor), passed in PASSED.items()
    ]
    head = ["pycomm passes, with torch", *(f"{size} ranks" for size in sizes)]
    return f"{text}\n{_table(head, releases)}"


def _failures(rows: Rows, backend: str, sizes: list[int]) -> str:
    lines = []
    for test, by_run in sorted(rows.items()):
        failed = [size for size in sizes if by_run[backend, size].outcome == "failed"]
        if not failed:
            continue
        result = by_run[backend, failed[0]]
        why = FAILURES[test].why if test in FAILURES else _code(result.reason)
        if all(by_run[backend, size].under_another_name == "passed" for size in failed):
            why += "; passes when torch is made to say that name"
        lines.append([_code(test), ", ".join(map(str, failed)), why])
    return f"## Failed\n\n{_table(['test', 'ranks', 'why'], lines)}"


def _differences(rows: Rows, backend: str, other: str, sizes: list[int]) -> str:
    lines = []
    for test, by_run in sorted(rows.items()):
        pairs = [(size, by_run[backend, size], by_run[other, size]) for size in sizes]
        different = [pair for pair in pairs if pair[1].outcome != pair[2].outcome]
        if different:
            ranks = ", ".join(str(size) for size, _, _ in different)
            _, one, two = different[0]
            lines.append([_code(test), ranks, one.outcome, two.outcome + _in_brackets(two)])
    head = ["test", "ranks", backend, other]
    return f"## Where {backend} and {other} differ\n\n{_table(head, lines)}"


def _in_brackets(result: Result) -> str:
    return f" ({_code(result.reason[:120])})" if result.outcome == "failed" else ""


def _skips(rows: Rows, backend: str, sizes: list[int]) -> str:
    groups: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for test, by_run in sorted(rows.items()):
        for size in sizes:
            result = by_run[backend, size]
            if result.outcome == "skipped":
                groups[_kind(result.reason)][size].append(test)
    lines = [
        [kind, *(str(len(tests[size])) for size in sizes)]
        for kind, tests in sorted(groups.items(), key=lambda item: -len(item[1][sizes[0]]))
    ]
    text = "## Skipped\n\nThe tests skip themselves; the runner adds no skips.\n\n"
    text += _table(["the test", *(f"{size} ranks" for size in sizes)], lines)
    text += "\nNames without their `test_`, over all numbers of ranks:\n"
    for kind, tests in groups.items():
        names = sorted({test for size in sizes for test in tests[size]})
        listed = ", ".join(_code(name.removeprefix("test_")) for name in names)
        text += f"\n<details><summary>{kind}: {len(names)}</summary>\n\n{listed}\n\n</details>\n"
    return text


def _kind(reason: str) -> str:
    return next((kind for pattern, kind in SKIPS if re.search(pattern, reason, re.I)), reason)


def _tests(rows: Rows, backends: list[str], sizes: list[int]) -> str:
    ran = {
        test: by_run
        for test, by_run in sorted(rows.items())
        if any(result.outcome != "skipped" for result in by_run.values())
    }
    columns = [(backend, size) for backend in backends for size in sizes]
    head = ["test", *(f"{backend} {size}" for backend, size in columns)]
    lines = [
        [_code(test), *(_cell(by_run[column]) for column in columns)]
        for test, by_run in ran.items()
    ]
    text = f"## The {len(ran)} tests that ran\n\nOne column for each backend and number of ranks;"
    return f"{text} a dash: skipped.\n\n{_table(head, lines)}"


def _cell(result: Result) -> str:
    return {"passed": "passed", "failed": "**failed**", "skipped": "-"}[result.outcome]


def _code(text: str) -> str:
    return "`" + text.replace("|", "/").replace("`", "'") + "`"
