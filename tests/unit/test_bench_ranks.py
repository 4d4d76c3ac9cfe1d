# SPDX-License-Identifier: MIT
"""Rank processes: what they emit arrives, failures name the rank, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pycomm.bench.ranks import Context, RankError, run_ranks


def emit_rank(context: Context) -> None:
    """Emits the rank and its process id."""
    context.emit((context.rank, os.getpid(), os.environ["OMP_NUM_THREADS"]))


def raise_on_rank_1(context: Context) -> None:
    """Fails on rank 1 while rank 0 would wait for ever."""
    context.step("the test")
    if context.rank == 1:
        raise ValueError("no such thing")
    time.sleep(600)


def die_on_rank_1(context: Context, last_words: Path) -> None:
    """Rank 1 is killed; rank 0 reports, at about that moment, that it lost its peer."""
    context.emit(os.getpid())
    context.step("the test")
    if context.rank == 1:
        last_words.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    while not last_words.exists():
        time.sleep(0.001)
    raise ConnectionError("connection closed by peer")


def hang(context: Context) -> None:
    """Emits its process id and hangs."""
    context.emit(os.getpid())
    context.step("a long sleep")
    time.sleep(600)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_every_rank_emits_and_ends() -> None:
    emitted = sorted(run_ranks(2, emit_rank, timeout_s=60))
    assert [rank for rank, _, _ in emitted] == [0, 1]
    assert all(threads == os.environ.get("OMP_NUM_THREADS", "1") for _, _, threads in emitted)
    assert not any(alive(pid) for _, pid, _ in emitted)


def test_a_failing_rank_is_named_with_its_step() -> None:
    with pytest.raises(RankError, match="rank 1 of 2, during the test: ValueError: no such thing"):
        list(run_ranks(2, raise_on_rank_1, timeout_s=60))


def test_the_dead_rank_is_blamed_not_the_one_that_lost_it(tmp_path: Path) -> None:
    pids = []
    with pytest.raises(RankError, match=r"rank 1 of 2, during the test: died of signal 9"):
        for pid in run_ranks(2, die_on_rank_1, (tmp_path / "died",), timeout_s=60):
            pids.append(pid)
    assert not any(alive(pid) for pid in pids)


def test_a_hang_ends_with_an_error_and_no_orphans() -> None:
    pids = []
    with pytest.raises(
        RankError, match=r"no progress on 2 ranks for 2 s .*rank 0, 1 in a long sle"
    ):
        for pid in run_ranks(2, hang, timeout_s=2):
            pids.append(pid)
    assert len(pids) == 2 and not any(alive(pid) for pid in pids)


def test_killing_the_parent_ends_the_ranks() -> None:
    code = (
        "from pycomm.bench.ranks import run_ranks; from test_bench_ranks import hang\n"
        "if __name__ == '__main__':\n"
        "    for pid in run_ranks(2, hang): print(pid, flush=True)\n"
    )
    folders = [str(Path(__file__).parent), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
