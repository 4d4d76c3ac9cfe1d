# SPDX-License-Identifier: MIT
"""Runs cells: all contenders resident, in turns. Who dies or hangs is named, and the rest go on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.cells import Cell
from benchmarks.peers.contenders import PEERS, Contender
from benchmarks.peers.coordinator import ContenderError, Running
from benchmarks.peers.schedule import (
    ROUNDS_MIN,
    Samples,
    Turn,
    plan_turn,
    slowest_ns,
    turns,
)
from benchmarks.peers.shared_files import remove_leftovers

READY_TIMEOUT_S = 60.0  # to allocate and check the largest cell
TOO_SLOW_S = 0.5  # for one call: the contender is left out of the larger cells
SLOW_CELL_S = 2.0  # a contender that has taken this long in a cell has SLOW_ROUNDS turns at most
SLOW_ROUNDS = 2


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        cell_s: Seconds for each contender in each cell.
        rounds: Turns that this is spread over, if the calls are short enough.
        patience_s: After this long without an answer a contender hangs.
        start_s: Within this time all ranks of a contender must have come.
    """

    cell_s: float = 0.4
    rounds: int = 8
    patience_s: float = 30.0
    start_s: float = 60.0


@dataclass
class World:
    """The contenders that are resident at one world size, and what became of the others."""

    size: int
    effort: Effort
    log: Callable[[str], None] = print
    peers: Path = PEERS
    running: dict[str, Running] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # name to reason
    slow: dict[tuple[str, str, str], float] = field(default_factory=dict)

    @contextlib.contextmanager
    def residents(self, contenders: Sequence[Contender]) -> Iterator[World]:
        """Starts all of them, all at once; ends them in any case."""
        begin_ns = time.time_ns()
        try:
            for one in contenders:
                reason = one.missing(self.peers)
                if reason:
                    self.absent[one.name] = reason
                    continue
                command = one.command_for(self.size, self.peers)
                env = one.env_for(self.size, self.peers)
                self.running[one.name] = Running(
                    one.name, command, self.size, env, self.effort.start_s
                )
                self._try(one.name, Running.launch)
            for name in list(self.running):
                self._try(name, Running.connect)
            yield self
        finally:
            for one in self.running.values():
                one.close()
            self.running.clear()
            remove_leftovers(begin_ns)

    def _try(self, name: str, act: Callable[[Running], Any]) -> Any:
        """What act gives; None: the contender has failed and is gone."""
        try:
            return act(self.running[name])
        except ContenderError as error:
            self.drop(name, str(error))
            return None

    def drop(self, name: str, reason: str) -> None:
        """Ends a contender and keeps the reason."""
        self.absent[name] = reason
        self.running.pop(name).close(gently=False)
        self.log(f"out at {self.size} ranks: {reason}")

    def run(self, cell: Cell) -> dict[str, dict[str, Any]]:
        """One cell: by name a summary of samples, or {"absent": why}."""
        outcome = {name: {"absent": why} for name, why in self.absent.items()}
        plans: dict[str, Turn] = {}
        turn_ns = self.effort.cell_s * 1e9 / self.effort.rounds
        kind = (cell.collective, cell.dtype)
        for name in list(self.running):
            if (name, *kind) in self.slow:
                took = self.slow[(name, *kind)]
                outcome[name] = {"absent": f"a call took {took:.2g} s at a smaller size"}
                continue
            ready = self._ready(name, cell)
            if isinstance(ready, str):
                outcome[name] = {"absent": ready}
                continue
            call_ns, wrong = ready
            outcome[name] = {"wrong": wrong}
            plans[name] = plan_turn(call_ns, cell.bytes, turn_ns)
            if call_ns > TOO_SLOW_S * 1e9:
                self.slow[(name, *kind)] = call_ns / 1e9
        samples = self._time(cell, plans)
        for name, taken in samples.items():
            if name in self.running and taken.rounds:
                outcome[name].update(taken.summary())
        outcome.update({n: {"absent": self.absent[n]} for n in plans if n in self.absent})
        return outcome

    def _ready(self, name: str, cell: Cell) -> tuple[float, int] | str:
        """Makes ready, checks the first result, estimates; or why not."""

        def act(one: Running) -> tuple[float, int] | str:
            answers = one.ask(cell.command(), READY_TIMEOUT_S)
            for answer in answers:
                if answer != "ok":
                    return answer.removeprefix("no ")
            wrong = sum(int(a.split()[1]) for a in one.ask("check", READY_TIMEOUT_S))
            if wrong:
                self.log(f"{name}: {wrong} wrong elements in {cell}")
            first = min(slowest_ns(one.ask("time 0 1 2", self.effort.patience_s), 1))
            if first > 1e6:
                return first, wrong
            calls = max(2, int(2e6 / max(first, 1e3)))
            command = f"time 1 {calls} 3"
            return min(slowest_ns(one.ask(command, self.effort.patience_s), calls)), wrong

        result = self._try(name, act)
        return self.absent[name] if result is None else result

    def _time(self, cell: Cell, plans: dict[str, Turn]) -> dict[str, Samples]:
        samples = {name: Samples(calls=turn.calls) for name, turn in plans.items()}
        begin = time.monotonic()
        enough_s = self.effort.cell_s * len(plans)
        for number, order in enumerate(turns(list(plans), self.effort.rounds)):
            if number >= ROUNDS_MIN and time.monotonic() - begin > enough_s:
                break
            for name in order:
                turn, taken = plans[name], samples[name]
                spent_s = sum(map(sum, taken.rounds)) * turn.calls / 1e9
                slow = spent_s > SLOW_CELL_S and len(taken.rounds) >= SLOW_ROUNDS
                if slow or name not in self.running:
                    continue
                answers = self._try(
                    name, lambda one, turn=turn: one.ask(turn.command(), self.effort.patience_s)
                )
                if answers is not None:
                    samples[name].rounds.append(slowest_ns(answers, turn.calls))
        return samples
