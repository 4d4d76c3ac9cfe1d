# SPDX-License-Identifier: MIT
"""Contenders that stay in processes of their own and take turns, so that a drift hits all alike.

Each contender has its own rank processes, with its own environment, and keeps them for the whole
run: nothing that one leaves behind (threads, memory, caches of an allocator) reaches another.
While one works, the others are blocked in a socket. The order of turns is reversed after every
round (A B, B A, ...).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycomm.bench.ranks import Context, run_ranks

if TYPE_CHECKING:
    import torch.distributed as dist

PATIENCE = timedelta(seconds=600)  # for one's turn


@dataclass(frozen=True)
class Contender:
    """One of those compared.

    Attributes:
        name: Its column in the results.
        backend: What init_process_group is given; "" for a contender without a group.
        environment: Variables that its processes have besides those of the parent.
    """

    name: str
    backend: str
    environment: Mapping[str, str] = field(default_factory=dict)


def contender_of(text: str) -> Contender:
    """Reads NAME=BACKEND[,VARIABLE=VALUE...], NAME= for one without a group, or a bare backend."""
    name, given, rest = text.partition("=")
    backend, *settings = rest.split(",") if given else [name]
    return Contender(name, backend, dict(setting.split("=", 1) for setting in settings))


class Seat:
    """One rank of one contender, as its process sees it: when it is its turn."""

    def __init__(self, context: Context, contenders: Sequence[Contender], world: int) -> None:
        """Finds the store; connects nothing else."""
        import torch.distributed as dist

        self.contender = contenders[context.rank // world]
        self.rank, self.world = context.rank % world, world
        self._place, self._places = context.rank // world, len(contenders)
        self._context = context
        self.root_store = dist.TCPStore(
            "127.0.0.1", context.store_port, is_master=False, timeout=PATIENCE
        )
        self._turns = dist.PrefixStore("turns", self.root_store)

    def store(self) -> dist.Store:
        """A store for this contender's process group."""
        import torch.distributed as dist

        return dist.PrefixStore(f"contender{self._place}", self.root_store)

    def turns(self, rounds: int, start_when: Path | None = None) -> Iterator[int]:
        """Yields the number of each round when it is this contender's turn in it. Blocks.

        Before round 1 all wait until the file `start_when` exists, if it is given: round 0, set-up,
        can then be over before the machine is made quiet. Ends when everybody's last turn is over:
        a process that exits would take the cores from those that are still measuring.
        """
        last = rounds * self._places - 1
        for number in range(rounds):
            order = range(self._places) if number % 2 == 0 else range(self._places)[::-1]
            turn = number * self._places + order.index(self._place)
            self._context.step(f"{self.contender.name}, waiting for round {number}")
            if turn:
                self._turns.wait([f"begin{turn}"], PATIENCE)
            if turn == self._places and start_when:
                self._hold(start_when)
            self._context.step(f"{self.contender.name}, round {number}")
            yield number
            if self._turns.add(f"ended{turn}", 1) == self.world:
                self._turns.set(f"begin{turn + 1}" if turn < last else "over", "")
        self._context.step(f"{self.contender.name}, waiting for the last turn")
        self._turns.wait(["over"], PATIENCE)

    def _hold(self, start_when: Path) -> None:
        """Waits for the file, on every rank of the contender that begins round 1."""
        if self.rank == 0:
            print(f"ready, waiting for {start_when}", flush=True)
        while not start_when.exists():
            self._context.step(f"waiting for {start_when}")
            time.sleep(0.1)

    def emit(self, value: Mapping[str, Any]) -> None:
        """Hands results to the parent process, with whose they are."""
        self._context.emit({"contender": self.contender.name, "rank": self.rank, **value})


def take_turns(
    contenders: Sequence[Contender],
    world: int,
    entry: Callable[..., None],
    arguments: tuple[object, ...] = (),
    timeout_s: float = 120.0,
    preload: Sequence[str] | None = None,
    pin: bool = False,
) -> list[dict[str, Any]]:
    """Runs ``entry(context, contenders, world, *arguments)`` on `world` processes per contender.

    Args:
        contenders: Who takes part, in the order of the first round.
        world: Ranks of each.
        entry: At module level; makes a `Seat` and works when `Seat.turns` yields.
        arguments: Passed on; picklable.
        timeout_s: Seconds without a sign of progress from anybody after which the run is ended.
        pin: Bind every rank, with all its threads, to one core; ranks of a contender to different
            ones as far as there are any.
        preload: See run_ranks; then no contender may have an environment of its own.

    Returns:
        What the ranks emitted.

    Raises:
        pycomm.bench.ranks.RankError: A rank raised, died or hung.
    """
    environments = [one.environment for one in contenders for _ in range(world)]
    return list(
        run_ranks(
            world * len(contenders),
            entry,
            (tuple(contenders), world, *arguments),
            timeout_s=timeout_s,
            environments=environments,
            preload=preload,
            pin=pin,
        )
    )
