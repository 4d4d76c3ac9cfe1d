# SPDX-License-Identifier: MIT
"""One rank of a contender in Python: answers the coordinator's lines, as rank.h does in C++."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from benchmarks.peers import elements
from benchmarks.peers.cells import Cell

PR_SET_PDEATHSIG = 1
IN_PLACE = ("all_reduce", "broadcast", "barrier")


class Unsupported(Exception):
    """This contender has no such collective or dtype."""


class Contender(ABC):
    """What a library must offer to be timed."""

    version = ""

    @abstractmethod
    def allocate(self, dtype: str, count: int) -> tuple[Any, Any]:
        """The library's array of `count` zeros, and the same memory as words (elements.py)."""

    @abstractmethod
    def bind(self, cell: Cell, source: Any, target: Any) -> Callable[[], object]:
        """The call to time, on these arrays; source is target where the cell is in place.

        Raises:
            Unsupported: It cannot be called so.
        """

    @abstractmethod
    def barrier(self) -> None:
        """Of the same library."""


def pin_in_turn(rank: int) -> None:
    """Pins this process to the core that is rank's, the usable ones in turn."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})


def fork_ranks(world: int, body: Callable[[int], None]) -> int:
    """Runs body(rank) in `world` processes, pinned unless PEERS_PIN=0; an exit code."""
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        code = 1
        try:
            if os.environ.get("PEERS_PIN") != "0":
                pin_in_turn(rank)
            body(rank)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)


class Session:
    """The lines of one rank; run() returns when the coordinator is done or gone."""

    def __init__(self, contender: Contender, rank: int, world: int) -> None:
        self.contender, self.rank, self.world = contender, rank, world
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.connect(os.environ["PEERS_SOCKET"])

    def answer(self, text: str) -> None:
        """One line to the coordinator."""
        self.connection.sendall(text.encode() + b"\n")

    def run(self) -> None:
        """Until `end` or the end of the connection."""
        self.answer(f"hello {self.rank} {self.world} {os.getpid()} {self.contender.version}")
        with self.connection.makefile("r") as lines:
            for line in lines:
                words = line.split()
                if not words or words[0] == "end":
                    return
                if words[0] == "cell":
                    self.set_cell(Cell(words[1], int(words[3]), words[2], self.world))
                elif words[0] == "check":
                    self.answer(f"wrong {self.check()}")
                elif words[0] == "time":
                    self.time(*(int(word) for word in words[1:]))

    def set_cell(self, cell: Cell) -> None:
        """Memory for one cell, written once."""
        self.source = self.target = self.call = None  # frees the last one's first
        self.cell = cell
        count, block = cell.bytes // elements.ITEMSIZES[cell.dtype], elements.block_of(cell)
        reads = block if cell.collective == "all_gather" else count
        writes = block if cell.collective == "reduce_scatter" else count
        try:
            self.source = self.contender.allocate(cell.dtype, reads)
            self.target = self.source
            if cell.collective not in IN_PLACE:
                self.target = self.contender.allocate(cell.dtype, writes)
            self.call = self.contender.bind(cell, self.source[0], self.target[0])
        except Unsupported as error:
            return self.answer(f"no {error}")
        return self.answer("ok")

    def check(self) -> int:
        """Wrong elements in the result of one call on fresh inputs; zeros afterwards."""
        if self.cell.collective == "barrier":
            self.call()
            return 0
        self.source[1][:] = elements.inputs(self.cell, self.rank)
        self.contender.barrier()
        self.call()
        wrong = int((self.target[1] != elements.outputs(self.cell, self.rank)).sum())
        self.contender.barrier()
        self.source[1][:] = 0
        self.target[1][:] = 0
        return wrong

    def time(self, warm: int, calls: int, samples: int) -> None:
        """Untimed calls, then samples: a barrier, then calls back to back."""
        call, now = self.call, time.perf_counter_ns
        for _ in range(warm):
            call()
        times = []
        for _ in range(samples):
            self.contender.barrier()
            begin = now()
            for _ in range(calls):
                call()
            times.append(now() - begin)
        self.answer("times " + " ".join(str(one) for one in times))
