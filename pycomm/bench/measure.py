# SPDX-License-Identifier: MIT
"""Checks and times the cells of a sweep; runs in every rank process, in lockstep.

A sample is a barrier of the same backend and then ``calls`` calls back to back; its value is the
maximum over ranks of elapsed / calls. Backends take turns, and their order is reversed after every
round, so that whatever the machine does meanwhile hits all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pycomm.bench.calls import Arena, bind, buffers_for
from pycomm.bench.cells import Cell
from pycomm.bench.inputs import NotMeasurable, expected_segments
from pycomm.bench.rows import Row, row_of

SAMPLE_S = 0.5e-3  # enough calls in a sample that leaving the barrier unevenly does not show
CALLS_MAX = 20
ROUNDS_MIN = 5
ROUNDS_MAX = 2000
PILOT_ROUNDS = 3


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: time budget of one cell with one backend.
        iterations: exact number of samples, or None to follow the budget.
        check_only: verify without timing.
        refusal_s: a call that fails later than this did hang, it is not unsupported.
    """

    seconds: float
    iterations: int | None
    check_only: bool
    refusal_s: float


class Bench:
    """One rank's side of a sweep.

    Collective: every rank calls `run_cell` with the same cells in the same order. Agreement between
    the ranks goes through the default process group, not through the backends under test.
    """

    def __init__(
        self,
        groups: dict[str, dist.ProcessGroup],
        arena: Arena,
        effort: Effort,
        async_op: bool,
        progress: Callable[[str], None] = lambda step: None,
    ) -> None:
        """Takes one group over all ranks for each backend; reports each step to ``progress``."""
        self._rank = dist.get_rank()
        self._groups = groups
        self._arena = arena
        self._effort = effort
        self._async_op = async_op
        self._progress = progress

    def run_cell(self, cell: Cell) -> list[Row]:
        """Checks and times one cell; returns one row per backend, equal on all ranks.

        Raises:
            RuntimeError: a backend failed on some ranks only, or after its first call.
        """
        try:
            expected = expected_segments(cell, self._rank)
            buffers = buffers_for(cell, self._rank, self._arena)
            buffers.fill(cell, self._rank)
            bound = {
                backend: bind(cell, self._rank, group, buffers, self._async_op)
                for backend, group in self._groups.items()
            }
        except NotMeasurable as error:
            return [row_of(cell, backend, reason=str(error)) for backend in self._groups]
        calls: dict[str, Callable[[], None]] = {}
        wrong: dict[str, int] = {}
        reasons: dict[str, str] = {}
        for backend, call in bound.items():
            self._progress(f"first check on {backend}")
            buffers.fill(cell, self._rank)
            reason = self._refusal(cell, backend, call)
            if reason:
                reasons[backend] = reason
            else:
                calls[backend], wrong[backend] = call, self._total(buffers.wrong(expected))
        times_us: dict[str, list[float]] = {}
        per_sample = 0
        if calls and not self._effort.check_only:
            self._progress("timing")
            buffers.steady(cell)
            per_sample = self._calls_per_sample(calls)
            times_us = self._samples(calls, per_sample)
        for backend, call in calls.items():
            self._progress(f"last check on {backend}")
            buffers.fill(cell, self._rank)
            call()
            wrong[backend] += self._total(buffers.wrong(expected))
        return [
            row_of(
                cell,
                backend,
                wrong=wrong.get(backend),
                times_us=times_us.get(backend, ()),
                calls=per_sample if backend in times_us else 0,
                reason=reasons.get(backend),
            )
            for backend in self._groups
        ]

    def _refusal(self, cell: Cell, backend: str, call: Callable[[], None]) -> str:
        """Makes the first call; returns why the backend does not support it, empty if it does.

        Raises:
            RuntimeError: only some ranks failed, or the call hung before it failed.
        """
        dist.barrier()
        reason, began = "", time.perf_counter()
        try:
            call()
        except Exception as error:  # whatever a backend raises to refuse
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        slow = time.perf_counter() - began > self._effort.refusal_s
        refused = self._total(1 if reason else 0)
        if not refused:
            return ""
        if refused == cell.world and not self._total(1 if slow else 0):
            return self._from_first_rank(reason)
        raise RuntimeError(
            f"{cell} on {backend}: "
            + (reason or f"{refused} of {cell.world} ranks failed while this one succeeded")
        )

    def _calls_per_sample(self, calls: dict[str, Callable[[], None]]) -> int:
        """Times single calls and returns how many make a sample of the fastest backend.

        All backends share the number, and it comes from the fastest call: a hiccup of the machine
        while estimating would otherwise give one of them shorter samples, which read differently.
        """
        fastest_s = SAMPLE_S
        for call in calls.values():
            dist.barrier()
            fastest_s = min(fastest_s, *self._maximum([_elapsed_s(call, 1) for _ in range(5)]))
        return max(1, min(CALLS_MAX, round(SAMPLE_S / max(fastest_s, 1e-9))))

    def _samples(
        self, calls: dict[str, Callable[[], None]], per_sample: int
    ) -> dict[str, list[float]]:
        """Takes the samples of all backends in turn; returns per-call times in microseconds."""
        backends = list(calls)
        rounds = self._effort.iterations
        if rounds is None:
            took_s: list[float] = []
            budget_s = self._effort.seconds * len(backends)
            for _ in range(PILOT_ROUNDS):
                began = time.perf_counter()
                self._round(backends, calls, per_sample)
                took_s.append(self._maximum([time.perf_counter() - began])[0])
                if took_s[-1] > budget_s / ROUNDS_MIN:
                    break
            rounds = max(ROUNDS_MIN, min(ROUNDS_MAX, int(budget_s / took_s[-1])))
        samples: dict[str, list[float]] = {backend: [] for backend in backends}
        for number in range(rounds):
            order = backends if number % 2 == 0 else backends[::-1]
            for backend, elapsed_s in self._round(order, calls, per_sample).items():
                samples[backend].append(elapsed_s / per_sample * 1e6)
        return {backend: self._maximum(values) for backend, values in samples.items()}

    def _round(
        self,
        order: Sequence[str],
        calls: dict[str, Callable[[], None]],
        per_sample: int,
    ) -> dict[str, float]:
        """Takes one sample with each backend; returns this rank's elapsed seconds."""
        elapsed_s = {}
        for backend in order:
            dist.barrier(self._groups[backend])
            elapsed_s[backend] = _elapsed_s(calls[backend], per_sample)
        return elapsed_s

    def _total(self, number: int) -> int:
        """Sums over ranks."""
        value = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(value)
        return int(value)

    def _maximum(self, values: Sequence[float]) -> list[float]:
        """Takes the maximum over ranks of each value."""
        maxima = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return [float(value) for value in maxima]

    def _from_first_rank(self, text: str) -> str:
        """Returns rank 0's text on all ranks."""
        shared = [text]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]


def _elapsed_s(call: Callable[[], None], calls: int) -> float:
    """Returns the seconds that ``calls`` calls back to back take on this rank."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - began
