# SPDX-License-Identifier: MIT
"""Starts the ranks of one fault test as real processes, watches, stops and kills them.

    with Ranks(4, "all_reduce", options={"algorithm": "ring"}) as ranks:
        killed_at = ranks.kill(2)
        report = ranks.wait_for(0, "raised")

Ranks report to one file each, a JSON record a line, with the time of CLOCK_MONOTONIC, which all
processes of a machine share.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from machine_clock import MachineClock

_HERE = Path(__file__).parent
_PATIENCE_S = 30.0

Record = dict[str, Any]


def seconds(record: Record, since: float | None = None) -> float:
    """From `since`, by default from when its call began, to a record, by the machine's clock."""
    begin = record["at"] - record["took"] if since is None else since
    return MachineClock.shared().took(begin, record["at"])


class Starter:
    """One zygote, and what it said about the processes it forked."""

    _one: Starter | None = None

    @classmethod
    def shared(cls) -> Starter:
        if cls._one is None or cls._one._process.poll() is not None:
            cls._one = cls()
            atexit.register(cls._one.stop)
        return cls._one

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_HERE / "fault_zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        os.set_blocking(self._process.stdout.fileno(), False)
        self._unread = b""
        self._started: list[int] = []
        self.status: dict[int, int] = {}
        self.store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        self.groups = 0

    def stop(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.stdout.close()

    def launch(self, job: Record) -> int:
        self._process.stdin.write((json.dumps(job) + "\n").encode())
        give_up = time.monotonic() + _PATIENCE_S
        while not self._started:
            self.read()
            assert time.monotonic() < give_up, "the zygote does not answer"
            time.sleep(0.001)
        return self._started.pop()

    def read(self) -> None:
        """Takes in what the zygote has said since."""
        assert self._process.poll() is None, "the zygote died"
        piece = self._process.stdout.read(65536)
        *lines, self._unread = (self._unread + (piece or b"")).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "pid" in said:
                self._started.append(said["pid"])
            else:
                self.status[said["exited"]] = said["status"]


class Ranks:
    """The ranks of one group, numbered 0 to world_size - 1; ranks in `absent` are not started."""

    def __init__(
        self,
        world_size: int,
        scenario: str,
        *,
        options: Record | None = None,
        per_rank: dict[int, Record] | None = None,
        env: dict[str, str] | None = None,
        absent: tuple[int, ...] = (),
        **args: Any,
    ) -> None:
        self.world_size = world_size
        self.dir = Path(tempfile.mkdtemp(prefix="faults-"))
        MachineClock.shared()
        self._starter = Starter.shared()
        self._starter.groups += 1
        self.pids: dict[int, int] = {}
        self._jobs: dict[int, Record] = {}
        for rank in range(world_size):
            own = (per_rank or {}).get(rank, {})
            self._jobs[rank] = {
                "scenario": scenario,
                "rank": rank,
                "world_size": world_size,
                "dir": str(self.dir),
                "store": [self._starter.store.port, f"group{self._starter.groups}"],
                "options": {**(options or {}), **own.get("options", {})},
                "env": {**(env or {}), **own.get("env", {})},
                "args": {**args, **own.get("args", {})},
            }
        self._absent = absent

    def __enter__(self) -> Ranks:
        for rank in range(self.world_size):
            if rank not in self._absent:
                self.start(rank)
        return self

    def start(self, rank: int) -> None:
        self.pids[rank] = self._starter.launch(self._jobs[rank])

    def __exit__(self, kind: Any, *_: Any) -> None:
        for rank in self.pids:
            if self.status(rank) is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pids[rank], signal.SIGKILL)
        for rank in self.pids:
            self._until(lambda rank=rank: self.status(rank) is not None, f"rank {rank} to end")
        if kind is not None:
            self._show()
        shutil.rmtree(self.dir, ignore_errors=True)

    def _show(self) -> None:
        for file in sorted(self.dir.glob("rank*")):
            print(f"--- {file.name} ---\n{file.read_text()[-3000:]}")

    @property
    def store(self) -> dist.Store:
        """The store of the scenario's own signals, see Rank.wait_for_go."""
        return dist.PrefixStore(f"{self.group_name}-test", self.root_store)

    @property
    def root_store(self) -> dist.Store:
        return self._starter.store

    @property
    def group_name(self) -> str:
        return str(self._jobs[0]["store"][1])

    def go(self, what: str = "go") -> None:
        self.store.set(what, "1")

    def status(self, rank: int) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        self._starter.read()
        return self._starter.status.get(self.pids[rank])

    def reports(self, rank: int, event: str | None = None) -> list[Record]:
        path = self.dir / f"rank{rank}.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().split("\n")[:-1]
        records = [json.loads(line) for line in lines]
        return [one for one in records if event in (None, one["event"])]

    def wait_for(self, rank: int, event: str, patience: float = _PATIENCE_S) -> Record:
        self._until(
            lambda: self.reports(rank, event) or self.status(rank) is not None,
            f"{event} of rank {rank}",
            patience,
        )
        found = self.reports(rank, event)
        assert found, (
            f"rank {rank} ended with {self.status(rank)} without {event}: {self.reports(rank)}"
        )
        return found[0]

    def wait_all(self, event: str, *, but: tuple[int, ...] = ()) -> dict[int, Record]:
        others = [r for r in self.pids if r not in but]
        return {rank: self.wait_for(rank, event) for rank in others}

    def join(self, patience: float = _PATIENCE_S) -> dict[int, int | None]:
        """Waits until every process has ended; their statuses."""
        self._until(lambda: all(self.status(r) is not None for r in self.pids), "the end", patience)
        return {rank: self.status(rank) for rank in self.pids}

    def wait_ended(self, rank: int) -> None:
        self._until(lambda: self.status(rank) is not None, f"rank {rank} to end")

    def wait_stopped(self, rank: int) -> None:
        self._until(lambda: self._state(rank) in "TZX", f"rank {rank} to stop")
        assert self._state(rank) == "T", f"rank {rank} ended: {self.reports(rank)}"

    def _state(self, rank: int) -> str:
        try:
            stat = Path(f"/proc/{self.pids[rank]}/stat").read_text()
        except FileNotFoundError:
            return "X"
        return stat.rpartition(")")[2].split()[0]

    def signal(self, rank: int, number: int) -> float:
        """Sends the signal; the time just before."""
        at = time.monotonic()
        os.kill(self.pids[rank], number)
        return at

    def kill(self, rank: int) -> float:
        return self.signal(rank, signal.SIGKILL)

    def _until(self, condition: Any, what: str, patience: float = _PATIENCE_S) -> None:
        give_up = time.monotonic() + patience
        while not condition():
            if time.monotonic() > give_up:
                said = {rank: self.reports(rank) for rank in self.pids}
                raise AssertionError(f"waited {patience} s for {what}; reports: {said}")
            time.sleep(0.002)
