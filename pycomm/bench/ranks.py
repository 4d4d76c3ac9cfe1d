# SPDX-License-Identifier: MIT
"""Starts rank processes, watches them, and leaves none behind.

Knows nothing of collectives: it runs ``entry(context, *arguments)`` once per rank and hands back
what the ranks emit. A rank that fails, dies or makes no progress ends the run with an error that
names it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

PR_SET_PDEATHSIG = 1
SETTLE_S = 1.0  # after a first failure, the time in which its cause may show on another rank
START_S = 60.0  # interpreters import torch first, which a busy machine makes last
END_S = 5.0  # a rank that is through exits by itself within that time, or is ended
CHILD_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class RankError(RuntimeError):
    """A rank failed, died, or made no progress in time."""


@dataclass(frozen=True)
class Context:
    """What a rank process knows of its run.

    Attributes:
        store_port: TCP port on 127.0.0.1 of the run's store, which the parent process holds.
    """

    rank: int
    world: int
    store_port: int
    connection: Connection

    def emit(self, value: object) -> None:
        """Hands ``value`` to the parent process."""
        self.connection.send(("value", value))

    def step(self, text: str) -> None:
        """Says what the rank is about to do; also restarts the parent's watch."""
        self.connection.send(("step", text))


@dataclass
class _Watched:
    """The parent's view of one rank."""

    process: BaseProcess
    connection: Connection
    step: str = "start-up"
    error: str | None = None
    finished: bool = False
    heard: bool = False  # it has said something, so it has started


def run_ranks(
    world: int,
    entry: Callable[..., None],
    arguments: tuple[object, ...] = (),
    *,
    timeout_s: float = 60.0,
    pin: bool = False,
    environments: Sequence[Mapping[str, str]] = (),
    preload: Sequence[str] | None = None,
) -> Iterator[Any]:
    """Runs ``entry(context, *arguments)`` on ``world`` new processes and yields what they emit.

    Args:
        world: number of ranks.
        entry: a function at module level, importable by a fresh interpreter.
        arguments: passed to ``entry``; picklable.
        timeout_s: seconds without a step or a value from any rank after which the run is given up;
            START_S at least as long as a rank has not started.
        pin: bind rank i to core i modulo the number of cores.
        environments: for each rank, variables that it shall have besides this process's own.
        preload: modules that a server imports once, from which all ranks are forked: quick to start
            in large numbers, but with one environment for all. Default: fresh interpreters.

    Raises:
        RankError: a rank raised, died, or made no progress; every process has ended by then.
    """
    from torch._C._distributed_c10d import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    method: Any = multiprocessing.get_context("spawn" if preload is None else "forkserver")
    if preload is not None:
        method.set_forkserver_preload([*preload])
    ranks: list[_Watched] = []
    try:
        for rank in range(world):
            here, there = method.Pipe(duplex=False)
            context = Context(rank, world, store.port, there)
            parent = os.getpid() if preload is None else None
            process = method.Process(
                target=_main, args=(context, parent, pin, entry, arguments), daemon=True
            )
            with _environment(environments[rank] if environments else {}):
                process.start()
            there.close()
            ranks.append(_Watched(process, here))
        yield from _watch(ranks, timeout_s)
    finally:
        for watched in ranks:
            if not watched.finished:
                watched.process.kill()
        for watched in ranks:
            watched.process.join(timeout=END_S)
            if watched.process.is_alive():
                watched.process.kill()
                watched.process.join()
            watched.connection.close()


def _main(
    context: Context,
    parent: int | None,
    pin: bool,
    entry: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    """Runs in the new process: ties its life to the parent's, then calls ``entry``.

    Without ``parent`` it was forked by a server, which ends when this program does.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:  # the parent died before the line above
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches the parent, which ends the ranks
    if pin:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[context.rank % len(cores)]})
    try:
        entry(context, *arguments)
        context.connection.send(("finished", None))
    except Exception as error:
        trace = traceback.format_exc() if os.environ.get("PYCOMM_BENCH_TRACEBACK") else ""
        context.connection.send(("error", f"{type(error).__name__}: {error}\n{trace}".strip()))


def _watch(ranks: list[_Watched], timeout_s: float) -> Iterator[Any]:
    """Yields emitted values until all ranks have finished; raises on the first failure."""

    def patience_s() -> float:
        started = all(watched.heard or watched.finished for watched in ranks)
        return timeout_s if started else max(timeout_s, START_S)

    deadline = time.monotonic() + patience_s()
    while not all(watched.finished for watched in ranks):
        open_ranks = [watched for watched in ranks if not watched.finished]
        ready = wait([w.connection for w in open_ranks], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankError(_silence(ranks, patience_s()))
        for watched in open_ranks:
            if watched.connection not in ready:
                continue
            for kind, value in _receive(watched):
                deadline = time.monotonic() + patience_s()
                if kind == "value":
                    yield value
        if any(watched.error for watched in ranks):
            raise RankError(_culprit(ranks))


def _receive(watched: _Watched) -> list[tuple[str, Any]]:
    """Reads one message, notes what it says of the rank, and returns it."""
    try:
        kind, value = watched.connection.recv()
    except (EOFError, OSError):
        watched.process.join(timeout=END_S)
        watched.error = _exit_text(watched.process.exitcode)
        watched.finished = True
        return []
    watched.heard = True
    if kind == "step":
        watched.step = value
    elif kind == "error":
        watched.error = value
    watched.finished = kind in ("finished", "error")
    return [(kind, value)]


def _exit_text(exitcode: int | None) -> str:
    """Says how a process ended that did not report."""
    if exitcode is None:
        return "closed its pipe but did not exit"
    if exitcode < 0:
        return f"died of signal {-exitcode} ({signal.Signals(-exitcode).name})"
    return f"exited with code {exitcode} without a report"


def _culprit(ranks: list[_Watched]) -> str:
    """Names the rank to blame: one that died comes before those that merely lost their peer."""
    deadline = time.monotonic() + SETTLE_S
    while (left_s := deadline - time.monotonic()) > 0:
        waiting = [watched for watched in ranks if not watched.finished]
        ready = wait([watched.connection for watched in waiting], left_s) if waiting else []
        if not ready:
            break
        for watched in waiting:
            if watched.connection in ready:
                _receive(watched)
    failed = [number for number, watched in enumerate(ranks) if watched.error]
    died = [n for n in failed if (ranks[n].error or "").startswith(("died", "exited", "closed"))]
    first = (died or failed)[0]
    error = ranks[first].error
    return f"rank {first} of {len(ranks)}, during {ranks[first].step}: {error}"


def _silence(ranks: list[_Watched], timeout_s: float) -> str:
    """Says what each rank was doing when nothing moved any more."""
    steps: dict[str, list[str]] = {}
    for number, watched in enumerate(ranks):
        if not watched.finished:
            steps.setdefault(watched.step, []).append(str(number))
    doing = "; ".join(f"rank {', '.join(numbers)} in {step}" for step, numbers in steps.items())
    return (
        f"no progress on {len(ranks)} ranks for {timeout_s:g} s ({doing}): the ranks were ended; "
        "raise --timeout if the machine is only slow"
    )


@contextmanager
def _environment(of_rank: Mapping[str, str]) -> Iterator[None]:
    """Sets a rank's variables, and defaults that are not set, for the process started meanwhile."""
    before = dict(os.environ)
    os.environ.update({**CHILD_ENVIRONMENT, **before, **of_rank})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
